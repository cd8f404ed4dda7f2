"""Tests of the comparison itself: python -m unittest, in this folder."""

import json
import tempfile
import unittest
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import jobs
import judge
import networks
import table
from counting import Counted

HERE = Path(__file__).resolve().parent


def checkpoint(folder: Path, architecture: str) -> Path:
    """A file as talion writes it, with random weights."""
    torch.manual_seed(1)
    state = networks.build(architecture, 1, 10).state_dict()
    # PyTorch counts the batches that a norm has seen; talion does not
    state = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    tensors = {name: torch.rand_like(tensor) / 10 for name, tensor in state.items()}
    spec = {"architecture": architecture, "channels": 1, "classes": 10, "mean": [0.3], "std": [0.4]}
    card = {"kind": "classifier", "spec": spec, "training": {"epochs": 1}, "metrics": {}}
    file = folder / f"{architecture}.safetensors"
    save_file(tensors, file, metadata={"talion": json.dumps(card)})
    return file


class Networks(unittest.TestCase):
    def test_folding_changes_no_logit(self):
        with tempfile.TemporaryDirectory() as folder:
            model = networks.load(checkpoint(Path(folder), "resnet18-w2"))
        unit = model.network.stem
        x = torch.rand(3, 1, 28, 28)
        norm = unit.norm
        plain = nn.functional.batch_norm(
            unit.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=networks.EPSILON
        )
        self.assertLess(float((plain - unit(x)).abs().max()), 1e-5)
        self.assertEqual(model(x).shape, (3, 10))

    def test_every_family_answers_alike_plain_and_folded(self):
        x = torch.rand(3, 1, 28, 28)
        for name in ("resnet18-w2", "preactresnet18-w2", "vgg16bn-w2", "wrn-28-1", "cnn-small-w2"):
            with tempfile.TemporaryDirectory() as folder:
                file = checkpoint(Path(folder), name)
                folded, plain = networks.load(file), networks.load(file, plain=True)
            expected = plain(x).detach()
            self.assertEqual(expected.shape, (3, 10))
            self.assertLess(float((folded(x) - expected).abs().max()), 1e-5 * float(expected.abs().max() + 1))
            self.assertFalse(any(weight.requires_grad for weight in folded.parameters()))
            self.assertTrue(all(weight.requires_grad for weight in plain.parameters()))
        with self.assertRaises(SystemExit):
            networks.build("resnet19-w2", 1, 10)

    def test_a_checkpoint_with_other_tensors_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            card, tensors = networks.read(checkpoint(Path(folder), "cnn-small-w2"))
        for wrong in (
            {name: tensor for name, tensor in tensors.items() if name != "head.bias"},
            tensors | {"more": torch.zeros(1)},
            tensors | {"head.bias": torch.zeros(9)},
        ):
            with self.assertRaises(RuntimeError):
                networks.Classifier(card, wrong)

    def test_a_saturated_copy_predicts_the_same_and_has_no_gradient(self):
        import sys
        from unittest import mock

        import saturate

        with tempfile.TemporaryDirectory() as folder:
            file, copy = checkpoint(Path(folder), "cnn-small-w2"), Path(folder) / "copy.safetensors"
            arguments = ["saturate.py", str(file), str(copy), "--factor", "100000"]
            with mock.patch.object(sys, "argv", arguments), mock.patch("builtins.print"):
                saturate.main()
            model, saturated = networks.load(file), networks.load(copy)
        x = torch.rand(4, 1, 28, 28)
        self.assertTrue(model(x).argmax(1).equal(saturated(x).argmax(1)))
        point = x.clone().requires_grad_(True)
        loss = nn.functional.cross_entropy(saturated(point), model(x).argmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
        self.assertEqual(float(gradient.abs().max()), 0.0)
        self.assertEqual(saturated.card["training"]["saturated"]["factor"], 100000)


class Counting(unittest.TestCase):
    def test_ten_derivatives_of_one_answer_are_one_forward_and_ten_backward_passes(self):
        model = Counted(nn.Sequential(nn.Flatten(), nn.Linear(4, 10)))
        x = torch.rand(3, 1, 2, 2, requires_grad=True)
        logits = model(x)
        for number in range(10):
            torch.autograd.grad(logits[:, number].sum(), x, retain_graph=True)
        self.assertEqual(model.passes(), {"forward": 3, "backward": 30})

    def test_differentiating_the_logits_themselves_counts(self):
        model = Counted(nn.Sequential(nn.Flatten(), nn.Linear(4, 10)))
        x = torch.rand(3, 1, 2, 2, requires_grad=True)
        logits = model(x)
        logits.backward(torch.ones_like(logits))
        with torch.no_grad():
            model(x)
        self.assertEqual(model.passes(), {"forward": 6, "backward": 3})


class Brightness(nn.Module):
    """Says 1 where the first value is above a half."""

    def forward(self, images: Tensor) -> Tensor:
        first = images.flatten(1)[:, 0]
        return torch.stack([0.5 - first, first - 0.5], 1)


class Judging(unittest.TestCase):
    def test_distances(self):
        original = torch.zeros(1, 1, 2, 2)
        adversarial = torch.tensor([0.3, -0.4, 0.0, 0.0]).view(1, 1, 2, 2)
        expected = {"linf": 0.4, "l2": 0.5, "l1": 0.7, "l0": 2.0}
        for norm, value in expected.items():
            self.assertAlmostEqual(float(judge.distances(norm, original, adversarial)), value, places=6)

    def verdict(self, values: list[float], eps: float | None) -> judge.Verdict:
        images = torch.full((len(values), 1, 1, 1), 0.4)
        labels = torch.zeros(len(values), dtype=torch.long)
        adversarial = torch.tensor(values).view(-1, 1, 1, 1)
        return judge.Verdict(Brightness(), images, labels, adversarial, norm="linf", eps=eps, target=None)

    def test_what_lies_outside_is_no_success(self):
        verdict = self.verdict([0.4, 0.6, 0.61, float("nan"), 1.1], 0.2)
        self.assertEqual(verdict.fooled.tolist(), [False, True, False, False, False])
        found = verdict.violations()
        self.assertEqual((found["images"], found["of_these_nan"]), (3, 1))
        self.assertAlmostEqual(found["most_beyond_box"], 0.1, places=6)
        self.assertAlmostEqual(found["most_beyond_budget"], 0.5, places=6)

    def test_rounding_is_forgiven(self):
        self.assertTrue(self.verdict([0.6 + 5e-7], 0.2).fooled.all())

    def test_without_a_budget_the_box_still_holds(self):
        self.assertEqual(self.verdict([1.0, 1.1], None).fooled.tolist(), [True, False])

    def test_medians(self):
        infinite = float("inf")
        self.assertEqual(judge.middle(torch.tensor([3.0, 1.0, 2.0])), 2.0)
        self.assertEqual(judge.middle(torch.tensor([1.0, 2.0])), 1.5)
        self.assertIsNone(judge.middle(torch.tensor([1.0, infinite])))
        self.assertIsNone(judge.middle(torch.tensor([])))


class Configs(unittest.TestCase):
    def test_the_configs_are_read_and_their_rows_differ(self):
        for name in ("smoke.toml", "fashion-mnist.toml"):
            config = jobs.load(HERE / name)
            keys = {job.key("x") for job in config.jobs}
            self.assertEqual(len(keys), len(config.jobs), name)

    def test_steps_are_shares_of_the_budget(self):
        for job in jobs.load(HERE / "smoke.toml").jobs:
            if job.attack == "PGD" and job.classifier == "standard":
                self.assertAlmostEqual(job.step, 2 / 255)
                self.assertEqual(job.ours, f"pgd-5:step={job.step!r}")

    def test_prose_does_not_make_another_row(self):
        job = jobs.load(HERE / "smoke.toml").jobs[0]
        key = job.key("x")
        job.note = "other words"
        self.assertEqual(job.key("x"), key)
        self.assertNotEqual(job.key("y"), key)


class Marks(unittest.TestCase):
    bounds = {"attack": 0.5, "cascade": 0.2, "minimum": 0.02}

    def row(self, theirs: dict, own: dict, kind: str) -> dict:
        return {"kind": kind, "peer": {"violations": None} | theirs, "ours": {"violations": None} | own}

    def test_accuracies(self):
        share = lambda value: {"robust": {"share": value}}  # noqa: E731
        for own, kind, expected in (
            (0.305, "attack", "yes"),
            (0.306, "attack", "NO"),
            (0.1, "attack", "yes"),
            (0.302, "cascade", "yes"),
            (0.303, "cascade", "NO"),
        ):
            self.assertEqual(table.mark(self.row(share(0.3), share(own), kind), self.bounds), expected)

    def test_smallest_changes(self):
        def side(success: float, everywhere: float | None, both: float | None) -> dict:
            return {"smallest": {"success": success, "median_all": everywhere, "median_both": both}}

        for theirs, own, expected in (
            (side(1, 1.0, 1.0), side(1, 1.02, 1.0), "yes"),
            (side(1, 1.0, 1.0), side(1, 1.03, 1.0), "NO"),
            (side(1, 1.0, 1.0), side(0.9, 0.5, 0.5), "NO"),
            (side(0.4, None, 1.0), side(0.6, 2.0, 1.0), "yes"),
            (side(0, None, None), side(0, None, None), "-"),
        ):
            self.assertEqual(table.mark(self.row(theirs, own, "minimum"), self.bounds), expected)

    def test_a_failed_side_is_not_judged(self):
        row = self.row({"error": "x"}, {"robust": {"share": 0.1}}, "attack")
        self.assertEqual(table.mark(row, self.bounds), "-")


if __name__ == "__main__":
    unittest.main()
