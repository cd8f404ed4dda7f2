"""Evaluations: how many images survive which attacker."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional, Union

import torch

from . import _talion
from ._arrays import ArrayT, Labels, images_of, labels_of, usable
from ._modules import autograd
from ._progress import Progress, reporter
from ._talion import TRN
from .attacks import Number, _budget, _spec
from .models import Defended, Model, ModelLike, as_model

__all__ = ["Report", "evaluate"]

# seeds of the command line begin at 1, too
_SEED = 1


class Report:
    """What an evaluation found.

    In a notebook it shows itself as tables. ``print(report)`` prints them.
    """

    def __init__(self, results: _talion.Results) -> None:
        self._results = results

    @classmethod
    def load(cls, run: Union[str, os.PathLike[str]]) -> Report:
        """Reads the run in a folder, finished or not: one that :func:`evaluate` kept, or ``talion evaluate``."""
        return cls(_talion.read_run(run))

    @property
    def summary(self) -> dict[str, Any]:
        """Everything that the report says, as plain values: ``header``, ``complete``, ``headlines``, ``lines``,
        ``curves``, ``classes``, ``verdicts``, ``alarms``, ``latencies``, ``gallery``. Shares are between 0 and 1,
        with a 95 % interval.
        """
        return self._results.summary

    @property
    def clean(self) -> dict[str, float]:
        """The share of clean images that each contender gets right."""
        return {line["contender"]: line["clean"]["share"] for line in self.summary["headlines"]}

    @property
    def worst(self) -> dict[str, float]:
        """The share of images on which each contender survives every attack of the run: the number to believe.

        It is an upper bound: longer attacks leave less.
        """
        return {line["contender"]: line["worst"]["share"] for line in self.summary["headlines"]}

    def markdown(self) -> str:
        """The tables as Markdown."""
        return self._results.markdown()

    def csv(self) -> str:
        """A line for each experiment and contender, quoted as RFC 4180 says."""
        return self._results.csv()

    def html(self) -> str:
        """The page: one HTML file that needs no other and no network."""
        return self._results.html()

    def save_html(self, path: Union[str, os.PathLike[str]]) -> list[Path]:
        """Writes the page, and beside it, under the same name, ``.md``, ``.csv`` and ``.json``; returns what was
        written.

        Every file is whole or as it was.
        """
        return self._results.write(path)

    def __str__(self) -> str:
        return self.markdown()

    def __repr__(self) -> str:
        config = self.summary["header"]["config"]
        return f"<Report of {config['protocol']} on {config['samples']} images of {config['data']}>"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def evaluate(
    model: ModelLike,
    images: ArrayT,
    labels: Labels,
    trn: Union[TRN, str, os.PathLike[str], None] = None,
    *,
    eps: Number = "8/255",
    norm: str = "linf",
    protocol: Union[str, Sequence[str]] = "quick",
    adaptive: Optional[int] = None,
    surrogates: Optional[Mapping[str, ModelLike]] = None,
    out: Union[str, os.PathLike[str], None] = None,
    seed: int = _SEED,
    ids: Optional[Sequence[int]] = None,
    name: str = "images",
    class_names: Optional[Sequence[str]] = None,
    pictures: bool = True,
    latency: bool = True,
    batch: Optional[int] = None,
    progress: Progress = None,
) -> Report:
    """Measures a model bare and, with a restoration network, defended, under attacks of several threat models.

    Parameters
    ----------
    model:
        The classifier, in any of the forms that :class:`Classifier` takes. A :class:`Defended` stands for its
        classifier and its restoration network.
    images, labels:
        Test images ``[N, C, H, W]`` in [0, 1] and their classes ``[N]``. To choose them is to tune the figure: take
        the first.
    trn:
        A restoration network in front of the classifier.
    eps, norm:
        The budget of the headline, Linf or L2.
    protocol:
        ``"quick"`` (minutes), ``"paper"`` (attackers who do not know the defence), ``"standard"`` (AutoAttack in
        every view, transfer, black box: hours), ``"full"``. Or a list of attacks, each
        ``[VIEW:]ATTACK[@[NORM:]EPS]``, such as ``["noise", "pgd-20", "exact:pgd-20", "exact:square-100@4/255"]``:
        with a view (``exact``, ``detached``, ``bpda``) through the defence, else on the bare classifier.
    adaptive:
        On how many images, the first, attacks through the defence are run; by default the protocol's number, or all.
    surrogates:
        Other classifiers of the same classes, by name, attacked to see whether their images fool these (transfer).
    out:
        A folder for the run. If it holds this run already, it goes on where it was: after Ctrl-C, a kill, or to read a
        finished one. Without it nothing is kept.
    seed, ids:
        The key of every random draw; an id for each image, by default 0, 1, ... .
    name, class_names:
        What the images and classes are called in the report.
    pictures, latency:
        Whether samples are drawn, and answers timed.
    batch:
        The most images shown to the model at once, as in :func:`talion.attack`.
    progress:
        ``True`` for a tqdm bar, or a function of (done, total), or a tqdm-like bar.

    Raises
    ------
    talion.TalionError
        If images, labels or settings are not what they should be, or the folder holds another run.
    KeyboardInterrupt
        At Ctrl-C. What was finished is kept in ``out``.

    >>> import talion
    >>> images, labels = talion.fashion_mnist_sample(8)
    >>> report = talion.evaluate(
    ...     talion.Classifier.bundled(), images, labels, protocol=["pgd-5"], pictures=False, latency=False
    ... )
    >>> report.worst["undefended"] <= report.clean["undefended"]
    True
    """
    tensor, _ = images_of(images)
    norm, epsilon = _budget(eps, norm, tensor)
    wanted = labels_of(labels)
    victim = as_model(model)
    if isinstance(victim, Defended) and trn is None:
        trn = victim.trn
        victim = victim.model
    if trn is not None and not isinstance(trn, TRN):
        trn = TRN.load(trn)
    named = isinstance(protocol, str)
    with ExitStack() as stack:
        if out is None:
            out = stack.enter_context(tempfile.TemporaryDirectory(prefix="talion-"))
        stack.enter_context(autograd())
        tensor, wanted = usable(tensor.detach()), usable(wanted)
        base = _party(stack, "undefended", victim, tensor)
        others = [
            _party(stack, label, as_model(other), tensor) for label, other in (surrogates or {}).items()
        ]
        names = class_names or victim.class_names or []
        request: dict[str, Any] = {
            "protocol": protocol if named else None,
            "settings": [] if named else [_setting(text, norm, epsilon) for text in protocol],
            "norm": norm,
            "epsilon": epsilon,
            "adaptive": adaptive,
            "seed": int(seed),
            "ids": list(range(len(tensor)) if ids is None else map(int, ids)),
            "data": name,
            "class_names": [str(label) for label in names],
            "out": out,
            "libtorch": torch.__version__,
            "command": list(sys.argv),
            "latency": bool(latency),
            "pictures": bool(pictures),
            "batch": batch,
        }
        report = stack.enter_context(reporter(progress, "evaluate"))
        results, damaged = _talion.evaluate(base, tensor, wanted, trn, others, request, report)
    for problem in damaged:
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
    return Report(results)


def _party(stack: ExitStack, name: str, model: Model, images: torch.Tensor) -> _talion.Party:
    """A classifier as the library wants it: name, description, network, and what tells it from others.

    Python code is known by its weights and by the classes that it sees in the images.
    """
    network = stack.enter_context(model._bound(images))
    known = model._known()
    if known is None:
        known = {}
    else:
        known = {f"state.{key}": value for key, value in known.items()}
        known["answers"] = network.predict(images)[1]
    return name, model._described(), network, known


def _setting(text: str, norm: str, epsilon: float) -> str:
    """An attack as the library reads it: with its budget, and counts where it has them.

    >>> _setting("exact:pgd:steps=3", "linf", 0.5), _setting("fgsm@l2:1", "linf", 0.5)
    ('exact:pgd-3@linf:0.5', 'fgsm@l2:1')
    """
    attack, at, budget = text.partition("@")
    view, colon, rest = attack.partition(":")
    if colon and view in ("exact", "detached", "bpda", "oblivious"):
        attack = f"{view}:{_spec(rest)}"
    else:
        attack = _spec(attack)
    return f"{attack}@{budget}" if at else f"{attack}@{norm}:{epsilon!r}"
