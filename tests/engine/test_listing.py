"""Listings: every name that is there and none that is not, without looking through a folder that did not change."""

import os
import time
from dataclasses import dataclass

import pytest

from engine import listing
from engine.errors import FileError
from engine.file import File, Files, ModelFile
from engine.listing import RACY_NS


@dataclass(frozen=True, slots=True)
class Hat(File):
    """Files with a folder of their own."""

    kind = "hat"
    folder = "hats"
    suffixes = (".hat", ".cap")


@dataclass(frozen=True, slots=True)
class Wardrobe(ModelFile):
    """Files, or folders that stand for one."""

    kind = "wardrobe"
    folder = "wardrobes"
    suffixes = (".hat",)


def write(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


def age(*folders):
    """Let folders look as if nothing had happened in them for a while."""
    past = time.time_ns() - 10 * RACY_NS
    for folder in folders:
        os.utime(folder, ns=(past, past))


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "root/hats/top.hat", tmp_path / "root/hats/old/bowler.hat")
    return tmp_path / "root"


@pytest.fixture
def scanned(monkeypatch):
    """The folders that are looked through, by name; whatever is on disk was written a while ago."""
    names, real, now = [], listing._scanned, time.time_ns()

    def noted(folder):
        names.append(folder.rpartition("/")[2])
        return real(folder)

    monkeypatch.setattr(listing, "_scanned", noted)
    monkeypatch.setattr(listing.time, "time_ns", lambda: now + 10 * RACY_NS)
    return names


def names(files, kind=Hat):
    return set(files.names(kind))


class TestWhatIsLookedAt:
    def test_folders_left_alone_are_looked_through_once(self, root, scanned):
        files = Files([root])
        first = files.names(Hat)
        assert files.names(Hat) is first
        assert set(first) == {"top", "old/bowler"}
        assert sorted(scanned) == ["hats", "old"]

    def test_thousands_of_files_in_one_folder_are_looked_at_by_one_look_at_the_folder(self, root, scanned):
        for number in range(3000):
            (root / f"hats/{number}.hat").touch()
        files = Files([root])
        assert len(files.names(Hat)) == 3002
        for _ in range(10):
            assert len(files.names(Hat)) == 3002
        assert sorted(scanned) == ["hats", "old"]

    @pytest.mark.parametrize(
        ("change", "after"),
        [
            (lambda hats: write(hats / "straw.hat"), {"top", "old/bowler", "straw"}),
            (lambda hats: write(hats / "old/straw.cap"), {"top", "old/bowler", "old/straw"}),
            (lambda hats: (hats / "top.hat").unlink(), {"old/bowler"}),
            (lambda hats: (hats / "old/bowler.hat").rename(hats / "old/cap.hat"), {"top", "old/cap"}),
            (lambda hats: (hats / "old").rename(hats / "new"), {"top", "new/bowler"}),
            (lambda hats: (hats / "old/bowler.hat").rename(hats / "bowler.hat"), {"top", "bowler"}),
            (lambda hats: hats.rename(hats.parent / "gone"), set()),
        ],
        ids=["a file", "further down", "less", "renamed", "folder renamed", "moved", "all of it"],
    )
    def test_whatever_comes_or_goes_is_noticed(self, root, scanned, change, after):
        files = Files([root], anywhere=False)
        age(root / "hats/old", root / "hats")
        assert names(files) == {"top", "old/bowler"}
        change(root / "hats")
        assert names(files) == after

    def test_another_folder_in_the_place_of_one_is_noticed(self, root, scanned):
        write(root / "others/straw.hat")
        files = Files([root])
        age(root / "hats", root / "others")
        assert names(files) == {"top", "old/bowler"}
        (root / "hats").rename(root / "gone")
        (root / "others").rename(root / "hats")
        assert names(files) == {"straw"}

    def test_what_a_link_leads_to_may_come_and_go_without_a_change_of_the_folder(self, root, scanned, tmp_path):
        (root / "hats/straw.hat").symlink_to(root / "shop/straw.hat")
        (root / "hats/more").symlink_to(root / "store")
        age(root / "hats")
        files = Files([root], anywhere=False)
        assert names(files) == {"top", "old/bowler"}
        write(root / "shop/straw.hat", root / "store/fez.hat")
        assert names(files) == {"top", "old/bowler", "straw", "more/fez"}
        (root / "shop/straw.hat").unlink()
        assert names(files) == {"top", "old/bowler", "more/fez"}

    def test_a_link_that_comes_to_lead_out_is_not_followed_any_more(self, root, scanned, tmp_path):
        write(root / "store/fez.hat", tmp_path / "outside/fez.hat")
        (root / "hats/more").symlink_to(root / "store")
        files = Files([root], anywhere=False)
        assert "more/fez" in names(files)
        (root / "store").rename(root / "closed")
        (root / "store").symlink_to(tmp_path / "outside")
        assert "more/fez" not in names(files)

    def test_a_folder_touched_just_now_is_looked_through_each_time(self, root, monkeypatch):
        """Two changes within one tick of the file system's clock look like one."""
        real = os.stat
        stood = real(root / "hats").st_mtime_ns
        monkeypatch.setattr(listing, "_stamp", lambda folder: (1, real(folder).st_ino, stood, stood))
        files = Files([root])
        assert names(files) == {"top", "old/bowler"}
        write(root / "hats/straw.hat")
        assert names(files) == {"top", "old/bowler", "straw"}

    def test_a_folder_that_changes_under_the_look_is_looked_through_again(self, root, scanned, monkeypatch):
        age(root / "hats", root / "hats/old")
        real, late = listing._scanned, []

        def slow(folder):
            found = real(folder)
            if not late:
                late.append(write(root / "hats/straw.hat"))
            return found

        monkeypatch.setattr(listing, "_scanned", slow)
        files = Files([root])
        assert names(files) == {"top", "old/bowler"}
        assert names(files) == {"top", "old/bowler", "straw"}

    def test_new_roots_are_looked_through_too(self, root, scanned, tmp_path):
        write(tmp_path / "more/hats/straw.hat")
        files = Files([root])
        assert names(files) == {"top", "old/bowler"}
        files.search([tmp_path / "more"])
        assert names(files) == {"top", "old/bowler", "straw"}

    def test_more_folders_than_can_be_looked_through_are_refused(self, root, monkeypatch):
        for number in range(5):
            (root / f"hats/{number}").mkdir()
        monkeypatch.setattr(listing, "MAX_LISTED", 4)
        for _ in range(2):
            with pytest.raises(FileError, match=r"hats holds more than 4 files; split it into several$"):
                Files([root]).names(Hat)


class TestWholeFolders:
    @pytest.fixture
    def files(self, root):
        write(root / "wardrobes/oak/config.json", root / "wardrobes/oak/door.hat", root / "wardrobes/style/elm.hat")
        write(root / "wardrobes/style/ash/model_index.json")
        return Files([root], anywhere=False)

    def test_a_folder_with_a_config_is_one_thing_and_others_are_looked_through(self, files, root):
        assert {name: str(path.relative_to(root)) for name, path in files.names(Wardrobe).items()} == {
            "oak": "wardrobes/oak",
            "style/elm": "wardrobes/style/elm.hat",
            "style/ash": "wardrobes/style/ash",
        }
        for name in files.names(Wardrobe):
            assert files.find(Wardrobe, name).path == files.names(Wardrobe)[name]

    def test_a_name_further_down_is_enough_for_folders_too(self, files, root):
        assert files.find(Wardrobe, "ash").path == root / "wardrobes/style/ash"

    def test_a_folder_that_gets_a_config_becomes_one_thing(self, files, root, scanned):
        age(root / "wardrobes/style", root / "wardrobes")
        assert names(files, Wardrobe) == {"oak", "style/elm", "style/ash"}
        write(root / "wardrobes/style/config.json")
        assert names(files, Wardrobe) == {"oak", "style"}
        (root / "wardrobes/oak/config.json").unlink()
        assert names(files, Wardrobe) == {"oak/door", "style"}

    def test_a_config_behind_a_link_counts_where_the_link_may_be_followed(self, files, root, tmp_path):
        write(tmp_path / "outside/config.json", root / "configs/config.json")
        for name, target in (("in", root / "configs"), ("out", tmp_path / "outside")):
            write(root / f"wardrobes/{name}/door.hat")
            (root / f"wardrobes/{name}/config.json").symlink_to(target / "config.json")
        assert {"in", "out/door"} <= names(files, Wardrobe)
