"""Files as parameters: found by name within the roots, known by the digest of what they hold now."""

import hashlib
import os
import shutil
import threading
import time
from dataclasses import dataclass

import pytest

from engine import content, listing
from engine.content import DigestMemory
from engine.errors import FileChanged, FileError
from engine.file import File, Files, ModelFile
from engine.listing import RACY_NS


@pytest.fixture
def root(tmp_path):
    """A folder that files are searched in, next to one that is none of their business."""
    made = tmp_path / "root"
    made.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (made / "fox.txt").write_text("fox")
    (made / "owl.txt").write_text("owl")
    return made


@pytest.fixture
def served(root):
    """As a server searches: within the roots alone."""
    return Files([root], anywhere=False)


@dataclass(frozen=True, slots=True)
class Hat(File):
    """A kind with a folder of its own."""

    kind = "hat"
    folder = "hats"
    suffixes = (".hat", ".cap")


@dataclass(frozen=True, slots=True)
class Shelf(ModelFile):
    """A kind of folder with a folder of its own."""

    kind = "shelf"
    folder = "shelves"


def digest_of(data):
    return hashlib.sha256(data).digest()


def age(path, seconds=10):
    """Let a file look as if it had been left alone for a while; its clock cannot be set back any other way."""
    past = time.time_ns() - seconds * 1_000_000_000
    os.utime(path, ns=(past, past))


class TestDigest:
    def test_a_file_is_known_by_the_sha256_of_its_content(self, served):
        assert served.resolve(File, "fox.txt").digest == digest_of(b"fox")

    def test_another_name_for_the_same_content_is_the_same(self, served, root):
        (root / "copy.txt").write_text("fox")
        assert served.resolve(File, "copy.txt").digest == served.resolve(File, "fox.txt").digest

    def test_touching_a_file_changes_nothing(self, served, root):
        before = served.resolve(File, "fox.txt")
        age(root / "fox.txt")
        assert served.resolve(File, "fox.txt") == before

    def test_replaced_content_under_the_same_name_is_something_else(self, served, root):
        before = served.resolve(File, "fox.txt").digest
        (root / "fox.txt").write_text("FOX")
        assert served.resolve(File, "fox.txt").digest == digest_of(b"FOX") != before

    def test_a_file_put_in_place_of_another_is_noticed(self, served, root):
        before = served.resolve(File, "fox.txt").digest
        (root / "owl.txt").replace(root / "fox.txt")
        assert served.resolve(File, "fox.txt").digest == digest_of(b"owl") != before

    def test_an_empty_file_is_a_file(self, served, root):
        (root / "empty.txt").touch()
        assert served.resolve(File, "empty.txt").digest == digest_of(b"")

    def test_it_arrives_with_its_name_and_its_place(self, served, root):
        found = served.resolve(File, "fox.txt")
        assert (found.name, found.path, found.read()) == ("fox.txt", root / "fox.txt", b"fox")


class Notebook(DigestMemory):
    """Counts what was remembered."""

    def __init__(self):
        super().__init__()
        self.written = 0

    def put(self, stamp, value):
        self.written += 1
        super().put(stamp, value)


class TestMemory:
    @pytest.fixture
    def notebook(self, served):
        made = Notebook()
        served.remember_in(made)
        return made

    def test_a_file_left_alone_is_read_once(self, served, root, notebook, monkeypatch):
        self.later(monkeypatch)
        served.resolve(File, "fox.txt")
        reads = []
        monkeypatch.setattr(content.hashlib, "file_digest", lambda *_: reads.append(1))
        assert served.resolve(File, "fox.txt").digest == digest_of(b"fox")
        assert (notebook.written, reads) == (1, [])

    def test_a_file_touched_just_now_is_read_again_each_time(self, served, notebook):
        for _ in range(2):
            served.resolve(File, "fox.txt")
        assert notebook.written == 0

    def test_a_rewrite_of_the_same_size_within_one_tick_of_the_clock_is_noticed(
        self, served, root, notebook, monkeypatch
    ):
        """The file system's clock stands still: path, inode, size and times stay as they were."""
        real = content.stamp
        frozen = real(root / "fox.txt")[3:]
        monkeypatch.setattr(content, "stamp", lambda path: (*real(path)[:3], *frozen))
        before = served.resolve(File, "fox.txt").digest
        (root / "fox.txt").write_text("FOX")
        assert content.stamp(root / "fox.txt")[3:] == frozen
        assert served.resolve(File, "fox.txt").digest == digest_of(b"FOX") != before

    def test_a_file_written_while_it_is_digested_for_long_is_not_remembered(self, served, root, notebook, monkeypatch):
        """A large file begun right after it was written, and finished when the racy window is long over."""
        clock = [(root / "fox.txt").stat().st_mtime_ns + 1]
        real = content.hashlib.file_digest

        def slow(stream, kind):
            clock[0] += 10 * RACY_NS
            return real(stream, kind)

        monkeypatch.setattr(content.time, "time_ns", lambda: clock[0])
        monkeypatch.setattr(content.hashlib, "file_digest", slow)
        served.resolve(File, "fox.txt")
        assert notebook.written == 0

    def test_a_file_that_changes_under_the_reader_is_not_remembered(self, served, root, notebook, monkeypatch):
        self.later(monkeypatch)
        real = content.hashlib.file_digest

        def slow(stream, kind):
            found = real(stream, kind)
            (root / "fox.txt").write_text("longer than before")
            return found

        monkeypatch.setattr(content.hashlib, "file_digest", slow)
        served.resolve(File, "fox.txt")
        assert notebook.written == 0

    def test_a_change_of_time_alone_is_looked_into(self, served, root, notebook, monkeypatch):
        self.later(monkeypatch)
        served.resolve(File, "fox.txt")
        age(root / "fox.txt")
        served.resolve(File, "fox.txt")
        assert notebook.written == 2

    def test_a_clock_in_the_future_is_never_trusted(self, served, root, notebook):
        age(root / "fox.txt", seconds=-1000)
        served.resolve(File, "fox.txt")
        assert notebook.written == 0

    def later(self, monkeypatch):
        """Everything that is on disk was written a while ago."""
        now = time.time_ns()
        monkeypatch.setattr(content.time, "time_ns", lambda: now + 10 * RACY_NS)


class TestFolders:
    @pytest.fixture
    def model(self, root):
        made = root / "model"
        (made / "unet").mkdir(parents=True)
        (made / "model_index.json").write_text("{}")
        (made / "unet" / "weights.safetensors").write_bytes(b"weights")
        return made

    def digest(self, root):
        return Files([root]).resolve(ModelFile, "model").digest

    def test_a_model_may_be_a_folder_or_a_file(self, root, model):
        files = Files([root])
        assert files.resolve(ModelFile, "model").path == model
        assert files.resolve(ModelFile, "model/unet/weights.safetensors").digest == digest_of(b"weights")

    @pytest.mark.parametrize("name", ["model", ".", "models"])
    def test_a_folder_without_the_file_that_marks_a_model_is_none(self, served, root, model, name):
        """Whoever names a folder of models does not have all of them digested."""
        (model / "model_index.json").rename(model / "unet" / "model_index.json")
        (root / "models").mkdir()
        said = f"^{name!r} is a folder without config.json or model_index.json, so it is no model; name what is in it$"
        with pytest.raises(FileError, match=said):
            served.resolve(ModelFile, name)

    def test_a_folder_is_no_plain_file(self, root, model):
        with pytest.raises(FileError, match="no file 'model'"):
            Files([root]).resolve(File, "model")

    def test_a_folder_is_known_by_what_it_holds(self, root, model):
        before = self.digest(root)
        shutil.copytree(model, root / "copy")
        shutil.rmtree(model)
        (root / "copy").rename(model)
        assert self.digest(root) == before

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: (model / "unet" / "weights.safetensors").write_bytes(b"WEIGHTS"),
            lambda model: (model / "unet" / "weights.safetensors").rename(model / "unet" / "other.safetensors"),
            lambda model: (model / "unet").rename(model / "vae"),
            lambda model: (model / "vocab.txt").write_text("a"),
            lambda model: (model / "unet" / "weights.safetensors").unlink(),
        ],
        ids=["content", "name", "folder", "more", "less"],
    )
    def test_any_change_within_makes_it_another(self, root, model, change):
        before = self.digest(root)
        change(model)
        assert self.digest(root) != before

    def test_what_is_no_part_of_a_model_is_left_out(self, root, model):
        before = self.digest(root)
        (model / "README.md").write_text("read me")
        (model / ".cache").write_text("anything")
        assert self.digest(root) == before

    def test_content_cannot_move_between_files_unnoticed(self, root, model):
        (model / "a.txt").write_text("ab")
        (model / "b.txt").write_text("c")
        before = self.digest(root)
        (model / "a.txt").write_text("a")
        (model / "b.txt").write_text("bc")
        assert self.digest(root) != before


class TestSearch:
    def test_roots_are_searched_in_order(self, tmp_path, root):
        (tmp_path / "second").mkdir()
        for name in ("fox.txt", "elk.txt"):
            (tmp_path / "second" / name).write_text("second")
        files = Files([root, tmp_path / "second"])
        assert files.resolve(File, "fox.txt").read() == b"fox"
        assert files.resolve(File, "elk.txt").read() == b"second"

    def test_a_folder_within_a_root_is_searched_by_path(self, served, root):
        (root / "animals").mkdir()
        (root / "animals" / "elk.txt").write_text("elk")
        assert served.resolve(File, "animals/elk.txt").read() == b"elk"

    def test_a_person_at_the_command_line_may_name_any_file(self, root, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        files = Files([root])
        for name in ("secret.txt", "./secret.txt", str(tmp_path / "secret.txt"), "~/secret.txt", "root/../secret.txt"):
            assert files.resolve(File, name).read() == b"secret"

    @pytest.mark.parametrize(
        ("name", "within"), [("fox.txt", True), ("../secret.txt", True), ("~/secret.txt", False), ("/", False)]
    )
    def test_a_file_knows_the_root_that_its_name_leads_from(self, root, tmp_path, monkeypatch, name, within):
        monkeypatch.setenv("HOME", str(tmp_path))
        found = Files([root]).resolve(File, str(root / "fox.txt") if name == "/" else name)
        assert found.root == (root if within else None)

    def test_models_may_have_names_of_their_own(self, root, tmp_path):
        files = Files([root], named={"pocket": tmp_path / "secret.txt"}, anywhere=False)
        assert files.resolve(ModelFile, "pocket").read() == b"secret"
        with pytest.raises(FileError):
            files.resolve(File, "pocket")

    @pytest.mark.parametrize(
        "name",
        ["", "fox", "a\0b", "fox.txt/x", "x" * 300, "x/" * 3000, "\ud800", "~nobody-here/fox.txt", "loop"],
    )
    @pytest.mark.parametrize("anywhere", [True, False])
    def test_whatever_the_name_only_a_file_error_comes_out(self, root, name, anywhere):
        (root / "loop").symlink_to("loop")
        for kind in (File, ModelFile):
            with pytest.raises(FileError):
                Files([root], anywhere=anywhere).resolve(kind, name)

    def test_a_near_miss_gets_a_guess(self, served):
        with pytest.raises(FileError, match=r"^no file 'fix\.txt', did you mean 'fox\.txt'\?$"):
            served.resolve(File, "fix.txt")

    def test_a_named_model_is_guessed_too(self, root):
        with pytest.raises(FileError, match=r"^no model 'poket', did you mean 'pocket'\?$"):
            Files([root], named={"pocket": root}).resolve(ModelFile, "poket")

    def test_a_far_miss_is_told_where_it_was_looked_for(self, served, root):
        with pytest.raises(FileError, match=rf"^no file 'zzzzzzzz' \(searched {root}\)$"):
            served.resolve(File, "zzzzzzzz")

    def test_a_root_that_is_not_there_holds_nothing(self, root):
        assert Files([root / "nowhere", root]).resolve(File, "fox.txt").read() == b"fox"


class TestEscape:
    """With `anywhere=False` nothing outside the roots can be named."""

    @pytest.mark.parametrize("name", ["../secret.txt", "a/../../secret.txt", "./../secret.txt", "~/secret.txt", ".."])
    def test_a_path_that_leads_out_is_not_followed(self, served, root, name, monkeypatch):
        (root / "a").mkdir()
        monkeypatch.chdir(root)
        monkeypatch.setenv("HOME", str(root.parent))
        for kind in (File, ModelFile):
            with pytest.raises(FileError):
                served.resolve(kind, name)

    def test_an_absolute_path_is_not_followed(self, served, tmp_path):
        with pytest.raises(FileError):
            served.resolve(File, str(tmp_path / "secret.txt"))

    def test_the_current_folder_is_not_searched(self, served, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileError):
            served.resolve(File, "secret.txt")

    def test_a_link_to_a_file_outside_is_not_followed(self, served, root, tmp_path):
        (root / "door.txt").symlink_to(tmp_path / "secret.txt")
        with pytest.raises(FileError):
            served.resolve(File, "door.txt")

    def test_a_link_to_a_folder_outside_is_not_followed(self, served, root, tmp_path):
        (root / "door").symlink_to(tmp_path)
        for kind, name in ((File, "door/secret.txt"), (ModelFile, "door")):
            with pytest.raises(FileError):
                served.resolve(kind, name)

    def test_a_link_within_the_roots_is_followed(self, served, root):
        (root / "alias.txt").symlink_to(root / "fox.txt")
        assert served.resolve(File, "alias.txt").read() == b"fox"

    def test_a_root_may_itself_be_a_link(self, root, tmp_path):
        (tmp_path / "alias").symlink_to(root)
        assert Files([tmp_path / "alias"], anywhere=False).resolve(File, "fox.txt").read() == b"fox"

    def test_an_absolute_path_into_a_root_is_within_it(self, served, root):
        assert served.resolve(File, str(root / "fox.txt")).read() == b"fox"


class TestChanged:
    """What a loader reads is what the plan digested, or nothing."""

    def test_a_file_that_was_rewritten_is_not_read(self, served, root):
        found = served.resolve(File, "fox.txt")
        (root / "fox.txt").write_text("FOX")
        with pytest.raises(FileChanged, match=r"fox\.txt changed while the graph ran"):
            found.read()

    def test_a_file_that_is_gone_is_not_read(self, served, root):
        found = served.resolve(File, "fox.txt")
        (root / "fox.txt").unlink()
        with pytest.raises(FileChanged, match=r"fox\.txt"):
            found.read()

    def test_a_digest_leads_to_where_it_was_seen(self, served, root):
        found = served.resolve(File, "fox.txt")
        assert served.locate(found.digest) == root / "fox.txt"

    def test_a_digest_that_nobody_resolved_leads_nowhere(self, served):
        with pytest.raises(FileChanged, match="no file with digest 00000000"):
            served.locate(bytes(32))

    @pytest.mark.parametrize("change", [lambda path: path.write_text("FOX"), lambda path: path.unlink()])
    def test_a_digest_does_not_lead_to_something_else(self, served, root, change):
        found = served.resolve(File, "fox.txt")
        change(root / "fox.txt")
        with pytest.raises(FileChanged):
            served.locate(found.digest)

    def test_a_change_within_a_model_folder_is_noticed(self, root):
        (root / "model").mkdir()
        (root / "model" / "config.json").write_text("{}")
        files = Files([root])
        found = files.resolve(ModelFile, "model")
        files.verify(found.path, found.digest)
        (root / "model" / "config.json").write_text("[]")
        with pytest.raises(FileChanged):
            files.verify(found.path, found.digest)


def test_a_model_folder_behind_a_link_is_part_of_the_digest(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model" / "vae").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "model")
    digests = set()
    for said in ("one", "two"):
        (tmp_path / "elsewhere" / "config.json").write_text(said)
        digests.add(Files([tmp_path]).resolve(ModelFile, "model").digest)
    assert len(digests) == 2


def test_a_file_verifies_that_it_is_what_was_planned(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("one")
    found = Files([tmp_path]).resolve(ModelFile, "model")
    found.verify()
    (tmp_path / "model" / "config.json").write_text("two")
    with pytest.raises(FileChanged):
        found.verify()


class TestKinds:
    """A kind of file may have a folder of its own in each root, and endings that a name leaves out."""

    @pytest.fixture
    def hats(self, root):
        for name in ("hats/top.hat", "hats/straw.cap", "hats/old/bowler.hat", "hats/old/top.hat", "flat.hat"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name)
        return root / "hats"

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("top", "hats/top.hat"),
            ("top.hat", "hats/top.hat"),
            ("straw", "hats/straw.cap"),
            ("old/top", "hats/old/top.hat"),
            ("bowler", "hats/old/bowler.hat"),
            ("hats/top.hat", "hats/top.hat"),
            ("flat", "flat.hat"),
        ],
    )
    def test_it_is_found_there_first_by_its_name_and_then_by_its_path(self, served, root, hats, name, found):
        made = served.resolve(Hat, name)
        assert (type(made), made.name, made.path, made.root, made.read()) == (
            Hat, name, root / found, root, found.encode()
        )  # fmt: skip

    def test_the_ending_that_is_listed_first_counts(self, served, hats):
        (hats / "straw.hat").write_text("first")
        assert served.resolve(Hat, "straw").read() == b"first"

    def test_the_first_root_counts(self, hats, tmp_path):
        (tmp_path / "more" / "hats").mkdir(parents=True)
        (tmp_path / "more" / "hats" / "top.hat").write_text("more")
        files = Files([tmp_path / "more", hats.parent], anywhere=False)
        assert files.resolve(Hat, "top").read() == b"more"
        assert files.names(Hat)["top"] == tmp_path / "more" / "hats" / "top.hat"

    def test_all_names_are_listed_without_their_endings(self, served, hats):
        (hats / "notes.txt").write_text("no hat")
        assert {name: path.name for name, path in served.names(Hat).items()} == {
            "top": "top.hat",
            "straw": "straw.cap",
            "old/bowler": "bowler.hat",
            "old/top": "top.hat",
        }

    def test_a_kind_without_a_folder_has_no_names(self, served):
        assert served.names(File) == {}

    def test_a_name_that_several_files_have_further_down_is_refused(self, served, hats):
        (hats / "new").mkdir()
        (hats / "new" / "bowler.hat").write_text("new")
        with pytest.raises(FileError, match="2 files are called 'bowler': write new/bowler or old/bowler"):
            served.resolve(Hat, "bowler")

    def test_a_folder_may_stand_for_a_file_of_such_a_kind(self, served, root):
        (root / "shelves" / "high").mkdir(parents=True)
        (root / "shelves" / "high" / "config.json").write_text("{}")
        assert served.resolve(Shelf, "high").path == root / "shelves" / "high"
        assert list(served.names(Shelf)) == ["high"]

    def test_a_near_miss_gets_a_guess(self, served, hats):
        with pytest.raises(FileError, match=r"^no hat 'tob', did you mean 'top'\?$"):
            served.resolve(Hat, "tob")

    @pytest.mark.parametrize("name", ["", "top/x", "a\0b", "x" * 300, "x/" * 3000, "\ud800", "loop", ".", "~"])
    @pytest.mark.parametrize("anywhere", [True, False])
    def test_whatever_the_name_only_a_file_error_comes_out(self, hats, name, anywhere):
        (hats / "loop").symlink_to("loop")
        files = Files([hats.parent], anywhere=anywhere)
        for find in (files.find, files.find_mentioned):
            with pytest.raises(FileError):
                find(Hat, name)

    def test_a_circle_of_links_is_walked_once(self, served, hats):
        (hats / "old" / "circle").symlink_to(hats)
        assert served.resolve(Hat, "bowler").read() == b"hats/old/bowler.hat"

    @pytest.mark.parametrize("anywhere", [True, False])
    def test_a_folder_that_is_a_circle_of_links_is_empty(self, root, anywhere):
        (root / "hats").symlink_to("hats")
        assert Files([root], anywhere=anywhere).names(Hat) == {}

    def test_more_files_than_can_be_looked_through_are_refused(self, served, hats, monkeypatch):
        monkeypatch.setattr(listing, "MAX_LISTED", 3)
        with pytest.raises(FileError, match="hats holds more than 3 files"):
            served.names(Hat)

    def test_links_that_lead_out_are_neither_listed_nor_followed(self, served, hats, tmp_path):
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "secret.hat").write_text("secret")
        (hats / "door").symlink_to(tmp_path / "outside")
        (hats / "window.hat").symlink_to(tmp_path / "outside" / "secret.hat")
        assert not {"door/secret", "window"} & served.names(Hat).keys()
        for name in ("secret", "door/secret", "window"):
            with pytest.raises(FileError):
                served.resolve(Hat, name)
        assert Files([hats.parent]).resolve(Hat, "secret").read() == b"secret"

    def test_a_folder_of_hats_that_is_itself_a_way_out_is_not_entered(self, root, tmp_path):
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "secret.hat").write_text("secret")
        (root / "hats").symlink_to(tmp_path / "outside")
        assert Files([root], anywhere=False).names(Hat) == {}
        with pytest.raises(FileError):
            Files([root], anywhere=False).resolve(Hat, "secret")


class TestMentioned:
    """What a text mentions lies in the folder of its kind, also where a person could name any file."""

    @pytest.mark.parametrize("anywhere", [True, False])
    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("../secret", "leads out of the folder hats/"),
            ("../../etc/passwd", "leads out of the folder hats/"),
            ("a/../../secret", "leads out of the folder hats/"),
            ("/etc/passwd", "leads out of the folder hats/"),
            ("flat", "no hat 'flat'"),
            ("~/flat", "no hat '~/flat'"),
            (".", "'.' is not the name of a hat"),
        ],
    )
    def test_nothing_else_is_found(self, root, monkeypatch, anywhere, name, problem):
        monkeypatch.chdir(root)
        monkeypatch.setenv("HOME", str(root))
        (root / "hats").mkdir()
        for place in (root / "flat.hat", root.parent / "secret.hat", root / "hats.hat"):
            place.write_text("secret")
        with pytest.raises(FileError, match=problem):
            Files([root], anywhere=anywhere).find_mentioned(Hat, name)

    def test_a_name_and_a_name_in_a_subfolder_are_found(self, served, root):
        (root / "hats" / "old").mkdir(parents=True)
        (root / "hats" / "old" / "top.hat").write_text("top")
        for name in ("top", "old/top"):
            assert served.find_mentioned(Hat, name).read() == b"top"


class TestPlaces:
    """More folders for the files of a kind, which need not lie in a root nor be called as the kind's folder is."""

    @pytest.fixture
    def shop(self, tmp_path):
        made = tmp_path / "shop" / "headwear"
        for name in ("top.hat", "felt/fedora.hat"):
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(f"shop {name}")
        return made

    @pytest.fixture
    def files(self, root, shop):
        (root / "hats").mkdir()
        return Files([root], places={"hats": [shop]}, anywhere=False)

    @pytest.mark.parametrize("name", ["fedora", "felt/fedora", "felt/fedora.hat"])
    def test_files_in_them_are_found_by_name_also_further_down(self, files, shop, name):
        for find in (files.find, files.find_mentioned):
            found = find(Hat, name)
            assert (found.name, found.path, found.root) == (name, shop / "felt/fedora.hat", None)

    def test_other_kinds_do_not_look_there(self, files):
        with pytest.raises(FileError):
            files.find(File, "top.hat")

    def test_roots_come_first_and_what_they_hide_is_listed(self, files, root, shop):
        (root / "hats/top.cap").write_text("root")
        assert files.find(Hat, "top").read() == b"root"
        assert files.names(Hat)["top"] == root / "hats/top.cap"
        assert list(files.listed(Hat).all) == [
            ("top", root / "hats/top.cap"),
            ("felt/fedora", shop / "felt/fedora.hat"),
            ("top", shop / "top.hat"),
        ]

    def test_a_place_comes_before_a_plain_path(self, files, root, shop):
        (root / "top.hat").write_text("plain")
        assert files.find(Hat, "top").path == shop / "top.hat"

    def test_places_are_searched_in_order(self, tmp_path, shop):
        (tmp_path / "top.hat").write_text("first")
        files = Files(places={"hats": [tmp_path, shop]})
        assert files.find(Hat, "top").read() == b"first"

    @pytest.mark.parametrize(
        "name", ["../secret", "../../secret.txt", "felt/../../secret", "/", "door/secret", "window"]
    )
    @pytest.mark.parametrize("find", ["find", "find_mentioned"])
    def test_nothing_leads_out_of_a_place(self, files, shop, tmp_path, name, find):
        for path in (shop.parent / "secret.hat", tmp_path / "outside" / "secret.hat"):
            path.parent.mkdir(exist_ok=True)
            path.write_text("secret")
        (shop / "door").symlink_to(tmp_path / "outside")
        (shop / "window.hat").symlink_to(tmp_path / "outside" / "secret.hat")
        for search in (files.find, files.find_mentioned):
            with pytest.raises(FileError):
                search(Hat, name)
        assert not {"door/secret", "window"} & files.names(Hat).keys()

    def test_a_place_may_itself_be_a_link(self, shop, tmp_path):
        (tmp_path / "alias").symlink_to(shop)
        assert Files(places={"hats": [tmp_path / "alias"]}, anywhere=False).find(Hat, "fedora").read()

    def test_a_folder_of_another_kind_within_a_place_is_not_listed_with_it(self, root, shop, tmp_path):
        for name in ("caps", "hats", "felt/wool"):
            (shop / name).mkdir()
            (shop / name / "other.hat").write_text(name)
        files = Files([shop], places={"hats": [shop], "caps": [shop / "felt/wool"]}, anywhere=False)
        assert [name for name, _ in files.listed(Hat).all] == ["other", "felt/fedora", "top"]

    def test_a_place_that_is_not_there_or_no_folder_holds_nothing(self, shop, tmp_path):
        files = Files(places={"hats": [tmp_path / "nowhere", shop / "top.hat", shop]})
        assert set(files.names(Hat)) == {"top", "felt/fedora"}
        assert files.find(Hat, "top").path == shop / "top.hat"

    def test_a_far_miss_is_told_of_all_places(self, files, root, shop):
        with pytest.raises(FileError, match=rf"^no hat 'zzzzzz' \(searched {root}/hats, {shop}\)$"):
            files.find(Hat, "zzzzzz")

    def test_a_root_may_be_a_single_file_which_has_no_other_name(self, root, tmp_path):
        (tmp_path / "other.txt").write_text("other")
        files = Files([root, tmp_path / "secret.txt", tmp_path / "gone.txt"], anywhere=False)
        assert files.find(File, "secret.txt").read() == b"secret"
        (root / "secret.txt").write_text("own")
        assert files.find(File, "secret.txt").read() == b"own"
        for name in ("other.txt", "../other.txt", "gone.txt", "secret", "secret.txt/../other.txt", "."):
            with pytest.raises(FileError):
                files.find(File, name)


class TestElsewhere:
    """A kind may know of names that no folder has."""

    @pytest.fixture
    def crate(self, tmp_path):
        """A kind that finds `ann/NAME` in a store of links to blobs, as hubs keep their files."""
        store = tmp_path / "store"
        (store / "blobs").mkdir(parents=True)

        @dataclass(frozen=True, slots=True)
        class Crate(ModelFile):
            kind = "crate"
            folder = "crates"

            @classmethod
            def elsewhere(cls, name):
                path = store / "snapshots" / name.removeprefix("ann/")
                return (path, store) if name.startswith("ann/") and path.is_dir() else None

            @classmethod
            def remedy(cls, name):
                return f"fetch {name} first" if "/" in name else ""

        return Crate

    def put(self, store, name, file, content):
        blob = store / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = store / "snapshots" / name / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))

    @pytest.mark.parametrize("anywhere", [True, False])
    def test_links_into_blobs_are_known_by_their_content(self, root, crate, tmp_path, anywhere):
        self.put(tmp_path / "store", "big", "config.json", b"{}")
        self.put(tmp_path / "store", "big", "unet/weights.safetensors", b"one")
        files = Files([root], anywhere=anywhere)
        before = files.find(crate, "ann/big")
        assert before.path == tmp_path / "store/snapshots/big"
        assert files.locate(before.digest) == before.path
        self.put(tmp_path / "store", "big", "unet/weights.safetensors", b"two")
        with pytest.raises(FileChanged):
            before.verify()
        with pytest.raises(FileChanged):
            files.locate(before.digest)
        assert files.find(crate, "ann/big").digest != before.digest
        self.put(tmp_path / "store", "big", "unet/weights.safetensors", b"one")
        assert files.find(crate, "ann/big").digest == before.digest

    def test_the_same_content_in_a_plain_folder_is_the_same(self, root, crate, tmp_path):
        self.put(tmp_path / "store", "big", "config.json", b"{}")
        (root / "crates/big").mkdir(parents=True)
        (root / "crates/big/config.json").write_bytes(b"{}")
        files = Files([root])
        assert files.find(crate, "ann/big").digest == files.find(crate, "big").digest

    def test_a_folder_of_that_name_comes_first(self, root, crate, tmp_path):
        self.put(tmp_path / "store", "big", "config.json", b"{}")
        (root / "crates/ann/big").mkdir(parents=True)
        (root / "crates/ann/big/config.json").write_text("mine")
        assert Files([root]).find(crate, "ann/big").path == root / "crates/ann/big"

    def test_a_service_does_not_follow_links_out_of_the_store(self, root, crate, tmp_path):
        self.put(tmp_path / "store", "big", "config.json", b"{}")
        (tmp_path / "store/snapshots/big/notes.txt").symlink_to(tmp_path / "secret.txt")
        assert Files([root]).find(crate, "ann/big")
        with pytest.raises(FileError):
            Files([root], anywhere=False).find(crate, "ann/big")

    def test_what_is_not_there_either_is_told_with_the_remedy(self, root, crate):
        with pytest.raises(FileError, match=r"^no crate 'ann/big' \(searched .*\); fetch ann/big first$"):
            Files([root]).find(crate, "ann/big")

    def test_it_is_not_asked_for_where_that_is_not_wanted(self, root, crate, tmp_path):
        self.put(tmp_path / "store", "big", "config.json", b"{}")
        with pytest.raises(FileError, match=r"^no crate 'ann/big' \(searched [^;]*\)$"):
            Files([root], elsewhere=False).find(crate, "ann/big")

    def test_a_text_cannot_mention_it(self, root, crate, tmp_path):
        self.put(tmp_path / "store", "big", "config.json", b"{}")
        with pytest.raises(FileError):
            Files([root]).find_mentioned(crate, "ann/big")


class TestMoved:
    """Content is what counts: where it lies, and under which name, may change between two looks."""

    def test_a_root_that_is_renamed_keeps_the_digests_of_its_files(self, root):
        before = Files([root]).find(File, "fox.txt").digest
        moved = root.rename(root.with_name("moved"))
        assert Files([moved]).find(File, "fox.txt").digest == before

    def test_content_that_moved_is_found_again_by_the_next_look(self, root, tmp_path):
        files = Files([root, tmp_path / "moved"])
        before = files.find(File, "fox.txt")
        root.rename(tmp_path / "moved")
        with pytest.raises(FileChanged):
            files.locate(before.digest)
        again = files.find(File, "fox.txt")
        assert (again.digest, files.locate(before.digest)) == (before.digest, tmp_path / "moved/fox.txt")

    def test_the_same_bytes_in_two_folders_are_one_and_either_may_go(self, root, tmp_path):
        (tmp_path / "more").mkdir()
        (tmp_path / "more/fox.txt").write_text("fox")
        files = Files([root, tmp_path / "more"])
        first, second = files.find(File, "fox.txt"), files.find(File, str(tmp_path / "more/fox.txt"))
        assert first.digest == second.digest
        first.path.unlink()
        assert files.find(File, "fox.txt").path == tmp_path / "more/fox.txt"
        assert files.locate(first.digest) == tmp_path / "more/fox.txt"
        second.verify()
        with pytest.raises(FileChanged):
            first.verify()

    def test_a_change_of_one_of_two_copies_does_not_touch_the_other(self, root, tmp_path):
        (root / "copy.txt").write_text("fox")
        files = Files([root])
        copy, original = files.find(File, "copy.txt"), files.find(File, "fox.txt")
        copy.path.write_text("FOX")
        assert files.locate(original.digest) == root / "fox.txt"
        assert files.find(File, "copy.txt").digest != original.digest

    def test_a_copy_is_read_where_the_one_seen_last_is_gone_or_changed(self, root):
        for name in ("first.txt", "second.txt", "third.txt"):
            (root / name).write_text("same")
        files = Files([root])
        (value,) = {files.find(File, name).digest for name in ("first.txt", "second.txt", "third.txt")}
        (root / "third.txt").unlink()
        assert files.locate(value) == root / "second.txt"
        (root / "second.txt").write_text("else")
        assert files.locate(value) == root / "first.txt"
        (root / "first.txt").write_text("else")
        with pytest.raises(FileChanged, match=r"first\.txt changed"):
            files.locate(value)

    def test_a_remembered_digest_is_had_without_reading(self, root, monkeypatch):
        files = Files([root])
        (root / "model").mkdir()
        (root / "model/config.json").write_text("{}")
        now = time.time_ns()
        monkeypatch.setattr(content.time, "time_ns", lambda: now + 10 * RACY_NS)
        for path in (root / "fox.txt", root / "model"):
            assert files.remembered(path) is None
            digest = files.digest(path)
            assert files.remembered(path) == digest
        (root / "model/config.json").write_text("[]")
        assert files.remembered(root / "model") is None


class TestReading:
    """What is located to be read stays where it is, and as it is, until it has been read."""

    @pytest.fixture
    def files(self, root):
        (root / "copy.txt").write_text("fox")
        return Files([root])

    def test_another_copy_does_not_vouch_for_the_one_that_is_read(self, files, root):
        """Another thread plans with a copy while a loader reads the original, which changes."""
        value = files.find(File, "fox.txt").digest
        with pytest.raises(FileChanged, match=r"fox\.txt changed"), files.reading():
            assert files.locate(value) == root / "fox.txt"
            (root / "fox.txt").write_text("FOX")
            files.find(File, "copy.txt")
            files.locate(value)

    def test_it_is_enough_to_locate_it_once(self, files, root):
        value = files.find(File, "fox.txt").digest
        with pytest.raises(FileChanged, match=r"fox\.txt changed"), files.reading():
            files.locate(value)
            (root / "fox.txt").write_text("FOX")
            files.find(File, "copy.txt")

    def test_content_that_changed_and_changed_back_may_have_been_read(self, files, root):
        value = files.find(File, "fox.txt").digest
        with pytest.raises(FileChanged, match=r"fox\.txt changed while it was read"), files.reading():
            files.locate(value)
            (root / "fox.txt").write_text("FOX")
            (root / "owl.txt").write_text("fox")
            (root / "owl.txt").replace(root / "fox.txt")

    def test_a_file_of_a_model_that_comes_meanwhile_is_noticed(self, files, root):
        (root / "model").mkdir()
        (root / "model/config.json").write_text("{}")
        value = files.find(ModelFile, "model").digest
        with pytest.raises(FileChanged), files.reading():
            files.locate(value)
            (root / "model/more.json").write_text("{}")

    def test_trouble_with_a_file_that_changed_is_that_it_changed(self, files, root):
        value = files.find(File, "fox.txt").digest
        with pytest.raises(FileChanged), files.reading():
            files.locate(value)
            (root / "fox.txt").unlink()
            raise ValueError("cannot be read")

    def test_other_trouble_stays_what_it_is(self, files):
        value = files.find(File, "fox.txt").digest
        with pytest.raises(ValueError, match="too large"), files.reading():
            files.locate(value)
            raise ValueError("too large")

    def test_what_is_left_alone_is_read_also_within_another_reading(self, files, root):
        first, second = files.find(File, "fox.txt").digest, files.find(File, "owl.txt").digest
        with files.reading():
            assert files.locate(first) == root / "fox.txt"
            with files.reading():
                assert files.locate(second) == root / "owl.txt"
            (root / "owl.txt").write_text("done with it")
            assert files.locate(first) == root / "fox.txt"
        with pytest.raises(FileChanged):
            files.locate(second)

    def test_threads_read_apart_from_one_another(self, files, root):
        value = files.find(File, "fox.txt").digest
        located = []

        def other():
            with files.reading():
                located.append(files.locate(value))

        with files.reading():
            assert files.locate(value) == root / "fox.txt"
            files.find(File, "copy.txt")
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            assert files.locate(value) == root / "fox.txt"
        assert located == [root / "copy.txt"]
