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


def test_the_two_sides_of_sdxl_are_joined(tmp_path):
    found = read(tmp_path, clip_l=VECTORS, clip_g=torch.full((2, 5), 9.0))
    assert found.shape == (2, 8)
    assert torch.equal(found[:, :3], VECTORS)
    assert torch.equal(found[:, 3:], torch.full((2, 5), 9.0))


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"a": VECTORS, "b": VECTORS + 1}, "expected one tensor of vectors, such as emb_params, found a, b"),
        ({}, "found nothing"),
        ({"emb_params": torch.zeros(1, 2, 3)}, r"expected vectors of shape \(N, D\), found \(1, 2, 3\)"),
        ({"emb_params": torch.zeros(0, 3)}, r"found \(0, 3\)"),
    ],
)
def test_anything_else_is_refused(tmp_path, tensors, problem):
    with pytest.raises(LoadError, match=problem):
        read(tmp_path, **tensors)


def test_a_pickle_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "fox.pt").write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(LoadError, match=r"\{'emb_params': torch.load\('fox.pt', .*\}, 'fox.safetensors'\)"):
        embedding.read(tmp_path / "fox.pt")
