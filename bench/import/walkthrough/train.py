"""Trains a small classifier of Fashion-MNIST in PyTorch and exports it to ONNX: a stand-in for a network of your own.

    train.py -o classifier.onnx [--data FOLDER] [--epochs 3]

FOLDER holds the four files of Fashion-MNIST, train-images-idx3-ubyte.gz and so on, packed or not: as `talion data fetch
fashion-mnist` leaves them in its cache, which is looked at by default, or as torchvision does in FashionMNIST/raw.
docs/import.md goes on from here.
"""

import argparse
import gzip
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# of the training images; the network is given images that are standardised with them
MEAN, STD = 0.2860, 0.3530


class Classifier(nn.Module):
    """Three convolutions with norms, one linear layer."""

    def __init__(self, classes: int = 10):
        super().__init__()
        layers, inputs = [], 1
        for outputs in (32, 64, 128):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("classifier.onnx"))
    parser.add_argument("--data", type=Path, default=cache() / "data/fashion-mnist")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, help="train on so many images only: for a quick look")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    images, labels = split(args.data, "train")
    images, labels = images[: args.images], labels[: args.images]
    network = Classifier()
    train(network, images, labels, args.epochs)
    network.eval()
    right = accuracy(network, *split(args.data, "t10k"))
    export(network, args.output)
    print(f"{args.output}: {100 * right:.2f} % of the test images right, standardised by {MEAN}, {STD}")


def cache() -> Path:
    """talion's."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("TALION_CACHE", home / "talion"))


def split(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Standardised images [N, 1, 28, 28], and labels."""
    pixels = idx(folder, f"{name}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)
    labels = idx(folder, f"{name}-labels-idx1-ubyte", 8)
    images = torch.from_numpy(pixels.astype(np.float32) / 255)
    return (images - MEAN) / STD, torch.from_numpy(labels.astype(np.int64))


def idx(folder: Path, name: str, header: int) -> np.ndarray:
    """The bytes of a file behind its header."""
    packed, plain = folder / f"{name}.gz", folder / name
    if packed.exists():
        content = gzip.decompress(packed.read_bytes())
    elif plain.exists():
        content = plain.read_bytes()
    else:
        raise SystemExit(f"{packed}: not there; `talion data fetch fashion-mnist` fetches it")
    return np.frombuffer(content, np.uint8, offset=header)


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int = 128) -> None:
    steps = epochs * (len(images) // batch)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=max(steps, 1))
    for epoch in range(epochs):
        started, total = time.monotonic(), 0.0
        order = torch.randperm(len(images))
        for at in range(0, len(order) - batch + 1, batch):
            chosen = order[at : at + batch]
            x = images[chosen]
            if torch.rand(()) < 0.5:
                x = x.flip(3)
            loss = F.cross_entropy(network(x), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        mean = total / max(1, len(order) // batch)
        print(f"epoch {epoch + 1}: loss {mean:.3f}, {time.monotonic() - started:.0f} s", flush=True)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    found = torch.cat([network(part).argmax(1) for part in images.split(500)])
    return (found == labels).double().mean().item()


def export(network: nn.Module, path: Path) -> None:
    """As ONNX, for batches of any size."""
    count = torch.export.Dim("N", min=1, max=4096)
    torch.onnx.export(
        network, (torch.zeros(2, 1, 28, 28),), str(path), dynamo=True, input_names=["images"],
        output_names=["logits"], dynamic_shapes=({0: count},), external_data=False, verbose=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
