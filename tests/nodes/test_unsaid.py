"""Inpainting models in graphs that tell them of no picture and no mask: what they see then."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from pipelines import ONE, SIZE, UP, Nodes, controlnet, error, photograph, plain, seeded
from safetensors.torch import save_file
from single_file import CLIP, UNET, renamed, tiny_clip, tiny_unet

from calotype import Engine, find
from nodes import mask as masks
from nodes.cells import cells, shares
from nodes.diffusion import original
from nodes.repaint import conditioning
from nodes.types import Blank, Image, InpaintConditioning, Mask

NINE = {"in_channels": 9, "sample_size": SIZE // 8}
PROMPTS = "a fox in the snow", "a cat"
COMFY_GREY = torch.tensor([0.8223, -0.6876, 0.6364, 0.1380])[None, :, None, None]
WHITE = Mask(torch.full((1, 1, SIZE, SIZE), 255, dtype=torch.uint8))
SMALL = {"width": 64, "height": 64}
GRAPHS = {
    "text2img": SMALL,
    "img2img": SMALL,
    "hires_fix": SMALL | {"hires_width": 96, "hires_height": 64, "hires_steps": 2},
    "sd_upscale": {"tile_width": 64, "tile_height": 64},
    "controlnet_canny": SMALL,
    "inpaint": SMALL | {"padding": 8},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with an inpainting model, another in a file without a VAE, and a ControlNet."""
    root = tmp_path_factory.mktemp("models")
    for folder in ("checkpoints", "controlnet"):
        (root / folder).mkdir()
    plain(root / "checkpoints/inpainting", seeded(lambda: UNet2DConditionModel(**ONE | UP | NINE)))
    blind = renamed(tiny_unet(in_channels=9), original.unet, UNET) | renamed(tiny_clip(), original.clip, CLIP)
    save_file(blind, root / "checkpoints/blind.safetensors")
    controlnet(root / "controlnet/control_v11p_sd15_canny")
    return root


@pytest.fixture(scope="module")
def nodes(root):
    return Nodes(root / "checkpoints")


@pytest.fixture(scope="module")
def parts(nodes):
    return nodes.load("inpainting")


@pytest.fixture(scope="module")
def made(nodes, parts):
    """What is sampled with the inpainting model: latents."""
    words = nodes.both(parts, PROMPTS)
    return lambda **more: nodes.sample(parts, *words, **more)


@pytest.fixture(scope="module")
def photo():
    return Image.of(photograph())


@pytest.fixture(scope="module")
def hole():
    return masks.ellipse(SIZE, SIZE, x=10, y=14, w=40, h=37)


@pytest.mark.parametrize("begun", ["nothing", "the picture"])
def test_without_a_mask_all_is_repainted_and_nothing_is_seen_of_any_picture(nodes, parts, made, photo, begun):
    """It is what `inpaint.conditioning` makes of a white mask, and of whatever picture."""
    more = {} if begun == "nothing" else {"latent": nodes.encode(parts, photograph()), "denoise": 0.6}
    seen = conditioning(parts.unet, parts.vae, photo, WHITE, nodes.context)
    assert seen.data[:, 1:].std() > 1e-2
    assert torch.equal(made(**more), made(**more, inpaint=seen))
    assert error(made(**more, inpaint=InpaintConditioning(torch.zeros_like(seen.data))), made(**more)) > 1e-3


def test_with_a_mask_it_is_seen_and_the_latent_is_what_is_seen_of_the_picture(nodes, parts, made, photo, hole):
    latent = nodes.encode(parts, photograph())
    seen = InpaintConditioning(torch.cat([cells(hole, latent, 1), latent.data], dim=1))
    assert torch.equal(made(latent=latent, mask=hole), made(latent=latent, mask=hole, inpaint=seen))
    white = conditioning(parts.unet, parts.vae, photo, WHITE, nodes.context)
    assert error(made(latent=latent, mask=hole), made(latent=latent, mask=hole, inpaint=white)) > 1e-3


def test_by_comfyuis_convention_it_is_what_comfyui_shows(nodes, parts, made, hole):
    grey = torch.cat([torch.ones(1, 1, 8, 8), COMFY_GREY.expand(1, 4, 8, 8)], dim=1)
    told = {"convention": "comfy"}
    assert torch.equal(made(**told), made(**told, inpaint=InpaintConditioning(grey)))
    latent = nodes.encode(parts, photograph())
    seen = InpaintConditioning(torch.cat([shares(hole, latent, 1).round(), latent.data], dim=1))
    told |= {"latent": latent, "mask": hole}
    assert torch.equal(made(**told), made(**told, inpaint=seen))


@pytest.mark.parametrize("more", [{}, {"sampler": "dpm_adaptive"}], ids=["together", "one by one"])
def test_each_picture_of_a_batch_sees_its_own(nodes, parts, made, hole, more):
    latent = nodes.encode(parts, photograph())
    other = nodes.encode(parts, photograph(seed=1))
    both = type(latent)(torch.cat([other.data, latent.data]), latent.space)
    together = made(latent=both, mask=hole, count=2, denoise=0.5, **more)
    assert error(together[1:], made(latent=latent, mask=hole, seed=12, denoise=0.5, **more)) < 1e-4


def test_the_vae_is_asked_once_for_each_size_and_given_up(nodes, parts, made, monkeypatch):
    asked = []
    load = Blank.load

    def counted(ref, files, place):
        asked.append((ref.width, ref.height))
        return load(ref, files, place)

    monkeypatch.setattr(Blank, "load", counted)
    for height in (64, 96, 64, 96):
        made(latent=nodes.nothing(parts, 128, height))
    assert asked == [(128, 64), (128, 96)]
    wanted = Blank(parts.unet.digest, parts.unet.precision, parts.vae.space, 128, 64)
    assert wanted.module_bytes(nodes.context.model(wanted)) == 4 * 4 * 8 * 16


@pytest.fixture(scope="module")
def engine(root):
    with Engine(device="cpu", roots=[root], strict=True) as house:
        yield house


@pytest.mark.parametrize("name", GRAPHS)
def test_an_inpainting_checkpoint_runs_in_a_saved_graph(engine, name):
    graph = find(name).set({"checkpoint": "inpainting", "steps": 2, **GRAPHS[name]})
    first = engine.run(graph)
    assert first["image"].data.float().std() > 1
    assert engine.run(graph).ran() == []


def test_a_checkpoint_without_a_vae_is_told_what_to_link(nodes):
    blind = nodes.load("blind")
    words = nodes.both(blind, PROMPTS)
    with pytest.raises(ValueError, match=r"an inpainting model, and its checkpoint has no VAE .*: link `inpaint` to"):
        nodes.sample(blind, *words)
    seen = InpaintConditioning(torch.zeros(1, 5, 8, 8))
    assert nodes.sample(blind, *words, inpaint=seen).isfinite().all()
    assert nodes.sample(blind, *words, convention="comfy").isfinite().all()
