"""talion: attacks on image classifiers, a defence that answers them, and evaluations of both, for PyTorch.

Images are ``[N, C, H, W]`` with values in [0, 1], tensors or numpy arrays; labels are class indices. A model is a
``torch.nn.Module``, any function from images to logits, or the path of a file.

>>> import talion
>>> images, labels = talion.fashion_mnist_sample(16)
>>> model = talion.Classifier.bundled()
>>> result = talion.attack(model, images, labels, "pgd-10", eps="8/255")
>>> defended = talion.Defended(model, talion.TRN.bundled())
>>> restored = defended.restore(result.adversarial)
>>> int((model.predict(restored) == labels).sum()) > int((~result.success).sum())
True

The last line is about an attacker who does not know the defence. To measure against one who does, attack the defended
model itself, ``talion.attack(defended, ...)``, or use :func:`evaluate`.
"""

from __future__ import annotations

# torch comes first: it brings the libtorch that the compiled module is linked to
import torch

from . import _talion, errors
from ._arrays import Array, Labels
from ._talion import TRN
from .attacks import (
    APGD,
    APGDT,
    BIM,
    CW,
    DDN,
    DIFGSM,
    EAD,
    EOTPGD,
    FAB,
    FABT,
    FGSM,
    FMN,
    JSMA,
    MIFGSM,
    MIM,
    NIFGSM,
    PGD,
    PGDL2,
    SINIFGSM,
    SPSA,
    TIFGSM,
    VMIFGSM,
    Attack,
    AttackResult,
    AutoAttack,
    DeepFool,
    HopSkipJump,
    Noise,
    Square,
    Stage,
    attack,
    catalogue,
)
from .errors import (
    FileError,
    RangeError,
    RefusedError,
    ShapeError,
    TalionError,
    TorchError,
    UnknownNameError,
)
from .evaluation import Report, evaluate
from .models import Classifier, Defended, Mode, Model, ModelLike

__version__: str = _talion.__version__

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
    "TRN",
    "VMIFGSM",
    "Array",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "Classifier",
    "DeepFool",
    "Defended",
    "FileError",
    "HopSkipJump",
    "Labels",
    "Mode",
    "Model",
    "ModelLike",
    "Noise",
    "RangeError",
    "RefusedError",
    "Report",
    "ShapeError",
    "Square",
    "Stage",
    "TalionError",
    "TorchError",
    "UnknownNameError",
    "attack",
    "catalogue",
    "errors",
    "evaluate",
    "fashion_mnist_sample",
]


def fashion_mnist_sample(count: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``count`` images of the Fashion-MNIST test split, up to 1000, and their labels; they come with the
    package.

    Images are ``[count, 1, 28, 28]`` in [0, 1]. Fashion-MNIST is by Zalando SE, under the MIT licence.

    >>> import talion
    >>> images, labels = talion.fashion_mnist_sample(4)
    >>> images.shape, labels.tolist()
    (torch.Size([4, 1, 28, 28]), [9, 2, 1, 1])
    """
    images, labels, _ = _talion.sample(count)
    return images, labels
