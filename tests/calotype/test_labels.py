"""The names that other programs have for samplers and schedules lead to ours."""

import pytest

from calotype import labels
from calotype.recipes import img2img, text2img
from engine.errors import GraphError
from nodes.diffusion.sampler import SAMPLERS
from nodes.diffusion.schedule import SCHEDULES

COMFYUI = [
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
]
COMFYUI_SCHEDULES = [
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
    "kl_optimal",
]
WEBUI = {
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ SDE": "dpmpp_sde",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 2M SDE Heun": "dpmpp_2m_sde_heun",
    "DPM++ 2S a": "dpmpp_2s_ancestral",
    "DPM++ 3M SDE": "dpmpp_3m_sde",
    "Euler a": "euler_ancestral",
    "Euler": "euler",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "dpm_2",
    "DPM2 a": "dpm_2_ancestral",
    "DPM fast": "dpm_fast",
    "DPM adaptive": "dpm_adaptive",
    "Restart": "restart",
    "DDIM": "ddim",
    "DDIM CFG++": "euler_cfg_pp",
    "PLMS": "plms",
    "UniPC": "uni_pc",
    "LCM": "lcm",
}
WEBUI_SCHEDULES = {
    "Automatic": "automatic",
    "Uniform": "normal",
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "polyexponential",
    "SGM Uniform": "sgm_uniform",
    "SGMUniform": "sgm_uniform",
    "KL Optimal": "kl_optimal",
    "Align Your Steps": "align_your_steps",
    "Simple": "simple",
    "Normal": "normal",
    "DDIM": "ddim_uniform",
    "Beta": "beta",
}


def test_comfyui_has_42_samplers():
    assert len(set(COMFYUI)) == 42


@pytest.mark.parametrize("name", COMFYUI)
def test_every_sampler_of_comfyui_is_one_of_ours(name):
    """Those that end in _gpu draw noise elsewhere, which is up to `noise.seeded`."""
    assert labels.sampler_of(name) == (name.removesuffix("_gpu"), None)
    assert name.removesuffix("_gpu") in SAMPLERS


@pytest.mark.parametrize("name", COMFYUI_SCHEDULES)
def test_every_schedule_of_comfyui_is_one_of_ours(name):
    """Where one name means two, "beta", it is the WebUI's, and ComfyUI's is beta_timestep."""
    assert labels.schedule_of(name) == name
    assert name in SCHEDULES
    assert "beta_timestep" in SCHEDULES


@pytest.mark.parametrize(("label", "name"), WEBUI.items())
def test_every_sampler_of_the_webui_is_one_of_ours(label, name):
    assert labels.sampler_of(label)[0] == name
    assert name in SAMPLERS


@pytest.mark.parametrize(("label", "name"), WEBUI_SCHEDULES.items())
def test_every_schedule_of_the_webui_is_one_of_ours(label, name):
    assert labels.schedule_of(label) == name
    assert name in {"automatic", *SCHEDULES}


@pytest.mark.parametrize(
    ("label", "name", "schedule"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE Heun Exponential", "dpmpp_2m_sde_heun", "exponential"),
        ("DPM2 a Karras", "dpm_2_ancestral", "karras"),
        ("dpmpp_sde_gpu karras", "dpmpp_sde", "karras"),
        ("ddim cfg++", "euler_cfg_pp", "ddim_uniform"),
    ],
)
def test_a_name_may_mean_a_schedule_too(label, name, schedule):
    assert labels.sampler_of(label) == (name, schedule)


def test_a_sampler_nobody_knows_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no sampler is called 'DPM\\+\\+ 9Q'"):
        labels.sampler_of("DPM++ 9Q")
    with pytest.raises(ValueError, match="no schedule is called 'dpmpp_sde_gpu'"):
        labels.schedule_of("dpmpp_sde_gpu")


def stated(graph, *names):
    places = [graph.locate(name) for name in names]
    return [graph.document.nodes[node].params[param] for node, param in places]


def test_ddim_cfg_pp_takes_its_share_of_the_cfg():
    graph = text2img(sampler_name="DDIM CFG++", cfg_scale=10)
    wanted = ["euler_cfg_pp", "ddim_uniform", pytest.approx(0.8)]
    assert stated(graph, "sampler", "schedule", "cfg") == wanted
    plain = text2img(sampler_name="Euler CFG++", cfg_scale=10)
    assert stated(plain, "cfg") == [10]


def test_a_bad_cfg_is_refused_once():
    with pytest.raises(GraphError) as error:
        img2img("face.png", sampler_name="DDIM CFG++", cfg_scale="many")
    assert [problem.path for problem in error.value.problems] == ["cfg_scale"]
