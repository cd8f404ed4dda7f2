"""Attacks: against plain PyTorch, by every name, and what surrounds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import talion


def plain_pgd(
    model: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    alpha: float,
    steps: int,
) -> torch.Tensor:
    adversarial = images.clone()
    for _ in range(steps):
        adversarial.requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        moved = adversarial.detach() + alpha * gradient.sign()
        adversarial = (images + (moved - images).clamp(-eps, eps)).clamp(0, 1)
    return adversarial


def test_pgd_is_pgd(tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    expected = plain_pgd(tiny, images, labels, 8 / 255, 2 / 255, 10)
    attack = talion.PGD(tiny, eps=8 / 255, alpha=2 / 255, steps=10, random_start=False)
    found = attack(images, labels)
    assert float((found - expected).abs().max()) <= 1e-6
    result = attack.run(images, labels)
    assert torch.equal(result.adversarial, found)
    assert torch.equal(result.predicted, tiny(found).argmax(1))
    assert torch.equal(result.success, result.predicted != labels)
    assert result.backward == 320 and result.norm == "linf" and result.eps == 8 / 255
    assert result.success_rate == float(result.success.float().mean())


def test_a_random_start_is_that_of_the_sample(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    def pgd(rows: slice, **settings: Any) -> torch.Tensor:
        return talion.attack(tiny, images[rows], labels[rows], "pgd-3", eps=0.1, **settings).adversarial

    whole = pgd(slice(None))
    assert torch.equal(whole, pgd(slice(None)))
    assert not torch.equal(whole, pgd(slice(None), seed=1))
    assert not torch.equal(whole, talion.attack(tiny, images, labels, "bim-3", eps=0.1).adversarial)
    part = pgd(slice(8, 20), ids=range(8, 20))
    # batches are filled with other rows then, and kernels round a little differently
    assert float(((part - whole[8:20]).abs() > 1e-6).float().mean()) < 0.01


def test_live_and_file_give_the_same_images(
    tiny: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    onnx_file: Callable[[torch.nn.Module, torch.Tensor], Path],
) -> None:
    path = onnx_file(tiny, images)
    for name in ["pgd-10", "apgd-ce-10"]:
        live = talion.attack(tiny, images, labels, name, eps=0.1)
        file = talion.attack(path, images, labels, name, eps=0.1)
        # where a gradient is next to zero, rounding decides its sign
        assert float(((live.adversarial - file.adversarial).abs() > 1e-6).float().mean()) < 0.01
        assert int((live.success != file.success).sum()) <= 1


def test_a_function_around_a_file_is_the_file(
    bundled: talion.Classifier, classifier_file: Path, clothes: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, labels = clothes
    inside = talion.attack(classifier_file, images, labels, "pgd-3")
    outside = talion.attack(lambda batch: bundled(batch), images, labels, "pgd-3")
    # a file has the fast engine and a function autograd: where a gradient is next to zero, rounding decides its sign
    assert float(((inside.adversarial - outside.adversarial).abs() > 1e-6).float().mean()) < 0.02
    assert int((inside.success != outside.success).sum()) <= 1


SMALL = {
    "fgsm": "fgsm",
    "bim": "bim-2",
    "pgd": "pgd-2x2",
    "eot-pgd": "eot-pgd-2:draws=2",
    "mim": "mim-2",
    "ni-fgsm": "ni-fgsm-2",
    "si-ni-fgsm": "si-ni-fgsm-2:copies=2",
    "di-fgsm": "di-fgsm-2",
    "ti-fgsm": "ti-fgsm-2:kernel=3",
    "vmi-fgsm": "vmi-fgsm-2:neighbours=2",
    "apgd-ce": "apgd-ce-4",
    "apgd-dlr": "apgd-dlr-4",
    "apgd-t": "apgd-t-4:targets=2",
    "fab": "fab-4",
    "fab-t": "fab-t-4:targets=2",
    "square": "square-20",
    "spsa": "spsa-2:pairs=4",
    "hsj": "hsj-60:around=5",
    "cw": "cw-4:search=2",
    "ead": "ead-4:search=2",
    "ddn": "ddn-5",
    "fmn": "fmn-5",
    "deepfool": "deepfool-3",
    "jsma": "jsma",
    "noise": "noise",
}


def test_the_list_of_small_attacks_is_whole() -> None:
    assert set(SMALL) == {entry["kind"] for entry in talion.catalogue()}


@pytest.mark.parametrize("entry", talion.catalogue(), ids=lambda entry: entry["kind"])
def test_every_attack_stays_inside_its_budget(
    entry: dict[str, Any], tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    norm = entry["norms"][0].lower()
    eps = {"linf": 0.1, "l2": 0.8, "l1": 4.0, "l0": 6.0}[norm]
    rows = slice(0, 6)
    result = talion.attack(tiny, images[rows], labels[rows], SMALL[entry["kind"]], eps=eps, norm=norm)
    change = (result.adversarial - images[rows]).flatten(1)
    size = {
        "linf": change.abs().amax(1),
        "l2": change.norm(dim=1),
        "l1": change.abs().sum(1),
        "l0": change.ne(0).sum(1).float(),
    }[norm]
    assert float(size.max()) <= eps * 1.0001 + 1e-6
    assert 0.0 <= float(result.adversarial.min()) and float(result.adversarial.max()) <= 1.0
    assert result.attack.startswith(entry["kind"])


CLASSES: list[type[talion.Attack]] = [
    talion.APGD,
    talion.APGDT,
    talion.AutoAttack,
    talion.BIM,
    talion.CW,
    talion.DDN,
    talion.DIFGSM,
    talion.DeepFool,
    talion.EAD,
    talion.EOTPGD,
    talion.FAB,
    talion.FABT,
    talion.FGSM,
    talion.FMN,
    talion.HopSkipJump,
    talion.JSMA,
    talion.MIM,
    talion.NIFGSM,
    talion.Noise,
    talion.PGD,
    talion.PGDL2,
    talion.SINIFGSM,
    talion.SPSA,
    talion.Square,
    talion.TIFGSM,
    talion.VMIFGSM,
]


def test_there_is_a_class_for_every_kind(tiny: torch.nn.Module) -> None:
    names = [made(tiny).name for made in CLASSES]  # type: ignore[call-arg]
    names.append(talion.APGD(tiny, loss="dlr").name)
    for name in names:
        assert talion.Attack(tiny, name).name == name
    kinds = sorted((entry["kind"] for entry in talion.catalogue()), key=len, reverse=True)
    found = {next((kind for kind in kinds if name.startswith(kind)), name) for name in names}
    assert found == {*kinds, "standard"}


def test_classes_pass_their_settings_on(tiny: torch.nn.Module) -> None:
    assert talion.PGD(tiny, alpha="2/255", steps=7, restarts=3).name == f"pgd-7x3:step={2 / 255!r}"
    assert talion.PGD(tiny, alpha=None, steps=7, random_start=False).name == "bim-7"
    assert talion.Square(tiny, queries=10, restarts=2).name.startswith("square-10x2")
    assert "search=3" in talion.CW(tiny, steps=5, search=3).name
    assert talion.CW(tiny).norm == "l2" and talion.CW(tiny).eps is None
    assert talion.AutoAttack(tiny, attacks=["pgd-2", "square:queries=5"]).name == "pgd-2,square-5"
    assert talion.PGDL2(tiny).norm == "l2"
    with pytest.raises(ValueError):
        talion.PGD(tiny, random_start=False, restarts=2)
    with pytest.raises(TypeError):
        talion.FGSM(tiny, strength=3)


def test_smallest_changes_have_no_limit_by_default(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    result = talion.DeepFool(tiny, steps=20).run(images, labels)
    assert result.success_rate > 0.9
    size = (result.adversarial - images).flatten(1).norm(dim=1)
    nearer = talion.attack(tiny, images, labels, "deepfool-20", eps=float(size.median()), norm="l2")
    assert 0.0 < nearer.success_rate < result.success_rate


def test_targets_are_aimed_at(tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    targets = (labels + 1) % 4
    result = talion.attack(tiny, images, targets=targets, attack="pgd-20", eps=0.3)
    assert torch.equal(result.success, result.predicted == targets)
    assert result.success_rate > 0.5
    same = talion.PGD(tiny, eps=0.3, alpha=None, steps=20)(images, targets=targets)
    assert torch.equal(same, result.adversarial)


def test_numpy_and_lists(tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    expected = talion.attack(tiny, images, labels, "pgd-3")
    array = images.numpy()
    for answer in [labels.numpy(), labels.numpy().astype(np.uint8), labels.tolist(), labels.int()]:
        result = talion.attack(tiny, array, answer, "pgd-3")
        assert isinstance(result.adversarial, np.ndarray)
        np.testing.assert_array_equal(result.adversarial, expected.adversarial.numpy())
        np.testing.assert_array_equal(result.success, expected.success.numpy())
    assert np.array_equal(array, images.numpy())


def test_autoattack(tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    wrong = labels.clone()
    wrong[0] = (wrong[0] + 1) % 4
    attack = talion.AutoAttack(tiny, eps=0.1, attacks=["apgd-ce-5", "fab-t-5:targets=2", "square-20"])
    result = attack.run(images, wrong, until_fooled=True)
    assert result.fooled_by is not None and result.fooled_by[0] == "none"
    assert result.stages[0].attack == "apgd-ce-5" and result.stages[0].given == 31
    for row, by in enumerate(result.fooled_by):
        assert bool(result.success[row]) == (by is not None)
        assert by in {None, "none", *(stage.attack for stage in result.stages)}
    predicted = tiny(result.adversarial).argmax(1)
    assert torch.equal(result.predicted, predicted)
    assert torch.equal(result.success, predicted != wrong)
    assert result.forward == sum(stage.forward for stage in result.stages)
    large = talion.AutoAttack(tiny, eps=0.9)
    assert large.name == "standard"
    assert talion.attack(tiny, images[:2], wrong[:2], "autoattack", eps=0.9).success_rate == 1.0


def test_fewer_images_at_once(tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    seen: list[int] = []

    def counted(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return tiny(batch)

    model = talion.Classifier(counted, classes=4)
    whole = talion.attack(model, images, labels, "mim-5", eps=0.1)
    assert max(seen) == 32
    seen.clear()
    parts = talion.attack(model, images, labels, "mim-5", eps=0.1, batch=8)
    assert max(seen) == 8
    assert float(((whole.adversarial - parts.adversarial).abs() > 1e-6).float().mean()) < 0.01


def test_what_has_no_gradient_is_refused_or_asked_without(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    def closed(batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return tiny(batch)

    with pytest.raises(talion.RefusedError, match="autograd"):
        talion.attack(closed, images, labels, "pgd-2")
    # fewer images than a batch, so that the driver compares batches of several sizes
    for name in ["square-30", "spsa-3:pairs=4", "hsj-40:around=4", "noise"]:
        norm = "l2" if name.startswith("hsj") else "linf"
        rows = slice(0, 5)
        blind = talion.attack(closed, images[rows], labels[rows], name, eps=0.2, norm=norm)
        seen = talion.attack(tiny, images[rows], labels[rows], name, eps=0.2, norm=norm)
        assert torch.equal(blind.adversarial, seen.adversarial)


def test_progress_is_told(tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    told: list[tuple[int, int]] = []
    many = images.repeat(3, 1, 1, 1), labels.repeat(3)
    talion.attack(tiny, *many, "pgd-2", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (96, 96)
    assert told == sorted(told)

    class Bar:
        total: Any = None
        done = 0

        def update(self, n: int) -> None:
            self.done += n

    bar = Bar()
    talion.attack(tiny, *many, "pgd-2", progress=bar)
    assert (bar.done, bar.total) == (96, 96)
    talion.attack(tiny, *many, "pgd-2", progress=True)
    with pytest.raises(TypeError):
        talion.attack(tiny, *many, "pgd-2", progress=3)  # type: ignore[arg-type]


def test_no_images_are_no_work(tiny: torch.nn.Module) -> None:
    result = talion.attack(tiny, torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), "pgd-2")
    assert result.adversarial.shape == (0, 1, 8, 8) and result.success_rate == 0.0
