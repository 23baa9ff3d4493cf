"""Embeddings of timesteps: made once, each by itself, and never taken for another's."""

import copy

import pytest
import torch

from nodes.diffusion import moments
from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.guidance import Guidance, Question
from nodes.diffusion.moments import Embeddings, Moments

CPU = torch.device("cpu")


@pytest.fixture
def embedded(unet, monkeypatch):
    """How many timesteps the UNet's layer embedded at each of its calls."""
    rows, forward = [], type(unet.time_embedding).forward

    def count(layer, waves, condition=None):
        rows.append(len(waves))
        return forward(layer, waves, condition)

    monkeypatch.setattr(type(unet.time_embedding), "forward", count)
    return rows


def words(seed):
    return torch.randn(1, 77, 128, generator=torch.Generator().manual_seed(seed))


def question(seed, sigma=2.0, cfg=4.0):
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2
    return Question(x, sigma, Guidance(words(1), words(2), cfg=cfg))


def shown(unet, timesteps, embeddings):
    """What a UNet makes of timesteps."""
    given = Moments(timesteps, CPU, embeddings)
    with torch.no_grad(), given.to(unet) as data:
        return unet.time_embedding(unet.time_proj(data))


def test_one_that_many_latents_have_is_made_once(unet, table, embedded):
    denoiser = Denoiser(unet, table)
    denoiser([question(seed) for seed in range(3)])
    assert embedded == [1]
    denoiser([question(0), question(1, sigma=5.0)])
    assert embedded == [1, 1]


def test_what_is_found_is_what_would_be_made(unet, table):
    denoiser = Denoiser(unet, table)
    for sigma in (9.0, 2.0, 9.0, 2.0):
        [answer] = denoiser([question(3, sigma)])
        [fresh] = Denoiser(unet, table)([question(3, sigma)])
        assert torch.equal(answer.guided, fresh.guided)


def test_it_is_what_the_network_makes(unet, table, monkeypatch):
    [answer] = Denoiser(unet, table)([question(3)])
    monkeypatch.setattr(Moments, "_embed", lambda _self, _layer, embed, *given: embed(*given))
    [plain] = Denoiser(unet, table)([question(3)])
    torch.testing.assert_close(answer.guided, plain.guided, rtol=1e-4, atol=1e-4)


def test_taking_one_for_another_would_be_noticed(unet, table, monkeypatch):
    """The twin of the tests above: embeddings that are found whatever is asked."""

    class Any(dict):
        def __contains__(self, key):
            return len(self) > 0

        def __getitem__(self, key):
            return next(iter(self.values()))

    [right] = Denoiser(unet, table)([question(3, 2.0)])
    kept = Any()
    monkeypatch.setattr(Embeddings, "of", lambda *_: kept)
    denoiser = Denoiser(unet, table)
    denoiser([question(3, 9.0)])
    [wrong] = denoiser([question(3, 2.0)])
    assert not torch.allclose(wrong.guided, right.guided, atol=1e-3)


def test_company_changes_no_bit(unet):
    alone = [shown(unet, [timestep], Embeddings()) for timestep in (7.25, 500.0, 981.5)]
    together = shown(unet, [7.25, 500.0, 981.5, 500.0], Embeddings())
    assert torch.equal(together, torch.cat([*alone, alone[1]]))


def test_those_of_some_latents_keep_their_order(unet):
    made = Embeddings()
    some = Moments([1.0, 20.0, 300.0], CPU, made).rows((2, 0))
    assert some.data.tolist() == [300.0, 1.0]
    with torch.no_grad(), some.to(unet) as data:
        found = unet.time_embedding(unet.time_proj(data))
    assert torch.equal(found, shown(unet, [300.0, 1.0], made))


def test_networks_do_not_take_each_others(unet):
    other = copy.deepcopy(unet)
    with torch.no_grad():
        other.time_embedding.linear_1.weight += 1
    made = Embeddings()
    assert not torch.equal(shown(unet, [5.0], made), shown(other, [5.0], made))


def test_nothing_stays_with_the_network(unet, table):
    Denoiser(unet, table)([question(0)])
    assert "forward" not in vars(unet.time_embedding)


def test_nothing_stays_where_a_call_fails(unet):
    def fail():
        with Moments([1.0], CPU, Embeddings()).to(unet):
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert "forward" not in vars(unet.time_embedding)


def test_what_else_is_embedded_meanwhile_is_embedded_anew(unet):
    made = Embeddings()
    with torch.no_grad(), Moments([1.0], CPU, made).to(unet):
        waves = unet.time_proj(torch.tensor([1.0, 2.0]))
        found = unet.time_embedding(waves)
    with torch.no_grad():
        assert torch.equal(found, unet.time_embedding(waves))


def test_a_network_without_such_a_layer_is_given_the_timesteps():
    with Moments([1.0, 2.0], CPU, Embeddings()).to(torch.nn.Linear(1, 1)) as data:
        assert data.tolist() == [1.0, 2.0]


def test_they_are_no_more_than_so_many(unet, monkeypatch):
    monkeypatch.setattr(moments, "KEPT", 3)
    made = Embeddings()
    for timestep in range(10):
        found = shown(unet, [float(timestep)], made)
        assert len(made.of(unet.time_embedding)) <= 4
        assert torch.equal(found, shown(unet, [float(timestep)], Embeddings()))
