"""What the embedded model draws, beside what it was told to.

Runs on whatever weights are in `pocket/model`; needs the data, which `python -m pocket.train data` fetches.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.measure import Answer, Beside, Goal, Row
from nodes.diffusion import load, text, vae
from nodes.diffusion.denoise import Denoiser
from nodes.diffusion.drive import drive
from nodes.diffusion.guidance import Guidance, guided
from nodes.diffusion.keep import Repaint
from nodes.diffusion.multistep import dpmpp_2m
from nodes.diffusion.noise import Streams
from nodes.diffusion.schedule import karras, tail
from pocket import FOLDER
from pocket.training import archive, palette, picture, scene
from pocket.training.caption import article
from pocket.training.concept import Concept
from pocket.training.job import LEARNT
from pocket.training.painting import LEAST
from pocket.training.style import STYLES

QUESTION = "Does the embedded model draw what it is told to, and keep what it is told to keep?"
DATA = Path(".cache/pocket/data/emoji.tar")
SIDE, STEPS, CFG, BATCH = 128, 20, 7.0, 20
PROMPTS, PAIRS, INPUTS, STYLED, UNSEEN = 100, 50, 32, 20, 128
SIZES = (0.7, 0.77, 0.84)
"""How large things are of which a style is looked for, as shares of the picture."""
SHIFT = 4
"""How far apart in the palette, of 15 colours, two backgrounds of one concept are; each comes once in 15."""
STRENGTHS = tuple(number / 10 for number in range(1, 11))
DECIBELS = 28.0

CROP, MARGIN, RING, APART, SPECK = 32, 0.06, 4, 32, 2
"""Pixels of a picture that is compared; the share left around it; the frame that shows the background; levels off it
that stand out; and pixels in a line that do not count yet."""


class Model:
    """The model, sampled as the nodes do it."""

    def __init__(self, folder: Path) -> None:
        self._unet = Denoiser(load.unet(folder), load.schedule(folder), batch=2 * BATCH)
        self._table = load.schedule(folder)
        self._vae = load.vae(folder)
        self._towers = load.towers(folder)

    def draw(
        self,
        prompts: Sequence[str],
        *,
        cfg: float = CFG,
        negatives: Sequence[str] | None = None,
        start: Tensor | None = None,
        denoise: float = 1.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """One picture per prompt, uint8 (N, 3, H, W); `start` are pictures to begin from, `mask` (1, 1, h, w) cells."""
        positive, negative = self._encoded(prompts), self._encoded(negatives or [""] * len(prompts))
        shape = (len(prompts), 4, SIDE // 8, SIDE // 8)
        clean = torch.zeros(shape) if start is None else vae.encode(start, self._vae)
        sigmas = tail(karras, self._table, STEPS, denoise).tolist()
        noise = Streams.open(range(len(prompts)), shape[1:])
        keep = None if mask is None else Repaint(mask, clean)
        steps = dpmpp_2m(clean + noise.initial * sigmas[0], sigmas, noise)
        (latents,) = drive([guided(steps, Guidance(positive, negative, cfg, keep))], self._unet)
        return vae.decode(latents, self._vae)

    def again(self, pictures: Tensor) -> Tensor:
        """Pictures encoded and decoded."""
        return vae.decode(vae.encode(pictures, self._vae), self._vae)

    def _encoded(self, prompts: Sequence[str]) -> Tensor:
        return torch.cat([text.encode(prompt, self._towers).states for prompt in prompts])


@dataclass(frozen=True, eq=False)
class Gallery:
    """Renderings of all concepts that were learnt, to find the nearest one to a picture."""

    concepts: Sequence[Concept]
    sprites: Tensor
    learnt: Tensor
    """Numbers of the concepts that a picture may be found to show."""

    def ranks(self, pictures: Tensor, wanted: Tensor, colours: Tensor) -> Tensor:
        """How many other concepts are nearer to each picture than the wanted one, on the background it names."""
        found = []
        for shown, concept, colour in zip(pictures, wanted.tolist(), colours.tolist(), strict=True):
            distances = torch.cdist(embedded(cropped(shown)[None]), self._rendered(colour))[0]
            distances = distances.view(len(self.learnt), 2).amin(1)
            found.append((distances < distances[self.learnt == concept]).sum())
        return torch.stack(found)

    @cache  # noqa: B019  # there is one gallery, as long as the process
    def _rendered(self, colour: int) -> Tensor:
        """Every concept on a colour, as it is and mirrored, embedded."""
        shade = torch.tensor(palette.COLOURS[palette.NAMES[colour]], dtype=torch.float32)[:, None, None]
        sprites = (_square(sprite) for sprite in self.sprites[self.learnt].float())
        shown = [shade * (1 - sprite[3:] / 255) + sprite[:3] for sprite in sprites]
        return embedded(torch.stack([each for one in shown for each in (one, one.flip(-1))]))


def answer(folder: Path = FOLDER, data: Path = DATA, share: float = 1.0) -> Answer:
    """Measure the model in `folder`; a `share` below 1 takes that part of the pictures, for a quick look."""
    model, gallery = Model(folder), opened(folder, data)
    count = max(2, round(PROMPTS * share))
    wanted, colours, prompts = asked(gallery, count)
    ceiling = gallery.ranks(model.again(rendered(gallery, wanted, colours)), wanted, colours)
    guided_, plain = (gallery.ranks(drawn(model, prompts, cfg=cfg), wanted, colours) for cfg in (CFG, 1.0))
    strengths = distances(model, gallery, max(2, round(INPUTS * share)))
    pairs = max(2, round(PAIRS * share))
    empty, painted = blanks(model, gallery, pairs)
    beside = neighbours(model, gallery, pairs)
    reserved = torch.tensor([number for number, concept in enumerate(gallery.concepts) if concept.reserved])
    error, familiar = (lost(model, gallery, numbers) for numbers in (reserved, gallery.learnt))
    falls = sum(later <= earlier for earlier, later in pairwise(strengths))
    missed, missed_plain = int((guided_ > 0).sum()), int((plain > 0).sum())
    rows = [
        Row(f"of {count} pictures, not nearest to what they show", missed, goal=Goal(0.2 * count), counted=True),
        Row("of these, not among the nearest five", int((guided_ > 4).sum()), goal=Goal(0.1 * count), counted=True),
        Row(f"the same at cfg {CFG:g}, beside cfg 1", missed, Beside("cfg 1", missed_plain), counted=True),
        Row(
            f"of {2 * pairs} halves with one thing each, not showing what they should at cfg {CFG:g}",
            beside["wrong"],
            Beside("cfg 1", beside["plainly wrong"]),
            Goal(0.95, "ratio"),
            counted=True,
        ),
        Row("denoise 0.1 to 1: times that the distance to the input fell", falls, goal=Goal(0), counted=True),
        Row(
            f"of {pairs} blank ones inpainted, not showing what the prompt says",
            painted,
            Beside("blank", empty),
            Goal(0.3 * pairs),
            counted=True,
        ),
        Row(f"of {pairs} inpainted beside another thing", beside["missed"], goal=Goal(0.3 * pairs), counted=True),
        Row(
            f"of {pairs}, still showing what the negative prompt names",
            beside["excluded"],
            Beside("no negative", beside["shown"]),
            Goal(0.8, "ratio"),
            counted=True,
        ),
        *styled(model, gallery, max(2, round(STYLED * share))),
        Row(
            "VAE, error in 1/100 level, on what it learnt",
            100 * familiar,
            goal=Goal(100 * level(DECIBELS)),
            counted=True,
        ),
        Row("the same on what it never saw", 100 * error, goal=Goal(100 * level(DECIBELS)), counted=True),
    ]
    return Answer(QUESTION, rows, details(strengths), notes(len(gallery.learnt), count, ceiling, (familiar, error)))


def opened(folder: Path, data: Path) -> Gallery:
    """The data, and how much of it the model learnt."""
    if not data.exists():
        raise FileNotFoundError(f"{data}: expected the training data; fetch it with: python -m pocket.train data")
    concepts, sprites = archive.read(data, 2 * CROP)
    path = folder / LEARNT
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    most = told.get("concepts", LEAST)
    learnt = [number for number, concept in enumerate(concepts[:most]) if not concept.reserved]
    return Gallery(concepts, sprites, torch.tensor(learnt))


def asked(gallery: Gallery, count: int) -> tuple[Tensor, Tensor, list[str]]:
    """Concepts from all over the list, and prompts for them, all different.

    Each is first put on the one colour it was never trained on, then on others.
    """
    places = torch.linspace(0, len(gallery.learnt) - 1, count).long()
    wanted, again = gallery.learnt[places], torch.arange(count) - torch.searchsorted(places, places)
    colours = 1 + (palette.held_out(wanted) - 1 + SHIFT * again) % (len(palette.NAMES) - 1)
    named = zip(wanted.tolist(), colours.tolist(), strict=True)
    return wanted, colours, [f"{gallery.concepts[a].label} on {ground(b)}" for a, b in named]


def ground(colour: int) -> str:
    """A background as captions name it."""
    return article(f"{palette.NAMES[colour]} background")


def drawn(model: Model, prompts: Sequence[str], *, cfg: float) -> Tensor:
    """A picture per prompt."""
    parts = [prompts[begin : begin + BATCH] for begin in range(0, len(prompts), BATCH)]
    return torch.cat([model.draw(part, cfg=cfg) for part in parts])


def rendered(gallery: Gallery, concepts: Tensor, colours: Tensor, size: float = 0.7, left: float = 0.5) -> Tensor:
    """Concepts as they are trained on, uint8 (N, 3, 128, 128), `size` and middle as shares of the picture."""
    count = len(concepts)
    shades = palette.rgb(torch.device("cpu"))[colours]
    scenes = scene.Scenes(
        scene.Canvas(SIDE, SIDE),
        concepts[:, None],
        (0,),
        torch.tensor([left * SIDE, SIDE / 2]).expand(count, 1, 2),
        torch.full((count, 1), size * SIDE),
        torch.zeros(count, 1, dtype=torch.bool),
        torch.zeros(count, dtype=torch.bool),
        torch.stack([colours, colours], 1),
        torch.stack([shades, shades], 1),
        torch.zeros(count, dtype=torch.long),
    )
    return (picture.compose(scenes, gallery.sprites) * 255).round().byte()


def distances(model: Model, gallery: Gallery, count: int) -> list[float]:
    """The mean absolute distance to the input, in levels, at each strength of denoising, with the input's caption."""
    wanted, colours, prompts = asked(gallery, count)
    inputs = rendered(gallery, wanted, colours).float()
    results = (model.draw(prompts, start=inputs.byte(), denoise=strength) for strength in STRENGTHS)
    return [(result.float() - inputs).abs().mean().item() for result in results]


def blanks(model: Model, gallery: Gallery, count: int) -> tuple[int, int]:
    """Inpaint all but the rim of plain pictures: how many do not show what the prompt says, before and after."""
    wanted, colours, prompts = asked(gallery, count)
    plain = palette.rgb(torch.device("cpu"))[colours][:, :, None, None].expand(-1, -1, SIDE, SIDE)
    inputs = (plain * 255).round().byte()
    inside = functional.pad(torch.ones(1, 1, SIDE // 8 - 2, SIDE // 8 - 2), (1, 1, 1, 1))
    made = model.draw(prompts, start=inputs, mask=inside)
    empty, painted = (int((gallery.ranks(shown, wanted, colours) > 0).sum()) for shown in (inputs, made))
    return empty, painted


def neighbours(model: Model, gallery: Gallery, count: int) -> dict[str, int]:
    """Put an object to the right of another: by inpainting, by prompt alone, and against a negative prompt.

    By prompt alone with and without guidance: there it has something to gain, where one thing alone is always right.
    """
    wanted, colours, _ = asked(gallery, count)
    others = wanted.roll(count // 2)
    labels = [[gallery.concepts[number].label for number in numbers.tolist()] for numbers in (others, wanted)]
    named = zip(*labels, map(ground, colours.tolist()), strict=True)
    prompts = [f"{left} on the left and {right} on the right on {behind}" for left, right, behind in named]
    inputs = rendered(gallery, others, colours, size=0.46, left=0.25)
    right = torch.cat([torch.zeros(1, 1, 16, 8), torch.ones(1, 1, 16, 8)], -1)
    inpainted = model.draw(prompts, start=inputs, mask=right)
    free, plain = model.draw(prompts), model.draw(prompts, cfg=1.0)
    against = model.draw(prompts, negatives=labels[1])
    ranks = [gallery.ranks(shown[..., SIDE // 2 :], wanted, colours) for shown in (inpainted, free, against, plain)]
    lefts = [gallery.ranks(shown[..., : SIDE // 2], others, colours) for shown in (free, plain)]
    return {
        "wrong": int((ranks[1] > 0).sum() + (lefts[0] > 0).sum()),
        "plainly wrong": int((ranks[3] > 0).sum() + (lefts[1] > 0).sum()),
        "missed": int((ranks[0] > 0).sum()),
        "shown": int((ranks[1] < 5).sum()),
        "excluded": int((ranks[2] < 5).sum()),
    }


def styled(model: Model, gallery: Gallery, count: int) -> Iterator[Row]:
    """Name a style, or none: how many pictures are less like the same thing in that style than in another or none."""
    wanted = gallery.learnt[torch.linspace(0, len(gallery.learnt) - 1, count).long()]
    white = torch.full_like(wanted, palette.NAMES.index("white"))
    shown = [rendered(gallery, wanted, white, size) / 255 for size in SIZES]
    looks = [shown, *([process(one) for one in shown] for process in STYLES.values())]
    prompts = [f"{gallery.concepts[each].label} on a white background" for each in wanted.tolist()]
    plain = _alike(looks, model.draw(prompts) / 255)
    for number, style in enumerate(STYLES, start=1):
        found = _alike(looks, model.draw([f"{style} of {prompt}" for prompt in prompts]) / 255)
        missed, missed_plain = (int((each != number).sum()) for each in (found, plain))
        beside = Beside("not named", missed_plain)
        yield Row(f"of {count} in the style {style}, not like that", missed, beside, Goal(0.5, "ratio"), counted=True)


def _alike(looks: Sequence[Sequence[Tensor]], made: Tensor) -> Tensor:
    """The look that each picture is nearest to, in any of its sizes, by squared error at four scales."""
    apart = [torch.stack([_apart(one, made) for one in look]).amin(0) for look in looks]
    return torch.stack(apart).argmin(0)


def _apart(one: Tensor, other: Tensor) -> Tensor:
    scales = [functional.avg_pool2d(one - other, 2**scale) for scale in range(4)]
    return torch.stack([difference.square().mean((1, 2, 3)) for difference in scales]).sum(0)


def lost(model: Model, gallery: Gallery, concepts: Tensor) -> float:
    """The VAE's root mean square error in levels, on pictures of some concepts that it was never shown as they are."""
    wanted = concepts.repeat(UNSEEN // len(concepts) + 1)[:UNSEEN]
    colours = torch.arange(UNSEEN) % len(palette.NAMES)
    pictures = rendered(gallery, wanted, colours)
    return (model.again(pictures).float() - pictures.float()).square().mean().sqrt().item()


def level(decibels: float) -> float:
    """The root mean square error, of 255 levels, that a PSNR means."""
    return float(255 / 10 ** (decibels / 20))


def cropped(shown: Tensor) -> Tensor:
    """The square around what stands out from a picture's frame, (3, CROP, CROP) floats."""
    pixels = shown.float()
    frame = torch.ones(pixels.shape[1:], dtype=torch.bool)
    frame[RING:-RING, RING:-RING] = False
    ground = pixels[:, frame].median(1).values[:, None, None]
    apart = (pixels - ground).abs().amax(0) > APART
    return _framed(pixels, apart & ~frame & _dense(apart, 0) & _dense(apart, 1), ground)


def embedded(crops: Tensor) -> Tensor:
    """Crops as vectors whose distances weigh form and colour at three sizes alike."""
    sizes = (CROP, CROP // 2, CROP // 4)
    levels = [functional.adaptive_avg_pool2d(crops / 255, size).flatten(1) * CROP / size for size in sizes]
    return torch.cat(levels, 1)


def details(strengths: Sequence[float]) -> list[tuple[str, ...]]:
    """The distance to the input at each strength."""
    head = ("denoise", *(f"{strength:g}" for strength in STRENGTHS))
    return [head, ("mean distance to the input, levels", *(f"{distance:.1f}" for distance in strengths))]


def notes(learnt: int, count: int, ceiling: Tensor, errors: Sequence[float]) -> tuple[str, ...]:
    """What the figures are and are not."""
    confused = int((ceiling > 0).sum())
    decibels = " and ".join(f"{20 * math.log10(255 / error):.2f}" for error in errors)
    return (
        f"A picture is cropped to what stands out and compared with renderings of all {learnt} concepts it may show.",
        (
            "Prompts put each concept on the one colour that it was never trained on, and then, where there are fewer "
            f"concepts than prompts, on others: {min(learnt, count)} of {count} are of the first kind."
        ),
        f"Of {count} real renderings, encoded and decoded, {confused} are not nearest to their own concept.",
        f"The VAE's errors are those of {decibels} dB PSNR; the goal is {DECIBELS:g} dB.",
    )


def _dense(shown: Tensor, along: int) -> Tensor:
    """Rows or columns in which more than a speck is shown."""
    return shown.sum(along, keepdim=True) > SPECK


def _square(sprite: Tensor) -> Tensor:
    return _framed(sprite, sprite[3] > 127, torch.zeros(4, 1, 1))


def _framed(pixels: Tensor, shown: Tensor, ground: Tensor) -> Tensor:
    """Cut out the square around what is `shown`, with a margin, beyond the edge filled with `ground`."""
    if not shown.any():
        shown = torch.ones_like(shown)
    rows, columns = shown.any(1).nonzero(), shown.any(0).nonzero()
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    side = max(bottom - top, right - left)
    side += 2 * max(1, round(MARGIN * side))
    board = ground.expand(len(pixels), side, side).clone()
    down, across = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    board[:, down : down + bottom - top, across : across + right - left] = pixels[:, top:bottom, left:right]
    return functional.interpolate(board[None], (CROP, CROP), mode="bilinear", antialias=True)[0]


if __name__ == "__main__":
    print(answer().text())
