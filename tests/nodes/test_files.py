"""Texts that mention files: known by all that they mention, found in the folders of their kind and nowhere else."""

import os
from functools import partial

import pytest

from engine.errors import FileChanged, FileError
from engine.file import Files
from nodes.diffusion import hub
from nodes.files import (
    NO_TEXT,
    CheckpointFile,
    ControlNetFile,
    EmbeddingFile,
    LoraFile,
    PromptText,
    Styles,
    UpscaleFile,
    VaeFile,
)


@pytest.fixture
def root(tmp_path):
    made = tmp_path / "root"
    for name in ("loras/fox.safetensors", "loras/animals/owl.safetensors", "embeddings/easy.safetensors"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(name)
    return made


@pytest.fixture
def files(root):
    return Files([root], anywhere=False)


def prompt(files, text):
    return files.resolve(PromptText, text)


class TestPromptText:
    def test_it_carries_the_files_that_it_mentions_by_the_names_that_stand_in_it(self, files, root):
        found = prompt(files, "an easy fox <lora:fox:0.8> and <lora:animals/owl>")
        assert found.text == "an easy fox <lora:fox:0.8> and <lora:animals/owl>"
        assert {name: file.path for name, file in found.loras.items()} == {
            "fox": root / "loras/fox.safetensors",
            "animals/owl": root / "loras/animals/owl.safetensors",
        }
        assert {name: file.path.name for name, file in found.embeddings.items()} == {"easy": "easy.safetensors"}
        assert [type(part) for part in found.parts] == [LoraFile, LoraFile, EmbeddingFile]

    def test_a_name_further_down_is_enough(self, files, root):
        assert prompt(files, "<lora:owl:1>").loras["owl"].path == root / "loras/animals/owl.safetensors"

    def test_one_that_mentions_nothing_is_as_plain_as_can_be(self, files):
        assert prompt(files, "") == NO_TEXT
        assert prompt(files, "a cat") == PromptText.plain("a cat")

    @pytest.mark.parametrize(
        "change",
        [
            lambda root: (root / "loras/fox.safetensors").write_text("other"),
            lambda root: (root / "embeddings/easy.safetensors").write_text("other"),
            lambda root: (root / "embeddings/easy.safetensors").unlink(),
            lambda root: (root / "embeddings/red.safetensors").write_text("new"),
        ],
        ids=["another lora", "another embedding", "no embedding any more", "a new embedding"],
    )
    def test_a_file_that_changes_comes_or_goes_makes_it_another(self, files, root, change):
        text = "an easy red fox <lora:fox>"
        before = prompt(files, text).digest
        assert prompt(files, text).digest == before
        change(root)
        assert prompt(files, text).digest != before

    def test_files_that_it_does_not_mention_do_not_count(self, files, root):
        before = prompt(files, "a fox <lora:fox>").digest
        (root / "loras/animals/owl.safetensors").write_text("other")
        (root / "embeddings/red.safetensors").write_text("new")
        assert prompt(files, "a fox <lora:fox>").digest == before

    def test_a_lora_that_is_not_there_is_named_with_the_nearest(self, files):
        with pytest.raises(FileError, match=r"^no lora 'fax', did you mean 'fox'\?$"):
            prompt(files, "a fax <lora:fax:1>")

    def test_an_embedding_named_outright_must_be_there(self, files):
        assert "easy" in prompt(files, "embedding:easy").embeddings
        with pytest.raises(FileError, match=r"^no embedding 'eazy', did you mean 'easy'\?$"):
            prompt(files, "embedding:eazy")

    @pytest.mark.parametrize("name", ["../../etc/passwd", "../loras/fox", "/etc/passwd"])
    @pytest.mark.parametrize("anywhere", [True, False])
    def test_a_tag_cannot_lead_out_of_the_folder(self, root, name, anywhere):
        with pytest.raises(FileError, match="leads out of the folder loras/; a text may only mention what lies in it"):
            prompt(Files([root], anywhere=anywhere), f"<lora:{name}:1>")

    @pytest.mark.parametrize("part", ["loras/fox.safetensors", "embeddings/easy.safetensors"])
    def test_it_verifies_every_file_that_it_mentions(self, files, root, part):
        found = prompt(files, "an easy fox <lora:fox>")
        found.verify()
        (root / part).write_text("other")
        with pytest.raises(FileChanged, match=part):
            found.verify()

    def test_a_digest_of_what_it_mentions_leads_to_the_file(self, files, root):
        found = prompt(files, "<lora:fox>")
        assert files.locate(found.loras["fox"].digest) == root / "loras/fox.safetensors"


class TestStyles:
    @pytest.fixture
    def table(self, root):
        made = root / "styles.csv"
        made.write_text("name,prompt,negative_prompt\nforest,{prompt} <lora:fox>,easy\ngone,<lora:gone>,\n")
        return made

    def test_they_carry_their_texts_and_what_these_mention_as_far_as_it_is_there(self, files, table):
        found = files.resolve(Styles, "styles.csv")
        assert found.styles["forest"] == ("{prompt} <lora:fox>", "easy")
        assert (list(found.loras), list(found.embeddings), found.missing) == (["fox"], ["easy"], "")

    @pytest.mark.parametrize(
        "change",
        [
            lambda root: (root / "styles.csv").write_text("name,prompt,negative_prompt\n"),
            lambda root: (root / "styles.csv").unlink(),
            lambda root: (root / "loras/fox.safetensors").write_text("other"),
            lambda root: (root / "loras/gone.safetensors").write_text("new"),
            lambda root: (root / "embeddings/easy.safetensors").unlink(),
        ],
        ids=["another table", "no table any more", "another lora", "a new lora", "no embedding any more"],
    )
    def test_any_change_makes_them_others(self, files, root, table, change):
        before = files.resolve(Styles, "styles.csv").digest
        assert files.resolve(Styles, "styles.csv").digest == before
        change(root)
        assert files.resolve(Styles, "styles.csv").digest != before

    def test_a_table_that_is_not_there_has_no_styles_and_says_where_it_was_looked_for(self, files):
        found = files.resolve(Styles, "stiles.csv")
        assert (found.styles, found.parts) == ({}, ())
        assert found.missing.startswith("no table of styles 'stiles.csv'")

    def test_they_verify_table_and_mentioned_files(self, files, root, table):
        found = files.resolve(Styles, "styles.csv")
        found.verify()
        (root / "loras/fox.safetensors").write_text("other")
        with pytest.raises(FileChanged, match="fox"):
            found.verify()


NO_IDS = [
    "a",
    "a/b/c",
    "../ann/x",
    "ann/../x",
    "/ann/x",
    "ann/",
    "ann/-x",
    "ann/ü",
    "a--b/c",
    "a/b.git",
    "a/b-",
    "a/b.",
]
NO_IDS += ["a-/b", "a./b", "_a/b", "a..b/c", "a/.b", "a\nb/c", "a/b\n", f"a/{'x' * 97}"]


class TestHub:
    """A model may be named by its id on the hub, where the hub's files are cached here; nothing is fetched."""

    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        """The hub's cache, with one model: a snapshot of links to blobs."""
        model = tmp_path / "hub" / "models--ann--big-model"
        snapshot = model / "snapshots" / "abc123"
        (model / "blobs").mkdir(parents=True)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text("abc123")
        (snapshot / "vae").mkdir(parents=True)
        for number, name in enumerate(("model_index.json", "vae/config.json")):
            (model / "blobs" / str(number)).write_text("{}")
            link = snapshot / name
            link.symlink_to(os.path.relpath(model / "blobs" / str(number), link.parent))
        monkeypatch.setattr(hub, "cached", partial(hub.cached, cache=tmp_path / "hub"))
        return model

    @pytest.mark.parametrize("kind", [CheckpointFile, VaeFile, ControlNetFile])
    @pytest.mark.parametrize("anywhere", [True, False])
    def test_it_is_known_by_the_content_behind_the_links(self, root, cache, kind, anywhere):
        files = Files([root], anywhere=anywhere)
        found = files.resolve(kind, "ann/big-model")
        assert (found.path, found.root) == (cache / "snapshots/abc123", None)
        assert files.locate(found.digest) == found.path
        (cache / "blobs/1").write_text("[]")
        with pytest.raises(FileChanged):
            found.verify()
        assert files.resolve(kind, "ann/big-model").digest != found.digest

    def test_a_folder_of_that_name_comes_first(self, root, cache):
        own = root / "checkpoints/ann/big-model"
        own.mkdir(parents=True)
        (own / "model_index.json").write_text("{}")
        assert Files([root]).resolve(CheckpointFile, "ann/big-model").path == own

    def test_links_out_of_the_model_are_not_followed_by_a_service(self, root, cache, tmp_path):
        (tmp_path / "secret.json").write_text("secret")
        (cache / "snapshots/abc123/more.json").symlink_to(tmp_path / "secret.json")
        with pytest.raises(FileError):
            Files([root], anywhere=False).resolve(CheckpointFile, "ann/big-model")

    def test_one_that_is_not_cached_is_told_how_to_fetch(self, files):
        said = "nor is it a model in the local cache of the hub; where it is one of the hub's: hf download ann/small"
        with pytest.raises(FileError, match=rf"^no model 'ann/small' \(searched .*\); {said}$"):
            files.resolve(CheckpointFile, "ann/small")

    @pytest.mark.parametrize("name", NO_IDS)
    def test_what_is_no_id_is_said_to_be_no_file_and_nothing_more(self, files, name):
        with pytest.raises(FileError) as caught:
            files.resolve(CheckpointFile, name)
        assert "hf download" not in str(caught.value)

    @pytest.mark.parametrize("kind", [LoraFile, EmbeddingFile, UpscaleFile])
    def test_other_kinds_have_no_ids(self, files, cache, kind):
        with pytest.raises(FileError):
            files.resolve(kind, "ann/big-model")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ControlNetFile, "controlnet/canny.safetensors"),
        (UpscaleFile, "upscale/net.safetensors"),
        (UpscaleFile, "upscale/x.pth"),
    ],
)
def test_a_kind_finds_its_files_in_its_folder_without_their_ending_also_pickles(files, root, kind, name):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(name)
    assert files.resolve(kind, name.rpartition("/")[2].rpartition(".")[0]).path == root / name
