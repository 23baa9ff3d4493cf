"""`make gallery`: every saved graph on the embedded model, its pictures beside one another, on one page."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image

from calotype.front import Engine
from calotype.library import SAVED, find, graphs_in
from engine.graph import Graph
from nodes.grid import grid
from nodes.types import Image, Mask

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "gallery.md"
PICTURES = DOCS / "images" / "gallery"
COLOURS = 256
"""Colours of a saved picture: it is to be looked at on a page."""
HEAD = """# Gallery

Every saved graph, run on the embedded model. `make gallery` makes this page again. The model is tiny: it knows
[a hundred things](../pocket/README.md), best at 128x128; the parts of larger pictures do not always fit.
"""

OTHERS = """## With models of your own

These saved graphs need more than the embedded model; [where models are looked for](models.md).
"""


@dataclass(frozen=True)
class Exhibit:
    """A saved graph to be shown: its outputs or nodes with what stands above them, or its sheet."""

    graph: str
    shown: Mapping[str, str] = field(default_factory=lambda: {"image": "the result"})
    settings: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Any] | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """Name of its picture."""
        axes = [name for axis in "xyz" for name in (self.sweep or {}).get(axis, ())]
        return "_".join([self.graph, *axes])

    @property
    def document(self) -> Graph:
        """The graph as it is run."""
        graph = find(self.graph).set(self.settings)
        return graph if self.sweep is None else graph.replace(sweep=self.sweep)

    @property
    def command(self) -> str:
        """What a person types for it."""
        axes = {axis: values for axis in "xyz" for values in [(self.sweep or {}).get(axis)] if values}
        swept = [
            f"--{axis} {name}={','.join(map(str, values))}"
            for axis, names in axes.items()
            for name, values in names.items()
        ]
        sets = [
            f"--set {name}={value!r}" if " " in str(value) else f"--set {name}={value}"
            for name, value in self.settings.items()
        ]
        return " ".join(["calotype", "sweep" if swept else "run", self.graph, *swept, *sets])


EXHIBITS = (
    Exhibit("img2img", {"fitted": "the picture", "image": "repainted"}),
    Exhibit(
        "img2img",
        sweep={"x": {"resize": ["stretch", "crop", "fill", "latent"]}},
        settings={"source": "fox.png", "prompt": "fox face, purple background", "strength": 0.3},
    ),
    Exhibit("img2img", sweep={"x": {"sampler": ["dpmpp_2m", "euler", "euler_ancestral", "dpmpp_sde", "uni_pc"]}}),
    Exhibit("sketch", {"painted/fitted": "with strokes", "image": "repainted"}),
    Exhibit("inpaint", {"frame.image": "the picture", "drawn": "its mask", "image": "inpainted"}),
    Exhibit("inpaint", sweep={"x": {"content": ["original", "fill", "noise", "nothing"]}}),
    Exhibit("inpaint", sweep={"x": {"area": ["whole", "masked"]}}),
    Exhibit(
        "inpaint",
        sweep={"x": {"edge": ["outside", "across", "inside"]}, "y": {"blur": [0.0, 4.0, 8.0]}},
        note="Where the overlay fades: outside of the mask, across its edge, or inside of it.",
    ),
    Exhibit("inpaint_soft", {"frame.mask": "the soft mask", "overlay": "what is new", "image": "inpainted"}),
    Exhibit(
        "inpaint_sketch",
        {"inpainted/frame.image": "painted over", "inpainted/frame.mask": "its mask", "image": "inpainted"},
    ),
    Exhibit(
        "inpaint_upload",
        {"inpainted/frame.image": "the picture", "inpainted/frame.mask": "its mask", "image": "inpainted"},
    ),
    Exhibit(
        "inpaint_after_img2img",
        {"first/fitted": "the picture", "before": "img2img", "area": "the mask", "image": "then inpainted"},
    ),
    Exhibit(
        "three_inpaints", {"before": "img2img", "first": "first mask", "second": "second mask", "image": "third mask"}
    ),
    Exhibit("batch_img2img", {"image-1": "image-1", "image-2": "image-2", "image-3": "image-3"}),
    Exhibit("batch_inpaint", {"image-1": "image-1", "image-2": "image-2"}),
    Exhibit(
        "outpaint", {"fitted": "the picture", "before": "the canvas", "canvas.mask": "its mask", "image": "outpainted"}
    ),
    Exhibit("loopback", {"first": "first", "second": "second", "third": "third", "image": "fourth"}),
    Exhibit("sd_upscale", {"before": "enlarged", "image": "repainted in tiles"}),
    Exhibit("text2img"),
    Exhibit("regional_prompts"),
    Exhibit("regional_masks", {"soft": "the mask", "image": "a prompt under it, and one beside it"}),
    Exhibit("lora_styles"),
    Exhibit("embedding"),
    Exhibit("hires_fix", {"before": "the first pass", "image": "the second"}),
    Exhibit("denoise_sweep"),
    Exhibit("denoise_cfg_plot"),
)


def main() -> None:
    """Run all exhibits, and write their pictures and the page."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with Engine(device="cpu") as engine:
        for exhibit in EXHIBITS:
            _small(hung(engine, exhibit)).save(PICTURES / f"{exhibit.name}.png", optimize=True)
    PAGE.write_text(page(), encoding="utf-8")


def hung(engine: Engine, exhibit: Exhibit) -> PIL.Image.Image:
    """The pictures of an exhibit in one row, each under what it is."""
    result = engine.run(exhibit.document, list(exhibit.shown))
    pictures = [_picture(result[name]) for name in exhibit.shown]
    if len(pictures) == 1:
        return pictures[0].pil()
    return grid(tuple(pictures), x_labels=tuple(exhibit.shown.values()), margin=4).pil()


def page() -> str:
    """The page, as Markdown."""
    shown = (line for exhibit in EXHIBITS for line in _lines(exhibit))
    return "\n".join([HEAD, *shown, OTHERS, *(_entry(name) for name in demanding()), ""])


def demanding() -> list[str]:
    """Saved graphs that need models of one's own."""
    return [path.stem for path in graphs_in(SAVED) if "needs" in find(path.stem).document.meta]


def missing() -> list[str]:
    """Saved graphs that run on the embedded model and that nothing is shown of."""
    saved = {path.stem for path in graphs_in(SAVED)}
    return sorted(saved - {exhibit.graph for exhibit in EXHIBITS} - set(demanding()))


def _entry(name: str) -> str:
    meta = find(name).document.meta
    return f"* **{meta['title']}**, `calotype run {name}`: {meta['description']} It needs {meta['needs']}."


def _lines(exhibit: Exhibit) -> Iterator[str]:
    meta = exhibit.document.document.meta
    if exhibit.name == exhibit.graph:
        yield f"## {meta['title']}\n\n{meta['description']}\n"
    if exhibit.note:
        yield f"{exhibit.note}\n"
    yield f"```\n$ {exhibit.command}\n```\n"
    yield f"![{exhibit.command}](images/gallery/{exhibit.name}.png)\n"


def _picture(value: object) -> Image:
    if isinstance(value, Mask):
        return Image(value.data.expand(-1, 3, -1, -1).contiguous())
    assert isinstance(value, Image)
    return value


def _small(picture: PIL.Image.Image) -> PIL.Image.Image:
    return picture.quantize(COLOURS, dither=PIL.Image.Dither.FLOYDSTEINBERG)


if __name__ == "__main__":
    main()
