"""The reference implementations, all called the same way.

Each function takes a counted classifier, images, labels and a job, and gives back adversarial images;
AutoAttack also says what each of its attacks did. What a job says (budget, steps, step size, seed) is handed
to the peer under the peer's own name for it; `settings` go to it word for word. What neither says has the
peer's default.
"""

import contextlib
import inspect
import io
import random
import time
import warnings
from collections.abc import Callable

import numpy
import torch
from torch import Tensor

from counting import Counted, predictions
from jobs import Job

# what the peers call the norms
CAPITALS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
NUMBERS = {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}


def named(function: Callable, values: dict) -> dict:
    """Those of `values` that the function has a parameter for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in parameters and value is not None}


def autoattack(model: Counted, images: Tensor, labels: Tensor, job: Job) -> tuple[Tensor, list[dict]]:
    """The official AutoAttack: a version (`standard`, `plus`), or attacks, set as in the standard version.

    It is given all images, since finding those that are classified right is part of what it does.
    """
    from autoattack import AutoAttack

    arguments = {"norm": CAPITALS[job.norm], "eps": job.eps, "seed": job.seed, "device": "cpu"}
    if job.attack in ("standard", "plus", "rand"):
        adversary = AutoAttack(model, version=job.attack, verbose=False, **arguments)
    else:
        # the settings of the standard version are there before the list of attacks is replaced
        adversary = AutoAttack(model, version="standard", verbose=False, **arguments)
        adversary.attacks_to_run = job.attack.split("+")
    for setting, value in job.settings.items():
        apply(adversary, setting, value)
    stages = observe(adversary, model)
    adversarial = adversary.run_standard_evaluation(images, labels, bs=job.batch)
    return adversarial, list(stages.values())


def apply(adversary, setting: str, value) -> None:
    """Changes a setting of AutoAttack, in all attacks that have it."""
    apgd, targeted, fab, square = adversary.apgd, adversary.apgd_targeted, adversary.fab, adversary.square
    if setting == "steps":
        fab.n_iter = value
        for attack in (apgd, targeted):
            attack.n_iter = attack.n_iter_orig = value
            # when it looks back is worked out when it is made, from the number of steps
            shares = {"n_iter_2": 0.22, "n_iter_min": 0.06, "size_decr": 0.03}
            for name, share in shares.items():
                setattr(attack, name, max(int(share * value), 1))
    elif setting == "queries":
        square.n_queries = value
    elif setting == "targets":
        targeted.n_target_classes = fab.n_target_classes = value
    elif setting == "restarts":
        apgd.n_restarts = value
    elif setting == "larger_first":
        apgd.use_largereps = targeted.use_largereps = value
    else:
        raise ValueError(f"AutoAttack has no setting {setting} here")


def observe(adversary, model: Counted) -> dict[str, dict]:
    """Makes AutoAttack's attacks write down what each was given, what it fooled, and what it cost."""
    stages: dict[str, dict] = {}

    def watch(attack, name: Callable[[], str]) -> None:
        perturb = attack.perturb

        def watched(x: Tensor, y: Tensor) -> Tensor:
            before, started = model.passes(), time.perf_counter()
            adversarial = perturb(x, y)
            seconds, after = time.perf_counter() - started, model.passes()
            empty = {"given": 0, "fooled": 0, "forward": 0, "backward": 0, "seconds": 0.0}
            stage = stages.setdefault(name(), {"attack": name()} | empty)
            stage["given"] += len(x)
            stage["fooled"] += int((predictions(model.model, adversarial) != y).sum())
            stage["forward"] += after["forward"] - before["forward"]
            stage["backward"] += after["backward"] - before["backward"]
            stage["seconds"] += seconds
            return adversarial

        attack.perturb = watched

    watch(adversary.apgd, lambda: f"apgd-{adversary.apgd.loss}")
    watch(adversary.apgd_targeted, lambda: "apgd-t")
    watch(adversary.fab, lambda: "fab-t" if adversary.fab.targeted else "fab")
    watch(adversary.square, lambda: "square")
    return stages


def torchattacks(model: Counted, images: Tensor, labels: Tensor, job: Job) -> Tensor:
    """An attack of torchattacks."""
    import torchattacks as library

    kind = getattr(library, job.attack)
    values = {"eps": job.eps, "steps": job.steps, "alpha": job.step, "seed": job.seed}
    if job.norm in CAPITALS:
        values["norm"] = CAPITALS[job.norm]
    attack = kind(model, **named(kind, values), **job.settings)
    if job.target is not None:
        attack.set_mode_targeted_by_function(lambda _, y: torch.full_like(y, job.target), quiet=True)
    return attack(images, labels)


def foolbox(model: Counted, images: Tensor, labels: Tensor, job: Job) -> Tensor:
    """An attack of Foolbox."""
    import foolbox as library

    kind = getattr(library.attacks, job.attack)
    attack = kind(**named(kind, {"steps": job.steps, "abs_stepsize": job.step}), **job.settings)
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    # with no budget given, an attack that looks for the smallest change gives just that
    raw, clipped, _ = attack(wrapped, images, library.criteria.Misclassification(labels), epsilons=job.eps)
    if job.eps is not None:
        return clipped
    # where some of its attacks have found nothing, they answer with a black image, which is no find
    black = (raw == 0).flatten(1).all(1) & (images != 0).flatten(1).any(1)
    return torch.where(black.view(-1, 1, 1, 1), images, raw)


def adv_lib(model: Counted, images: Tensor, labels: Tensor, job: Job) -> Tensor:
    """An attack of adv-lib."""
    from adv_lib import attacks as library

    attack = getattr(library, job.attack)
    values = {"norm": NUMBERS[job.norm], "eps": job.eps, "steps": job.steps, "n_iter": job.steps}
    return attack(model, images, labels, **named(attack, values), **plain(job.settings))


def plain(settings: dict) -> dict:
    """TOML has no word for nothing: "none" stands for it."""
    return {name: None if value == "none" else value for name, value in settings.items()}


LIBRARIES = {"torchattacks": torchattacks, "foolbox": foolbox, "adv_lib": adv_lib}


class Answer:
    """What a peer gave back."""

    def __init__(
        self, adversarial: Tensor, seconds: float, passes: dict, stages: list[dict], says: list[str]
    ):
        self.adversarial, self.seconds, self.passes = adversarial, seconds, passes
        self.stages, self.says = stages, says


def run(model: torch.nn.Module, images: Tensor, labels: Tensor, given: Tensor, job: Job) -> Answer:
    """Runs the peer's side of a job. Samples that are not `given` are not attacked, and stay as they are."""
    random.seed(job.seed)
    numpy.random.seed(job.seed)
    torch.manual_seed(job.seed)
    counted, stages = Counted(model), []
    adversarial = images.clone()
    said = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if job.peer == "autoattack":
            adversarial, stages = autoattack(counted, images, labels, job)
        else:
            attack = LIBRARIES[job.peer]
            for rows in given.nonzero().flatten().split(job.batch):
                # a copy each time: some attacks write into what they are given
                adversarial[rows] = attack(counted, images[rows].clone(), labels[rows].clone(), job).detach()
    seconds = time.perf_counter() - started
    says = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
    return Answer(adversarial.detach(), seconds, counted.passes(), stages, says[:5])
