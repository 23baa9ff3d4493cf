"""Graphs of ComfyUI, in our nodes, give its latents and pictures.

The golden folder, named by the environment variable CALOTYPE_GOLDEN, holds cases that ComfyUI 0.3.64 made on a CPU in
float32 with an SD 1.5 checkpoint of random weights, and the script that writes this checkpoint (2.1 GB).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from comfyui import ComfyGraph
from safetensors.torch import load_file

from calotype import Engine

pytestmark = pytest.mark.slow

CASES = [
    "vae_roundtrip_64",
    "imagescale_bilinear",
    "imagescale_lanczos",
    "latentupscale_area",
    "latentupscale_bislerp",
    "i2i64_euler_normal_seed0",
    "i2i64_euler_ancestral_normal_seed0",
    "i2i64_dpmpp_2m_karras_seed0",
    "i2i64_ddim_ddim_uniform_seed0",
    "i2i64x_dpm_2_normal",
    "i2i64x_dpmpp_2s_ancestral_karras",
    "i2i64x_dpmpp_2m_sde_karras",
    "i2i64x_euler_beta",
    "i2i64x_heun_normal",
    "i2i128_dpmpp_2m_karras_seed0",
    "t2i64_cfg1",
    "t2i64_dpmpp_2m_karras",
    "batch2_i2i_euler",
    "clip_skip2",
    "prompt_weight",
    "prompt_long",
    "cond_combine",
    "cond_area",
    "inpaint_setnoisemask_dpmpp_2m",
    "inpaint_vaeencodeforinpaint_euler",
    "lora_0.8_0.6",
    "hiresfix_bislerp_2x",
    "ksampleradvanced_split",
]
LATENT_ERROR = 1e-3
LEVELS = 2


@pytest.fixture(scope="session")
def golden():
    folder = os.environ.get("CALOTYPE_GOLDEN")
    if not folder:
        pytest.skip("CALOTYPE_GOLDEN names no folder with ComfyUI's results")
    return Path(folder)


@pytest.fixture(scope="session")
def checkpoint(golden, tmp_path_factory):
    made = tmp_path_factory.mktemp("models") / "sd15_random.safetensors"
    subprocess.run([sys.executable, str(golden / "make_checkpoint.py"), str(made)], check=True)
    yield made
    made.unlink()


@pytest.fixture(scope="session")
def engine(golden, checkpoint):
    with Engine(device="cpu", roots=[golden / "inputs", golden, checkpoint.parent]) as house:
        yield house


def cases():
    """The known cases, and whatever else the folder holds."""
    folder = os.environ.get("CALOTYPE_GOLDEN")
    found = {path.parent.name for path in Path(folder).glob("*/graph.json")} if folder else set()
    return sorted(found | set(CASES))


@pytest.mark.parametrize("case", cases())
def test_a_graph_of_comfyui_gives_its_latents_and_pictures_here(engine, golden, case):
    saved = ComfyGraph(json.loads((golden / case / "graph.json").read_text()), golden / "inputs")
    result = engine.run(saved.document())
    assert saved.outputs()
    for name, node in saved.outputs().items():
        if saved.kind(name) == "SaveLatent":
            theirs = load_file(golden / case / f"{name}_0.latent")["latent_tensor"]
            ours = result[name].data / result[name].space.scaling
            error = ((ours - theirs).norm() / theirs.norm()).item()
            print(f"{case} {name}: relative error {error:.1e}")
            assert error <= LATENT_ERROR, node
        else:
            for index in range(len(result[name].data)):
                theirs = np.asarray(PIL.Image.open(golden / case / f"{name}_{index}.png").convert("RGB"), np.int16)
                apart = np.abs(np.asarray(result[name].pil(index), np.int16) - theirs).max()
                print(f"{case} {name} {index}: {apart} levels")
                assert apart <= LEVELS, node
