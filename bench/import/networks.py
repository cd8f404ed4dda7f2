"""Classifiers for small images under the names of parameters that public checkpoints use.

The networks are written here from their papers; what is taken over is the naming, because a checkpoint's keys are
all that says which network it belongs to. Widths can be chosen, so that tests stay small.

    ResNet-18 (He et al. 2016)            conv1 bn1 layerN.M.{conv1,bn1,conv2,bn2,shortcut.0,shortcut.1} linear
    PreActResNet-18 (He et al. 2016)      conv1 layerN.M.{bn1,conv1,bn2,conv2,shortcut.0} bn linear
    WideResNet-28-k (Zagoruyko 2016)      conv1 blockN.layer.M.{bn1,conv1,bn2,conv2,convShortcut} bn1 fc
    VGG-16 with batch norm (2015)         features.N classifier
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two convolutions, each with its norm, around which the input is led."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Two basic blocks in each of four stages, behind a 3x3 stem."""

    def __init__(self, width: int = 64, classes: int = 10, channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(BasicBlock, width)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


class PreActBlock(nn.Module):
    """Two convolutions, each behind its norm; where the shape changes, a third takes what the first takes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential()
        if self.changes:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        around = self.shortcut(active) if self.changes else x
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + around


class PreActResNet18(nn.Module):
    """As ResNet-18, of blocks that normalise first, with a norm before the last layer."""

    def __init__(self, width: int = 64, classes: int = 10, channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(PreActBlock, width)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(F.relu(self.bn(x)).mean((2, 3)))


def stages(block, width: int) -> list[nn.Sequential]:
    """Four stages of two blocks; each but the first halves the size and doubles the channels."""
    made, inputs = [], width
    for stage in range(4):
        outputs = width << stage
        stride = 2 if stage else 1
        made.append(nn.Sequential(block(inputs, outputs, stride), block(outputs, outputs, 1)))
        inputs = outputs
    return made


class WideBlock(nn.Module):
    """As `PreActBlock`, under the names of wide residual networks."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.equal = inputs == outputs
        self.convShortcut = None if self.equal else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        if self.convShortcut is not None:
            return y + self.convShortcut(active)
        return y + x


class WideStage(nn.Module):
    """A stage of wide blocks; only the first changes the shape."""

    def __init__(self, inputs: int, outputs: int, stride: int, depth: int):
        super().__init__()
        blocks = [WideBlock(inputs, outputs, stride)]
        blocks += [WideBlock(outputs, outputs, 1) for _ in range(depth - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet28(nn.Module):
    """Three stages of four wide blocks."""

    def __init__(self, width: int = 10, classes: int = 10, channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = WideStage(16, 16 * width, 1, 4)
        self.block2 = WideStage(16 * width, 32 * width, 2, 4)
        self.block3 = WideStage(32 * width, 64 * width, 2, 4)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class Vgg16(nn.Module):
    """Thirteen convolutions with norms in five stages, and one linear layer."""

    def __init__(self, width: int = 64, classes: int = 10, channels: int = 3, bias: bool = True):
        super().__init__()
        layers, inputs = [], channels
        for factor, depth in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(depth):
                outputs = factor * width
                layers += [
                    nn.Conv2d(inputs, outputs, 3, 1, 1, bias=bias),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Standardised(nn.Module):
    """A network that standardises inside itself, its mean and standard deviation among its buffers."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.model = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)


@torch.no_grad()
def unsettle(network: nn.Module, images: Tensor, seed: int) -> nn.Module:
    """Gives a network weights and statistics as if it had been trained: fresh ones hide mistakes.

    A norm with mean 0 and variance 1 is the same before and after folding, a scale of 1 or a bias of 0 can be left out
    unnoticed, and some networks begin with a last layer, or with branches, of zeros. So whatever parameter is constant
    is drawn anew, and the norms see a few batches.
    """
    draw = torch.Generator().manual_seed(seed)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for parameter in network.parameters():
        if parameter.numel() > 1 and not bool((parameter == parameter.flatten()[0]).all()):
            continue
        value = float(parameter.flatten()[0])
        noise = torch.rand(parameter.shape, generator=draw) - 0.5
        # a scale, of norms or of whole branches, or an offset
        parameter.copy_(0.5 + 0.5 * (noise + 0.5) if value and parameter.dim() == 1 else 0.2 * noise)
    network.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        # the plain mean of what it sees
        norm.momentum = None
    for _ in range(3):
        network(pictures(*images.shape, draw=draw))
    return network.eval().requires_grad_(False)


def pictures(count: int, channels: int, height: int, width: int, draw: torch.Generator) -> Tensor:
    """Coarse and fine noise in [0, 1], of varying brightness: unlike plain noise, no two look alike to a network."""
    images = torch.rand(count, channels, 1, 1, generator=draw)
    for side in (2, 4, 8):
        noise = torch.rand(count, channels, side, side, generator=draw)
        images = images + F.interpolate(noise, (height, width), mode="bilinear", align_corners=False)
    return (images + torch.rand(count, channels, height, width, generator=draw)) / 5
