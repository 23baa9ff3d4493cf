"""The trained parts as a folder in the layout of diffusers, in half precision."""

import json
import shutil
from pathlib import Path

from diffusers import StableDiffusionPipeline

from pocket.training import network
from pocket.training.job import LEARNT, Job

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")

SMALL = {"blueprint.safetensors": "loras", "afterglow.safetensors": "embeddings"}
"""The LoRA and the embedding, and the folders beside the model that they are put into."""


def export(job: Job) -> None:
    """Write the model, in place of what was there, so that `StableDiffusionPipeline.from_pretrained` loads it."""
    painter, vae = job.trained().half(), job.vae().half()
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=painter.text,
        tokenizer=job.tokenizer,
        unet=painter.unet,
        scheduler=network.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(job.to, ignore_errors=True)
    pipeline.save_pretrained(job.to, safe_serialization=True)
    for name in TOKENIZER_FILES:
        shutil.copy(job.vocabulary / name, job.to / "tokenizer" / name)
    _load_in_full_precision(job.to / "text_encoder" / "config.json")
    (job.to / LEARNT).write_text(json.dumps(job.learnt(), indent=2) + "\n", encoding="utf-8")
    for name, folder in SMALL.items():
        if (job.pieces / name).exists():
            (job.to.parent / folder).mkdir(exist_ok=True)
            shutil.copy(job.pieces / name, job.to.parent / folder / name)
    megabytes = sum(file.stat().st_size for file in job.to.rglob("*") if file.is_file()) / 1e6
    job.journal.note("export", to=str(job.to), megabytes=round(megabytes, 2))


def _load_in_full_precision(config: Path) -> None:
    """Transformers loads the dtype that the config names; half beside a UNet in full precision would not run."""
    entries = json.loads(config.read_text(encoding="utf-8"))
    entries["dtype"] = "float32"
    config.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
