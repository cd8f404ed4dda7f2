"""Puts the bundled restoration network in front of the bundled classifier, and attacks both.

    python defend_a_classifier.py

The defence undoes most of what an attacker does who does not know it. One who does know it differentiates through it; the
last line is about that one, and it is the number to believe.
"""

from __future__ import annotations

import torch

import talion


def share(found: torch.Tensor, labels: torch.Tensor) -> str:
    return f"{100 * float((found == labels).float().mean()):5.1f} %"


def main() -> None:
    images, labels = talion.fashion_mnist_sample(64)
    model = talion.Classifier.bundled()
    defended = talion.Defended(model, talion.TRN.bundled())
    print("clean                      bare", share(model.predict(images), labels), end="")
    print("   defended", share(defended.predict(images), labels))

    result = talion.attack(model, images, labels, "pgd-20", eps="8/255", progress=True)
    print("PGD-20 on the bare one     bare", share(result.predicted, labels), end="")
    print("   defended", share(defended.predict(result.adversarial), labels))

    few = slice(0, 16)
    result = talion.attack(defended, images[few], labels[few], "pgd-10", eps="8/255", progress=True)
    print("PGD-10 through the defence                 defended", share(result.predicted, labels[few]))


if __name__ == "__main__":
    main()
