"""The peers' attacks, each called as its documentation shows.

Every function takes a classifier, images, labels and a job, and gives back adversarial images. Budget, steps
and step size are handed over under the peer's own names; whatever else has the peer's default. A batch is as
large as the job says; only ART and AutoAttack are given all images, because they cut them into batches
themselves.
"""

import contextlib
import io
import math
import random
import warnings
from collections.abc import Callable

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attack = Callable[[nn.Module, Tensor, Tensor, dict], Tensor]


def unknown(peer: str, attack: str) -> ValueError:
    return ValueError(f"{peer} has no {attack} here")


def loop(model: nn.Module, images: Tensor, labels: Tensor, job: dict) -> Tensor:
    """The plain loop that a practised user writes, without a library around it."""
    eps, steps, step = job["eps"], job.get("steps", 1), job.get("step")
    if job["attack"] == "fgsm":
        steps, step, x = 1, eps, images
    elif job["attack"] == "pgd":
        x = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp_(0, 1)
    else:
        raise unknown("loop", job["attack"])
    low, high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
    for _ in range(steps):
        x = x.detach().requires_grad_(True)
        loss = F.cross_entropy(model(x), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        x = torch.clamp(x.detach().add(gradient.sign_(), alpha=step), low, high)
    return x


def torchattacks(model: nn.Module, images: Tensor, labels: Tensor, job: dict) -> Tensor:
    import torchattacks as library

    eps, steps, step = job.get("eps"), job.get("steps"), job.get("step")
    makers = {
        "pgd": lambda: library.PGD(model, eps=eps, alpha=step, steps=steps, random_start=True),
        "fgsm": lambda: library.FGSM(model, eps=eps),
        "apgd-ce": lambda: library.APGD(model, norm="Linf", eps=eps, steps=steps, loss="ce"),
        "cw-l2": lambda: library.CW(model, steps=steps),
        "deepfool": lambda: library.DeepFool(model, steps=steps),
    }
    if job["attack"] not in makers:
        raise unknown("torchattacks", job["attack"])
    return makers[job["attack"]]()(images, labels)


def foolbox(model: nn.Module, images: Tensor, labels: Tensor, job: dict) -> Tensor:
    import foolbox as library

    steps, search = job.get("steps"), {"binary_search_steps": job["search"]} if "search" in job else {}
    attacks = library.attacks
    makers = {
        "pgd": lambda: attacks.LinfPGD(abs_stepsize=job["step"], steps=steps, random_start=True),
        "fgsm": lambda: attacks.LinfFastGradientAttack(random_start=False),
        "cw-l2": lambda: attacks.L2CarliniWagnerAttack(steps=steps, **search),
        "deepfool": lambda: attacks.L2DeepFoolAttack(steps=steps),
    }
    if job["attack"] not in makers:
        raise unknown("Foolbox", job["attack"])
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    # attacks that look for the smallest change are given no budget
    eps = job["eps"] if job["attack"] in ("pgd", "fgsm") else None
    _, adversarial, _ = makers[job["attack"]]()(wrapped, images, labels, epsilons=eps)
    return adversarial


def art(model: nn.Module, images: Tensor, labels: Tensor, job: dict) -> Tensor:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    eps, steps, batch = job.get("eps"), job.get("steps"), job["batch"]
    estimator = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=job["classes"],
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    search = {"binary_search_steps": job["search"]} if "search" in job else {}
    makers = {
        "pgd": lambda: evasion.ProjectedGradientDescentPyTorch(
            estimator,
            norm=numpy.inf,
            eps=eps,
            eps_step=job["step"],
            max_iter=steps,
            num_random_init=1,
            batch_size=batch,
            verbose=False,
        ),
        "fgsm": lambda: evasion.FastGradientMethod(estimator, norm=numpy.inf, eps=eps, batch_size=batch),
        "apgd-ce": lambda: evasion.AutoProjectedGradientDescent(
            estimator,
            norm=numpy.inf,
            eps=eps,
            eps_step=2 * eps,
            max_iter=steps,
            nb_random_init=1,
            batch_size=batch,
            loss_type="cross_entropy",
            verbose=False,
        ),
        "cw-l2": lambda: evasion.CarliniL2Method(
            estimator, max_iter=steps, batch_size=batch, verbose=False, **search
        ),
        "deepfool": lambda: evasion.DeepFool(estimator, max_iter=steps, batch_size=batch, verbose=False),
    }
    if job["attack"] not in makers:
        raise unknown("ART", job["attack"])
    found = makers[job["attack"]]().generate(images.numpy(), labels.numpy())
    return torch.from_numpy(found)


def adv_lib(model: nn.Module, images: Tensor, labels: Tensor, job: dict) -> Tensor:
    from adv_lib import attacks

    steps, search = job.get("steps"), {"binary_search_steps": job["search"]} if "search" in job else {}
    given = (model, images, labels)
    if job["attack"] == "pgd":
        return attacks.pgd_linf(*given, job["eps"], steps=steps, absolute_step_size=job["step"])
    if job["attack"] == "apgd-ce":
        return attacks.apgd(*given, job["eps"], norm=math.inf, n_iter=steps, n_restarts=1, loss_function="ce")
    if job["attack"] == "cw-l2":
        return attacks.carlini_wagner_l2(*given, max_iterations=steps, **search)
    if job["attack"] == "deepfool":
        return attacks.df(*given, steps=steps)
    raise unknown("adv-lib", job["attack"])


def autoattack(model: nn.Module, images: Tensor, labels: Tensor, job: dict) -> Tensor:
    """One of AutoAttack's parts, or all of the standard version."""
    from autoattack import AutoAttack
    from autoattack.autopgd_base import APGDAttack

    if job["attack"] == "standard":
        adversary = AutoAttack(
            model,
            norm="Linf",
            eps=job["eps"],
            seed=job["seed"],
            version="standard",
            verbose=False,
            device="cpu",
        )
        return adversary.run_standard_evaluation(images, labels, bs=job["batch"])
    if job["attack"] == "apgd-ce":
        attack = APGDAttack(
            model,
            n_iter=job["steps"],
            norm="Linf",
            n_restarts=1,
            eps=job["eps"],
            seed=job["seed"],
            loss="ce",
            device="cpu",
        )
        return attack.perturb(images, labels)
    raise unknown("AutoAttack", job["attack"])


PEERS: dict[str, Attack] = {
    "loop": loop,
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "art": art,
    "adv_lib": adv_lib,
    "autoattack": autoattack,
}


def whole(peer: str, attack: str) -> bool:
    """Whether a peer cuts the images into batches itself."""
    return peer == "art" or (peer == "autoattack" and attack == "standard")


def run(model: nn.Module, images: Tensor, labels: Tensor, job: dict) -> Tensor:
    """The whole attack on all images."""
    if job["peer"] not in PEERS:
        raise ValueError(f"no peer is called {job['peer']}; known: {', '.join(PEERS)}")
    random.seed(job["seed"])
    numpy.random.seed(job["seed"])
    torch.manual_seed(job["seed"])
    attack = PEERS[job["peer"]]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if whole(job["peer"], job["attack"]):
            return attack(model, images, labels, job).detach()
        parts = zip(images.split(job["batch"]), labels.split(job["batch"]), strict=True)
        return torch.cat([attack(model, part, truth, job).detach() for part, truth in parts])
