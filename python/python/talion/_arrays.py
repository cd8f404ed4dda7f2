"""Arrays and tensors in, arrays or tensors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, Union

import numpy as np
import numpy.typing as npt
import torch

from . import _talion

Array = Union[torch.Tensor, "npt.NDArray[Any]"]
"""A tensor or a numpy array."""

ArrayT = TypeVar("ArrayT", torch.Tensor, npt.NDArray[Any])
"""A tensor or a numpy array, and the same kind again: tensors come back on the device of the images."""

Labels = Union[Array, Sequence[int]]
"""Class indices, one an image: a tensor, an array or a list of integers."""


def images_of(images: ArrayT) -> tuple[torch.Tensor, Callable[[torch.Tensor], ArrayT]]:
    """The images as a tensor, and the way back to what they were.

    Double precision becomes single, in which networks compute; all else is left for the library to judge.
    """
    back: Callable[[torch.Tensor], Any]
    if isinstance(images, torch.Tensor):
        tensor, back = images, _same
    elif isinstance(images, np.ndarray):
        # a copy where it must be: torch takes neither read-only memory nor negative strides
        tensor, back = torch.from_numpy(np.require(images, requirements=["C", "W"])), _to_numpy
    else:
        raise TypeError(f"images have to be a torch.Tensor or a numpy.ndarray, not {type(images).__name__}")
    if tensor.dtype == torch.float64:
        tensor = tensor.to(torch.float32)
    return tensor, back


def labels_of(labels: Labels) -> torch.Tensor:
    """Labels of any integer type as ``int64``; anything else is left for the library to refuse."""
    tensor = torch.as_tensor(labels).detach()
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        return tensor
    return tensor.to(torch.int64)


def checked(images: torch.Tensor) -> torch.Tensor:
    """The images, ``[N, C, H, W]`` in [0, 1]; raises what the library has to say of any others."""
    _talion.check_images(images.detach())
    return images


def usable(images: torch.Tensor) -> torch.Tensor:
    """A tensor that autograd may work on: those made under ``torch.inference_mode`` are copied."""
    return images.clone() if images.is_inference() else images


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return array
