"""talion's restoration network, as an ordinary PyTorch user would write it, loading talion's own files.

Modules are named so that the keys of a file are the keys of the state dictionary, which is loaded strictly.
Two kinds of network are known: one stream (no gradient maps), and two streams with the maps of `walk-back`.
"""

from dataclasses import dataclass
from pathlib import Path

import shared  # noqa: F401  (finds `networks`)
import compiling
import networks
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# sizes of residuals that the judge's texture tells apart, in 1/255
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
# evidence and maps of walk-back
MAPS, EVIDENCE = 3, 8
# where its maps are taken: 0 is the first restoration, 1 the input
NEAR, FAR = 0.5, 0.2
MODES = ("bpda", "detached", "exact")


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2)


class Residual(nn.Module):
    """Two convolutions around a skip."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = conv(width, width, 3), conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + x)


class Down(nn.Module):
    """A scale of an encoder."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.entry, self.block = conv(inputs, width, 3, stride), Residual(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(F.relu(self.entry(x)))


class Encoder(nn.Module):
    """One stream's features, from full resolution to the coarsest."""

    def __init__(self, inputs: int, widths: list[int]):
        super().__init__()
        for scale, width in enumerate(widths):
            setattr(self, f"scale{scale}", Down(inputs, width, 1 if scale == 0 else 2))
            inputs = width

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for down in self.children():
            x = down(x)
            features.append(x)
        return features


class Up(nn.Module):
    """A scale of the decoder."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.rise, self.block = conv(inputs, width, 1), Residual(width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        risen = F.interpolate(self.rise(x), size=skip.shape[2:], mode="nearest")
        return self.block(risen + skip)


class Decoder(nn.Module):
    """From the coarsest scale back to a residual."""

    def __init__(self, widths: list[int], outputs: int):
        super().__init__()
        for scale in range(len(widths) - 1):
            setattr(self, f"scale{scale}", Up(widths[scale + 1], widths[scale]))
        self.output = conv(widths[0], outputs, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for scale in reversed(range(len(features) - 1)):
            x = getattr(self, f"scale{scale}")(x, features[scale])
        return self.output(x)


class Fusion(nn.Module):
    """Joins the streams at one scale: gated, or one beside the other."""

    def __init__(self, width: int, gated: bool):
        super().__init__()
        self.gated = gated
        if gated:
            self.local = conv(2 * width, 2 * width, 1)
            setattr(self, "global", conv(2 * width, width, 1))
        self.merge = conv(2 * width, width, 3)

    def forward(self, image: Tensor, gradient: Tensor) -> Tensor:
        both = torch.cat([image, gradient], 1)
        if self.gated:
            opened = getattr(self, "global")(both.mean((2, 3), keepdim=True)).sigmoid()
            image_part, gradient_part = (both * self.local(both).sigmoid()).chunk(2, 1)
            both = torch.cat([image_part, gradient_part * opened], 1)
        return F.relu(self.merge(both) + image)


class Judge(nn.Module):
    """Whether an image has been attacked, as a logit."""

    def __init__(self, widths: list[int], evidence: int):
        super().__init__()
        self.hidden, self.output = conv(sum(widths) + 2 * len(SIZES) + evidence, 32, 1), conv(32, 1, 1)

    def forward(self, images: Tensor, features: list[Tensor], evidence: Tensor | None) -> Tensor:
        known = [scale.mean((2, 3), keepdim=True) for scale in features]
        known.append(texture(images)[:, :, None, None])
        if evidence is not None:
            known.append(evidence[:, :, None, None])
        return self.output(F.relu(self.hidden(torch.cat(known, 1))))


def texture(images: Tensor) -> Tensor:
    """How many second differences are no larger than each size, across and down."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    down = (2 * images - padded[:, :, :-2, 1:-1] - padded[:, :, 2:, 1:-1]) * 0.5
    across = (2 * images - padded[:, :, 1:-1, :-2] - padded[:, :, 1:-1, 2:]) * 0.5
    counts = [
        torch.exp(-0.5 * (residual * (255.0 / size)).square()).mean((1, 2, 3))
        for residual in (down, across)
        for size in SIZES
    ]
    return (torch.stack(counts, 1) - 0.5) * 4.0


@dataclass
class Change:
    """What to add to images before its bound, and how surely to."""

    residual: Tensor
    gate: Tensor | None

    def then(self, later: "Change") -> "Change":
        gate = later.gate if self.gate is None else self.gate
        if self.gate is not None and later.gate is not None:
            gate = self.gate + later.gate
        return Change(self.residual + later.residual, gate)

    def apply(self, images: Tensor, bound: float) -> Tensor:
        added = self.residual.tanh() * bound
        if self.gate is not None:
            added = added * self.gate.sigmoid()
        return (images + added).clamp(0, 1)

    def rows(self, index: Tensor) -> "Change":
        return Change(self.residual[index], None if self.gate is None else self.gate[index])

    @staticmethod
    def join(parts: list["Change"]) -> "Change":
        return Change(joined([part.residual for part in parts]), joined([part.gate for part in parts]))


@dataclass
class Prepared:
    """What goes into the last pass beside the images."""

    first: Change | None = None
    maps: Tensor | None = None
    evidence: Tensor | None = None

    def rows(self, index: Tensor) -> "Prepared":
        pick = lambda tensor: None if tensor is None else tensor[index]  # noqa: E731
        first = None if self.first is None else self.first.rows(index)
        return Prepared(first, pick(self.maps), pick(self.evidence))

    @staticmethod
    def join(parts: list["Prepared"]) -> "Prepared":
        first = None if parts[0].first is None else Change.join([part.first for part in parts])
        return Prepared(
            first, joined([part.maps for part in parts]), joined([part.evidence for part in parts])
        )


def joined(parts: list[Tensor | None]) -> Tensor | None:
    """Batches one after the other, where there is something."""
    return None if parts[0] is None else torch.cat(parts)


class Network(nn.Module):
    """One pass: an encoder a stream, a fusion at every scale, a decoder, a judge."""

    def __init__(self, spec: dict, first_pass: bool, two_streams: bool):
        super().__init__()
        channels, width = spec["channels"], spec["width"]
        widths = [factor * width for factor in range(1, spec["scales"] + 1)]
        extra = channels if first_pass else 0
        self.multiple = 2 ** (spec["scales"] - 1)
        self.image = Encoder(channels + extra, widths)
        self.gradient = None
        self.fusions: list[str] = []
        if two_streams:
            self.gradient = Encoder(MAPS * channels + EVIDENCE + extra, widths)
            for scale, width in enumerate(widths):
                self.fusions.append(f"fusion{scale}")
                setattr(self, self.fusions[-1], Fusion(width, spec["fusion"] == "gated"))
        self.decoder = Decoder(widths, channels)
        self.judge = Judge(widths, EVIDENCE if two_streams else 0) if spec.get("gate", False) else None

    def forward(
        self, images: Tensor, first: Tensor | None, maps: Tensor | None, evidence: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        height, width = images.shape[2:]
        around = [] if first is None else [first * 4.0]
        features = self.image(self.pad(torch.cat([(images - 0.5) * 4.0, *around], 1)))
        if self.gradient is not None:
            planes = evidence[:, :, None, None].expand(-1, -1, height, width)
            explored = self.gradient(self.pad(torch.cat([maps, *around, planes], 1)))
            features = [
                getattr(self, name)(image, gradient)
                for name, image, gradient in zip(self.fusions, features, explored, strict=True)
            ]
        gate = None if self.judge is None else self.judge(images, features, evidence)
        return self.decoder(features)[:, :, :height, :width], gate

    def pad(self, x: Tensor) -> Tensor:
        """Sides become multiples of what the scales divide them by."""
        down, right = (-x.shape[2] % self.multiple, -x.shape[3] % self.multiple)
        return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x


def label_gradient(
    classifier: nn.Module, points: Tensor, labels: Tensor, exact: bool
) -> tuple[Tensor, Tensor]:
    """The gradient of the cross-entropy with these labels, and the logits; constants, unless `exact`."""
    with torch.enable_grad():
        if not (exact and points.requires_grad):
            points = points.detach().requires_grad_(True)
        logits = classifier(points)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points, create_graph=exact)
    return (gradient, logits) if exact else (gradient, logits.detach())


def normalised(gradient: Tensor, how: str) -> Tensor:
    """A map: the gradient at a common scale."""
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / torch.where(largest > 0, largest, 1.0)
    if how == "max":
        return scaled
    if how == "sign":
        return scaled.sign()
    square = scaled.square().mean((1, 2, 3), keepdim=True)
    return (scaled * (torch.where(square > 0, square, 1.0).rsqrt() / 3.0)).clamp(-1, 1)


def probability(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, labels[:, None])


def magnitude(gradient: Tensor) -> Tensor:
    return ((gradient.abs().mean((1, 2, 3)) + 1e-12).log() / 10.0 + 1.0)[:, None]


def walk_back(
    classifier: nn.Module, images: Tensor, restored: Tensor, how: str, exact: bool
) -> tuple[Tensor, Tensor]:
    """Maps and evidence: labels given to the input, looked at on the way back from it to a first
    restoration."""
    with torch.set_grad_enabled(exact and torch.is_grad_enabled()):
        logits = classifier(images)
    given, least = logits.argmax(1), logits.argmin(1)
    near, far = (restored + (images - restored) * share for share in (NEAR, FAR))
    # one batch of three
    points, labels = torch.cat([near, far, near]), torch.cat([given, given, least])
    gradient, found = label_gradient(classifier, points, labels, exact)
    maps = normalised(gradient, how)
    at_near, at_far, _ = found.chunk(3)
    others = at_far.softmax(1).scatter(1, given[:, None], 0.0)
    evidence = [
        probability(logits, given),
        probability(at_near, given),
        probability(at_far, given),
        (images - restored).abs().mean((1, 2, 3))[:, None] * (255.0 / 8.0),
        *(magnitude(part) for part in gradient.chunk(3)),
        others.amax(1, keepdim=True),
    ]
    return torch.cat(maps.chunk(3), 1), torch.cat(evidence, 1)


class Trn(nn.Module):
    """A first pass, maps of the bare classifier, and a last pass that corrects the first."""

    def __init__(self, spec: dict):
        super().__init__()
        if spec["estimator"] not in ("none", "walk-back"):
            raise ValueError(f"the estimator {spec['estimator']} is not rebuilt here; known: none, walk-back")
        self.spec, self.bound = spec, spec["bound"]
        two_streams = spec["estimator"] == "walk-back"
        first = spec.get("first")
        self.main = Network(spec, first is not None, two_streams)
        self.first = None if first is None else Network(first, False, False)

    def prepare(self, classifier: nn.Module, images: Tensor, exact: bool = False) -> Prepared:
        if self.first is None:
            return Prepared()
        first = Change(*self.first(images, None, None, None))
        if self.main.gradient is None:
            return Prepared(first)
        restored = first.apply(images, self.bound)
        how = self.spec["normalization"]
        return Prepared(first, *walk_back(classifier, images, restored, how, exact))

    def change(self, images: Tensor, prepared: Prepared) -> Change:
        residual = None if prepared.first is None else prepared.first.residual
        last = Change(*self.main(images, residual, prepared.maps, prepared.evidence))
        return last if prepared.first is None else prepared.first.then(last)

    def restore(self, classifier: nn.Module, images: Tensor, exact: bool = False) -> Tensor:
        prepared = self.prepare(classifier, images, exact)
        return self.change(images, prepared).apply(images, self.bound)


class Defended(nn.Module):
    """The classifier behind the network, as an attacker differentiates it."""

    def __init__(self, classifier: nn.Module, trn: Trn, mode: str = "detached"):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"no way to defend is called {mode}; known: {', '.join(MODES)}")
        self.classifier, self.trn, self.mode = classifier, trn, mode

    def forward(self, images: Tensor) -> Tensor:
        if self.mode == "bpda":
            with torch.no_grad():
                restored = self.trn.restore(self.classifier, images.detach())
            return self.classifier(restored + (images - images.detach()))
        exact = self.mode == "exact" and images.requires_grad and torch.is_grad_enabled()
        return self.classifier(self.trn.restore(self.classifier, images, exact))


def read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Header and tensors of a TRN's file."""
    card, tensors = networks.read(path)
    if card.get("kind") != "trn":
        raise ValueError(f"{path}: holds a {card.get('kind')}, not a TRN")
    return card, tensors


def build(card: dict, tensors: dict[str, Tensor], setting: str = "default") -> Trn:
    """The network, ready to restore; see `classifiers` for the settings."""
    trn = Trn(card["spec"])
    trn.load_state_dict(tensors, strict=True)
    trn.eval()
    if setting == "default":
        return trn
    trn.requires_grad_(False).to(memory_format=torch.channels_last)
    if setting == "compile":
        # in place: the walk back between the two passes has its gradient from the compiled classifier
        trn.main.compile(**compiling.options())
        if trn.first is not None:
            trn.first.compile(**compiling.options())
    return trn
