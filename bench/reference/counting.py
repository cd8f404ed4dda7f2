"""Counts what an attack asks of a classifier."""

import torch
from torch import Tensor, nn


class Counted(nn.Module):
    """The same classifier; it counts the images that pass forward, and those whose gradient passes back.

    A forward pass is an image that `forward` is given. A backward pass is an image for which a gradient
    arrives at the logits: a hook on them fires each time they are differentiated, so the derivatives of one
    image's ten logits are one forward and ten backward passes.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        logits = self.model(images)
        if logits.requires_grad:
            logits.register_hook(self.returned)
        return logits

    def returned(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    def passes(self) -> dict[str, int]:
        """What has been counted so far."""
        return {"forward": self.forwards, "backward": self.backwards}


def predictions(model: nn.Module, images: Tensor, batch: int = 250) -> Tensor:
    """The predicted class of each image."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in images.split(batch)])
