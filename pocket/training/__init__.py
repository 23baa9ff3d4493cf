"""Making Pocket: from emoji and their names to a model. `python -m pocket.train` runs the stages.

npm, concept, archive        what there is to draw, and the file that it travels in
palette, scene, style        what a batch of pictures is to show
picture, phrase, caption     painting it and saying it, on the device; `source` puts all of this together
vocabulary, network          the tokenizer and the untrained parts
autoencoder, diffusion       what is learnt: the losses
adapter, inversion           the same for a LoRA and an embedding
average, learner, loop       how it is learnt; `checkpoint` and `lot` keep and repeat it
gradient, sampling           what is looked at before and while it is
job                          where and for how long
preparing, encoding, painting, extras, export    the stages
"""
