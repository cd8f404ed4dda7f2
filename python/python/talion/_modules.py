"""Modules in the state that attacks need, and back."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.Lock()
# how many jobs use a module, and which of its parts were in training mode before the first of them
_AT_WORK: weakref.WeakKeyDictionary[torch.nn.Module, tuple[int, list[torch.nn.Module]]] = (
    weakref.WeakKeyDictionary()
)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode, and every part of it back into its own mode afterwards.

    Several threads may do so at once: the last to leave puts it back.
    """
    with _LOCK:
        users, training = _AT_WORK.get(module, (0, []))
        if users == 0:
            training = [part for part in module.modules() if part.training]
            module.eval()
        _AT_WORK[module] = (users + 1, training)
    try:
        yield
    finally:
        with _LOCK:
            users, training = _AT_WORK.pop(module)
            if users > 1:
                _AT_WORK[module] = (users - 1, training)
            else:
                for part in training:
                    part.training = True


@contextmanager
def autograd() -> Iterator[None]:
    """Makes sure that gradients can be taken, though the caller be in ``torch.inference_mode``."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            yield
    else:
        yield
