"""What is taken from the packages, and the archive it is kept in."""

import hashlib

import pytest
import torch

from pocket.training import archive, npm
from pocket.training.concept import concepts as matched
from pocket.training.concept import dumps, loads
from pocket.training.few import few, names


def emoji(code, label, group=3, subgroup=34, order=1, **more):
    return {"hexcode": code, "label": label, "group": group, "subgroup": subgroup, "order": order, **more}


def test_concepts_are_emoji_that_have_a_picture():
    found = matched([emoji("1F98A", "fox"), emoji("1F43A", "wolf")], ["1f98a"])
    assert [(each.code, each.label) for each in found] == [("1f98a", "fox")]


def test_a_picture_fits_with_or_without_the_mark_that_asks_for_colour():
    assert [each.code for each in matched([emoji("2600", "sun")], ["2600-fe0f"])] == ["2600-fe0f"]


@pytest.mark.parametrize(
    "left_out",
    [
        emoji("1F1E6", "flag: Ascension Island", group=9),
        emoji("1F9B0", "red hair", group=2),
        {**emoji("1", "a"), "group": None},
    ],
)
def test_flags_and_mere_parts_are_left_out(left_out):
    assert matched([left_out], [left_out["hexcode"].lower()]) == []


def test_skin_tones_are_left_out():
    assert matched([emoji("1F44B", "waving hand", group=1)], ["1f44b-1f3fb"]) == []


def test_what_matters_most_comes_first():
    listed = [emoji("1", "om", group=8, order=1), emoji("2", "sloth", order=2), emoji("3", "fox", order=3)]
    assert [each.label for each in matched(listed, ["1", "2", "3"])] == ["fox", "sloth", "om"]


@pytest.mark.parametrize("label", ["left-facing fist", "calendar", "twelve o'clock", "up arrow"])
def test_what_a_mirror_would_falsify_is_never_mirrored(label):
    (found,) = matched([emoji("1", label, group=8 if "arrow" in label else 7)], ["1"])
    assert not found.mirrored


def test_labels_are_plain_lower_case_words():
    (found,) = matched(
        [emoji("1", "Woman\N{RIGHT SINGLE QUOTATION MARK}s hat: \N{LEFT DOUBLE QUOTATION MARK}red", tags=["Sun  Hat"])],
        ["1"],
    )
    assert (found.label, found.keywords) == ("woman's hat red", ("sun hat",))


def test_concepts_survive_json(concepts):
    assert loads(dumps(concepts)) == concepts


def test_an_archive_gives_back_concepts_and_sprites(work, concepts):
    found, sprites = archive.read(work / "data" / "emoji.tar", 16)
    assert found == concepts
    assert sprites.shape == (8, 4, 16, 16)
    assert sprites[0, :, 8, 8].tolist() == [255, 0, 0, 255]
    assert sprites[0, :, 0, 0].tolist() == [0, 0, 0, 0]


def test_sprites_are_premultiplied(sprites):
    assert (sprites[:, :3] <= sprites[:, 3:]).all()


def test_equal_data_makes_equal_archives(work, concepts, tmp_path):
    pictures = {each.code: each.code.encode() for each in concepts}
    digests = set()
    for name in ("first", "second"):
        archive.write(tmp_path / name, concepts, pictures)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_package_that_is_not_what_was_published_is_refused(tmp_path):
    (tmp_path / npm.WORDS.tarball).write_bytes(b"something else")
    with pytest.raises(npm.FetchError, match="expected sha512"):
        npm.fetch(npm.WORDS, tmp_path)


def test_the_tokenizer_knows_every_label_in_whole_words(tokenizer, concepts):
    for each in concepts:
        assert len(tokenizer(each.label, add_special_tokens=False)["input_ids"]) == len(each.label.split())


def test_the_first_token_begins_and_the_last_one_ends(tokenizer):
    ids = torch.tensor(tokenizer("red ball")["input_ids"])
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_the_few_things_go_by_their_usual_names_and_what_is_reserved_comes_after_them():
    labels = [label for _, label in names()]
    codes = [f"{number:x}" for number in range(0x1000, 0x1000 + len(labels) + 60)]
    others = [f"thing {number}" for number in range(60)]
    found = matched([emoji(code, label) for code, label in zip(codes, labels + others, strict=True)], codes)
    kept = few(found)
    assert [each.label for each in kept[: len(labels)]] == [name for name, _ in names()]
    assert not any(each.reserved for each in kept[: len(labels)])
    assert {each.label for each in kept[len(labels) :]} == {each.label for each in found if each.reserved}
    surprised = next(each for each in kept if each.label == "surprised face")
    assert surprised.keywords == ("astonished face",)
