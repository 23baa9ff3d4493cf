"""Checkpoints travel in pieces, and nothing is lost on the way."""

import pytest
import torch
from torch import nn

from pocket.training import checkpoint
from pocket.training.learner import Learner


@pytest.fixture
def tensors():
    return {f"layer{number}": torch.full((1 << 20,), float(number)) for number in range(9)}


def test_no_piece_is_larger_than_may_travel(tmp_path, tensors):
    paths = checkpoint.save(tmp_path, "model", tensors)
    assert [path.name for path in paths] == [f"model-{number}.safetensors" for number in (1, 2, 3)]
    assert all(path.stat().st_size <= 16 << 20 for path in paths)


def test_pieces_are_joined_again(tmp_path, tensors):
    checkpoint.save(tmp_path, "model", tensors, {"step": 7})
    found, about = checkpoint.load(tmp_path, "model")
    assert about == {"step": 7}
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_missing_piece_is_noticed(tmp_path, tensors):
    checkpoint.save(tmp_path, "model", tensors)[1].unlink()
    with pytest.raises(FileNotFoundError, match="expected 3 pieces, found 2"):
        checkpoint.load(tmp_path, "model")


def test_saving_again_leaves_no_old_pieces(tmp_path, tensors):
    checkpoint.save(tmp_path, "model", tensors)
    checkpoint.save(tmp_path, "model", {"layer0": tensors["layer0"]})
    assert [path.name for path in tmp_path.iterdir()] == ["model-1.safetensors"]


def test_a_tensor_that_fits_no_piece_is_refused(tmp_path):
    with pytest.raises(ValueError, match="large: expected at most"):
        checkpoint.save(tmp_path, "model", {"large": torch.empty(5 << 20)})


def learner():
    torch.manual_seed(0)
    return Learner("toy", nn.Linear(3, 2), average=0.9)


def taught(pupil, steps):
    inputs = torch.randn(steps, 8, 3, generator=torch.Generator().manual_seed(1))
    for batch in inputs:
        pupil.learn(pupil.model(batch).square().mean(), 0.01)
    return pupil


def test_a_resumed_learner_goes_on_as_if_nothing_had_happened(tmp_path):
    undisturbed, stopped, resumed = taught(learner(), 3), taught(learner(), 3), learner()
    stopped.save(tmp_path)
    assert resumed.resume(tmp_path)
    taught(undisturbed, 2)
    taught(resumed, 2)
    assert resumed.progress == undisturbed.progress
    assert torch.equal(resumed.model.weight, undisturbed.model.weight)
    assert torch.equal(resumed.average.model.weight, undisturbed.average.model.weight)


def test_the_average_alone_is_enough_to_go_on_from(tmp_path):
    stopped, resumed = taught(learner(), 3), learner()
    checkpoint.save(tmp_path, "toy", stopped.averaged(), vars(stopped.progress))
    assert resumed.resume(tmp_path)
    assert resumed.progress.step == 3
    assert torch.equal(resumed.model.weight, stopped.average.model.weight.half().float())


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path):
    assert not learner().resume(tmp_path)
