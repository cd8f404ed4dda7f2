"""talion's classifiers, built again in PyTorch from their own files.

Two architectures are known: `cnn-small-wN` and `resnet18-wN`. Modules are named so that the keys of a
checkpoint are the keys of the state dictionary: it is loaded strictly, so a missing, a superfluous or a
misshapen tensor is an error. As talion does, batch norm is folded into the convolution before it and images
are laid out with channels innermost, so that a pass costs the same on both sides.
"""

import hashlib
import json
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

# what talion adds to the variance
EPSILON = 1e-5


def read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """The header and the tensors of a file that talion wrote."""
    with safe_open(path, "pt") as file:
        header = (file.metadata() or {}).get("talion")
        if header is None:
            raise SystemExit(f"{path}: has no talion header")
        return json.loads(header), {name: file.get_tensor(name) for name in file.keys()}


def sha256(path: Path) -> str:
    """The checksum of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Conv(nn.Module):
    """A convolution without bias."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size))
        self.stride, self.padding = stride, size // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding)


class Norm(nn.Module):
    """The tensors of a batch norm; only ever used folded."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))


class ConvNorm(nn.Module):
    """A convolution and a batch norm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int):
        super().__init__()
        self.conv, self.norm = Conv(inputs, outputs, size, stride), Norm(outputs)
        self.folded: tuple[Tensor, Tensor] | None = None

    def fold(self) -> None:
        norm = self.norm
        scale = norm.weight * (norm.running_var + EPSILON).rsqrt()
        weight = self.conv.weight * scale.view(-1, 1, 1, 1)
        self.folded = (
            weight.contiguous(memory_format=torch.channels_last),
            norm.bias - norm.running_mean * scale,
        )

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.folded
        return F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding)


class CnnSmall(nn.Module):
    """Two convolutions with pooling, two linear layers."""

    def __init__(self, channels: int, classes: int, width: int):
        super().__init__()
        self.first = Conv(channels, width, 5)
        self.second = Conv(width, 2 * width, 5)
        self.hidden = nn.Linear(2 * width * 16, 4 * width)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x).relu(), 2)
        x = F.adaptive_avg_pool2d(self.second(x).relu(), 4).flatten(1)
        return self.head(self.hidden(x).relu())


class Block(nn.Module):
    """Two convolutions around which the input is led, through a third where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride)
        self.second = ConvNorm(outputs, outputs, 3, 1)
        changes = stride != 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        around = x if self.shortcut is None else self.shortcut(x)
        return (self.second(self.first(x).relu()) + around).relu()


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem."""

    def __init__(self, channels: int, classes: int, width: int):
        super().__init__()
        self.stem = ConvNorm(channels, width, 3, 1)
        self.order, inputs = [], width
        for stage in range(4):
            for index in range(2):
                outputs, stride = width << stage, 2 if stage > 0 and index == 0 else 1
                self.order.append(f"stage{stage}_block{index}")
                setattr(self, self.order[-1], Block(inputs, outputs, stride))
                inputs = outputs
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for name in self.order:
            x = getattr(self, name)(x)
        return self.head(x.mean((2, 3)))


FAMILIES = {"cnn-small": CnnSmall, "resnet18": ResNet18}


class Classifier(nn.Module):
    """From images in [0, 1] to logits: standardisation and a network, frozen."""

    def __init__(self, card: dict, tensors: dict[str, Tensor]):
        super().__init__()
        spec = card["spec"]
        family, width = re.fullmatch(r"(.+)-w(\d+)", spec["architecture"]).groups()
        if family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise SystemExit(f"{spec['architecture']} is not rebuilt here; known: {known}")
        self.card, self.classes = card, spec["classes"]
        self.network = FAMILIES[family](spec["channels"], spec["classes"], int(width))
        self.network.load_state_dict(tensors, strict=True)
        self.register_buffer("mean", by_channel(spec["mean"]))
        self.register_buffer("inverse_std", by_channel(spec["std"]).reciprocal())
        self.requires_grad_(False).eval()
        self.network.to(memory_format=torch.channels_last)
        for module in self.network.modules():
            if isinstance(module, ConvNorm):
                module.fold()

    def forward(self, images: Tensor) -> Tensor:
        standardised = (images - self.mean) * self.inverse_std
        return self.network(standardised.contiguous(memory_format=torch.channels_last))


def by_channel(values: list[float]) -> Tensor:
    """A number a channel, shaped to meet images."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def load(path: Path) -> Classifier:
    """The classifier in a talion checkpoint."""
    card, tensors = read(path)
    if card.get("kind") != "classifier":
        raise SystemExit(f"{path}: holds a {card.get('kind')}, not a classifier")
    return Classifier(card, tensors)
