"""The compiled part of the package. Only ``TRN`` is for users; it is ``talion.TRN``."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, Union, final

import torch

__version__: str

_Report = Optional[Callable[[int, int, str], object]]

Party = tuple[str, str, "Network", dict[str, torch.Tensor]]
"""Name, description, network, and tensors that tell Python code from other Python code. A type for checkers alone."""

@final
class TRN:
    """A restoration network: what stands in front of a classifier in :class:`talion.Defended`."""

    @staticmethod
    def load(path: Union[str, os.PathLike[str]]) -> TRN:
        """Reads a restoration network from a file that ``talion train trn`` wrote.

        Raises ``FileError`` if the file is missing, damaged, or holds something else.
        """

    @staticmethod
    def bundled(name: str = "trn") -> TRN:
        """The network for Fashion-MNIST that comes with the package: ``"trn"``, the two-stream network, or
        ``"one-stream"``, its twin without gradient maps."""

    @property
    def classes(self) -> int:
        """Number of classes of the classifier that it was trained with."""

    @property
    def channels(self) -> int:
        """Number of channels of the images that it restores, 1 or 3."""

    @property
    def parameters(self) -> int:
        """Number of weights, those of its first pass included."""

    @property
    def card(self) -> dict[str, Any]:
        """What the file says of itself: ``spec``, ``dataset``, ``classifier``, ``seed``, ``training``, ``metrics``,
        ..."""

@final
class Network:
    """A classifier as the library holds it."""

    @staticmethod
    def live(
        forward: Callable[[torch.Tensor], torch.Tensor],
        classes: int,
        on: str,
        mean: list[float],
        std: list[float],
    ) -> Network: ...
    @staticmethod
    def load(path: Union[str, os.PathLike[str]], on: str) -> Network: ...
    @staticmethod
    def bundled(name: str, on: str) -> Network: ...
    def defended(self, trn: TRN, mode: str) -> Network: ...
    @property
    def classes(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def card(self) -> Optional[dict[str, Any]]: ...
    @property
    def assumed(self) -> list[str]: ...
    def logits(self, images: torch.Tensor, differentiable: bool) -> torch.Tensor: ...
    def predict(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...
    def restore(self, images: torch.Tensor, differentiable: bool) -> torch.Tensor: ...
    def gradient_maps(self, images: torch.Tensor) -> Optional[torch.Tensor]: ...

@final
class Results:
    """What a run says."""

    @property
    def summary(self) -> dict[str, Any]: ...
    def markdown(self) -> str: ...
    def csv(self) -> str: ...
    def html(self) -> str: ...
    def write(self, path: Union[str, os.PathLike[str]]) -> list[Path]: ...

def attack(
    network: Network,
    images: torch.Tensor,
    labels: torch.Tensor,
    request: dict[str, Any],
    report: _Report = None,
) -> dict[str, Any]: ...
def attack_name(name: str) -> str: ...
def catalogue() -> list[dict[str, Any]]: ...
def evaluate(
    party: Party,
    images: torch.Tensor,
    labels: torch.Tensor,
    trn: Optional[TRN],
    surrogates: list[Party],
    request: dict[str, Any],
    report: _Report = None,
) -> tuple[Results, list[str]]: ...
def read_run(path: Union[str, os.PathLike[str]]) -> Results: ...
def check_images(images: torch.Tensor) -> None: ...
def fraction(text: str) -> float: ...
def sample(count: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]: ...
