"""Tiny upscale models with random weights, and their tensors under all the names that they go by."""

import re

import torch
from torch import nn

from nodes.diffusion.upscale import RRDBNet, SRVGGNetCompact


def loud(network, seed=0):
    """A network with weights that make something of a picture, not a flat grey."""
    drawn = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            deviation = 1.2 * module.weight[0].numel() ** -0.5
            module.weight.data.normal_(0, deviation, generator=drawn)
            module.bias.data.normal_(0, 0.1, generator=drawn)
    return network.eval().requires_grad_(requires_grad=False)


def rrdbnet(doublings=2, grain=1, blocks=1):
    return loud(RRDBNet(8, 4, blocks, doublings, grain))


def compact(scale=4, layers=2):
    return loud(SRVGGNetCompact(8, layers, scale))


def newest(network, prefix=""):
    """As Real-ESRGAN writes them."""
    return {prefix + name: weight.clone() for name, weight in network.state_dict().items()}


def second(network):
    """As ESRGAN's second code wrote them."""
    renamed = {}
    for name, weight in newest(network).items():
        block = re.sub(r"body\.(\d+)\.rdb(\d)", r"RRDB_trunk.\1.RDB\2", name)
        older = block.replace("conv_body", "trunk_conv").replace("conv_up", "upconv").replace("conv_hr", "HRconv")
        renamed[older] = weight
    return renamed


def first(network):
    """As ESRGAN's first code wrote them."""
    end, blocks = 3 * network.doublings, len(network.body)
    places = {"conv_first": "0", "conv_body": f"1.sub.{blocks}", "conv_hr": f"{end + 2}", "conv_last": f"{end + 4}"}
    places |= {f"conv_up{index}": f"{3 * index}" for index in range(1, network.doublings + 1)}
    renamed = {}
    for name, weight in newest(network).items():
        if block := re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)\.(weight|bias)", name):
            renamed["model.1.sub.{}.RDB{}.conv{}.0.{}".format(*block.groups())] = weight
        else:
            layer, kind = name.split(".")
            renamed[f"model.{places[layer]}.{kind}"] = weight
    return renamed
