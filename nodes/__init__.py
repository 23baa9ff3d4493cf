"""The nodes that come with Calotype, as one explicit list."""

from nodes import grid, image, mask, model, noise, sample, text, vae, value

NODES = (
    value.boolean,
    value.integer,
    value.number,
    value.text,
    image.load,
    image.resize,
    image.crop,
    image.composite,
    image.batch,
    image.pick,
    grid.grid,
    mask.load,
    mask.from_alpha,
    mask.rectangle,
    mask.ellipse,
    mask.invert,
    mask.combine,
    mask.grow,
    mask.blur,
    mask.resize,
    mask.threshold,
    model.load,
    text.encode,
    noise.seeded,
    vae.encode,
    vae.decode,
    vae.empty,
    sample.sample,
)
