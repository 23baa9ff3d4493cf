"""What the WebUI calls the words that graphs use, and back."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from engine.graph import suggest
from engine.param import Param
from nodes.diffusion import sampler, schedule

Words = Mapping[str, str]
"""Our word -> the WebUI's label."""


SAMPLERS: Words = MappingProxyType({name: made.label or name for name, made in sampler.SAMPLERS.items()})
SCHEDULES: Words = MappingProxyType(
    {"automatic": "Automatic", **{name: label for label, name in schedule.LABELS.items()}},
)
OTHERS: Words = {
    **{f"{name}_gpu": name for name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")},
    "SGMUniform": "sgm_uniform",
}
"""More names of samplers and schedules -> ours: ComfyUI's that say where noise is drawn (the noise's own affair here),
and a former label."""
DDIM_CFG_PP, DDIM_CFG_PP_SHARE = "DDIM CFG++", 1 / 12.5
"""The WebUI's sampler that divides the cfg, which others of its family expect to be divided."""
RESIZE: Words = {
    "stretch": "Just resize",
    "crop": "Crop and resize",
    "fill": "Resize and fill",
    "latent": "Just resize (latent upscale)",
}
CONTENT: Words = {"fill": "fill", "original": "original", "noise": "latent noise", "nothing": "latent nothing"}
AREA: Words = {"whole": "Whole picture", "masked": "Only masked"}
EMPHASIS: Words = {"a1111": "Original", "no_norm": "No norm", "ignore": "Ignore", "none": "None"}
RNG: Words = {"nv": "NV", "cpu": "CPU"}
UPSCALERS: Words = {
    "bilinear": "Latent",
    "bilinear-antialiased": "Latent (antialiased)",
    "bicubic": "Latent (bicubic)",
    "bicubic-antialiased": "Latent (bicubic antialiased)",
    "nearest": "Latent (nearest)",
    "nearest-exact": "Latent (nearest-exact)",
}
"""Ways to enlarge a latent."""
SOFTLY = "Soft inpainting enabled"
SOFT: Words = {
    "bias": "Soft inpainting schedule bias",
    "preservation": "Soft inpainting preservation strength",
    "contrast": "Soft inpainting transition contrast boost",
    "influence": "Soft inpainting mask influence",
    "threshold": "Soft inpainting difference threshold",
    "difference_contrast": "Soft inpainting difference contrast",
}
"""Parameters of `inpaint.soft`."""
OPTIONS: Words = {
    "noise_multiplier": "Noise multiplier",
    "extra_noise": "Extra noise",
    "eta": "Eta",
    "churn": "Sigma churn",
    "churn_min": "Sigma tmin",
    "churn_max": "Sigma tmax",
    "noise_scale": "Sigma noise",
    "sigma_min": "Schedule min sigma",
    "sigma_max": "Schedule max sigma",
    "rho": "Schedule rho",
    "discard_penultimate": "Discard penultimate sigma",
    "ngms": "NGMS",
    "ngms_all": "NGMS all steps",
    "skip_early": "Skip Early CFG",
}
"""Parameters of `sample.options`."""


def word_of(words: Words, value: object) -> str:
    """Our word for a label, or for itself, in capitals or not, or for its number in `words`, which counts from 0.

    Raises ValueError with what there is.
    """
    found = _lookup(words, value)
    if isinstance(value, int) and not isinstance(value, bool):
        found = dict(enumerate(words)).get(value)
    if found is None:
        raise ValueError(f"expected {' or '.join(map(repr, words.values()))}, got {value!r}")
    return found


def hint(param: Param, value: object) -> str:
    """What a parameter takes for a label of the WebUI's: `; "Euler a" is euler_ancestral here`, or nothing."""
    found = (_lookup(words, value) for words in (RESIZE, CONTENT, AREA, EMPHASIS, RNG, UPSCALERS, SAMPLERS, SCHEDULES))
    taken = next((word for word in found if word and _takes(param, word)), None)
    if taken:
        return f'; "{value}" is {taken} here'
    try:
        sampler, ending = sampler_of(value)
    except ValueError:
        return ""
    return f'; "{value}" is {sampler} here, with the schedule {ending}' if _takes(param, sampler) else ""


def _takes(param: Param, word: str) -> bool:
    try:
        param.parse(word)
    except ValueError:
        return False
    return True


def sampler_of(value: object) -> tuple[str, str | None]:
    """A sampler, and a schedule where its name means one, as "DPM++ 2M Karras" does. Raises ValueError.

    Any name of the WebUI's, of ComfyUI's or of ours.
    """
    if divides_cfg(value):
        return "euler_cfg_pp", "ddim_uniform"
    found = _lookup(SAMPLERS, value)
    if found is not None:
        return found, None
    head, _, tail = str(value).rpartition(" ")
    while head:
        begun, end = _lookup(SAMPLERS, head), _lookup(SCHEDULES, tail)
        if begun and end:
            return begun, end
        head, _, last = head.rpartition(" ")
        tail = f"{last} {tail}"
    raise ValueError(_unknown("sampler", value, (*SAMPLERS.values(), *SAMPLERS)))


def divides_cfg(value: object) -> bool:
    """Whether a sampler's name means one that takes only `DDIM_CFG_PP_SHARE` of the cfg."""
    return isinstance(value, str) and value.strip().casefold() == DDIM_CFG_PP.casefold()


def schedule_of(value: object) -> str:
    """A schedule by its label or by our name. Raises ValueError."""
    found = _lookup(SCHEDULES, value)
    if found is None:
        raise ValueError(_unknown("schedule", value, (*SCHEDULES.values(), *SCHEDULES)))
    return found


def _lookup(words: Words, value: object) -> str | None:
    if not isinstance(value, str):
        return None
    others = {label.casefold(): word for label, word in OTHERS.items() if word in words}
    known = (
        others | {label.casefold(): word for word, label in words.items()} | {word.casefold(): word for word in words}
    )
    return known.get(value.strip().casefold())


def _unknown(kind: str, value: object, known: Iterable[str]) -> str:
    listed = list(dict.fromkeys(known))
    if not isinstance(value, str):
        return f"expected the name of a {kind}, got {value!r}"
    return f"no {kind} is called {value!r}{suggest(value, listed) or '; there are ' + ', '.join(listed)}"
