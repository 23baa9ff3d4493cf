"""Calls of SDXL that share UNet calls give what each gives alone."""

import pytest
import torch
from company import together
from pipelines import SEED, SIZE, Nodes, error, photograph, xl

from nodes import conditioning, mask, noise, options

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2
LONG = "a fox in the snow BREAK under a tree"
LONGEST = f"{LONG} BREAK at night"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def nodes(root):
    xl(root / "xl")
    return Nodes(root)


@pytest.fixture(scope="module")
def parts(nodes):
    return nodes.load("xl")


@pytest.fixture(scope="module")
def calls(nodes, parts):
    """Calls of two sizes, prompts of one to three chunks, with and without guidance, and with all else that differs."""
    short, long, longest, nothing, cat = (
        nodes.words(parts, said, negative=said in ("", "a cat")) for said in ("a fox", LONG, LONGEST, "", "a cat")
    )
    start, wide = nodes.nothing(parts), nodes.nothing(parts, 2 * SIZE, SIZE)
    placed = conditioning.combine(long, conditioning.area(short, x=32, width=64, height=64))
    different = [
        {"positive": short, "negative": nothing, "latent": start},
        {"positive": long, "negative": cat, "latent": start},
        {"positive": longest, "negative": nothing, "latent": wide, "steps": 4},
        {"positive": long, "negative": None, "latent": start, "cfg": 1.0},
        {"positive": longest, "negative": cat, "latent": wide, "cfg": 1.0, "sampler": "heun"},
        {"positive": conditioning.sizes(short, width=96, crop_x=8), "negative": nothing, "latent": start},
        {"positive": short, "negative": long, "latent": wide, "sampler": "euler_ancestral"},
        {"positive": placed, "negative": cat, "latent": wide, "options": options.options(cfg_rescale=0.7)},
        {"positive": short, "negative": cat, "latent": nodes.encode(parts, photograph()), "denoise": 0.5},
        {
            "positive": short,
            "negative": longest,
            "latent": nodes.encode(parts, photograph()),
            "mask": mask.rectangle(SIZE, SIZE, x=8, y=8, w=32, h=24),
        },
    ]
    usual = {
        "unet": parts.unet,
        "context": nodes.context,
        "steps": 3,
        "cfg": 7.0,
        "denoise": 1.0,
        "sampler": "euler",
        "schedule": "karras",
    }
    return [
        usual | {"noise": noise.seeded(seed=SEED + number, count=1 + number % 2)} | call
        for number, call in enumerate(different)
    ]


@pytest.fixture
def counted(nodes, parts):
    """How many latents each UNet call took."""
    taken = []
    hook = nodes.context.model(parts.unet).unet.register_forward_pre_hook(lambda _, given: taken.append(len(given[0])))
    yield taken
    hook.remove()


def test_together_is_what_each_gives_alone(calls, counted):
    all_made = together(calls)
    shared = len(counted)
    for number, (call, made) in enumerate(zip(calls, all_made, strict=True)):
        [alone] = together([call])
        assert not isinstance(made, BaseException), (number, made)
        assert error(made.data, alone.data) < 1e-4, number
    assert shared < (len(counted) - shared) / 2


def test_the_order_of_calls_does_not_matter(calls):
    forwards, backwards = together(calls), together(calls[::-1])[::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert error(one.data, other.data) < 1e-4


def test_each_call_has_a_picture_of_its_own(calls):
    made = [each.data[:1, :, :8, :8] for each in together(calls)]
    assert all(error(one, other) > 1e-3 for one in made for other in made if one is not other)


def test_what_one_call_meets_leaves_the_others_alone(nodes, parts, calls):
    broken = calls[0] | {"positive": conditioning.zero(calls[0]["positive"]), "negative": None}
    first, failed, last = together([calls[1], broken, calls[3]])
    assert isinstance(failed, ValueError)
    assert "link `negative`, or set cfg to 1" in str(failed)
    for made, call in ((first, calls[1]), (last, calls[3])):
        assert error(made.data, together([call])[0].data) < 1e-4
    assert torch.isfinite(last.data).all()
