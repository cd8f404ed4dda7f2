"""Attacks: :func:`attack` for any of them by name, and a class for each kind.

The classes are made once for a model and called with images and labels:

>>> import talion
>>> images, labels = talion.fashion_mnist_sample(8)
>>> model = talion.Classifier.bundled()
>>> pgd = talion.PGD(model, eps=8/255, alpha=2/255, steps=3)
>>> adversarial = pgd(images, labels)
>>> bool((adversarial - images).abs().max() <= 8/255 + 1e-6)
True

The function says more about what happened:

>>> result = talion.attack(model, images, labels, "pgd-3", eps="8/255")
>>> result.attack, result.backward
('pgd-3', 24)

A result depends on the seed and on the ids of the images, by default 0, 1, ..., not on the other images of a call:
random draws belong to an image, not to a batch.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Optional, Union

import torch

from . import _talion
from ._arrays import ArrayT, Labels, images_of, labels_of, usable
from ._modules import autograd
from ._progress import Progress, reporter
from .models import ModelLike, as_model

__all__ = [
    "APGD",
    "APGDT",
    "BIM",
    "CW",
    "DDN",
    "DIFGSM",
    "EAD",
    "EOTPGD",
    "FAB",
    "FABT",
    "FGSM",
    "FMN",
    "JSMA",
    "MIFGSM",
    "MIM",
    "NIFGSM",
    "PGD",
    "PGDL2",
    "SINIFGSM",
    "SPSA",
    "TIFGSM",
    "VMIFGSM",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "DeepFool",
    "HopSkipJump",
    "Noise",
    "Square",
    "Stage",
    "attack",
    "catalogue",
]

Number = Union[float, str]
"""A number, or a text such as ``"8/255"``."""

Norm = Literal["linf", "l2", "l1", "l0"]

Objective = Literal["cross-entropy", "margin", "dlr"]


@dataclass(frozen=True)
class Stage:
    """What one attack of a cascade did."""

    attack: str
    given: int
    """Images that had resisted so far."""
    fooled: int
    """Images of these that it fooled."""
    forward: int
    backward: int
    seconds: float


@dataclass(frozen=True, eq=False)
class AttackResult(Generic[ArrayT]):
    """What an attack achieved. Row i belongs to row i of the images."""

    adversarial: ArrayT = field(repr=False)
    """The adversarial images, ``[N, C, H, W]``, inside the budget and [0, 1]: tensors if images were given as
    tensors, on their device, else a numpy array; the same holds for all arrays here."""
    success: ArrayT = field(repr=False)
    """Whether each image fools the model, ``[N]``, boolean. With targets: whether it is taken for its target."""
    predicted: ArrayT = field(repr=False)
    """The class that the model sees in each adversarial image, ``[N]``."""
    attack: str
    """The attack's name, with every setting that is not its default."""
    norm: str
    eps: float
    forward: int
    """Images that the model classified, with or without a gradient."""
    backward: int
    """Gradients that were taken."""
    notes: list[str]
    """What had to be different from the attack's definition."""
    stages: list[Stage] = field(default_factory=list, repr=False)
    """Of cascades such as AutoAttack: what each attack did."""
    fooled_by: Optional[list[Optional[str]]] = field(default=None, repr=False)
    """Of cascades: the name of the attack that fooled each image, ``"none"`` if it was misclassified as it was,
    ``None`` if it resisted."""

    @property
    def success_rate(self) -> float:
        """The share of images that fool the model."""
        return float(torch.as_tensor(self.success).to(torch.float64).mean()) if len(self.success) else 0.0


def catalogue() -> list[dict[str, Any]]:
    """Every kind of attack: its name (``kind``), title, norms, what it sees and seeks, whether it takes targets, its
    paper.

    >>> import talion
    >>> len(talion.catalogue())
    25
    """
    return _talion.catalogue()


def attack(
    model: ModelLike,
    images: ArrayT,
    labels: Optional[Labels] = None,
    attack: str = "pgd-20",
    *,
    eps: Optional[Number] = "8/255",
    norm: str = "linf",
    targets: Optional[Labels] = None,
    objective: Objective = "cross-entropy",
    seed: int = 0,
    ids: Optional[Sequence[int]] = None,
    until_fooled: bool = False,
    batch: Optional[int] = None,
    progress: Progress = None,
) -> AttackResult[ArrayT]:
    """Attacks a model.

    Parameters
    ----------
    model:
        A module, a function, a file's path, a :class:`Classifier` or a :class:`Defended`.
    images:
        ``[N, C, H, W]`` with values in [0, 1], a tensor or a numpy array.
    labels:
        The true classes, ``[N]``. Not needed with ``targets``.
    attack:
        A name as on the command line, such as ``"pgd-20"``, ``"pgd-100x5"`` (5 restarts), ``"mim-20:decay=0.9"``;
        ``"pgd:steps=20:restarts=5"`` means the same as ``"pgd-20x5"``. Several, separated by commas, are run one
        after the other, each on the images that resisted those before; so are ``"autoattack"``, ``"autoattack:plus"``
        and ``"autoattack:rand"``. :func:`catalogue` lists all kinds.
    eps:
        How far an image may be changed, in units of the [0, 1] scale: a number or ``"8/255"``; ``"l2:0.5"`` names the
        norm, too. ``None`` for no limit but [0, 1], which suits attacks that seek the smallest change.
    norm:
        ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"`` (the number of values that change).
    targets:
        The class that each image is to be taken for, ``[N]``: a targeted attack.
    objective:
        What is raised, for attacks that leave the choice: the cross-entropy with the label, the margin of the largest
        other logit, or the difference of logits ratio.
    seed, ids:
        The key of every random draw; an id for each image, by default 0, 1, ... .
    until_fooled:
        Leaves an image alone as soon as it fools: cheaper, and enough to count; but its image says little about other
        models.
    batch:
        The most images shown to the model at once. Attacks work on 32 images at once on a CPU and 512 elsewhere; give
        less if the model then needs more memory than there is. It costs a forward pass more for each gradient.
    progress:
        ``True`` for a tqdm bar, or a function of (done, total), or a tqdm-like bar.

    Raises
    ------
    talion.TalionError
        If images or labels are not what they should be, the attack is not known or not defined for the norm, ...
    KeyboardInterrupt
        At Ctrl-C, within a step.
    Exception
        Whatever the model raises, as it is.

    >>> import numpy, talion
    >>> images, labels = talion.fashion_mnist_sample(2)
    >>> result = talion.attack(talion.Classifier.bundled(), images.numpy(), labels.numpy(), "fgsm", eps=0.1)
    >>> type(result.adversarial).__name__, result.adversarial.shape
    ('ndarray', (2, 1, 28, 28))
    """
    tensor, back = images_of(images)
    norm, epsilon = _budget(eps, norm, tensor)
    if targets is not None:
        wanted, goal = labels_of(targets), "targeted-cross-entropy"
    elif labels is not None:
        wanted, goal = labels_of(labels), objective
    else:
        raise TypeError("labels are needed, or targets")
    name = _talion.attack_name(_spec(attack))
    request: dict[str, Any] = {
        "attack": name,
        "norm": norm,
        "epsilon": epsilon,
        "objective": goal,
        "ids": list(range(len(tensor)) if ids is None else map(int, ids)),
        "seed": int(seed),
        "restart": 0,
        "until_fooled": bool(until_fooled),
        "batch": batch,
    }
    with autograd(), reporter(progress, name) as report:
        tensor = usable(tensor.detach())
        with as_model(model)._bound(tensor) as network:
            answer = _talion.attack(network, tensor, usable(wanted), request, report)
    stages = [
        Stage(
            stage["attack"],
            stage["given"],
            stage["fooled"],
            stage["passes"]["forward"],
            stage["passes"]["backward"],
            stage["seconds"],
        )
        for stage in answer["stages"]
    ]
    return AttackResult(
        adversarial=back(answer["adversarial"]),
        success=back(answer["success"]),
        predicted=back(answer["predicted"]),
        attack=name,
        norm=norm,
        eps=epsilon,
        forward=answer["forward"],
        backward=answer["backward"],
        notes=answer["adjustments"],
        stages=stages,
        fooled_by=_fooled_by(answer["fooled"], stages, name),
    )


def _fooled_by(fooled: Optional[list[int]], stages: list[Stage], name: str) -> Optional[list[Optional[str]]]:
    if fooled is None:
        return None
    names: dict[int, Optional[str]] = {-1: None, -2: "none"}
    names.update((number, stage.attack) for number, stage in enumerate(stages))
    return [names.get(number, name) for number in fooled]


def _budget(eps: Optional[Number], norm: str, images: torch.Tensor) -> tuple[str, float]:
    """Norm and radius; without a radius the whole of [0, 1]."""
    if isinstance(eps, str):
        if ":" in eps:
            norm, _, eps = eps.partition(":")
        return norm, _talion.fraction(eps)
    if eps is not None:
        return norm, float(eps)
    values = float(images[0].numel()) if images.ndim > 0 and len(images) else 1.0
    widest = {"linf": 1.0, "inf": 1.0, "l2": values**0.5, "2": values**0.5}
    return norm, widest.get(norm.lower(), values)


_COUNTS = re.compile(r"(?P<kind>.*?)(?:-(?P<steps>\d+)(?:x(?P<restarts>\d+))?)?")


def _spec(text: str) -> str:
    """The library's own name of an attack, with counts where it has them: ``pgd:steps=20`` is ``pgd-20``.

    >>> _spec("pgd:steps=20:restarts=5:step=2/255"), _spec("square:queries=100"), _spec("fab-t:restarts=2")
    ('pgd-20x5:step=2/255', 'square-100', 'fab-t-100x2')
    >>> _spec("autoattack"), _spec("apgd-ce-5,square:queries=9")
    ('standard', 'apgd-ce-5,square-9')
    """
    if "," in text:
        return ",".join(_spec(part.strip()) for part in text.split(","))
    head, *settings = text.strip().split(":")
    if head == "autoattack":
        return ":".join(settings) or "standard"
    steps: Optional[str] = None
    restarts: Optional[str] = None
    others = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if equals and key in ("steps", "queries"):
            steps = value
        elif equals and key == "restarts":
            restarts = value
        else:
            others.append(setting)
    if steps is not None or restarts is not None:
        head = _with_counts(head, steps, restarts)
    return ":".join([head, *others])


def _with_counts(head: str, steps: Optional[str], restarts: Optional[str]) -> str:
    found = _COUNTS.fullmatch(head)
    assert found is not None  # every part of the pattern may be empty
    if steps is None and found["steps"] is None:
        usual = _COUNTS.fullmatch(_talion.attack_name(head).split(":")[0])
        steps = None if usual is None else usual["steps"]
    steps = steps or found["steps"]
    restarts = restarts or found["restarts"]
    name = found["kind"] if steps is None else f"{found['kind']}-{steps}"
    return name if restarts is None else f"{name}x{restarts}"


def _named(kind: str, steps: Optional[int] = None, restarts: int = 1, **settings: Optional[Number]) -> str:
    """The name of an attack with these settings; those that are ``None`` have their default."""
    counts = "" if steps is None else f"-{_text(steps)}"
    if restarts != 1:
        counts += f"x{_text(restarts)}"
    parts = [f"{key}={_text(value)}" for key, value in settings.items() if value is not None]
    return ":".join([kind + counts, *parts])


def _text(value: Number) -> str:
    if isinstance(value, str):
        return value
    return str(int(value)) if isinstance(value, numbers.Integral) else repr(float(value))


class Attack:
    """An attack on a model, to be called with images and labels.

    Made from a name it is any attack: ``talion.Attack(model, "pgd-20", eps=0.03)``. The other classes of this module
    say a kind's settings one by one. All of them take, by keyword,

    - ``eps`` and ``norm``: how far an image may be changed;
    - ``seed``: the key of every random draw, the same in every call;
    - ``batch``: the most images shown to the model at once;
    - ``progress``: as in :func:`attack`.
    """

    def __init__(
        self,
        model: ModelLike,
        name: str,
        eps: Optional[Number] = 8 / 255,
        *,
        norm: str = "linf",
        seed: int = 0,
        batch: Optional[int] = None,
        progress: Progress = None,
    ) -> None:
        self.model = as_model(model)
        self.name = _talion.attack_name(_spec(name))
        self.eps, self.norm, self.seed, self.batch, self.progress = eps, norm, seed, batch, progress

    def __call__(
        self,
        images: ArrayT,
        labels: Optional[Labels] = None,
        *,
        targets: Optional[Labels] = None,
        ids: Optional[Sequence[int]] = None,
    ) -> ArrayT:
        """The adversarial images, ``[N, C, H, W]``; with ``targets``, aimed at these classes."""
        return self.run(images, labels, targets=targets, ids=ids).adversarial

    def run(
        self,
        images: ArrayT,
        labels: Optional[Labels] = None,
        *,
        targets: Optional[Labels] = None,
        ids: Optional[Sequence[int]] = None,
        until_fooled: bool = False,
    ) -> AttackResult[ArrayT]:
        """All that is known of the attack, not its images alone."""
        return attack(
            self.model,
            images,
            labels,
            self.name,
            eps=self.eps,
            norm=self.norm,
            targets=targets,
            seed=self.seed,
            ids=ids,
            until_fooled=until_fooled,
            batch=self.batch,
            progress=self.progress,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, {self.name!r}, eps={self.eps!r}, norm={self.norm!r})"


class FGSM(Attack):
    """The Fast Gradient Sign Method (Goodfellow et al. 2015): one step of the whole budget."""

    def __init__(self, model: ModelLike, eps: Number = 8 / 255, **common: Any) -> None:
        super().__init__(model, "fgsm", eps, **common)


class BIM(Attack):
    """The Basic Iterative Method (Kurakin et al. 2017): steps of ``alpha`` from the image itself.

    ``alpha=None`` is ``2.5 * eps / steps``.
    """

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        alpha: Optional[Number] = 2 / 255,
        steps: int = 10,
        **common: Any,
    ) -> None:
        super().__init__(model, _named("bim", steps, step=alpha), eps, **common)


class PGD(Attack):
    """Projected Gradient Descent (Madry et al. 2018): steps of ``alpha`` from random starts.

    ``alpha=None`` is ``2.5 * eps / steps``. Without a random start there is one start, the image itself.
    """

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        alpha: Optional[Number] = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
        *,
        restarts: int = 1,
        **common: Any,
    ) -> None:
        if not random_start and restarts != 1:
            raise ValueError("restarts need a random start: without one all of them are the same")
        kind = "pgd" if random_start else "bim"
        super().__init__(model, _named(kind, steps, restarts, step=alpha), eps, **common)


class PGDL2(PGD):
    """:class:`PGD` in L2."""

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 1.0,
        alpha: Optional[Number] = 0.2,
        steps: int = 10,
        random_start: bool = True,
        *,
        restarts: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start, restarts=restarts, norm="l2", **common)


class EOTPGD(Attack):
    """:class:`PGD` along the mean of ``draws`` gradients, for models that answer at random (Athalye et al. 2018)."""

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        alpha: Optional[Number] = 2 / 255,
        steps: int = 10,
        draws: int = 2,
        *,
        restarts: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(model, _named("eot-pgd", steps, restarts, draws=draws, step=alpha), eps, **common)


class MIM(Attack):
    """The Momentum Iterative Method, MI-FGSM (Dong et al. 2018). ``alpha=None`` is ``eps / steps``, here and below."""

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        alpha: Optional[Number] = 2 / 255,
        steps: int = 10,
        decay: Number = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(model, _named("mim", steps, decay=decay, step=alpha), eps, **common)


MIFGSM = MIM


class NIFGSM(Attack):
    """:class:`MIM` that looks ahead, made to fool other models, too (Lin et al. 2020)."""

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        alpha: Optional[Number] = 2 / 255,
        steps: int = 10,
        decay: Number = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(model, _named("ni-fgsm", steps, decay=decay, step=alpha), eps, **common)


class SINIFGSM(Attack):
    """:class:`NIFGSM` on the mean gradient of ``copies`` ever darker copies (Lin et al. 2020)."""

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        alpha: Optional[Number] = 2 / 255,
        steps: int = 10,
        decay: Number = 1.0,
        copies: int = 5,
        **common: Any,
    ) -> None:
        name = _named("si-ni-fgsm", steps, copies=copies, decay=decay, step=alpha)
        super().__init__(model, name, eps, **common)


class DIFGSM(Attack):
    """:class:`MIM` through random resizing and padding (Xie et al. 2019).

    With the chance ``probability`` an image is shrunk, to at least the share ``smallest`` of its side.
    """

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        alpha: Optional[Number] = 2 / 255,
        steps: int = 10,
        decay: Number = 1.0,
        smallest: Number = 0.9,
        probability: Number = 0.5,
        **common: Any,
    ) -> None:
        name = _named("di-fgsm", steps, probability=probability, smallest=smallest, decay=decay, step=alpha)
        super().__init__(model, name, eps, **common)


class TIFGSM(Attack):
    """:class:`MIM` along gradients blurred by a Gaussian of ``kernel`` pixels, an odd number (Dong et al. 2019)."""

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        alpha: Optional[Number] = 2 / 255,
        steps: int = 10,
        decay: Number = 1.0,
        kernel: int = 15,
        **common: Any,
    ) -> None:
        super().__init__(
            model, _named("ti-fgsm", steps, kernel=kernel, decay=decay, step=alpha), eps, **common
        )


class VMIFGSM(Attack):
    """:class:`MIM` with gradients corrected by their variance among ``neighbours`` (Wang and He 2021).

    Neighbours lie within ``radius``, in units of ``eps``.
    """

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        alpha: Optional[Number] = 2 / 255,
        steps: int = 10,
        decay: Number = 1.0,
        neighbours: int = 5,
        radius: Number = 1.5,
        **common: Any,
    ) -> None:
        name = _named("vmi-fgsm", steps, neighbours=neighbours, radius=radius, decay=decay, step=alpha)
        super().__init__(model, name, eps, **common)


class APGD(Attack):
    """Auto-PGD, which chooses its own step sizes (Croce and Hein 2020), on cross-entropy or the DLR loss."""

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        steps: int = 100,
        loss: Literal["ce", "dlr"] = "ce",
        *,
        restarts: int = 1,
        rho: Number = 0.75,
        **common: Any,
    ) -> None:
        if loss not in ("ce", "dlr"):
            raise ValueError(f"unknown loss {loss!r}; known: ce, dlr")
        super().__init__(model, _named(f"apgd-{loss}", steps, restarts, rho=rho), eps, **common)


class APGDT(Attack):
    """Auto-PGD towards ``targets`` other classes, one after the other (Croce and Hein 2020)."""

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        steps: int = 100,
        targets: int = 9,
        *,
        restarts: int = 1,
        rho: Number = 0.75,
        **common: Any,
    ) -> None:
        super().__init__(model, _named("apgd-t", steps, restarts, targets=targets, rho=rho), eps, **common)


class FAB(Attack):
    """The Fast Adaptive Boundary attack (Croce and Hein 2020): seeks the smallest change.

    It counts if it lies inside ``eps``; ``eps=None`` accepts any. So do the other attacks that seek the smallest
    change.
    """

    def __init__(
        self,
        model: ModelLike,
        eps: Optional[Number] = 8 / 255,
        steps: int = 100,
        *,
        restarts: int = 1,
        alpha_max: Number = 0.1,
        eta: Number = 1.05,
        beta: Number = 0.9,
        **common: Any,
    ) -> None:
        name = _named("fab", steps, restarts, alpha=alpha_max, eta=eta, beta=beta)
        super().__init__(model, name, eps, **common)


class FABT(Attack):
    """:class:`FAB` towards ``targets`` other classes, one after the other: cheaper where there are many classes."""

    def __init__(
        self,
        model: ModelLike,
        eps: Optional[Number] = 8 / 255,
        steps: int = 100,
        targets: int = 9,
        *,
        restarts: int = 1,
        alpha_max: Number = 0.1,
        eta: Number = 1.05,
        beta: Number = 0.9,
        **common: Any,
    ) -> None:
        name = _named("fab-t", steps, restarts, targets=targets, alpha=alpha_max, eta=eta, beta=beta)
        super().__init__(model, name, eps, **common)


class Square(Attack):
    """The Square Attack (Andriushchenko et al. 2020): random search that sees logits, never a gradient."""

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        queries: int = 5000,
        *,
        restarts: int = 1,
        p: Number = 0.8,
        **common: Any,
    ) -> None:
        super().__init__(model, _named("square", queries, restarts, p=p), eps, **common)


class SPSA(Attack):
    """Ascent along gradients estimated from ``pairs`` of answers, without any gradient (Uesato et al. 2018)."""

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        steps: int = 100,
        pairs: int = 64,
        *,
        delta: Number = 0.01,
        rate: Number = 0.01,
        **common: Any,
    ) -> None:
        super().__init__(model, _named("spsa", steps, pairs=pairs, delta=delta, step=rate), eps, **common)


class HopSkipJump(Attack):
    """HopSkipJump (Chen et al. 2020): sees the predicted class alone; seeks the smallest change in Linf or L2."""

    def __init__(
        self,
        model: ModelLike,
        eps: Optional[Number] = None,
        queries: int = 5000,
        *,
        around: int = 100,
        norm: str = "l2",
        **common: Any,
    ) -> None:
        super().__init__(model, _named("hsj", queries, around=around), eps, norm=norm, **common)


class CW(Attack):
    """Carlini and Wagner's attack (2017): seeks the smallest change in L2.

    ``search`` runs of ``steps`` steps look for the weight between distance and success; ``confidence`` is how far
    ahead the wrong class has to be.
    """

    def __init__(
        self,
        model: ModelLike,
        confidence: Number = 0.0,
        steps: int = 1000,
        rate: Number = 0.01,
        *,
        search: int = 9,
        eps: Optional[Number] = None,
        norm: str = "l2",
        **common: Any,
    ) -> None:
        name = _named("cw", steps, search=search, confidence=confidence, rate=rate)
        super().__init__(model, name, eps, norm=norm, **common)


class EAD(Attack):
    """The elastic-net attack (Chen et al. 2018): as :class:`CW`, with few values changed; L1 or L2."""

    def __init__(
        self,
        model: ModelLike,
        confidence: Number = 0.0,
        steps: int = 1000,
        rate: Number = 0.01,
        *,
        search: int = 9,
        beta: Number = 0.001,
        eps: Optional[Number] = None,
        norm: str = "l1",
        **common: Any,
    ) -> None:
        name = _named("ead", steps, search=search, confidence=confidence, rate=rate, beta=beta)
        super().__init__(model, name, eps, norm=norm, **common)


class DDN(Attack):
    """Decoupling Direction and Norm (Rony et al. 2019): seeks the smallest change in L2."""

    def __init__(
        self,
        model: ModelLike,
        steps: int = 100,
        *,
        radius: Number = 1.0,
        gamma: Number = 0.05,
        eps: Optional[Number] = None,
        norm: str = "l2",
        **common: Any,
    ) -> None:
        super().__init__(model, _named("ddn", steps, radius=radius, gamma=gamma), eps, norm=norm, **common)


class FMN(Attack):
    """The Fast Minimum-Norm attack (Pintor et al. 2021): seeks the smallest change in any norm."""

    def __init__(
        self,
        model: ModelLike,
        steps: int = 100,
        *,
        alpha: Number = 1.0,
        gamma: Number = 0.05,
        eps: Optional[Number] = None,
        norm: str = "l2",
        **common: Any,
    ) -> None:
        super().__init__(model, _named("fmn", steps, step=alpha, gamma=gamma), eps, norm=norm, **common)


class DeepFool(Attack):
    """DeepFool (Moosavi-Dezfooli et al. 2016): steps to the nearest boundary of the linearised model; L2 or Linf."""

    def __init__(
        self,
        model: ModelLike,
        steps: int = 50,
        overshoot: Number = 0.02,
        *,
        candidates: int = 10,
        eps: Optional[Number] = None,
        norm: str = "l2",
        **common: Any,
    ) -> None:
        name = _named("deepfool", steps, overshoot=overshoot, candidates=candidates)
        super().__init__(model, name, eps, norm=norm, **common)


class JSMA(Attack):
    """The Jacobian-based Saliency Map Attack (Papernot et al. 2016): changes few values, in L0.

    Two values a step are changed by ``theta``, at most the share ``gamma`` of all.
    """

    def __init__(
        self,
        model: ModelLike,
        theta: Number = 1.0,
        gamma: Number = 0.1,
        *,
        eps: Optional[Number] = None,
        norm: str = "l0",
        **common: Any,
    ) -> None:
        super().__init__(model, _named("jsma", theta=theta, gamma=gamma), eps, norm=norm, **common)


class Noise(Attack):
    """A random change of the full budget: the control that any model should stand."""

    def __init__(self, model: ModelLike, eps: Number = 8 / 255, **common: Any) -> None:
        super().__init__(model, "noise", eps, **common)


class AutoAttack(Attack):
    """AutoAttack (Croce and Hein 2020): several attacks, each on the images that resisted those before.

    ``version`` is ``"standard"`` (APGD-CE, APGD-T, FAB-T, Square), ``"plus"`` or ``"rand"``; or give the ``attacks``
    yourself, a list of names. :meth:`Attack.run` says which attack fooled which image.
    """

    def __init__(
        self,
        model: ModelLike,
        eps: Number = 8 / 255,
        version: Literal["standard", "plus", "rand"] = "standard",
        *,
        attacks: Optional[Sequence[str]] = None,
        **common: Any,
    ) -> None:
        if version not in ("standard", "plus", "rand"):
            raise ValueError(f"unknown version {version!r}; known: standard, plus, rand")
        super().__init__(model, version if attacks is None else ",".join(attacks), eps, **common)
