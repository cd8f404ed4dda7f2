"""talion's classifiers, built again in PyTorch from their own files.

All of talion's own architectures are known. Modules are named so that the keys of a checkpoint are the keys
of the state dictionary: it is loaded strictly, so a missing, a superfluous or a misshapen tensor is an error.
As talion does, batch norm is folded into the convolution before it and images are laid out with channels
innermost, so that a pass costs the same on both sides. `plain=True` leaves all that away and gives the
network as it is usually written.
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


class Norm(nn.BatchNorm2d):
    """A batch norm; folded, it is a scale and a shift."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=EPSILON)
        self.folded: tuple[Tensor, Tensor] | None = None

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + EPSILON).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def fold(self) -> None:
        scale, shift = self.scale_and_shift()
        self.folded = (scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.folded is None:
            return super().forward(x)
        scale, shift = self.folded
        return torch.addcmul(shift, x, scale)


class ConvNorm(nn.Module):
    """A convolution and a batch norm; folded, they are one convolution."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int):
        super().__init__()
        self.conv, self.norm = Conv(inputs, outputs, size, stride), Norm(outputs)
        self.folded: tuple[Tensor, Tensor] | None = None

    def fold(self) -> None:
        scale, shift = self.norm.scale_and_shift()
        weight = self.conv.weight * scale.view(-1, 1, 1, 1)
        self.folded = (weight.contiguous(memory_format=torch.channels_last), shift)

    def forward(self, x: Tensor) -> Tensor:
        if self.folded is None:
            return self.norm(self.conv(x))
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


class PreActBlock(nn.Module):
    """As `Block`, with the norms before the convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm = Norm(inputs)
        # with the norm that follows it, so that the pair can be folded
        self.first = ConvNorm(inputs, outputs, 3, stride)
        self.second = Conv(outputs, outputs, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut = Conv(inputs, outputs, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.norm(x).relu()
        around = x if self.shortcut is None else self.shortcut(active)
        return self.second(self.first(active).relu()) + around


class PreActNet(nn.Module):
    """A network of such blocks, `depth` of them at each of the widths."""

    def __init__(self, channels: int, classes: int, stem: int, widths: list[int], depth: int):
        super().__init__()
        self.stem = Conv(channels, stem, 3)
        self.order, inputs = [], stem
        for stage, outputs in enumerate(widths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                self.order.append(f"stage{stage}_block{index}")
                setattr(self, self.order[-1], PreActBlock(inputs, outputs, stride))
                inputs = outputs
        self.norm = Norm(inputs)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in self.order:
            x = getattr(self, name)(x)
        return self.head(self.norm(x).relu().mean((2, 3)))


class PreActResNet18(PreActNet):
    """ResNet-18 with the norms first."""

    def __init__(self, channels: int, classes: int, width: int):
        super().__init__(channels, classes, width, [width << stage for stage in range(4)], 2)


class WideResNet28(PreActNet):
    """WideResNet-28; the width is its multiplier."""

    def __init__(self, channels: int, classes: int, width: int):
        super().__init__(channels, classes, 16, [(16 << stage) * width for stage in range(3)], 4)


class Vgg16(nn.Module):
    """VGG-16 with batch norm and one linear layer."""

    def __init__(self, channels: int, classes: int, width: int):
        super().__init__()
        self.stages, inputs = [], channels
        for stage, (factor, depth) in enumerate([(1, 2), (2, 2), (4, 3), (8, 3), (8, 3)]):
            self.stages.append([f"stage{stage}_conv{layer}" for layer in range(depth)])
            for name in self.stages[-1]:
                setattr(self, name, ConvNorm(inputs, factor * width, 3, 1))
                inputs = factor * width
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            for name in stage:
                x = getattr(self, name)(x).relu()
            # images below 32x32 run out of pixels before the fifth pooling
            if min(x.shape[2:]) >= 2:
                x = F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


FAMILIES = {
    "cnn-small": CnnSmall,
    "preactresnet18": PreActResNet18,
    "resnet18": ResNet18,
    "vgg16bn": Vgg16,
    "wrn-28": WideResNet28,
}


def build(architecture: str, channels: int, classes: int) -> nn.Module:
    """The network of this name, before it has weights: `resnet18-w16`, `wrn-28-10`."""
    found = re.fullmatch(r"(.+?)-w?(\d+)", architecture)
    if found is None or found[1] not in FAMILIES:
        raise SystemExit(f"{architecture} is not rebuilt here; known: {', '.join(FAMILIES)}")
    return FAMILIES[found[1]](channels, classes, int(found[2]))


class Classifier(nn.Module):
    """From images in [0, 1] to logits: standardisation and a network, frozen.

    A `plain` one has batch norms of their own, contiguous images, and parameters that ask for gradients.
    """

    def __init__(self, card: dict, tensors: dict[str, Tensor], plain: bool = False):
        super().__init__()
        spec = card["spec"]
        self.card, self.classes, self.plain = card, spec["classes"], plain
        self.network = build(spec["architecture"], spec["channels"], spec["classes"])
        self.network.load_state_dict(tensors, strict=True)
        self.register_buffer("mean", by_channel(spec["mean"]))
        self.register_buffer("inverse_std", by_channel(spec["std"]).reciprocal())
        self.eval()
        if not plain:
            self.fold()

    def fold(self) -> None:
        self.requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)
        for module in self.network.modules():
            if isinstance(module, ConvNorm | Norm):
                module.fold()

    def forward(self, images: Tensor) -> Tensor:
        standardised = (images - self.mean) * self.inverse_std
        if not self.plain:
            standardised = standardised.contiguous(memory_format=torch.channels_last)
        return self.network(standardised)


def by_channel(values: list[float]) -> Tensor:
    """A number a channel, shaped to meet images."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def load(path: Path, plain: bool = False) -> Classifier:
    """The classifier in a talion checkpoint."""
    card, tensors = read(path)
    if card.get("kind") != "classifier":
        raise SystemExit(f"{path}: holds a {card.get('kind')}, not a classifier")
    return Classifier(card, tensors, plain)
