"""Prompts before they are encoded: styles added, LoRAs taken out."""

from collections.abc import Mapping
from typing import NamedTuple

from engine.node import node
from nodes import style
from nodes.diffusion.prompt import Lora, PromptError, check, embedding_names, tags
from nodes.files import NO_TEXT, STYLES, EmbeddingFile, LoraFile, PromptText, Styles
from nodes.types import Loras, Prompt


class Prompts(NamedTuple):
    """What `text.encode` takes, and what `model.loras` takes."""

    positive: Prompt
    negative: Prompt
    loras: Loras


@node("prompt", version=1)
def prompt(
    text: PromptText = NO_TEXT, negative: PromptText = NO_TEXT, styles: tuple[str, ...] = (), source: Styles = STYLES
) -> Prompts:
    """Write a prompt and a negative prompt, add styles to both, and take the LoRAs out of both.

    `<lora:name:0.8>` puts a LoRA on the models, wherever it stands and in whichever of the two; link `loras` to
    `model.loras`. Two numbers are the strengths on the text encoder and on the UNet. A LoRA named twice counts twice.
    Styles are rows of a table `source` with the columns name, prompt and negative_prompt; a style's text takes the
    prompt in where it says {prompt}, else it comes after it.
    """
    chosen = [_style(source, name) for name in styles]
    texts, loras = [], list[Lora]()
    for part, added in ((text, [each.prompt for each in chosen]), (negative, [each.negative for each in chosen])):
        bare, found = tags(_with(part.text, added))
        texts.append(bare)
        loras += found
    files = {**source.loras, **text.loras, **negative.loras}
    embeddings = {**source.embeddings, **text.embeddings, **negative.embeddings}
    return Prompts(
        _prompt(texts[0], embeddings, negative=False),
        _prompt(texts[1], embeddings, negative=True),
        Loras(tuple((_file(lora, files).digest.hex(), lora.text, lora.unet) for lora in loras)),
    )


def written(text: PromptText | str, *, negative: bool = False) -> Prompt:
    """A text that comes without the node `prompt`; a str, as a notebook passes it, mentions no files.

    Raises PromptError for a LoRA in it.
    """
    text = PromptText.plain(text) if isinstance(text, str) else text
    if found := tags(text.text)[1]:
        raise PromptError(
            f"<lora:{found[0].name}> changes the UNet too, which an encoder alone cannot do: write the text into a "
            "node `prompt`, link its `loras` to `model.loras`, and its prompts to `text.encode`"
        )
    return _prompt(text.text, text.embeddings, negative=negative)


def _style(source: Styles, name: str) -> style.Style:
    if source.missing:
        raise PromptError(f"style {name!r}: {source.missing}")
    try:
        return style.pick(source.styles, name)
    except style.StyleError as error:
        raise PromptError(f"{source.name}: {error}") from error


def _with(text: str, added: list[str]) -> str:
    for each in added:
        text = style.applied(text, each)
        check(text)
    return text


def _prompt(text: str, files: Mapping[str, EmbeddingFile], *, negative: bool) -> Prompt:
    check(text)
    names = embedding_names(text, files)
    return Prompt(text, tuple((name, files[name].digest.hex()) for name in names), negative)


def _file(lora: Lora, files: Mapping[str, LoraFile]) -> LoraFile:
    if lora.name not in files:
        raise PromptError(f"no lora {lora.name!r}, which a style mentions; put its file into a folder loras")
    return files[lora.name]
