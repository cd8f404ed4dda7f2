"""The defence: restored images, gradients through it, and its use as a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import talion

Clothes = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def few(clothes: Clothes) -> Clothes:
    return clothes[0][:8], clothes[1][:8]


@pytest.fixture(scope="module")
def defended(bundled: talion.Classifier, trn: talion.TRN) -> talion.Defended:
    return talion.Defended(bundled, trn)


def gradient(model: talion.Model, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    points = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(points), labels, reduction="sum").backward()
    assert points.grad is not None
    return points.grad


def test_the_network_says_what_it_is(trn: talion.TRN, trn_file: Path) -> None:
    file = talion.TRN.load(trn_file)
    assert (file.classes, file.channels, file.parameters) == (10, 1, trn.parameters)
    assert file.card == trn.card and file.card["kind"] == "trn"
    assert "10 classes" in repr(file)
    assert talion.TRN.bundled("one-stream").parameters < trn.parameters


def test_answers_are_those_to_restored_images(
    bundled: talion.Classifier, defended: talion.Defended, few: Clothes
) -> None:
    restored = defended.restore(few[0])
    assert restored.shape == few[0].shape
    assert 0.0 <= float(restored.min()) and float(restored.max()) <= 1.0
    assert torch.equal(defended(few[0]), bundled(restored))
    assert torch.equal(defended.predict(few[0]), bundled.predict(restored))
    oblivious = talion.Defended(bundled, defended.trn, "oblivious")
    assert torch.equal(oblivious(few[0]), bundled(few[0]))


def test_gradient_maps(bundled: talion.Classifier, defended: talion.Defended, few: Clothes) -> None:
    maps = defended.gradient_maps(few[0])
    assert maps is not None and maps.shape == (8, 3, 28, 28)
    assert float(maps.abs().max()) <= 1.0
    assert talion.Defended(bundled, talion.TRN.bundled("one-stream")).gradient_maps(few[0]) is None


def test_the_graph_goes_through_the_defence(
    bundled: talion.Classifier, defended: talion.Defended, few: Clothes
) -> None:
    exact = gradient(defended, *few)
    assert float(exact.abs().max()) > 0.0 and bool(exact.isfinite().all())
    # a live model in front of which the same network stands: the graph is PyTorch's from end to end
    live = gradient(talion.Defended(lambda batch: bundled(batch), defended.trn), *few)
    torch.testing.assert_close(live, exact, rtol=1e-4, atol=1e-6)
    detached = gradient(talion.Defended(bundled, defended.trn, "detached"), *few)
    bpda = gradient(talion.Defended(bundled, defended.trn, "bpda"), *few)
    assert not torch.allclose(exact, detached) and not torch.allclose(detached, bpda)
    with torch.no_grad():
        restored = defended.restore(few[0])
    torch.testing.assert_close(bpda, gradient(bundled, restored, few[1]), rtol=1e-4, atol=1e-6)


def test_restoring_is_differentiable(defended: talion.Defended, few: Clothes) -> None:
    points = few[0].clone().requires_grad_()
    defended.restore(points).sum().backward()
    assert points.grad is not None and float(points.grad.abs().max()) > 0.0


def test_a_module_behind_a_defence_can_be_trained(trn: talion.TRN, few: Clothes) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    loss = torch.nn.functional.cross_entropy(talion.Defended(module, trn)(few[0]), few[1])
    loss.backward()
    weight = module[1].weight
    assert weight.grad is not None and float(weight.grad.abs().max()) > 0.0


def test_a_defended_model_is_a_model(defended: talion.Defended, trn: talion.TRN, few: Clothes) -> None:
    result = talion.attack(defended, *few, "fgsm", eps="8/255")
    assert torch.equal(result.predicted, defended.predict(result.adversarial))
    # in front of a model that uses the same restoration network itself
    twice = talion.Defended(lambda batch: defended(batch), trn, "bpda")
    assert twice(few[0][:2]).shape == (2, 10)


def test_what_does_not_fit_is_refused(
    tiny: torch.nn.Module, bundled: talion.Classifier, trn: talion.TRN, images: torch.Tensor
) -> None:
    with pytest.raises(talion.RangeError, match="classes"):
        talion.Defended(tiny, trn)(images)
    with pytest.raises(ValueError):
        talion.Defended(bundled, trn, "sideways")  # type: ignore[arg-type]
    with pytest.raises(talion.ShapeError):
        talion.Defended(bundled, trn)(torch.rand(2, 3, 28, 28))
    with pytest.raises(talion.FileError):
        talion.Defended(bundled, "missing.safetensors")
