r"""Prompts as people write them, read without a tokenizer or a model.

A prompt goes through these in order, as in the Stable Diffusion WebUI 1.10:

    tags       <lora:name:0.8>          taken out; they change the models, not the text
    joined     fox :1.2 AND snow        several prompts, each with its weight; only in positive prompts
    texts      [cat:dog:0.5] [a|b]      one text that changes while the picture is sampled
    attention  (word) [word] (word:1.3) BREAK \(literal\)

Editing switches by model calls, counted from 0 of `calls` (the steps, or twice the steps for a second-order sampler):
`[before:after:n]`, `[after:n]` and `[before::n]` show `before` up to and including call n, where n is a number of
calls, or with a point a share of all of them, cut to a whole number. Where that is less than 1, `after` stands from
the beginning. So of 20 calls `[a:b:0.5]` gives 11 to a. `[a|b|c]` takes the next option on each call, but stays on the
first for calls 0 and 1. Both are what the WebUI does.

Where Calotype differs: a bracket that makes no sense is literal alone, not together with all else; `BREAK` is
recognised inside weights; tags count in the negative prompt too; a second pass, as of hires fix, begins to count anew,
where the WebUI goes on from 1 to 2 (`[a:b:1.5]`); and what has no limit there has one here.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import NamedTuple, TypeAlias

from nodes.diffusion.scope import EVERYWHERE, Scope

MAX_CHARACTERS = 50_000
"""Length of a prompt."""
MAX_TEXTS = 64
"""Texts that one prompt may stand for while it is sampled."""
MAX_STATES = 1024
"""Combinations of switches and turns that are looked through for them."""
MAX_DEPTH = 32
"""Levels of editing inside of editing; plain brackets nest without limit."""
STEP_UP = 1.1
"""What one pair of parentheses multiplies a weight by, and one pair of square brackets divides it by."""

_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_WEIGHT = re.compile(_NUMBER)
_SWITCH = re.compile(_NUMBER + r"(?:[eE][-+]?[0-9]+)?")
_FAR = 1e9


class PromptError(ValueError):
    """A prompt that cannot be used: names the place, what was expected and what came."""


# --- Tags ---


@dataclass(frozen=True, slots=True)
class Lora:
    """A tag `<lora:name:text:unet>`: how strongly a LoRA changes the text encoder and the UNet."""

    name: str
    text: float = 1.0
    unet: float = 1.0


class Mentions(NamedTuple):
    """What a text names outright: LoRAs by tags, embeddings as `embedding:name`. In order, each once."""

    loras: tuple[str, ...]
    embeddings: tuple[str, ...]


_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]+)>", re.IGNORECASE)
_EXPLICIT = re.compile(r"(?<!\w)embedding:([^\s,()\[\]:|<>\\]+)", re.IGNORECASE)
_SUFFIX = re.compile(r"\.(safetensors|pt|bin)$", re.IGNORECASE)


def tags(text: str) -> tuple[str, tuple[Lora, ...]]:
    """Take the LoRA tags out of a text: what is left, and the tags in order, repeated ones included.

    `<lora:name>`, `<lora:name:text>`, `<lora:name:text:unet>`, and `te=` and `unet=` by name; the text strength is 1
    where it is not given, the UNet's is the text's. `lyco` is another word for `lora`. Raises PromptError for a tag
    that does not read so, and for a hypernetwork, which Calotype cannot load. All else in <> is text.
    """
    found = tuple(_lora(match) for match in _TAG.finditer(text))
    return _TAG.sub("", text), found


def mentions(text: str) -> Mentions:
    """Name the LoRAs and embeddings that a text mentions outright; never raises, `tags` judges the tags."""
    loras = (match[2].partition(":")[0].strip() for match in _TAG.finditer(text) if match[1].lower() != "hypernet")
    embeddings = (_SUFFIX.sub("", match[1]) for match in _EXPLICIT.finditer(text))
    return Mentions(tuple(dict.fromkeys(loras)), tuple(dict.fromkeys(embeddings)))


def embedding_names(text: str, known: Iterable[str]) -> tuple[str, ...]:
    """Which of the `known` embeddings may occur in a text, in the order of `known`.

    Case and spaces do not count, and a name counts wherever it stands, also inside of words, also where it is put
    together only by editing. The tokens decide later, so a name found here may turn out not to be one.
    """
    if not (names := {name: _squeezed(bare_name(name)) for name in known}):
        return ()
    places = [_squeezed(place) for place in _readings(text)]
    return tuple(name for name, bare in names.items() if bare and any(bare in place for place in places))


def bare_name(name: str) -> str:
    """What triggers an embedding: its name without the folder."""
    return name.rpartition("/")[2]


def explicit_embeddings(text: str) -> Iterator[tuple[str, str | None]]:
    """Split a text at each `embedding:name` into (text before, name), the last with None; a comma after it is eaten."""
    start = 0
    for match in _EXPLICIT.finditer(text):
        yield text[start : match.start()], _SUFFIX.sub("", match[1])
        start = match.end() + (text[match.end() : match.end() + 1] == ",")
    yield text[start:], None


def _lora(match: re.Match[str]) -> Lora:
    kind, body = match[1].lower(), match[2]
    if kind == "hypernet":
        raise PromptError(f"{_cut(match[0])}: hypernetworks are not supported; take the tag out, or use a LoRA")
    name, *strengths = (part.strip() for part in body.split(":"))
    plain = [part for part in strengths if "=" not in part]
    named = {key.strip(): value for key, _, value in (part.partition("=") for part in strengths if "=" in part)}
    if not name or len(plain) > 2 or named.keys() - {"te", "unet"}:
        raise PromptError(f"{_cut(match[0])}: expected <lora:name:text:unet>, or te= and unet=")
    te = named.get("te", plain[0] if plain else "1")
    unet = named.get("unet", plain[1] if len(plain) > 1 else te)
    return Lora(name, _strength(te, match[0]), _strength(unet, match[0]))


def _strength(written: str, tag: str) -> float:
    if not _WEIGHT.fullmatch(written.strip()) or not math.isfinite(strength := float(written)):
        raise PromptError(f"{_cut(tag)}: expected a strength such as 0.8, got {_cut(written)!r}")
    return strength


def _readings(text: str) -> Iterator[str]:
    """The text as it stands but for tags, and all that it can stand for without its brackets."""
    text = _TAG.sub("", text)
    yield text
    if len(text) > MAX_CHARACTERS:
        return
    for _, source in joined(text):
        try:
            yield from ("".join(run.text for runs in attention(each) for run in runs) for each in texts(source))
        except PromptError:  # whoever encodes it says so
            return


def _squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).lower().split())


# --- Prompts joined by AND ---

_AND = re.compile(r"\bAND\b")


def joined(text: str) -> tuple[tuple[float, str], ...]:
    """Split a positive prompt at each AND into (weight, prompt); a weight is `:1.2` at the very end of a prompt.

    A weight scales how far the prompt pulls, as the guidance does; 1 where none is given. It is also read from a
    single prompt without AND, so that one which ends in "12:30" weighs 30, as in the WebUI.
    """
    parts = _AND.split(text)
    return tuple(_weighed(part.strip() if len(parts) > 1 else part) for part in parts)


def _weighed(text: str) -> tuple[float, str]:
    head, colon, tail = text.rpartition(":")
    return (float(tail), head.rstrip()) if colon and _WEIGHT.fullmatch(tail.strip()) else (1.0, text)


# --- Editing and alternation ---


@dataclass(frozen=True, slots=True)
class Edit:
    """`[before:after:at]`; `at` is a share of all calls where `share`, else a number of calls."""

    before: "Items"
    after: "Items"
    at: float
    share: bool
    depth: int = 1

    def passed(self, call: int, calls: int) -> bool:
        """Whether `after` stands at this call."""
        last = min(int(self.at * calls if self.share else self.at), calls)
        return last < 1 or call > last


@dataclass(frozen=True, slots=True)
class Cycle:
    """`[a|b|c]`: an option for each call in turn."""

    options: tuple["Items", ...]
    depth: int = 1


Items: TypeAlias = tuple[str | Edit | Cycle, ...]
"""A text with what changes in it."""

_Choice: TypeAlias = Callable[[Edit | Cycle], Items]
_SPECIAL = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\", re.DOTALL)
_OPENER = {"]": "[", ")": "("}


def text_at(source: str, call: int, calls: int) -> str:
    """Render a prompt for model call `call` (from 0) of `calls`; calls beyond the last are the last."""
    calls = max(calls, 1)
    call = min(max(call, 0), calls)

    def choice(item: Edit | Cycle) -> Items:
        if isinstance(item, Cycle):
            return item.options[_turn(call) % len(item.options)]
        return item.after if item.passed(call, calls) else item.before

    return _rendered(edited(source), choice)


def texts(source: str) -> tuple[str, ...]:
    """All texts that a prompt can stand for at any call of any number of calls, the first one first.

    Switches by share come in order among themselves, switches by call too, and alternations turn together; so a text
    is looked for in each combination of these three. Raises PromptError for more than MAX_TEXTS texts.
    """
    items = edited(source)
    nodes = tuple(_nodes(items))
    shares = _bounds(node.at for node in nodes if isinstance(node, Edit) and node.share and 0 < node.at < 1)
    calls = _bounds(node.at for node in nodes if isinstance(node, Edit) and not node.share and node.at >= 1)
    turns = math.lcm(*(len(node.options) for node in nodes if isinstance(node, Cycle)))
    if len(shares) * len(calls) * turns > MAX_STATES:
        raise _too_many(source)
    found = dict.fromkeys(_rendered(items, _state(*state)) for state in product(shares, calls, range(turns)))
    if len(found) > MAX_TEXTS:
        raise _too_many(source)
    return tuple(found)


@lru_cache(maxsize=256)
def edited(source: str) -> Items:
    """Read editing and alternation. Brackets that are neither stay in the text, and so do escapes.

    Raises PromptError for editing nested deeper than MAX_DEPTH, and for a text that `check` refuses.
    """
    check(source)
    return _Reader().read(source)


def check(text: str) -> None:
    """Raise PromptError for a text that is too long, or not one."""
    if len(text) > MAX_CHARACTERS:
        raise PromptError(f"the prompt has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read")
    bad = re.search("[\0\ud800-\udfff]", text)
    if bad:
        raise PromptError(f"character {bad.start() + 1} of the prompt is {bad[0]!a}, not text; take it out")


def _turn(call: int) -> int:
    return max(call - 1, 0)


def _bounds(switches: Iterable[float]) -> tuple[float, ...]:
    """Numbers that divide the switches into passed ones (below) and others in every way that there is."""
    return (0.0, *(math.nextafter(switch, math.inf) for switch in sorted(set(switches))))


def _state(share: float, call: float, turn: int) -> _Choice:
    """The choices where all switches below two bounds are passed."""

    def choice(item: Edit | Cycle) -> Items:
        if isinstance(item, Cycle):
            return item.options[turn % len(item.options)]
        passed = item.at < (share if item.share else max(call, 1))
        return item.after if passed or (item.share and item.at <= 0) else item.before

    return choice


def _rendered(items: Items, choice: _Choice) -> str:
    return "".join(item if isinstance(item, str) else _rendered(choice(item), choice) for item in items)


def _nodes(items: Items) -> Iterator[Edit | Cycle]:
    for item in items:
        if isinstance(item, str):
            continue
        yield item
        for inner in item.options if isinstance(item, Cycle) else (item.before, item.after):
            yield from _nodes(inner)


def _too_many(source: str) -> PromptError:
    return PromptError(
        f"{_cut(source)!r} can stand for too many texts, at most {MAX_TEXTS} are encoded; use fewer switches [a:b:n], "
        "or alternations [a|b] of equal length"
    )


@dataclass(slots=True)
class _Open:
    """A bracket that is not closed yet: where it stands among the items, and where its own `:` and `|` do."""

    kind: str
    start: int
    marks: list[int] = field(default_factory=list)


class _Reader:
    """Reads a text once from left to right; what turns out to be editing replaces its items by one."""

    def __init__(self) -> None:
        self._items: list[str | Edit | Cycle] = []
        self._open: list[_Open] = []
        self._count = {"[": 0, "(": 0}

    def read(self, text: str) -> Items:
        for piece in _SPECIAL.findall(text):
            if piece in self._count:
                self._open.append(_Open(piece, len(self._items)))
                self._count[piece] += 1
            elif piece in {":", "|"} and self._open:
                self._open[-1].marks.append(len(self._items))
            elif piece in _OPENER and self._count[_OPENER[piece]]:
                self._close(self._opened(_OPENER[piece]), piece)
                continue
            self._items.append(piece)
        return _tidy(self._items)

    def _opened(self, kind: str) -> _Open:
        """The last open bracket of a kind; those of the other kind inside of it were never brackets."""
        while True:
            last = self._open.pop()
            self._count[last.kind] -= 1
            if last.kind == kind:
                return last
            self._open[-1].marks = self._open[-1].marks + last.marks if self._open[-1].marks else last.marks

    def _close(self, opened: _Open, piece: str) -> None:
        made = self._made(opened) if piece == "]" and opened.marks else None
        if made is None:
            self._items.append(piece)
        else:
            self._items[opened.start :] = [made]

    def _made(self, opened: _Open) -> Edit | Cycle | None:
        kinds = {self._items[mark] for mark in opened.marks}
        if kinds == {"|"}:
            options = self._fields(opened)
            return Cycle(options, _depth(*options))
        if kinds == {":"} and len(opened.marks) <= 2 and (switch := self._switch(opened.marks[-1])):
            *before, after = self._fields(opened)[:-1]
            at = max(-_FAR, min(float(switch), _FAR))
            share = "." in switch
            return Edit(before[0] if before else (), after, at if share else int(at), share, _depth(*before, after))
        return None

    def _switch(self, mark: int) -> str | None:
        """The number after the last colon."""
        last = self._items[mark + 1] if len(self._items) == mark + 2 else None
        return last.strip() if isinstance(last, str) and _SWITCH.fullmatch(last.strip()) else None

    def _fields(self, opened: _Open) -> tuple[Items, ...]:
        ends = [*opened.marks, len(self._items)]
        starts = [opened.start + 1, *(mark + 1 for mark in opened.marks)]
        return tuple(_tidy(self._items[start:end]) for start, end in zip(starts, ends, strict=True))


def _depth(*parts: Items) -> int:
    depth = 1 + max((item.depth for part in parts for item in part if not isinstance(item, str)), default=0)
    if depth > MAX_DEPTH:
        raise PromptError(f"prompt editing is nested more than {MAX_DEPTH} levels deep; take some brackets out")
    return depth


def _tidy(items: Iterable[str | Edit | Cycle]) -> Items:
    """Join neighbouring strings."""
    tidy: list[str | Edit | Cycle] = []
    strings: list[str] = []
    for item in items:
        if isinstance(item, str):
            strings.append(item)
        else:
            tidy += ["".join(strings), item] if strings else [item]
            strings = []
    return (*tidy, "".join(strings)) if strings else tuple(tidy)


# --- Attention ---


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of text with one weight."""

    text: str
    weight: float = 1.0


Sections: TypeAlias = tuple[tuple[Run, ...], ...]
"""What a text says, divided where BREAK stood. There is at least one section; a section may be empty."""

_BREAK = re.compile(r"\bBREAK\b")
_ATTENTION = re.compile(rf"\\[\\()\[\]]|\\|[()\[\]]|:\s*{_NUMBER}\s*\)|[^\\()\[\]:]+|:")
_COMFY = re.compile(r"\\[()]|[()]|[^\\()]+|\\")


def attention(text: str) -> Sections:
    r"""Read weights: (x) is 1.1, [x] is 1 / 1.1, (x:w) is w, nested ones multiply, and BREAK begins a new section.

    `\(`, `\)`, `\[`, `\]` and `\\` stand for themselves, any other backslash for nothing. An open bracket that is
    never closed reaches to the end; a closing one that was never opened is text. Neighbours of equal weight are one.
    """
    pieces = _ATTENTION.findall(text)
    factors = _factors(pieces)
    active: dict[str, list[float]] = {"(": [1.0], "[": [1.0]}
    sections: list[list[Run]] = [[]]
    for index, piece in enumerate(pieces):
        if index not in factors:
            _put(sections, _literal(piece), active["("][-1] * active["["][-1])
        elif piece in active:
            active[piece].append(active[piece][-1] * factors[index])
        else:
            active[_OPENER[piece[-1]]].pop()
    return tuple(map(_merged, sections))


def comfy_attention(text: str) -> tuple[Run, ...]:
    r"""Read weights as ComfyUI does: (x) multiplies by 1.1, (x:w) sets w whatever is around it, `\(` and `\)` escape.

    Square brackets, BREAK and AND are text. A bracket without its partner is text too. Each run is one group of words.
    """
    pieces = _COMFY.findall(text)
    partners = _partners(pieces)
    runs, weights = [Run("")], [1.0]
    for index, piece in enumerate(pieces):
        if index not in partners:
            runs[-1] = Run(runs[-1].text + (piece[1:] if piece in {r"\(", r"\)"} else piece), weights[-1])
            continue
        if piece == "(":
            given = _set_weight(pieces, index, partners[index])
            weights.append(weights[-1] * STEP_UP if given is None else given)
        else:
            weights.pop()
            opening = partners[index]
            if _set_weight(pieces, opening, index) is not None:
                runs[-1] = Run(runs[-1].text.rpartition(":")[0], runs[-1].weight)
        runs.append(Run("", weights[-1]))
    return tuple(run for run in runs if run.text)


def literal(text: str) -> Sections:
    """Read no weights: one section, brackets and BREAK as they stand."""
    return ((Run(text),) if text else (),)


def unweighted(sections: Sections) -> Sections:
    """The same texts, all of weight 1."""
    return tuple(_merged([Run(run.text) for run in runs]) for runs in sections)


def _factors(pieces: list[str]) -> Mapping[int, float]:
    """What each bracket multiplies by; brackets that are text are left out. The two kinds do not see each other."""
    factors: dict[int, float] = {}
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for index, piece in enumerate(pieces):
        if piece in opened:
            opened[piece].append(index)
            factors[index] = STEP_UP if piece == "(" else 1 / STEP_UP
        elif not piece.startswith("\\") and (stack := opened.get(_OPENER.get(piece[-1], ""))):
            opening = stack.pop()
            factors[index] = 1.0
            if piece.startswith(":"):
                factors[opening] = float(piece[1:-1])
    return factors


def _literal(piece: str) -> str:
    return piece.removeprefix("\\")


def _put(sections: list[list[Run]], text: str, weight: float) -> None:
    """Add a text, which begins a new section at each BREAK."""
    first, *others = _BREAK.split(text)
    sections[-1].append(Run(first.rstrip() if others else first, weight))
    for index, part in enumerate(others, 1):
        sections.append([Run(part.strip() if index < len(others) else part.lstrip(), weight)])


def _merged(runs: list[Run]) -> tuple[Run, ...]:
    merged: list[tuple[list[str], float]] = []
    for run in runs:
        if run.text and merged and merged[-1][1] == run.weight:
            merged[-1][0].append(run.text)
        elif run.text:
            merged.append(([run.text], run.weight))
    return tuple(Run("".join(strings), weight) for strings, weight in merged)


def _partners(pieces: list[str]) -> Mapping[int, int]:
    """The other parenthesis of each pair."""
    partners: dict[int, int] = {}
    opened: list[int] = []
    for index, piece in enumerate(pieces):
        if piece == "(":
            opened.append(index)
        elif piece == ")" and opened:
            partners[index] = opening = opened.pop()
            partners[opening] = index
    return partners


def _set_weight(pieces: list[str], opening: int, closing: int) -> float | None:
    """The number w of `(x:w)`, where there is an x."""
    last = pieces[closing - 1] if closing - 1 > opening else ""
    head, colon, tail = last.rpartition(":")
    says = colon and (head or closing - 2 > opening) and _WEIGHT.fullmatch(tail.strip())
    return float(tail) if says else None


# --- What a conditioning remembers of its prompt ---


@dataclass(frozen=True, slots=True)
class Part:
    """One of the prompts joined by AND: its weight, how it is written, and the row of each text it can stand for.

    Its scope says where, when and for which size it counts.
    """

    weight: float = 1.0
    source: str = ""
    rows: tuple[tuple[str, int], ...] = (("", 0),)
    scope: Scope = EVERYWHERE

    def row(self, call: int, calls: int) -> int:
        """Where the text of model call `call` (from 0) of `calls` stands in the conditioning."""
        if len(self.rows) == 1:
            return self.rows[0][1]
        return dict(self.rows)[text_at(self.source, call, calls)]


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
