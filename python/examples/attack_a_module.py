"""Attacks a module of your own, in the way of the attack libraries that you may know.

    python attack_a_module.py

A small network is trained on 800 of the bundled images, in seconds, and attacked on 200 others.
"""

from __future__ import annotations

import torch

import talion


def trained(images: torch.Tensor, labels: torch.Tensor) -> torch.nn.Module:
    torch.manual_seed(1)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 14 * 14, 10),
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(15):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(images[rows]), labels[rows]).backward()
            optimizer.step()
    return module


def main() -> None:
    images, labels = talion.fashion_mnist_sample(1000)
    module = trained(images[:800], labels[:800])
    images, labels = images[800:], labels[800:]
    clean = float((module(images).argmax(1) == labels).float().mean())
    print(f"{'clean':>12}: {100 * clean:.1f} % right")

    eps = 8 / 255
    attacks = [
        talion.Noise(module, eps),
        talion.FGSM(module, eps),
        talion.PGD(module, eps, alpha=2 / 255, steps=10),
        talion.MIM(module, eps, alpha=2 / 255, steps=10),
        talion.APGD(module, eps, steps=20),
        talion.Square(module, eps, queries=200),
    ]
    for attack in attacks:
        adversarial = attack(images, labels)
        right = float((module(adversarial).argmax(1) == labels).float().mean())
        print(f"{type(attack).__name__:>12}: {100 * right:.1f} % right")


if __name__ == "__main__":
    main()
