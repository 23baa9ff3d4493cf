"""Embeddings made by textual inversion, in each layout that there is."""

import pytest
import torch
from safetensors.torch import save_file

from nodes.diffusion import embedding
from nodes.diffusion.load import LoadError

VECTORS = torch.arange(6.0).reshape(2, 3)


def read(folder, **tensors):
    save_file(tensors, folder / "made.safetensors")
    return embedding.read(folder / "made.safetensors")


@pytest.mark.parametrize("name", ["emb_params", "<fox>", "string_to_param.*"])
def test_one_tensor_is_read_under_any_name(tmp_path, name):
    assert torch.equal(read(tmp_path, **{name: VECTORS}), VECTORS)


def test_a_single_vector_is_one_row(tmp_path):
    assert torch.equal(read(tmp_path, **{"<fox>": torch.arange(3.0)}), torch.arange(3.0)[None])


def test_half_precision_comes_as_float32(tmp_path):
    found = read(tmp_path, emb_params=VECTORS.half())
    assert found.dtype == torch.float32
    assert torch.equal(found, VECTORS)


def test_other_tensors_beside_emb_params_do_not_count(tmp_path):
    assert torch.equal(read(tmp_path, emb_params=VECTORS, step=torch.zeros(1)), VECTORS)


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_the_two_sides_of_sdxl_are_joined(tmp_path, names):
    found = read(tmp_path, **dict(zip(names, (VECTORS, torch.full((2, 5), 9.0)), strict=True)))
    assert found.shape == (2, 8)
    assert torch.equal(found[:, :3], VECTORS)
    assert torch.equal(found[:, 3:], torch.full((2, 5), 9.0))


def test_single_vectors_of_both_sides_are_one_row(tmp_path):
    assert read(tmp_path, clip_l=torch.zeros(3), clip_g=torch.zeros(1, 5)).shape == (1, 8)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"a": VECTORS, "b": VECTORS + 1}, "such as emb_params, or clip_l and clip_g for SDXL, found a, b"),
        ({}, "found nothing"),
        ({"emb_params": torch.zeros(1, 2, 3)}, r"expected vectors of shape \(N, D\), found \(1, 2, 3\)"),
        ({"emb_params": torch.zeros(0, 3)}, r"found \(0, 3\)"),
        ({"emb_params": torch.tensor(1.0)}, r"found \(\)"),
        ({"clip_l": VECTORS, "clip_g": torch.zeros(3, 5)}, r"found \(2, 3\) and \(3, 5\)"),
        ({"emb_params": torch.tensor([[1.0, float("nan")]])}, "expected vectors of numbers, found NaN or infinity"),
        ({"emb_params": torch.tensor([[1.0, float("inf")]])}, "expected vectors of numbers, found NaN or infinity"),
    ],
)
def test_anything_else_is_refused(tmp_path, tensors, problem):
    with pytest.raises(LoadError, match=problem) as caught:
        read(tmp_path, **tensors)
    assert str(caught.value).startswith(str(tmp_path / "made.safetensors"))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"emb_params": torch.zeros(8, 768)}, "embedding for SD 1.x, 8 vectors"),
        ({"<fox>": torch.zeros(1024)}, "embedding for SD 2.x, 1 vector"),
        ({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, "embedding for SDXL, 2 vectors"),
        ({"clip_g": torch.zeros(2, 1280)}, "embedding for the SDXL refiner, 2 vectors"),
        ({"emb_params": torch.zeros(2, 160)}, "embedding of width 160, 2 vectors"),
    ],
)
def test_a_file_is_described_by_the_family_that_its_width_tells(tmp_path, tensors, words):
    save_file(tensors, tmp_path / "made.safetensors")
    assert embedding.described(tmp_path / "made.safetensors") == words


def test_what_is_none_is_not_described(tmp_path):
    save_file({"a": VECTORS, "b": VECTORS + 1}, tmp_path / "made.safetensors")
    with pytest.raises(LoadError, match="found a, b"):
        embedding.described(tmp_path / "made.safetensors")


@pytest.mark.parametrize(
    ("shape", "width", "said"),
    [
        ((2, 768), 768, None),
        ((2, 768), None, None),
        ((2, 768), 2048, "expected one for SDXL (2048 wide), found one for SD 1.x (768 wide)"),
        ((2, 7), 768, "expected one for SD 1.x (768 wide), found one of width 7"),
        ((768,), 768, "expected vectors of shape (N, D), found (768,)"),
        ((0, 768), None, "expected vectors of shape (N, D), found (0, 768)"),
    ],
)
def test_vectors_of_another_width_are_told_with_both_widths(shape, width, said):
    found = embedding.misfit("easy", torch.zeros(shape), width)
    assert found == (said and f"embedding 'easy': {said}")


def test_a_pickle_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "fox.pt").write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(LoadError, match=r"\{'emb_params': torch.load\('fox.pt', .*\}, 'fox.safetensors'\)"):
        embedding.read(tmp_path / "fox.pt")
