"""A classifier as a peer is given it: the same weights, written and compiled in four ways."""

import shared  # noqa: F401  (finds `networks`)
import compiling
import machine
import networks
import torch
from torch import Tensor, nn

SETTINGS = ("default", "best", "compile", "autocast")


class Skipped(Exception):
    """A setting that this machine has nothing for."""


def usable(setting: str, force: bool = False) -> None:
    """Refuses a setting that is not known, and bf16 where the processor would have to imitate it."""
    if setting not in SETTINGS:
        raise ValueError(f"no setting is called {setting}; known: {', '.join(SETTINGS)}")
    if setting == "autocast" and not force and not machine.bf16():
        raise Skipped("skipped: no bf16")


class Autocast(nn.Module):
    """Convolutions and products in bf16; what comes out is f32 again."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.model(images)
        return logits.float()


def prepared(model: nn.Module, setting: str) -> nn.Module:
    """What is done to a module that is folded and frozen already."""
    if setting == "compile":
        return torch.compile(model, **compiling.options())
    if setting == "autocast":
        return Autocast(model).eval()
    return model


def build(card: dict, tensors: dict[str, Tensor], setting: str) -> nn.Module:
    """The classifier, ready to be attacked."""
    model = networks.Classifier(card, tensors, plain=setting == "default")
    return prepared(model, setting)
