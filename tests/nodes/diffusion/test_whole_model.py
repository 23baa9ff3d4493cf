"""A Stable Diffusion 1.5 of its true size in one file, with random weights: diffusers' modules, memory, and latents."""

import hashlib
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as judge
from pipelines import SEED, SIZE, Nodes, apart, by_mean, error, levels, photograph, scheduler
from safetensors.torch import load_file, save_file
from single_file import CLIP, UNET, VAE, bare, renamed, same
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nodes import mask as masks
from nodes.diffusion import checkpoint, load, original
from nodes.diffusion import tensors as tensors_of
from nodes.diffusion.checkpoint import TOKENIZER
from nodes.diffusion.noise import draw

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # diffusers and numpy 2
]
ROOT = Path(__file__).parents[3]
STORED = {"input_blocks.0.0.weight": (320, 4, 3, 3), "out.2.weight": (4, 320, 3, 3)}
"""Two of the shapes that everybody's Stable Diffusion 1.5 has."""
SHIPPED_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CLIP_L = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, hidden_act="quick_gelu")
PROMPTS = "a fox in the snow, (sharp)", "a cat"
STEPS, CFG, STRENGTH = 10, 5.0, 0.5


def drawn(name, shape, fan_in):
    """A tensor in float16 from a generator of its own, scaled so that what goes through keeps its size about."""
    made = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"))
    noise = torch.rand(shape, generator=made) * 2 - 1
    if "embedding" in name:
        return (0.03 * noise).half()
    if len(shape) == 1 and not fan_in:
        return ((1.0 if name.endswith("weight") else 0.0) + 0.1 * noise).half()
    return (noise / math.sqrt(fan_in or math.prod(shape[1:]))).half()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A whole Stable Diffusion 1.5 with random weights in float16, 2.1 GB."""
    with torch.device("meta"):
        whole = UNet2DConditionModel(cross_attention_dim=768), AutoencoderKL(**SHIPPED_VAE), CLIPTextModel(CLIP_L)
    names = [(original.unet, UNET), (original.vae, VAE), (original.clip, CLIP)]
    shapes = {}
    for module, (spelling, prefix) in zip(whole, names, strict=True):
        shapes |= {place: tensor.shape for place, tensor in renamed(module, spelling, prefix).items()}

    def fan_in(name):
        weight = shapes.get(name.removesuffix("bias") + "weight", ())
        return math.prod(weight[1:]) if name.endswith("bias") and len(weight) > 1 else 0

    path = tmp_path_factory.mktemp("full") / "sd15.safetensors"
    save_file({name: drawn(name, shape, fan_in(name)) for name, shape in shapes.items()}, path)
    yield path
    path.unlink()


class TestLoading:
    def test_it_has_the_names_and_shapes_that_everybody_shares(self, full):
        found = tensors_of.shapes(full, "")
        assert len(found) == 1130
        assert {name: found[UNET + name] for name in STORED} == STORED
        assert checkpoint.described(full) == "SD 1.x"

    def test_every_part_has_the_very_bits_of_diffusers_conversion(self, full):
        tensors = load_file(full)
        unet, vae, encoder = (part(full, dtype=torch.float16) for part in (load.unet, load.vae, load.text_encoder))
        assert same(unet, judge.convert_ldm_unet_checkpoint(dict(tensors), dict(unet.config)))
        assert same(vae, judge.convert_ldm_vae_checkpoint(dict(tensors), dict(vae.config)))
        converted = bare(judge.convert_ldm_clip_checkpoint(dict(tensors)))
        assert bare(encoder.state_dict()).keys() <= converted.keys()
        assert all(torch.equal(converted[name], weight) for name, weight in bare(encoder.state_dict()).items())

    @pytest.mark.parametrize(("dtype", "times"), [("float16", 1), ("float32", 2)])
    def test_loading_all_of_it_takes_little_more_memory_than_the_file_holds(self, full, dtype, times):
        """The most that was held at once, over the file's size, which counts twice where float16 becomes float32."""
        code = (
            "import re, sys, torch, diffusers, transformers; from pathlib import Path;"
            "from diffusers import AutoencoderKL, UNet2DConditionModel; from transformers import CLIPTextModel;"
            "from nodes.diffusion import load;"
            "most = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024;"
            "before = most();"
            "parts = load.unet, load.vae, load.text_encoder;"
            f"held = [part(Path(sys.argv[1]), dtype=torch.{dtype}) for part in parts];"
            "print(most() - before)"
        )
        ran = subprocess.run([sys.executable, "-c", code, full], check=True, capture_output=True, text=True, cwd=ROOT)
        ratio = int(ran.stdout) / (times * full.stat().st_size)
        print(f"{dtype}: {ratio:.3f} of the file")
        assert 0.9 < ratio <= 1.1


def of_diffusers(path):
    """Diffusers' pipeline from the file's tensors, converted by diffusers, in float32."""
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(cross_attention_dim=768, sample_size=64), AutoencoderKL(**SHIPPED_VAE)
    encoder = CLIPTextModel(CLIP_L)
    unet.load_state_dict(judge.convert_ldm_unet_checkpoint(dict(tensors), dict(unet.config)), assign=True)
    vae.load_state_dict(judge.convert_ldm_vae_checkpoint(dict(tensors), dict(vae.config)), assign=True)
    words = bare(judge.convert_ldm_clip_checkpoint(dict(tensors)))
    encoder.load_state_dict({name: words[name.removeprefix("text_model.")] for name in encoder.state_dict()})
    return diffusers.StableDiffusionPipeline(
        unet=unet.eval(),
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def hole():
    """Its edges lie between cells of the latent, so that no two ways of scaling it down differ."""
    return masks.rectangle(SIZE, SIZE, x=16, y=8, w=32, h=40)


@pytest.fixture(scope="module")
def theirs(full, hole):
    """What diffusers makes by each task in ten steps: latents, and of the first pixels too. The models go then."""
    text = by_mean(of_diffusers(full))
    onward, under = (
        kind(**text.components, requires_safety_checker=False)
        for kind in (diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionInpaintPipeline)
    )
    for each in (onward, under):
        each.set_progress_bar_config(disable=True)
    prompts = dict(zip(("prompt", "negative_prompt"), PROMPTS, strict=True)) | {"guidance_scale": CFG}
    noise = draw([SEED], (4, SIZE // 8, SIZE // 8))
    asked = prompts | {"num_inference_steps": STEPS, "sigmas": levels(steps=STEPS), "output_type": "latent"}
    made = {"text": text(**asked, latents=noise).images}
    with torch.no_grad():
        signed = text.vae.decode(made["text"] / text.vae.config.scaling_factor, return_dict=False)[0]
    made["pixels"] = text.image_processor.postprocess(signed, output_type="pt")
    twice = round(STEPS / STRENGTH)
    asked |= {"num_inference_steps": twice, "sigmas": levels(steps=twice), "strength": STRENGTH, "image": photograph()}
    made["picture"] = onward(**asked, generator=torch.Generator().manual_seed(SEED)).images
    covered = {"mask_image": PIL.Image.fromarray(hole.data[0, 0].numpy()), "height": SIZE, "width": SIZE}
    made["hole"] = under(**asked, **covered, generator=torch.Generator().manual_seed(SEED)).images
    return made


@pytest.fixture(scope="module")
def ours(full, theirs):
    """Our nodes, the parts of the file, and what samples with them in ten steps."""
    nodes = Nodes(full.parent)
    parts = nodes.load(full.name)
    positive, negative = nodes.both(parts, PROMPTS)

    def sample(**more):
        return nodes.sample(parts, positive, negative, steps=STEPS, cfg=CFG, **more)

    return SimpleNamespace(nodes=nodes, parts=parts, sample=sample, start=nodes.encode(parts, photograph()))


class TestSampling:
    """Ten steps of Euler in float32, from the single file through our nodes, beside diffusers' pipelines."""

    def test_text_to_image_is_stable_diffusion_pipeline(self, ours, theirs):
        made = ours.sample()
        print(f"text to image: relative error {error(made, theirs['text']):.1e}")
        assert error(made, theirs["text"]) <= 1e-4
        assert apart(ours.nodes.decode(ours.parts, made), theirs["pixels"]) <= 1

    def test_image_to_image_is_stable_diffusion_img2img_pipeline(self, ours, theirs):
        """From the pixels: diffusers runs the last half of twice the steps."""
        made = ours.sample(latent=ours.start, denoise=STRENGTH)
        print(f"image to image: relative error {error(made, theirs['picture']):.1e}")
        assert error(made, theirs["picture"]) <= 1e-4
        assert error(ours.start.data, theirs["picture"]) > 1e-2

    def test_inpainting_is_stable_diffusion_inpaint_pipeline(self, ours, theirs, hole):
        """Below full strength, with a mask of whole cells and Euler, both ways of keeping a part are one."""
        made = ours.sample(latent=ours.start, denoise=STRENGTH, mask=hole)
        print(f"inpainting: relative error {error(made, theirs['hole']):.1e}")
        assert error(made, theirs["hole"]) <= 1e-4
        assert error(made, theirs["picture"]) > 1e-2
