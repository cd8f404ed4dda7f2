"""Progress bars of several kinds, told in one way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional, Protocol, Union

Report = Callable[[int, int, str], None]


class Bar(Protocol):
    """What a progress bar has to do: tqdm's bars do it."""

    total: Any

    def update(self, n: int) -> object: ...


Progress = Union[bool, Callable[[int, int], object], Bar, None]
"""``True`` for a tqdm bar if tqdm is installed, a function of what is done and how much there is, or a tqdm-like
bar."""


@contextmanager
def reporter(progress: Progress, what: str) -> Iterator[Optional[Report]]:
    """A function to tell progress to, or none if nobody wants to know."""
    if progress is None or progress is False:
        yield None
    elif progress is True:
        bar = _tqdm(what)
        if bar is None:
            yield None
        else:
            with bar:
                yield _teller(bar)
    elif hasattr(progress, "update"):
        yield _teller(progress)
    elif callable(progress):
        function = progress
        yield lambda done, total, _: _ignore(function(done, total))
    else:
        raise TypeError("progress has to be True, a function of (done, total), or a bar with update(n)")


def _tqdm(what: str) -> Any:
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None
    return tqdm(desc=what, unit="image")


def _teller(bar: Any) -> Report:
    before = 0

    def tell(done: int, total: int, what: str) -> None:
        nonlocal before
        bar.total = total
        if hasattr(bar, "set_postfix_str"):
            bar.set_postfix_str(what, refresh=False)
        bar.update(max(done - before, 0))
        before = max(done, before)

    return tell


def _ignore(_: object) -> None:
    pass
