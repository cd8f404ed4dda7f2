"""What can go wrong.

Every error of the library is a :class:`TalionError`; each kind is also the built-in exception that Python programs
expect for it. Exceptions that a model raises are not wrapped: they come out of an attack as they were.

>>> import talion, torch
>>> talion.Classifier.bundled()(torch.full((1, 1, 28, 28), 255.0))
Traceback (most recent call last):
...
talion.errors.RangeError: the range of image values is [255, 255], expected inside [0, 1] and without NaN (divide \
bytes by 255; standardisation happens inside the model)
"""

from __future__ import annotations

__all__ = [
    "FileError",
    "RangeError",
    "RefusedError",
    "ShapeError",
    "TalionError",
    "TorchError",
    "UnknownNameError",
]


class TalionError(Exception):
    """Any error of the library."""


class ShapeError(TalionError, ValueError):
    """A tensor has the wrong shape."""


class RangeError(TalionError, ValueError):
    """A value lies outside what it may be: images outside [0, 1], labels that are no class, a negative budget."""


class UnknownNameError(TalionError, ValueError):
    """A text names nothing that is known: no such attack, norm, protocol, mode."""


class RefusedError(TalionError):
    """What was asked for cannot be done as asked."""


class FileError(TalionError, OSError):
    """A file cannot be read or written, or is not what it should be.

    ``errno`` and ``filename`` are set where the system gave the reason.
    """


class TorchError(TalionError, RuntimeError):
    """libtorch refused an operation, for instance because a file's network does not take images of this size."""
