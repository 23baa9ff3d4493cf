"""Our samplers beside diffusers' schedulers, on one analytic model, in float32."""

import diffusers
import numpy as np
import pytest
import torch

from nodes.diffusion.ancestral import ddim, ddpm, dpm_2_ancestral, euler_ancestral
from nodes.diffusion.drive import drive
from nodes.diffusion.flow import dpm_2, euler, heun
from nodes.diffusion.multistep import deis, dpmpp_2m, lms
from nodes.diffusion.schedule import SCHEDULES, karras, normal
from nodes.diffusion.sde import dpmpp_2m_sde, dpmpp_2m_sde_heun
from nodes.diffusion.unipc import uni_pc, uni_pc_bh2

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 4, 8, 8)


def noise_from(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(SHAPE, generator=generator)


def sample(sampler, model, x, sigmas, noise=None):
    [result] = drive([sampler(x, sigmas, noise)], lambda questions: [model(*question) for question in questions])
    return result


def step_through(scheduler, model, x, sigmas, **step):
    """Run a diffusers scheduler whose samples stand in sigma space, with predictions at exactly these sigmas."""
    scheduler.set_begin_index(0)
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        epsilon = (x - model(x, sigma)) / sigma
        x = scheduler.step(epsilon, timestep, x, **step).prev_sample
    return x


def assert_same(ours, theirs, tolerance=1e-4):
    assert ((ours - theirs).norm() / theirs.norm()).item() < tolerance


@pytest.fixture
def start(table):
    return noise_from(0)() * table.sigma_max


@pytest.mark.parametrize("begin", [0, 5])
def test_euler_is_euler_discrete(begin, mixture, start):
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    scheduler.timesteps, scheduler.sigmas = scheduler.timesteps[begin:], scheduler.sigmas[begin:]
    sigmas = scheduler.sigmas.tolist()
    theirs = step_through(scheduler, mixture.denoised, start, sigmas[:-1])
    assert_same(sample(euler, mixture.denoised, start, sigmas), theirs)


def test_karras_levels_and_their_timesteps_are_diffusers(table):
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    ours = karras(table, 20).tolist()
    assert ours == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)
    assert [table.timestep(sigma) for sigma in ours[:-1]] == pytest.approx(scheduler.timesteps.tolist(), abs=1e-2)


def test_normal_levels_are_diffusers_linspace_at_whole_timesteps(table):
    """28 steps fall on whole timesteps; between those diffusers is linear in sigma, all others in log sigma."""
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace")
    scheduler.set_timesteps(28)
    assert normal(table, 28).tolist() == pytest.approx(scheduler.sigmas.tolist(), rel=1e-4)


def test_heun_is_heun_discrete(mixture, start):
    scheduler = diffusers.HeunDiscreteScheduler(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    asked = scheduler.sigmas[:-1]
    theirs = step_through(scheduler, mixture.denoised, start, asked.tolist())
    levels = [*asked[::2].tolist(), 0.0]
    assert_same(sample(heun, mixture.denoised, start, levels), theirs)


def test_dpmpp_2m_is_dpm_solver_multistep_with_exact_timesteps(mixture, start):
    """Its samples are variance preserving, x / sqrt(1 + sigma ** 2), and its timesteps rounded.

    Only the predictions see the timesteps, and those are made here at the exact sigmas; at the rounded ones, which the
    second half feeds, the result is another by more than rounding.
    """

    def theirs(rounded):
        scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True, final_sigmas_type="zero")
        scheduler.set_timesteps(20)
        scheduler.set_begin_index(0)
        table = np.sqrt(1 / scheduler.alphas_cumprod - 1)
        x = start / (1 + scheduler.sigmas[0] ** 2).sqrt()
        for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            noisy = x * (1 + sigma**2).sqrt()
            asked = table[timestep] if rounded else sigma
            epsilon = (noisy - mixture.denoised(noisy, asked.item())) / asked
            x = scheduler.step(epsilon, timestep, x).prev_sample
        return scheduler.sigmas.tolist(), x

    sigmas, exact = theirs(rounded=False)
    ours = sample(dpmpp_2m, mixture.denoised, start, sigmas)
    assert_same(ours, exact)
    assert ((ours - theirs(rounded=True)[1]).norm() / ours.norm()).item() > 1e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_ddim_at_its_own_timesteps(eta, mixture, table):
    """Diffusers visits 951, 901, ... 1 and ends at the noise level of timestep 0, not at 0; so do we when told to."""
    scheduler = diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )
    scheduler.set_timesteps(20)
    sigmas = [*(table.sigmas[timestep] for timestep in scheduler.timesteps), table.sigma_min]
    start, noise = noise_from(0)() * sigmas[0], noise_from(1)
    x = start / (1 + sigmas[0] ** 2) ** 0.5
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        noisy = x * (1 + sigma**2) ** 0.5
        epsilon = (noisy - mixture.denoised(noisy, sigma)) / sigma
        x = scheduler.step(epsilon, timestep, x, eta=eta, variance_noise=noise()).prev_sample
    theirs = x * (1 + table.sigma_min**2) ** 0.5
    ours = sample(lambda *run: ddim(*run, eta=eta), mixture.denoised, start, sigmas, noise_from(1))
    assert_same(ours, theirs)


def test_euler_ancestral_is_euler_ancestral_discrete_on_the_same_noise(mixture, start):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="linspace")
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas.tolist()
    generator = torch.Generator().manual_seed(1)
    theirs = step_through(scheduler, mixture.denoised, start, sigmas[:-1], generator=generator)
    assert_same(sample(euler_ancestral, mixture.denoised, start, sigmas, noise_from(1)), theirs)


def step_preserving(scheduler, model, start, noise=None):
    """Run a diffusers scheduler whose samples are variance preserving, with predictions at its exact sigmas."""
    scheduler.set_begin_index(0)
    x = start / (1 + scheduler.sigmas[0] ** 2).sqrt()
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        noisy = x * (1 + sigma**2).sqrt()
        epsilon = (noisy - model(noisy, sigma.item())) / sigma
        drawn = {} if noise is None else {"variance_noise": noise()}
        x = scheduler.step(epsilon, timestep, x, **drawn).prev_sample
    return scheduler.sigmas.tolist(), x


@pytest.mark.parametrize(("sampler", "solver"), [(dpmpp_2m_sde, "midpoint"), (dpmpp_2m_sde_heun, "heun")])
def test_dpmpp_2m_sde_is_dpm_solver_multistep_sde_on_the_same_noise(sampler, solver, mixture, start):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS,
        use_karras_sigmas=True,
        final_sigmas_type="zero",
        algorithm_type="sde-dpmsolver++",
        solver_type=solver,
        euler_at_final=True,
    )
    scheduler.set_timesteps(20)
    sigmas, theirs = step_preserving(scheduler, mixture.denoised, start, noise_from(1))
    assert_same(sample(sampler, mixture.denoised, start, sigmas, noise_from(1)), theirs)


@pytest.mark.parametrize(("sampler", "solver"), [(uni_pc, "bh1"), (uni_pc_bh2, "bh2")])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_uni_pc_is_uni_pc_multistep(sampler, solver, order, mixture, start):
    scheduler = diffusers.UniPCMultistepScheduler(
        **BETAS, use_karras_sigmas=True, final_sigmas_type="zero", solver_type=solver, solver_order=order
    )
    scheduler.set_timesteps(20)
    scheduler.sigmas[-1] = 1e-3  # at 0 its bh1 has no end
    sigmas, theirs = step_preserving(scheduler, mixture.denoised, start)
    assert_same(sample(lambda *run: sampler(*run, order=order), mixture.denoised, start, sigmas), theirs)


def test_deis_is_deis_multistep(mixture, start):
    """But for the last step onto 0, which has no answer in log rho: diffusers ends at another level."""
    scheduler = diffusers.DEISMultistepScheduler(
        **BETAS, use_karras_sigmas=True, solver_order=3, lower_order_final=False
    )
    scheduler.set_timesteps(20)
    sigmas, theirs = step_preserving(scheduler, mixture.denoised, start)
    ours = sample(deis, mixture.denoised, start, sigmas)
    assert_same(ours, theirs * (1 + sigmas[-1] ** 2) ** 0.5)


def test_lms_is_lms_discrete(mixture, start):
    scheduler = diffusers.LMSDiscreteScheduler(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    scheduler.is_scale_input_called = True  # its warning is about UNets
    sigmas = scheduler.sigmas.tolist()
    assert_same(
        sample(lms, mixture.denoised, start, sigmas), step_through(scheduler, mixture.denoised, start, sigmas[:-1])
    )


@pytest.mark.parametrize(
    ("sampler", "theirs"),
    [(dpm_2, diffusers.KDPM2DiscreteScheduler), (dpm_2_ancestral, diffusers.KDPM2AncestralDiscreteScheduler)],
)
def test_dpm_2_is_k_dpm_2_discrete(sampler, theirs, mixture, start):
    scheduler = theirs(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    levels = [scheduler.sigmas[0].item(), *scheduler.sigmas[1:-1:2].tolist()]
    noise = {} if sampler is dpm_2 else {"generator": torch.Generator().manual_seed(1)}
    x, asked = start, []

    def model(x, sigma):
        asked.append(sigma)
        return mixture.denoised(x, sigma)

    drawn = noise_from(1)
    ours = sample(sampler, model, start, levels, lambda *_: drawn())
    scheduler.set_begin_index(0)
    for timestep, sigma in zip(scheduler.timesteps, asked, strict=True):
        x = scheduler.step((x - mixture.denoised(x, sigma)) / sigma, timestep, x, **noise).prev_sample
    assert_same(ours, x, 1e-3 if sampler is dpm_2_ancestral else 1e-4)


def test_ddpm_is_ddpm_at_its_own_timesteps(mixture, table):
    """Without its clipping and with its small variance; it ends at 0 from timestep 0."""
    scheduler = diffusers.DDPMScheduler(
        **BETAS, clip_sample=False, variance_type="fixed_small", timestep_spacing="leading"
    )
    scheduler.set_timesteps(20)
    sigmas = [*(table.sigmas[timestep] for timestep in scheduler.timesteps), 0.0]
    start, generator = noise_from(0)() * sigmas[0], torch.Generator().manual_seed(1)
    x = start / (1 + sigmas[0] ** 2) ** 0.5
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        noisy = x * (1 + sigma**2) ** 0.5
        x = scheduler.step(
            (noisy - mixture.denoised(noisy, sigma)) / sigma, timestep, x, generator=generator
        ).prev_sample
    assert_same(sample(ddpm, mixture.denoised, start, sigmas, noise_from(1)), x)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("exponential", {"use_exponential_sigmas": True}),
        ("beta", {"use_beta_sigmas": True}),
        ("simple", {"timestep_spacing": "trailing"}),
    ],
)
def test_schedules_are_diffusers(name, flags, table):
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, **{"timestep_spacing": "linspace", **flags})
    scheduler.set_timesteps(20)
    assert SCHEDULES[name](table, 20).tolist() == pytest.approx(scheduler.sigmas.tolist(), rel=1e-4)
