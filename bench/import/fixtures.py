"""Makes the small files that the tests of import read, and what PyTorch answers on them.

    fixtures.py [FOLDER]

FOLDER is crates/talion-models/tests/fixtures by default. The files are part of the repository: make them again only
to change them, with the versions in requirements.txt. Names of source files are taken out.
"""

import argparse
import copy
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import exporting
from networks import ResNet18, pictures, unsettle

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / "crates/talion-models/tests/fixtures"

# what the test states in the file beside the weights
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


class TinyCnn(nn.Module):
    """Convolution, norm, pooling, linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.head(torch.flatten(x, 1))


class TinyVit(nn.Module):
    """Four patches and a class token through one block of a vision transformer."""

    def __init__(self, width: int = 8, heads: int = 2, classes: int = 4):
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.1 * torch.randn(1, 5, width))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)

    def attend(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        qkv = self.qkv(x).reshape(count, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(count, length, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = x + self.attend(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x[:, 0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    expected = {}
    network, images = make(TinyCnn, (1, 8, 8), 1)
    expected |= answers("cnn", network, images)
    graph(network, images, folder / "cnn-opset11.onnx", "legacy", 11)
    # not optimised, so that the norm stays an operator of its own
    graph(network, images, folder / "cnn-opset25.onnx", "dynamo", exporting.NEWEST_DYNAMO, optimise=False)
    exporting.traced(network, images, folder / "cnn-traced.pt")
    exporting.without_debug(folder / "cnn-traced.pt")
    network, images = make(TinyVit, (3, 8, 8), 2)
    expected |= answers("vit", network, images)
    graph(network, images, folder / "vit-opset17.onnx", "legacy", 17)
    graph(network, images, folder / "vit-opset25.onnx", "dynamo", exporting.NEWEST_DYNAMO)
    network, images = make(lambda: ResNet18(width=2, classes=10), (3, 16, 16), 3)
    expected |= answers("resnet", network, images, MEAN, STD)
    torch.save(network.state_dict(), folder / "resnet18-w2.pt")
    save_file(expected, folder / "expected.safetensors")
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:7} {file.name}")


def make(build, shape: tuple[int, int, int], seed: int) -> tuple[nn.Module, Tensor]:
    """A network with unsettled weights, and three images."""
    torch.manual_seed(seed)
    network = unsettle(build(), torch.empty(32, *shape), seed)
    return network, pictures(3, *shape, draw=torch.Generator().manual_seed(seed))


def answers(name: str, network: nn.Module, images: Tensor, mean=(0.0,), std=(1.0,)) -> dict[str, Tensor]:
    """Logits, and the gradient of their product with a cotangent, computed in double precision."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
    double = copy.deepcopy(network).double()
    x = images.double().requires_grad_()
    logits = double((x - mean) / std)
    cotangent = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7))
    (gradient,) = torch.autograd.grad((logits * cotangent).sum(), x)
    parts = {"images": images, "cotangent": cotangent, "logits": logits.detach(), "gradient": gradient}
    return {f"{name}.{part}": tensor.float().contiguous() for part, tensor in parts.items()}


def graph(network: nn.Module, images: Tensor, path: Path, exporter: str, opset: int, optimise=True) -> None:
    """An ONNX file without remarks."""
    exporting.onnx(network, images, path, exporter, opset, optimise)
    model = onnx.load(path)
    model.doc_string = ""
    del model.metadata_props[:]
    parts = [model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]
    for part in [*parts, *model.graph.initializer]:
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


if __name__ == "__main__":
    main()
