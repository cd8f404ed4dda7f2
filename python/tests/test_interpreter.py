"""Living together with the interpreter: other threads, Ctrl-C, exceptions, grad mode."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import talion


@contextmanager
def after(seconds: float) -> Iterator[None]:
    """Presses Ctrl-C after so many seconds."""
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_other_threads_go_on(bundled: talion.Classifier, clothes: tuple[torch.Tensor, torch.Tensor]) -> None:
    count, stop = 0, threading.Event()

    def work() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1

    other = threading.Thread(target=work, daemon=True)
    other.start()
    try:
        before = count
        talion.attack(bundled, *clothes, "pgd-5")
        assert count - before > 1000
    finally:
        stop.set()
        other.join(10)


def test_two_attacks_at_once(tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    expected = talion.attack(tiny, images, labels, "pgd-20").adversarial
    found: list[torch.Tensor] = []

    def work() -> None:
        found.append(talion.attack(tiny, images, labels, "pgd-20").adversarial)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3 and all(torch.equal(one, expected) for one in found)


def test_ctrl_c_stops_an_attack_on_a_file(
    bundled: talion.Classifier, clothes: tuple[torch.Tensor, torch.Tensor]
) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), after(0.3):
        talion.attack(bundled, *clothes, "pgd-100000")
    assert time.monotonic() - began < 5.0


def test_ctrl_c_stops_an_attack_on_a_module(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    tiny.train()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), after(0.3):
        talion.attack(tiny, images, labels, "pgd-1000000")
    assert time.monotonic() - began < 3.0
    assert tiny.training
    # nothing is left behind
    assert talion.attack(tiny, images, labels, "pgd-2").backward == 64


def test_an_interrupt_from_another_thread_stops_too(
    bundled: talion.Classifier, clothes: tuple[torch.Tensor, torch.Tensor]
) -> None:
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        talion.attack(bundled, *clothes, "square-100000", eps=1e-4)
    timer.join()


class Broken(Exception):
    pass


def test_exceptions_of_the_model_come_out_unchanged(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    exception = Broken("on the third call", 3)
    calls = 0

    def model(batch: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise exception
        return tiny(batch)

    for grad in [True, False]:
        calls = 0
        with torch.set_grad_enabled(grad), pytest.raises(Broken) as caught:
            talion.attack(talion.Classifier(model, classes=4), images, labels, "pgd-20")
        assert caught.value is exception and calls == 3
    assert torch.is_grad_enabled()
    with torch.no_grad():
        calls = 0
        with pytest.raises(Broken):
            talion.attack(talion.Classifier(model, classes=4), images, labels, "pgd-20")
        assert not torch.is_grad_enabled()


def test_exceptions_of_a_backward_pass_come_out_unchanged(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, batch: torch.Tensor) -> torch.Tensor:
            return batch.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            raise Broken("backwards")

    with pytest.raises(Broken, match="backwards"):
        talion.attack(lambda batch: tiny(Refuses.apply(batch)), images, labels, "pgd-2")
    assert torch.is_grad_enabled()


def test_exceptions_of_progress_come_out_unchanged(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    def refuse(done: int, total: int) -> None:
        raise Broken("no more")

    with pytest.raises(Broken):
        talion.attack(tiny, images, labels, "pgd-20", progress=refuse)


def test_errors_of_libtorch_are_errors(images: torch.Tensor, labels: torch.Tensor) -> None:
    # logits that have a gradient, but not with respect to the images
    weight = torch.ones(4, requires_grad=True)
    with pytest.raises(talion.TorchError):
        talion.attack(lambda batch: weight.expand(len(batch), 4) * 1.0, images, labels, "pgd-2")
    assert torch.is_grad_enabled()
    # errors inside a module are the module's own
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        talion.Classifier(torch.nn.Linear(5, 3))(images)
