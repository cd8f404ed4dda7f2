"""What the tests share: small networks with fixed weights, and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import talion

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Tiny(torch.nn.Module):
    """Images ``[N, 1, 8, 8]`` to 4 classes: smooth, so that gradients are nowhere zero."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.last = torch.nn.Linear(4 * 16, 4)
        for parameter in self.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.data = draw * (0.5 if parameter.ndim > 1 else 0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.tanh(self.first(images - 0.5))
        return self.last(torch.nn.functional.avg_pool2d(features, 2).flatten(1))


@pytest.fixture
def tiny() -> torch.nn.Module:
    return Tiny().eval()


@pytest.fixture
def images() -> torch.Tensor:
    """As many as attacks show to a model at once on a CPU, so that nothing is padded."""
    return torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1


@pytest.fixture
def labels(tiny: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return tiny(images).argmax(1)


@pytest.fixture(scope="session")
def clothes() -> tuple[torch.Tensor, torch.Tensor]:
    return talion.fashion_mnist_sample(32)


@pytest.fixture(scope="session")
def bundled() -> talion.Classifier:
    return talion.Classifier.bundled()


@pytest.fixture(scope="session")
def trn() -> talion.TRN:
    return talion.TRN.bundled()


@pytest.fixture(scope="session")
def classifier_file() -> Path:
    return REPOSITORY / "models/fashion-mnist/classifier.safetensors"


@pytest.fixture(scope="session")
def trn_file() -> Path:
    return REPOSITORY / "models/fashion-mnist/trn.safetensors"


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[[torch.nn.Module, torch.Tensor], Path]:
    """Writes a module as an ONNX file for any number of images."""
    pytest.importorskip("onnx")

    def write(module: torch.nn.Module, images: torch.Tensor) -> Path:
        path = tmp_path / "module.onnx"
        torch.onnx.export(
            module,
            (images[:2],),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}},
            opset_version=17,
            dynamo=False,
        )
        return path

    return write
