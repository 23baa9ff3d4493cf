"""Prompts to conditionings: what CLIP makes of a text of any length, with weights, embeddings and layers left out.

A text becomes runs of one weight, runs become tokens, tokens fill chunks of 75, and each chunk is encoded alone, so
words know only their own chunk. What weights do to the hidden states z of a chunk (77 x D) depends on the weighting:

    a1111     z * w, then all of the chunk scaled so that its mean is what it was before
    no_norm   z * w
    ignore    z; the brackets are taken out all the same
    none      z; brackets and BREAK are text, but for editing
    comfy     z_empty + (z - z_empty) * w, where z_empty is the empty prompt; read and chunked as ComfyUI does

The first four are the WebUI's "Emphasis" modes. There the mean goes over all texts of a prompt that changes while it is
sampled; here every text is encoded as if it stood alone, so editing one word does not dim the others.

A model may have two text encoders, as SDXL has: each makes its own states of the same chunks, and these stand side by
side. The last of them also makes pooled states of the first chunk, which no weight changes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from nodes.diffusion.embedding import misfit
from nodes.diffusion.prompt import (
    Part,
    PromptError,
    Run,
    Sections,
    attention,
    bare_name,
    check,
    comfy_attention,
    explicit_embeddings,
    joined,
    literal,
    texts,
    unweighted,
)
from nodes.diffusion.tower import Tower

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Weighting = Literal["a1111", "no_norm", "ignore", "none", "comfy"]

BACKTRACK = 20
"""A comma that is at most so many tokens before the end of a full chunk ends it."""
WHOLE_GROUP = 8
"""ComfyUI cuts a group of so many tokens or more where a chunk ends; a shorter one moves to the next chunk."""
MAX_CHUNKS = 256
"""Chunks of all texts of a prompt together."""
MAX_WEIGHT = 1000.0
"""Size of a weight; more than this comes from hundreds of brackets and leaves nothing but infinities."""


@dataclass(frozen=True, eq=False)
class Reading:
    """How texts are encoded: the weighting, the layer, and the vectors (N x D) of embeddings by name.

    `clip_skip` counts layers from the end: 1 is the last one, 2 leaves one out, and the final layer norm follows.
    Models with pooled states, SDXL's, never take the last layer, and no norm: there 1 and 2 are the last layer but one.
    They are that for SD 2.x too, whose last layer is never loaded, but with the norm.
    The bare name of an embedding for another kind of model is only words, as in the WebUI; `warn` is told.
    """

    weighting: Weighting = "a1111"
    clip_skip: int = 1
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    warn: Callable[[str], None] = lambda _: None


PLAIN = Reading()


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One of the 75 places of a chunk: a token or, instead of it, a vector; and its weight."""

    token: int
    weight: float = 1.0
    vector: Tensor | None = None


Unit: TypeAlias = tuple[Slot, ...]
"""What is never cut: one token, or all vectors of an embedding."""
Chunk: TypeAlias = list[Slot]


class Encoded(NamedTuple):
    """States (U, 77 * k, D), and pooled states (U, P), with P 0 for models that have none; float32."""

    states: Tensor
    pooled: Tensor


def encode(text: str, towers: Sequence[Tower], reading: Reading = PLAIN) -> Encoded:
    """Return the conditioning of one text: hidden states of its k chunks, one after another, in one row.

    The text has weights, BREAK and embeddings, but no editing and no AND: `encode_prompt` splits those. The result is
    on the encoders' device. Raises PromptError for an embedding that does not fit, a weight beyond MAX_WEIGHT, and a
    clip skip beyond the encoders' layers.
    """
    _check_skip(reading, towers)
    split = _chunks_for(towers, text, reading)
    _check_size(len(split))
    return _encoded(split, towers, reading)


def encode_prompt(
    prompt: str, towers: Sequence[Tower], reading: Reading = PLAIN, *, negative: bool = False
) -> tuple[Encoded, tuple[Part, ...]]:
    """Encode a prompt with all that it can stand for: a row for each text, and the parts that say which row counts.

    A negative prompt knows no AND, and ComfyUI's knows no editing either. All rows are of one length: the texts of a
    part are filled up with empty chunks, and shorter parts with their last vector over and over, as in the WebUI. An
    empty negative prompt for SDXL is all zeros, as it was trained, but for ComfyUI's weighting. Raises PromptError.
    """
    _check_skip(reading, towers)
    sources = _sources(prompt, reading.weighting, negative=negative)
    words = dict.fromkeys(text for _, _, found in sources for text in found)
    split = {text: _chunks_for(towers, text, reading) for text in words}
    _check_size(sum(map(len, split.values())))
    states = {text: _encoded(found, towers, reading) for text, found in split.items()}
    if negative and not prompt and pooling(towers) and reading.weighting != "comfy":
        states[prompt] = Encoded(*map(torch.zeros_like, states[prompt]))
    blank = cache(lambda: encode("", towers, reading).states)
    lengths = [max(states[text].states.shape[1] for text in found) for _, _, found in sources]
    rows: dict[tuple[str, int], int] = {}
    parts = tuple(
        Part(weight, source, tuple((text, rows.setdefault((text, length), len(rows))) for text in found))
        for (weight, source, found), length in zip(sources, lengths, strict=True)
    )
    data = [_held(_padded(states[text].states, blank, length), max(lengths)) for text, length in rows]
    return Encoded(torch.cat(data), torch.cat([states[text].pooled for text, _ in rows])), parts


def pooling(towers: Sequence[Tower]) -> bool:
    """Whether a model takes pooled states, as SDXL does: its last text encoder has a projection."""
    return getattr(towers[-1].encoder, "text_projection", None) is not None


def chunks(
    text: str, tokenizer: CLIPTokenizer, window: int = 77, reading: Reading = PLAIN, *, width: int | None = None
) -> list[Chunk]:
    """Fill chunks of up to window - 2 slots with a text; a text without tokens is one empty chunk. No token is dropped.

    A chunk ends at BREAK; else where it is full, or after its last comma where that is at most BACKTRACK tokens before
    the end. With `comfy` a chunk ends where it is full, and a group of equal weight moves as a whole if it is short.
    Where the encoders' `width` is given, an embedding of another width is refused if the text has `embedding:name`.
    """
    room = window - 2
    units = _Units(tokenizer, reading, room, width)
    if reading.weighting == "comfy":
        return _grouped([units.of(run) for run in comfy_attention(text)], room)
    sections = [[unit for run in runs for unit in units.of(run)] for runs in _sections(text, reading.weighting)]
    if len(sections) > 1 and not sections[-1]:
        sections.pop()
    comma = tokenizer(",", add_special_tokens=False).input_ids[-1]
    return [chunk for section in sections for chunk in _filled(section, room, comma)]


def _sources(prompt: str, weighting: Weighting, *, negative: bool) -> list[tuple[float, str, tuple[str, ...]]]:
    """(weight, source, texts) of each prompt joined by AND."""
    check(prompt)
    if weighting == "comfy":
        return [(1.0, prompt, (prompt,))]
    parts = ((1.0, prompt),) if negative else joined(prompt)
    return [(_checked(weight, source), source, texts(source)) for weight, source in parts]


def _sections(text: str, weighting: Weighting) -> Sections:
    if weighting == "none":
        return literal(text)
    return unweighted(attention(text)) if weighting == "ignore" else attention(text)


class _Units:
    """Turns runs of text into units: tokens, and embeddings where their name stands."""

    def __init__(self, tokenizer: CLIPTokenizer, reading: Reading, room: int, width: int | None) -> None:
        self._tokenizer = tokenizer
        self._room = room
        self._width = width
        self._warn = reading.warn
        self._named = {name.lower(): (name, vectors) for name, vectors in reading.embeddings.items()}
        for name, vectors in reading.embeddings.items():
            self._named.setdefault(bare_name(name).lower(), (name, vectors))
        self._triggers: dict[int, list[tuple[list[int], str]]] = {}
        if reading.weighting != "comfy":
            self._learn(reading.embeddings)

    def of(self, run: Run) -> list[Unit]:
        """The units of a run, all with its weight."""
        weight, units = _checked(run.weight, run.text), list[Unit]()
        for text, name in explicit_embeddings(run.text):
            units += self._tokens(text, weight)
            if name is not None:
                units.append(self._embedding(name, weight))
        return units

    def _learn(self, names: Iterable[str]) -> None:
        """Remember the tokens of each name, under the first of them, the longest first."""
        for name in names:
            if tokens := self._tokenized(bare_name(name)):
                self._triggers.setdefault(tokens[0], []).append((tokens, name))
        for known in self._triggers.values():
            known.sort(key=lambda trigger: -len(trigger[0]))

    def _tokenized(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
        return tokens

    def _tokens(self, text: str, weight: float) -> Iterator[Unit]:
        tokens = self._tokenized(text)
        at = 0
        while at < len(tokens):
            known = self._triggers.get(tokens[at], ())
            named = (entry for entry in known if tokens[at : at + len(entry[0])] == entry[0])
            found = next((entry for entry in named if self._meant(entry[1])), None)
            yield self._embedding(found[1], weight) if found else (Slot(tokens[at], weight),)
            at += len(found[0]) if found else 1

    def _meant(self, name: str) -> bool:
        """Whether a bare name stands for its vectors: not where they are of another width."""
        said = misfit(name, self._named[name.lower()][1], self._width)
        if said:
            self._warn(
                f"{said}: its name is read as words; take it out, or put an embedding for this model in its place"
            )
        return not said

    def _embedding(self, written: str, weight: float) -> Unit:
        if written.lower() not in self._named:
            raise PromptError(f"no embedding {written!r} for this prompt{_near(written, self._named)}")
        name, vectors = self._named[written.lower()]
        if said := misfit(name, vectors, self._width):
            raise PromptError(f"{said}: take it out, or put an embedding for this model in its place")
        if len(vectors) > self._room:
            raise PromptError(f"embedding {name!r} has {len(vectors)} vectors, a chunk holds {self._room}")
        return tuple(Slot(0, weight, vector) for vector in vectors)


def _filled(units: Iterable[Unit], room: int, comma: int) -> list[Chunk]:
    """Fill chunks as the WebUI does, back to the last comma where it is near."""
    filled: list[Chunk] = [[]]
    last = -room
    for unit in units:
        is_comma = unit[0].vector is None and unit[0].token == comma
        if len(filled[-1]) == room and not is_comma and room - last <= BACKTRACK:
            filled.append(filled[-1][last + 1 :])
            del filled[-2][last + 1 :]
            last = -room
        if len(filled[-1]) + len(unit) > room:
            filled.append([])
            last = -room
        last = len(filled[-1]) if is_comma else last
        filled[-1] += unit
    return filled


def _grouped(groups: Iterable[Sequence[Unit]], room: int) -> list[Chunk]:
    """Fill chunks as ComfyUI does, short groups never cut."""
    filled: list[Chunk] = [[]]
    for group in groups:
        size = sum(map(len, group))
        if size < WHOLE_GROUP and len(filled[-1]) + size > room:
            filled.append([])
        for unit in group:
            if len(filled[-1]) + len(unit) > room:
                filled.append([])
            filled[-1] += unit
    return filled


class _Layer(NamedTuple):
    """What is read of one encoder: a layer counted from the end, `raw` or after the final norm.

    Of an embedding's vectors it takes its own part, which begins at `start`.
    """

    tower: Tower
    start: int
    layer: int
    raw: bool

    def states(self, split: Sequence[Chunk]) -> Encoded:
        """Hidden states (k, window, D) of chunks, and pooled ones (k, P); float32."""
        tokenizer, encoder = self.tower.tokenizer, self.tower.encoder
        tokens = torch.tensor([framed(chunk, tokenizer, encoder.config.max_position_embeddings) for chunk in split])
        with torch.no_grad(), _injected(split, encoder, self.start):
            if self.layer == 1:
                given = encoder(tokens.to(encoder.device))
                states: Tensor = given.last_hidden_state
            else:
                given = encoder(tokens.to(encoder.device), output_hidden_states=True)
                states = given.hidden_states[-self.layer]
                states = states if self.raw else _final_norm(encoder)(states)
        pooled = getattr(given, "text_embeds", None)
        return Encoded(states.float(), torch.empty(len(split), 0) if pooled is None else pooled.float())


def _encoded(split: Sequence[Chunk], towers: Sequence[Tower], reading: Reading) -> Encoded:
    """Hidden states of the chunks of one text, weighed, one chunk after another; pooled ones of the first."""
    states, pooled, start, raw = [], torch.empty(1, 0), 0, pooling(towers)
    for tower in towers:
        layer = _Layer(tower, start, _layer(tower, reading.clip_skip, raw=raw), raw)
        made = layer.states(split)
        states.append(_weighed(made.states, split, layer, reading.weighting))
        pooled, start = made.pooled[:1], start + tower.encoder.config.hidden_size
    together = torch.cat(states, dim=2)
    return Encoded(together.reshape(1, -1, together.shape[2]), pooled)


def _layer(tower: Tower, skip: int, *, raw: bool) -> int:
    """The layer that is taken, counted from the end of what was loaded, where 1 is the last."""
    return max(2, skip) - tower.dropped if raw or tower.dropped else skip


def _weighed(states: Tensor, split: Sequence[Chunk], layer: _Layer, weighting: Weighting) -> Tensor:
    """What weights do to the states of one encoder."""
    weights = _weights(split, states.shape[1]).to(states.device)
    if weighting == "comfy" and bool((weights != 1).any()):
        blank = layer.states([[]]).states
        return torch.where(weights == 1, states, (states - blank) * weights + blank)
    if weighting == "a1111":
        return _restored(states * weights, states)
    return states * weights if weighting == "no_norm" else states


def _restored(weighed: Tensor, states: Tensor) -> Tensor:
    """Scale each chunk so that its mean is what it was; a chunk whose mean is 0 stays as it is."""
    before, after = (value.mean(dim=(1, 2), keepdim=True) for value in (states, weighed))
    return weighed * torch.where(after == 0, torch.ones_like(after), before / after)


def framed(chunk: Chunk, tokenizer: CLIPTokenizer, window: int = 77) -> list[int]:
    """Put begin and end around the tokens of a chunk and pad them.

    The padding is the tokenizer's own: the end token for SD 1.x, token 0 for SD 2.x.
    """
    tokens = [tokenizer.bos_token_id, *(slot.token for slot in chunk), tokenizer.eos_token_id]
    return tokens + [tokenizer.pad_token_id] * (window - len(tokens))


def _weights(split: Sequence[Chunk], window: int) -> Tensor:
    """Weights (k, window, 1); 1 for begin, end and padding."""
    rows = [[1.0, *(slot.weight for slot in chunk), *[1.0] * (window - 1 - len(chunk))] for chunk in split]
    return torch.tensor(rows, dtype=torch.float32).unsqueeze(2)


@contextmanager
def _injected(split: Sequence[Chunk], encoder: Any, start: int) -> Iterator[None]:
    """Put the vectors of the chunks where the token embeddings would be, for as long as the context lasts."""
    own = slice(start, start + encoder.config.hidden_size)
    places = [
        (row, column, slot.vector)
        for row, chunk in enumerate(split)
        for column, slot in enumerate(chunk, 1)
        if slot.vector is not None
    ]
    if not places:
        yield
        return

    def replaced(_module: object, _given: object, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        for row, column, vector in places:
            embedded[row, column] = vector[own].to(embedded)
        return embedded

    hook = encoder.get_input_embeddings().register_forward_hook(replaced)
    try:
        yield
    finally:
        hook.remove()


def _final_norm(encoder: Any) -> Any:
    return getattr(encoder, "text_model", encoder).final_layer_norm  # transformers 4 has a model inside of the model


def _padded(states: Tensor, blank: Callable[[], Tensor], length: int) -> Tensor:
    """Add empty chunks up to a length in tokens."""
    while states.shape[1] < length:
        states = torch.cat([states, blank()], dim=1)
    return states


def _held(states: Tensor, length: int) -> Tensor:
    """Repeat the last vector up to a length in tokens."""
    missing = length - states.shape[1]
    return torch.cat([states, states[:, -1:].expand(-1, missing, -1)], dim=1) if missing else states


def _chunks_for(towers: Sequence[Tower], text: str, reading: Reading) -> list[Chunk]:
    """The chunks of a text that the encoders take; all have one vocabulary."""
    window = towers[0].encoder.config.max_position_embeddings
    width = sum(tower.encoder.config.hidden_size for tower in towers)
    return chunks(text, towers[0].tokenizer, window, reading, width=width)


def _check_skip(reading: Reading, towers: Sequence[Tower]) -> None:
    layers = min(tower.encoder.config.num_hidden_layers + tower.dropped for tower in towers)
    if not 1 <= reading.clip_skip <= layers:
        raise PromptError(f"clip skip {reading.clip_skip}: this text encoder has {layers} layers, expected 1..{layers}")


def _check_size(count: int) -> None:
    if count > MAX_CHUNKS:
        raise PromptError(
            f"the prompt fills {count} chunks of 75 tokens, counting every text it can stand for; at most {MAX_CHUNKS} "
            "are encoded"
        )


def _checked(weight: float, text: str) -> float:
    if not abs(weight) <= MAX_WEIGHT:
        raise PromptError(
            f"{text.strip()[:40]!r} has the weight {weight:g}, expected at most {MAX_WEIGHT:g} either way"
        )
    return weight


def _near(name: str, known: Mapping[str, tuple[str, Tensor]]) -> str:
    near = difflib.get_close_matches(name.lower(), known, 1)
    return f", did you mean {known[near[0]][0]!r}?" if near else "; take it out, or add its file to the embeddings"
