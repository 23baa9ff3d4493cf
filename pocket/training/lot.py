"""Random numbers that depend on what they are for and on nothing else."""

import hashlib

import torch


def seed_of(*purpose: object) -> int:
    """A seed for a purpose, of 32 bits: PyTorch's generator on the CPU takes no more."""
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:4])


def generator(device: torch.device, *purpose: object) -> torch.Generator:
    """A generator on a device that always begins alike for one purpose, such as a seed and the number of a step."""
    return torch.Generator(device).manual_seed(seed_of(*purpose))
