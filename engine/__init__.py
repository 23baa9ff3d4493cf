"""Typed graphs and incremental execution. Knows nothing of images, diffusion or HTTP."""
