"""Evaluates a module of your own, and writes a report.

    python evaluate_a_module.py run-folder

Press Ctrl-C and call it again: it goes on where it was.
"""

from __future__ import annotations

import sys

import torch

import talion


def linear(images: torch.Tensor, labels: torch.Tensor) -> torch.nn.Module:
    """A linear classifier: a pseudo-inverse, so that every call makes the same one."""
    points = torch.cat([images.flatten(1), torch.ones(len(images), 1)], dim=1).double()
    goals = torch.nn.functional.one_hot(labels, 10).double()
    solution = torch.linalg.solve(points.T @ points + 10.0 * torch.eye(points.shape[1]), points.T @ goals)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    with torch.no_grad():
        module[1].weight.copy_(10.0 * solution[:-1].T)
        module[1].bias.copy_(10.0 * solution[-1])
    return module


def main(folder: str) -> None:
    images, labels = talion.fashion_mnist_sample(1000)
    module = linear(images[:700], labels[:700])
    report = talion.evaluate(
        talion.Classifier(module, class_names=talion.Classifier.bundled().class_names),
        images[700:],
        labels[700:],
        protocol="quick",
        surrogates={"surrogate": talion.Classifier.bundled("surrogate")},
        out=folder,
        name="fashion-mnist-sample, 700 to 999",
        progress=True,
    )
    print(report)
    print("to believe:", report.worst)
    for path in report.save_html(f"{folder}/report.html"):
        print(path, "written")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    main(sys.argv[1])
