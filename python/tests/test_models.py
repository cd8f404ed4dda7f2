"""Classifiers of every origin, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import talion


def test_a_module_answers_as_it_does_by_itself(tiny: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        expected = tiny(images)
    model = talion.Classifier(tiny)
    assert model.classes is None
    assert torch.equal(model(images), expected)
    assert model.classes == 4
    assert model.class_names == ["0", "1", "2", "3"]
    assert torch.equal(model.predict(images), expected.argmax(1))
    assert torch.equal(model.predict(images[:5]), expected.argmax(1)[:5])


def test_standardisation_happens_inside(images: torch.Tensor) -> None:
    seen = []

    def look(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.detach().clone())
        return batch.flatten(1)[:, :3]

    talion.Classifier(look, mean=[0.3], std=[0.2], classes=3)(images)
    torch.testing.assert_close(seen[-1], (images - 0.3) / 0.2)
    three = images.repeat(1, 3, 1, 1)
    mean, std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    talion.Classifier(look, mean=mean, std=std, classes=3)(three)
    expected = (three - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(seen[-1], expected)
    with pytest.raises(talion.ShapeError):
        talion.Classifier(look, mean=mean, std=std, classes=3)(images)


def test_a_model_cannot_change_the_images(images: torch.Tensor) -> None:
    def careless(batch: torch.Tensor) -> torch.Tensor:
        return batch.mul_(2.0).sub_(1.0).flatten(1)[:, :4]

    before = images.clone()
    adversarial = talion.FGSM(careless, eps=0.1)(images, torch.zeros(32, dtype=torch.int64))
    assert torch.equal(images, before)
    assert bool(((adversarial - before).abs() <= 0.1 + 1e-6).all())


def test_files_give_what_the_bundled_network_gives(
    bundled: talion.Classifier, classifier_file: Path, clothes: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, labels = clothes
    file = talion.Classifier(classifier_file)
    assert torch.equal(file(images), bundled(images))
    assert file.classes == 10 and file.class_names == bundled.class_names
    assert file.card is not None and file.card["image_size"] == [28, 28]
    assert float((file.predict(images) == labels).float().mean()) > 0.8


def test_onnx_gives_what_the_module_gives(
    tiny: torch.nn.Module,
    images: torch.Tensor,
    onnx_file: Callable[[torch.nn.Module, torch.Tensor], Path],
) -> None:
    with torch.no_grad():
        torch.testing.assert_close(talion.Classifier(onnx_file(tiny, images))(images), tiny(images))


def test_numpy_in_numpy_out(tiny: torch.nn.Module, images: torch.Tensor) -> None:
    model = talion.Classifier(tiny)
    logits = model(images.numpy())
    assert isinstance(logits, np.ndarray) and logits.dtype == np.float32
    np.testing.assert_array_equal(logits, model(images).detach().numpy())
    # double precision, read-only and not contiguous
    awkward = np.ascontiguousarray(images.numpy().astype(np.float64)[:, :, ::-1])[:, :, ::-1]
    awkward.flags.writeable = False
    np.testing.assert_array_equal(model.predict(awkward), model.predict(images).numpy())


def test_logits_are_in_the_graph(tiny: torch.nn.Module, images: torch.Tensor) -> None:
    points = images.clone().requires_grad_()
    talion.Classifier(tiny)(points).square().sum().backward()
    expected = images.clone().requires_grad_()
    tiny(expected).square().sum().backward()
    torch.testing.assert_close(points.grad, expected.grad)
    with torch.no_grad():
        assert not talion.Classifier(tiny)(points).requires_grad


def test_inference_mode_is_no_obstacle(tiny: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        inside = images.clone()
        result = talion.attack(tiny, inside, torch.zeros(32, dtype=torch.int64), "bim-2", eps=0.1)
    assert not torch.equal(result.adversarial, images)


def test_outputs_with_logits_are_understood(tiny: torch.nn.Module, images: torch.Tensor) -> None:
    model = talion.Classifier(lambda batch: SimpleNamespace(logits=tiny(batch)))
    assert torch.equal(model.predict(images), tiny(images).argmax(1))


class Moody(torch.nn.Module):
    """Answers differently in training mode; one part is always in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(1)
        self.frozen = torch.nn.BatchNorm2d(1)
        self.drop = torch.nn.Dropout(0.5)
        self.modes: list[bool] = []
        self.train()
        self.frozen.eval()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.modes += [self.norm.training, self.drop.training]
        return self.drop(self.frozen(self.norm(batch))).flatten(1)[:, :3]


def test_modules_are_used_in_evaluation_mode_and_put_back(images: torch.Tensor) -> None:
    module = Moody()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    talion.attack(module, images, torch.zeros(32, dtype=torch.int64), "pgd-2")
    assert module.modes and not any(module.modes)
    assert module.training and module.norm.training and module.drop.training and not module.frozen.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(talion.RangeError):
        talion.attack(module, images + 1, torch.zeros(32, dtype=torch.int64), "pgd-2")
    assert module.norm.training and not module.frozen.training


def test_modes_are_put_back_when_the_last_of_several_users_leaves(images: torch.Tensor) -> None:
    module = Moody()
    inside, leave = threading.Event(), threading.Event()

    def wait(done: int, total: int) -> None:
        inside.set()
        leave.wait(10)

    zeros = torch.zeros(32, dtype=torch.int64)
    other = threading.Thread(
        target=lambda: talion.attack(module, images, zeros, "pgd-2", progress=wait), daemon=True
    )
    other.start()
    assert inside.wait(10)
    talion.attack(module, images, zeros, "fgsm")
    assert not module.norm.training
    leave.set()
    other.join(30)
    assert module.norm.training and not module.frozen.training


def test_parameters_are_left_alone(tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    frozen = next(tiny.parameters())
    frozen.requires_grad_(False)
    talion.attack(tiny, images, labels, "pgd-2")
    assert [parameter.requires_grad for parameter in tiny.parameters()] == [False, True, True, True]
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_errors_have_the_kinds_that_programs_expect(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, tmp_path: Path
) -> None:
    def raises(
        kind: type[Exception], builtin: type[Exception], *arguments: object, **settings: object
    ) -> None:
        with pytest.raises(kind) as caught:
            talion.attack(*arguments, **settings)  # type: ignore[type-var, arg-type]
        assert isinstance(caught.value, (talion.TalionError, builtin))
        assert isinstance(caught.value, builtin)
        assert str(caught.value)

    raises(talion.RangeError, ValueError, tiny, images * 255, labels)
    raises(talion.RangeError, ValueError, tiny, images * float("nan"), labels)
    raises(talion.RangeError, ValueError, tiny, (images * 255).to(torch.uint8), labels)
    raises(talion.RangeError, ValueError, tiny, images, labels + 4)
    raises(talion.RangeError, ValueError, tiny, images, labels, eps=-1.0)
    raises(talion.RangeError, ValueError, tiny, images, labels, eps="a lot")
    raises(talion.RangeError, ValueError, tiny, images, labels, batch=0)
    raises(talion.RangeError, ValueError, tiny, images, labels, ids=[1, 2])
    raises(talion.ShapeError, ValueError, tiny, images[0], labels)
    raises(talion.ShapeError, ValueError, tiny, images, labels[:3])
    raises(talion.UnknownNameError, ValueError, tiny, images, labels, "magic")
    raises(talion.UnknownNameError, ValueError, tiny, images, labels, "pgd", norm="l7")
    raises(talion.RefusedError, talion.TalionError, tiny, images, labels, "square-5", norm="l0", eps=3)
    raises(TypeError, TypeError, tiny, images)
    raises(TypeError, TypeError, tiny, images.tolist(), labels)
    raises(TypeError, TypeError, 5, images, labels)
    raises(TypeError, TypeError, lambda batch: "a cat", images, labels)
    raises(ValueError, ValueError, lambda batch: batch, images, labels)
    wrong = talion.Classifier(tiny, classes=7)
    raises(talion.ShapeError, ValueError, wrong, images, labels)

    missing = tmp_path / "none.safetensors"
    with pytest.raises(talion.FileError) as caught:
        talion.Classifier(missing)
    assert isinstance(caught.value, OSError)
    with pytest.raises(talion.FileError) as caught:
        talion.TRN.load(missing)
    assert caught.value.errno == 2 and caught.value.filename == str(missing)
    missing.write_bytes(b"nothing of the kind")
    with pytest.raises(talion.FileError):
        talion.TRN.load(missing)
    with pytest.raises(TypeError):
        talion.Classifier(missing, classes=3)
    with pytest.raises(talion.UnknownNameError):
        talion.Classifier.bundled("nobody")


def test_files_refuse_images_with_other_channels(bundled: talion.Classifier) -> None:
    with pytest.raises(talion.ShapeError):
        bundled(torch.rand(2, 3, 28, 28))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_stay_on_their_device(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    result = talion.attack(tiny.cuda(), images.cuda(), labels.cuda(), "pgd-3")
    assert result.adversarial.device.type == result.success.device.type == "cuda"
    result = talion.attack(tiny, images, labels, "pgd-3")
    assert result.adversarial.device.type == "cpu"
