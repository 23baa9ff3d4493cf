"""The few things that a CPU has the time to learn, by the words that people use for them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pocket.training.concept import Concept

LISTED = """
smiling face; grinning face; neutral face; green apple; surprised face = astonished face; angry face; fox; red apple;
winking face; sleeping face; crying face; star; blue heart; green heart; yellow heart; red heart; cat = cat face;
purple heart; ghost; pizza; frowning face; owl; dog = dog face; rocket; house;
loudly crying face; face with tears of joy; smiling face with sunglasses; smiling face with heart-eyes;
face with tongue; thinking face; clown face; alien; robot; skull; jack-o-lantern;
orange heart; black heart; broken heart;
lion; tiger = tiger face; pig = pig face; panda; rabbit = rabbit face; bear; monkey = monkey face; frog;
banana; watermelon; lemon; orange = tangerine; strawberry; tomato; rose; sunflower; tree = evergreen tree;
car = automobile; moon = full moon; sun; cloud; balloon; soccer ball; snowman; gift = wrapped gift;
horse = horse face; unicorn; cow = cow face; mouse = mouse face; koala; chicken; penguin; duck; tropical fish; octopus;
butterfly; bee = honeybee; ladybug = lady beetle; grapes; pear; cherries; carrot; hamburger; doughnut; birthday cake;
cupcake; ice cream = soft ice cream; tulip; cactus; mushroom; bus; sailboat; ufo = flying saucer; rainbow;
lightning = high voltage; fire; droplet; umbrella; basketball; crown; light bulb
"""
"""A word, and what emojibase calls it where that is something else."""

LEARNT = 64
"""How many are learnt well by now, so that those behind them are shown more often."""


def names() -> Iterator[tuple[str, str]]:
    """Each thing as captions call it, and its label."""
    for entry in " ".join(LISTED.split()).split("; "):
        name, _, label = entry.partition(" = ")
        yield name, label or name


def few(found: Iterable[Concept]) -> list[Concept]:
    """What is listed, in that order, and after it all that is reserved to measure on."""
    everything = {concept.label: concept for concept in found}
    listed = [_called(everything[label], name, place) for place, (name, label) in enumerate(names())]
    return [*listed, *(concept for concept in everything.values() if concept.reserved)]


def _called(concept: Concept, name: str, place: int) -> Concept:
    """A concept under another name; its label becomes the one other word for it, and it always faces one way."""
    others = () if name == concept.label else (concept.label,)
    return replace(
        concept, label=name, keywords=others, tier=2 if place < LEARNT else 1, mirrored=False, reserved=False
    )
