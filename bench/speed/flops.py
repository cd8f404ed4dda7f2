"""Work, counted and measured: what a pass nominally costs, and how fast the machine can multiply."""

import time

import torch
from torch import Tensor, nn


def gradient(model: nn.Module, size: list[int]) -> int:
    """Operations of a forward pass and an input gradient for one image: two a multiply-add, convolutions and
    linear layers only, and the gradient as much again as the forward pass."""
    count = 0

    def add(module: nn.Module, _, output: Tensor) -> None:
        nonlocal count
        weight = module.weight
        # what a value of the output is a sum over
        terms = weight[0].numel() if weight.dim() == 4 else weight.shape[1]
        count += 2 * output.numel() * terms

    hooks = [
        module.register_forward_hook(add)
        for module in model.modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.dim() in (2, 4)
    ]
    with torch.no_grad():
        model(torch.zeros(1, *size))
    for hook in hooks:
        hook.remove()
    return 2 * count


def matmul(side: int, repeat: int = 10) -> float:
    """Billions of operations a second of a square product in f32, the best of several."""
    left, right = torch.rand(side, side), torch.rand(side, side)
    torch.mm(left, right)
    best = float("inf")
    for _ in range(repeat):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e9
