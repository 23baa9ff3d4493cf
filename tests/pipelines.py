"""Tiny pipelines of diffusers with random weights, in folders, beside the nodes that run the same models."""

from types import SimpleNamespace

import diffusers
import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, ControlNetModel, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import pocket
from engine.context import Context
from engine.file import Files
from engine.models import ModelPool
from nodes import latent, model, noise, text, vae
from nodes.diffusion.checkpoint import TOKENIZER
from nodes.diffusion.schedule import karras
from nodes.diffusion.table import NoiseSchedule
from nodes.files import CheckpointFile
from nodes.sample import sample
from nodes.types import Image, Latent

SIZE, SEED, STEPS = 64, 11, 4
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TABLE = NoiseSchedule.from_config(BETAS)
ONE = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
}
UP = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
XL = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "cross_attention_dim": 96,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 2),
    "projection_class_embeddings_input_dim": 6 * 8 + 64,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
}
XL_UP = {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}


def seeded(make, seed=0):
    """A module with random weights, also where its own begin as zeros."""
    torch.manual_seed(seed)
    made = make().eval().requires_grad_(requires_grad=False)
    for weight in made.parameters():
        if not weight.any():
            weight.normal_(std=0.05)
    return made


def clip(width, kind=CLIPTextModel, **more):
    """A tiny text encoder for CLIP's own vocabulary."""
    sizes = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return seeded(lambda: kind(CLIPTextConfig(**sizes, vocab_size=49408, projection_dim=width, **more)), width)


def tiny_vae():
    """A VAE that halves the sides three times."""
    widths = (8, 8, 16, 16)
    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=widths,
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            scaling_factor=0.13025,
        )
    )


def scheduler(**more):
    """One that takes our noise levels as they are."""
    return EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace", steps_offset=1, **more)


def plain(folder, unet=None, **more):
    """Stable Diffusion 1.x."""
    return _saved(
        folder,
        diffusers.StableDiffusionPipeline(
            unet=unet or seeded(lambda: UNet2DConditionModel(**ONE | UP)),
            vae=tiny_vae(),
            text_encoder=clip(64),
            tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
            scheduler=scheduler(**more),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
    )


def xl(folder, unet=None, **more):
    """SDXL's base model."""
    return _saved(
        folder,
        diffusers.StableDiffusionXLPipeline(
            unet=unet or seeded(lambda: UNet2DConditionModel(**XL | XL_UP)),
            vae=tiny_vae(),
            text_encoder=clip(32),
            text_encoder_2=clip(64, CLIPTextModelWithProjection, hidden_act="gelu"),
            tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
            tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!"),
            scheduler=scheduler(),
            add_watermarker=False,
            **more,
        ),
    )


def refiner(folder):
    """SDXL's refiner."""
    sizes = XL | {"cross_attention_dim": 64, "projection_class_embeddings_input_dim": 5 * 8 + 64}
    return _saved(
        folder,
        diffusers.StableDiffusionXLImg2ImgPipeline(
            unet=seeded(lambda: UNet2DConditionModel(**sizes | XL_UP), 5),
            vae=tiny_vae(),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=clip(64, CLIPTextModelWithProjection, hidden_act="gelu"),
            tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!"),
            scheduler=scheduler(),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        ),
    )


def controlnet(folder, sizes=ONE, seed=3):
    """A ControlNet whose every layer says something."""
    reader = {"conditioning_embedding_out_channels": (8, 8, 16, 16)}
    net = seeded(lambda: ControlNetModel(**sizes, **reader), seed)
    net.save_pretrained(folder)
    return net


def _saved(folder, pipeline):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def by_mean(pipeline):
    """The pipeline, made to take the mean of what its VAE encodes, as we do, where it draws from around it."""
    encode = pipeline.vae.encode
    pipeline.vae.encode = lambda pictures: SimpleNamespace(latents=encode(pictures).latent_dist.mean)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def photograph(size=SIZE, seed=0):
    """A picture of soft random colours."""
    few = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return PIL.Image.fromarray(few).resize((size, size), PIL.Image.Resampling.BICUBIC)


def levels(table=TABLE, steps=STEPS):
    """The noise levels of all runs here."""
    return karras(table, steps).tolist()


class Nodes:
    """The nodes with a model's folder."""

    def __init__(self, root):
        self.files = Files([root], named={"pocket": pocket.FOLDER})
        self.context = Context(models=ModelPool(self.files))

    def load(self, name):
        """Load a model."""
        return model.load(self.files.resolve(CheckpointFile, name))

    def words(self, parts, prompt, **more):
        """Encode a prompt."""
        return text.encode(parts.text, self.context, text=prompt, **more)

    def nothing(self, parts, width=SIZE, height=SIZE):
        """An empty latent."""
        return latent.empty(parts.vae, self.context, width=width, height=height)

    def encode(self, parts, picture):
        """Encode a picture of Pillow."""
        return vae.encode(parts.vae, Image.of(picture), self.context)

    def decode(self, parts, data):
        """Decode what was sampled, to levels from 0 to 255."""
        return vae.decode(parts.vae, Latent(data, parts.vae.space), self.context).data.int()

    def both(self, parts, prompts, **more):
        """Encode a prompt and a negative one, without weights, which diffusers does not read."""
        positive, negative = prompts
        return (
            self.words(parts, positive, weighting="none", **more),
            self.words(parts, negative, weighting="none", negative=True, **more),
        )

    def sample(self, parts, positive, negative, **more):
        """Sample from nothing, with the seed of all runs here, where nothing else is said."""
        start = more.pop("latent", None) or self.nothing(parts)
        recipe = noise.seeded(seed=more.pop("seed", SEED), count=more.pop("count", 1))
        told = {"steps": STEPS, "cfg": 5.0, "sampler": "euler", "schedule": "karras"} | more
        return sample(parts.unet, positive, start, recipe, self.context, negative=negative, **told).data


def apart(ours, pictures):
    """How many levels pictures of ours are apart from those of diffusers, from 0 to 1, at most."""
    return (ours - (pictures * 255).round().int()).abs().max().item()


def error(ours, theirs):
    """How far two tensors are apart, relatively."""
    return ((ours - theirs).norm() / theirs.norm()).item()
