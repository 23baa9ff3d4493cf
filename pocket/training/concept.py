"""What Pocket can draw: one concept per emoji, in the order in which they matter."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

RESERVED = 20
"""Every so many concepts one is never trained on, to measure the VAE with; none of the first tier."""

ESSENTIAL = frozenset(
    """
    smiling face; grinning face; neutral face; crying face; loudly crying face; face with tears of joy; angry face;
    enraged face; frowning face; winking face; sleeping face; thinking face; face with open mouth; astonished face;
    worried face; kissing face; face with tongue; smiling face with sunglasses; smiling face with heart-eyes; nerd face;
    smiling face with halo; smiling face with horns; cowboy hat face; partying face; zany face; yawning face; hot face;
    cold face; clown face; ghost; alien; robot; skull; grinning cat; crying cat; jack-o-lantern; snowman; red heart;
    orange heart; yellow heart; green heart; blue heart; purple heart; black heart; white heart; broken heart; star;
    fox; cat; cat face; dog; dog face; wolf; lion; tiger face; horse; horse face; unicorn; cow face; pig face; panda;
    mouse face; rabbit face; bear; koala; monkey face; frog; elephant; giraffe; hedgehog; chicken; penguin; bird; duck;
    owl; fish; tropical fish; blowfish; shark; dolphin; whale; octopus; crab; snail; butterfly; honeybee; lady beetle;
    turtle; snake; dragon; rose; tulip; sunflower; cherry blossom; hibiscus; cactus; evergreen tree; deciduous tree;
    palm tree; four leaf clover; mushroom; red apple; green apple; banana; grapes; watermelon; lemon; tangerine;
    pineapple; peach; pear; strawberry; cherries; tomato; carrot; avocado; broccoli; ear of corn; hot pepper; bread;
    cheese wedge; hamburger; pizza; french fries; hot dog; taco; egg; doughnut; cookie; birthday cake; cupcake;
    ice cream; soft ice cream; hot beverage; house; castle; tent; mountain; volcano; automobile; taxi; bus; fire engine;
    tractor; bicycle; locomotive; sailboat; airplane; helicopter; rocket; flying saucer; full moon;
    sun; sun with face; cloud; cloud with rain; rainbow; snowflake; high voltage; fire; droplet; umbrella; balloon;
    wrapped gift; trophy; soccer ball; basketball; teddy bear; crown; top hat; gem stone; guitar; drum; bell; camera;
    light bulb; closed book; key; hammer; scissors; pencil; bomb; alarm clock; money bag
    """.replace("\n", " ")
    .replace("    ", "")
    .strip()
    .split("; ")
)
"""Things that people ask for first, and faces that differ by one word."""

PEOPLE, COMPONENTS, SYMBOLS, FLAGS = 1, 2, 8, 9
DRAWN_WELL = {0, 3, 4}
"""Groups of faces, animals and food."""

LETTERED = re.compile(
    r"\b(left|right|leftwards|rightwards|clockwise|globe|map|calendar|newspaper|chart|clock|thirty|medal|points|zzz|"
    r"score|banknote|coin|book|label|keyboard|8 ball|dvd|ticket|tickets|abc|disk|mahjong|sign|stop|bank|hospital|love|"
    r"hotel|school|store|office|mobile|calculator|slot|die|dice|violin|memo|receipt|card|t-rex|musical|speech|symbols)\b"
)
"""Words of labels whose pictures hold letters, figures or a side that a mirror would falsify."""


@dataclass(frozen=True)
class Concept:
    """One thing to draw."""

    code: str
    """Its code points, which are also the name of its picture."""
    label: str
    keywords: tuple[str, ...]
    tier: int
    """0 matters most."""
    mirrored: bool
    """Whether it may be shown the other way round."""
    reserved: bool
    """Whether it is kept from all training."""


def concepts(emoji: Iterable[Mapping[str, Any]], pictured: Iterable[str]) -> list[Concept]:
    """Match emojibase's `emoji` with the codes of the pictures there are, the most important first."""
    codes = {_bare(code): code for code in sorted(pictured)}
    matched = [each for each in emoji if _bare(each["hexcode"]) in codes and _wanted(each)]
    labelled = {_label(each): each for each in reversed(matched)}
    ordered = sorted(labelled.values(), key=lambda each: (_tier(each), each["order"]))
    return [_concept(each, codes[_bare(each["hexcode"])], place) for place, each in enumerate(ordered)]


def dumps(found: Iterable[Concept]) -> str:
    """Concepts as JSON."""
    return json.dumps([vars(concept) for concept in found], ensure_ascii=False, indent=0)


def loads(text: str) -> list[Concept]:
    """The concepts that `dumps` wrote."""
    return [Concept(**{**entry, "keywords": tuple(entry["keywords"])}) for entry in json.loads(text)]


def _concept(emoji: Mapping[str, Any], code: str, place: int) -> Concept:
    label, tier = _label(emoji), _tier(emoji)
    keywords = tuple(word for word in map(_words, emoji.get("tags", ())) if word and word != label)
    mirrored = emoji["group"] != SYMBOLS and not LETTERED.search(label)
    return Concept(code, label, keywords, tier, mirrored, reserved=tier > 0 and place % RESERVED == 0)


def _wanted(emoji: Mapping[str, Any]) -> bool:
    return emoji.get("group") not in {None, COMPONENTS, FLAGS}


def _tier(emoji: Mapping[str, Any]) -> int:
    label, group = _label(emoji), emoji["group"]
    if label in ESSENTIAL:
        return 0
    if group in DRAWN_WELL:
        return 1
    if group == SYMBOLS or "clock" in label or "thirty" in label:
        return 4
    if group == PEOPLE:
        return 4 if re.search(r"\b(man|men|woman|women|family|kiss|couple)\b", label) else 3
    return 2


def _label(emoji: Mapping[str, Any]) -> str:
    return _words(emoji["label"])


def _words(text: str) -> str:
    """Lower case, plain apostrophes, no marks that only typography needs."""
    plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return " ".join(re.sub(r"[^\w\s'-]", " ", plain).split())


def _bare(code: str) -> str:
    """A code without the selectors that only ask for colour; skin tones stay, and so match nothing."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")
