"""Other ways to restore images, for their cost alone: with random weights, nothing useful comes out.

- `unet`: a denoising U-Net in the manner of Liao et al. 2018 ("Defense against adversarial attacks using
  high-level representation guided denoiser"), which adds one residual to the image.
- `diffusion`: reverse diffusion in the manner of Nie et al. 2022 ("Diffusion models for adversarial
  purification") with the U-Net of Ho et al. 2020 ("Denoising diffusion probabilistic models") for images of
  32 x 32.
"""

import math
from itertools import pairwise

import compiling
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Units(nn.Sequential):
    """Convolutions, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, count: int, stride: int = 1):
        layers = []
        for index in range(count):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride if index == 0 else 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        super().__init__(*layers)


class Denoiser(nn.Module):
    """A U-Net of four halvings whose output is added to the image."""

    def __init__(self, channels: int, width: int = 64):
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width, 4 * width]
        self.down = nn.ModuleList([Units(channels, widths[0], 2)])
        for inputs, outputs in pairwise(widths):
            self.down.append(Units(inputs, outputs, 3, stride=2))
        self.up = nn.ModuleList(
            Units(widths[scale + 1] + widths[scale], widths[scale], 3 if scale else 2) for scale in range(4)
        )
        self.output = nn.Conv2d(widths[0], channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        features, x = [], images
        for block in self.down:
            x = block(x)
            features.append(x)
        for scale in reversed(range(4)):
            skip = features[scale]
            risen = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = self.up[scale](torch.cat([risen, skip], 1))
        return (images + self.output(x)).clamp(0, 1)


class Block(nn.Module):
    """Two convolutions that know the time, around a skip."""

    def __init__(self, inputs: int, outputs: int, times: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(times, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(32, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.conv2(F.silu(self.norm2(y))) + self.skip(x)


class Attention(nn.Module):
    """Attention with one head over all places."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, width)
        self.read, self.write = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.flatten(2).transpose(1, 2) for part in self.read(self.norm(x)).chunk(3, 1))
        found = F.scaled_dot_product_attention(query, key, value)
        return x + self.write(found.transpose(1, 2).reshape(x.shape))


class Noise(nn.Module):
    """The U-Net that says what is noise: 36 million weights at a width of 128."""

    def __init__(self, channels: int, width: int = 128):
        super().__init__()
        times, widths = 4 * width, [width, 2 * width, 2 * width, 2 * width]
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, times), nn.SiLU(), nn.Linear(times, times))
        self.input = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up, skips, inputs = nn.ModuleList(), nn.ModuleList(), [width], width
        for scale, outputs in enumerate(widths):
            for _ in range(2):
                self.down.append(self.stage(inputs, outputs, times, scale))
                inputs = outputs
                skips.append(inputs)
            if scale < 3:
                self.down.append(nn.Conv2d(inputs, inputs, 3, 2, 1))
                skips.append(inputs)
        self.middle = nn.ModuleList(
            [Block(inputs, inputs, times), Attention(inputs), Block(inputs, inputs, times)]
        )
        for scale, outputs in reversed(list(enumerate(widths))):
            for _ in range(3):
                self.up.append(self.stage(inputs + skips.pop(), outputs, times, scale))
                inputs = outputs
            if scale > 0:
                self.up.append(nn.Conv2d(inputs, inputs, 3, padding=1))
        self.norm, self.output = nn.GroupNorm(32, inputs), nn.Conv2d(inputs, channels, 3, padding=1)

    @staticmethod
    def stage(inputs: int, outputs: int, times: int, scale: int) -> nn.ModuleList:
        """Attention is at the second scale alone."""
        return nn.ModuleList([Block(inputs, outputs, times)] + ([Attention(outputs)] if scale == 1 else []))

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        half = self.width // 2
        angles = steps[:, None] * torch.exp(torch.arange(half) * (-math.log(10_000) / (half - 1)))
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        x = self.input(x)
        skips = [x]
        for module in self.down:
            x = module(x) if isinstance(module, nn.Conv2d) else staged(module, x, time)
            skips.append(x)
        x = self.middle[2](self.middle[1](self.middle[0](x, time)), time)
        for module in self.up:
            if isinstance(module, nn.Conv2d):
                x = module(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            else:
                x = staged(module, torch.cat([x, skips.pop()], 1), time)
        return self.output(F.silu(self.norm(x)))


def staged(stage: nn.ModuleList, x: Tensor, time: Tensor) -> Tensor:
    x = stage[0](x, time)
    return stage[1](x) if len(stage) > 1 else x


class Diffusion(nn.Module):
    """Noise is added to an image, then taken away in steps: 100 of 1000 in the paper, for images of 32 x
    32."""

    def __init__(self, channels: int, steps: int, width: int = 128):
        super().__init__()
        self.network, self.steps = Noise(channels, width), steps
        beta = torch.linspace(1e-4, 0.02, 1000)
        self.register_buffer("beta", beta)
        self.register_buffer("kept", (1 - beta).cumprod(0))

    def forward(self, images: Tensor) -> Tensor:
        sides = images.shape[2:]
        # sides become multiples of eight, which three halvings divide
        x = F.pad(images * 2 - 1, (0, -sides[1] % 8, 0, -sides[0] % 8), mode="replicate")
        kept = self.kept[self.steps - 1]
        x = kept.sqrt() * x + (1 - kept).sqrt() * torch.randn_like(x)
        for step in reversed(range(self.steps)):
            beta, kept = self.beta[step], self.kept[step]
            noise = self.network(x, torch.full((len(x),), float(step)))
            x = (x - beta / (1 - kept).sqrt() * noise) / (1 - beta).sqrt()
            if step > 0:
                x = x + beta.sqrt() * torch.randn_like(x)
        return ((x[:, :, : sides[0], : sides[1]] + 1) / 2).clamp(0, 1)


def build(job: dict, channels: int) -> nn.Module:
    """A restorer with random weights, ready to be timed."""
    torch.manual_seed(job["seed"])
    kind, setting = job["restorer"], job["setting"]
    width = {"width": job["width"]} if "width" in job else {}
    if kind == "unet":
        model = Denoiser(channels, **width)
    elif kind == "diffusion":
        model = Diffusion(channels, job.get("steps", 100), **width)
    else:
        raise ValueError(f"no restorer is called {kind}; known: unet, diffusion")
    model.eval().requires_grad_(False)
    if setting != "default":
        model.to(memory_format=torch.channels_last)
    if setting == "compile":
        (model.network if kind == "diffusion" else model).compile(**compiling.options())
    return model
