"""Classifiers of any origin, bare or defended.

A classifier takes images ``[N, C, H, W]`` with values in [0, 1] and answers with logits ``[N, K]``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Optional, Union

import torch

from . import _talion
from ._arrays import ArrayT, checked, images_of, usable
from ._modules import autograd, evaluating
from ._talion import TRN

__all__ = ["Classifier", "Defended", "Mode", "Model", "ModelLike"]

Mode = Literal["exact", "detached", "bpda", "oblivious"]
"""What of a defence is differentiated; see :class:`Defended`."""

Device = Union[str, torch.device]


class Model(ABC):
    """What can be attacked and evaluated: :class:`Classifier` and :class:`Defended`."""

    @property
    @abstractmethod
    def classes(self) -> Optional[int]:
        """The number of classes, K; ``None`` of Python code that has not been asked yet."""

    @property
    @abstractmethod
    def class_names(self) -> Optional[list[str]]:
        """The names of the classes in label order; ``None`` while their number is not known."""

    @abstractmethod
    def _bound(self, images: torch.Tensor) -> AbstractContextManager[_talion.Network]:
        """The classifier ready for work on such images, in evaluation mode."""

    @abstractmethod
    def _known(self) -> Optional[dict[str, torch.Tensor]]:
        """What tells Python code from other Python code; ``None`` where the library knows itself."""

    @abstractmethod
    def _described(self) -> str:
        """What it is, in a few words."""

    def __call__(self, images: ArrayT) -> ArrayT:
        """Logits ``[N, K]`` of images ``[N, C, H, W]`` in [0, 1], on their device.

        Differentiable with respect to tensors that require gradients, with everything that PyTorch does with a graph.
        """
        wanted = torch.is_grad_enabled()
        return self._with(images, lambda network, tensor: network.logits(tensor, wanted))

    def predict(self, images: ArrayT) -> ArrayT:
        """The class of each image, ``[N]``, without gradients, whatever the number of images.

        They are classified in batches of the fixed shape that attacks use, so a prediction does not depend on the other
        images.

        >>> import talion
        >>> images, labels = talion.fashion_mnist_sample(4)
        >>> talion.Classifier.bundled().predict(images)
        tensor([9, 2, 1, 1])
        """
        return self._with(images, lambda network, tensor: network.predict(tensor)[1])

    def _with(self, images: ArrayT, work: Callable[[_talion.Network, torch.Tensor], torch.Tensor]) -> ArrayT:
        tensor, back = images_of(images)
        with autograd():
            tensor = usable(tensor)
            with self._bound(tensor) as network:
                return back(work(network, tensor))


class Classifier(Model):
    """A classifier: a ``torch.nn.Module``, any function from images to logits, or a file.

    Everything in this package that takes a model takes any of these as it is; this class is for saying more about it.

    Parameters
    ----------
    model:
        A module or function that takes ``[N, C, H, W]`` and returns logits ``[N, K]`` (or an object that has them as
        ``.logits``); or the path of a file: one that ``talion`` wrote, ONNX, TorchScript, or PyTorch weights.
    classes:
        The number of classes; by default found by asking about one image.
    mean, std:
        Standardisation that the module wants, a number a channel or one for all: it is given
        ``(images - mean) / std``. Without them it is given images in [0, 1] as they are.
    device:
        Where a file is loaded to (default ``"cpu"``), or where a function wants its images (default: where they are). A
        module is used where its parameters are.
    class_names:
        Names for reports; by default those in the file, or numbers.

    A module is used in evaluation mode, and every part of it is put back into its own mode afterwards. Its parameters
    are left alone: gradients are asked of images only, and ``.grad`` is not touched.

    >>> import talion, torch
    >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    >>> model = talion.Classifier(module, mean=0.5, std=0.25)
    >>> model(torch.rand(2, 3, 2, 2)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        model: Union[torch.nn.Module, Callable[[torch.Tensor], Any], str, os.PathLike[str]],
        *,
        classes: Optional[int] = None,
        mean: Union[float, Sequence[float], None] = None,
        std: Union[float, Sequence[float], None] = None,
        device: Optional[Device] = None,
        class_names: Optional[Sequence[str]] = None,
    ) -> None:
        self._file: Optional[_talion.Network] = None
        self._function: Callable[[torch.Tensor], Any]
        self._classes = classes
        self._names = None if class_names is None else list(class_names)
        self._device = None if device is None else _device(device)
        if isinstance(model, (str, os.PathLike)):
            if classes is not None or mean is not None or std is not None:
                raise TypeError("classes, mean and std belong to live models; a file says them itself")
            self._path = os.fspath(model)
            self._set_file(_talion.Network.load(self._path, str(self._device or "cpu")))
        elif callable(model):
            if (mean is None) != (std is None):
                raise TypeError("mean and std belong together")
            self._path = ""
            self._function = model
        else:
            raise TypeError(f"a model is a module, a function or a path, not {type(model).__name__}")
        self._mean, self._std = _row(mean), _row(std)

    def _set_file(self, network: _talion.Network) -> None:
        self._file, self._classes = network, network.classes
        if self._names is None and network.card is not None:
            self._names = list(network.card["class_names"])

    @classmethod
    def bundled(cls, name: str = "classifier", *, device: Device = "cpu") -> Classifier:
        """The network for Fashion-MNIST that comes with the package, or ``"surrogate"``, another one.

        >>> import talion
        >>> talion.Classifier.bundled().class_names[9]
        'Ankle boot'
        """
        self = cls.__new__(cls)
        self._path, self._names, self._device = f"(bundled) {name}", None, _device(device)
        self._mean, self._std = [], []
        self._set_file(_talion.Network.bundled(name, str(self._device)))
        return self

    @property
    def classes(self) -> Optional[int]:
        """The number of classes, K; ``None`` of Python code that has not been asked yet."""
        return self._classes

    @property
    def class_names(self) -> Optional[list[str]]:
        """The names of the classes in label order; ``None`` while their number is not known."""
        if self._names:
            return list(self._names)
        return None if self._classes is None else [str(number) for number in range(self._classes)]

    @property
    def card(self) -> Optional[dict[str, Any]]:
        """What a file says of itself, with ``spec``, ``image_size``, ``dataset`` and more; ``None`` of Python code."""
        return None if self._file is None else self._file.card

    @property
    def assumed(self) -> list[str]:
        """What had to be assumed because a file does not say it, a sentence each. Worth reading."""
        return [] if self._file is None else self._file.assumed

    def __repr__(self) -> str:
        return f"Classifier({self._described()}, classes={self._classes})"

    def _described(self) -> str:
        if self._file is not None:
            return os.path.basename(self._path)
        name = getattr(self._function, "__name__", None)
        return name if isinstance(name, str) else type(self._function).__name__

    def _known(self) -> Optional[dict[str, torch.Tensor]]:
        if self._file is not None:
            return None
        if not isinstance(self._function, torch.nn.Module):
            return {}
        state = self._function.state_dict()
        return {name: value.detach() for name, value in state.items() if isinstance(value, torch.Tensor)}

    @contextmanager
    def _bound(self, images: torch.Tensor) -> Iterator[_talion.Network]:
        if self._file is not None:
            yield self._file
            return
        module = self._function if isinstance(self._function, torch.nn.Module) else None
        with nullcontext() if module is None else evaluating(module):
            device = self._home(images)
            if self._classes is None:
                self._classes = self._count(images, device)
            yield _talion.Network.live(self._forward, self._classes, str(device), self._mean, self._std)

    def _home(self, images: torch.Tensor) -> torch.device:
        if isinstance(self._function, torch.nn.Module):
            for tensors in (self._function.parameters(), self._function.buffers()):
                for tensor in tensors:
                    return tensor.device
        return self._device or images.device

    def _count(self, images: torch.Tensor, device: torch.device) -> int:
        """The number of classes, by asking about one image."""
        images = checked(images).detach()
        one = images[:1] if len(images) else images.new_zeros((1, *images.shape[1:]))
        with torch.no_grad():
            answer = self._forward(one.to(device, copy=True))
        if answer.ndim != 2:
            raise ValueError(f"the model answers one image with {tuple(answer.shape)}; logits are [N, K]")
        return int(answer.shape[1])

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        answer = self._function(images)
        if not isinstance(answer, torch.Tensor):
            answer = getattr(answer, "logits", answer)
        if not isinstance(answer, torch.Tensor):
            raise TypeError(
                f"the model returned {type(answer).__name__}; logits have to be a torch.Tensor [N, K]"
            )
        return answer


class Defended(Model):
    """A classifier behind a restoration network: images are restored before they are classified.

    Parameters
    ----------
    model:
        The classifier, in any of the forms that :class:`Classifier` takes, with as many classes as the network was
        trained for.
    trn:
        A :class:`TRN`, or the path of its file.
    mode:
        What is differentiated. Answers are the same in every mode but ``"oblivious"``.

        - ``"exact"``: everything, gradient maps included (second derivatives of the classifier);
        - ``"detached"``: the restoration, with gradient maps taken for constants;
        - ``"bpda"``: the restoration is taken for the identity;
        - ``"oblivious"``: the bare classifier, as if there were no defence.

    >>> import talion
    >>> images, labels = talion.fashion_mnist_sample(2)
    >>> defended = talion.Defended(talion.Classifier.bundled(), talion.TRN.bundled())
    >>> defended.restore(images).shape
    torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self, model: ModelLike, trn: Union[TRN, str, os.PathLike[str]], mode: Mode = "exact"
    ) -> None:
        self.model = as_model(model)
        self.trn = trn if isinstance(trn, TRN) else TRN.load(trn)
        self.mode: Mode = mode
        if mode not in ("exact", "detached", "bpda", "oblivious"):
            raise ValueError(f"unknown mode {mode!r}; known: exact, detached, bpda, oblivious")

    @property
    def classes(self) -> int:
        """The number of classes, K."""
        return self.trn.classes

    @property
    def class_names(self) -> Optional[list[str]]:
        """The names of the classes in label order."""
        return self.model.class_names

    def restore(self, images: ArrayT) -> ArrayT:
        """The images as the classifier is shown them, ``[N, C, H, W]`` in [0, 1].

        Differentiable with respect to tensors that require gradients; in mode ``"exact"`` through gradient maps, too.
        """
        wanted = torch.is_grad_enabled()
        return self._with(images, lambda network, tensor: network.restore(tensor, wanted))

    def gradient_maps(self, images: ArrayT) -> Optional[ArrayT]:
        """The gradient maps that the restoration network looks at, ``[N, maps * C, H, W]`` in [-1, 1].

        ``None`` of a network without gradient maps, the one-stream twin.
        """
        tensor, back = images_of(images)
        with autograd():
            tensor = usable(tensor)
            with self._bound(tensor) as network:
                maps = network.gradient_maps(tensor)
        return None if maps is None else back(maps)

    def __repr__(self) -> str:
        return f"Defended({self.model!r}, {self.trn!r}, mode={self.mode!r})"

    def _described(self) -> str:
        return f"{self.model._described()} behind a TRN ({self.mode})"

    def _known(self) -> Optional[dict[str, torch.Tensor]]:
        return self.model._known()

    @contextmanager
    def _bound(self, images: torch.Tensor) -> Iterator[_talion.Network]:
        with self.model._bound(images) as network:
            yield network.defended(self.trn, self.mode)


ModelLike = Union[Model, torch.nn.Module, Callable[[torch.Tensor], Any], str, "os.PathLike[str]"]
"""What is taken for a model: a :class:`Classifier`, a :class:`Defended`, a module, a function, or a path."""


def as_model(model: ModelLike) -> Model:
    """The model itself, or a :class:`Classifier` around it."""
    return model if isinstance(model, Model) else Classifier(model)


def _device(device: Device) -> torch.device:
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def _row(values: Union[float, Sequence[float], None]) -> list[float]:
    if values is None:
        return []
    if isinstance(values, (int, float)):
        return [float(values)]
    return [float(value) for value in values]
