"""A worker: a process that answers a line of JSON with another, or is ended when its time is over."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path


class WorkerError(Exception):
    """A worker refused, broke off, or took too long."""

    def __init__(self, message: str, skipped: bool = False):
        super().__init__(message)
        self.skipped = skipped


def environment(threads: int) -> dict[str, str]:
    """What both sides are started in: every library that counts threads for itself is told the number."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return os.environ | {name: str(threads) for name in names}


class Worker:
    """A process in a group of its own, so that an interrupt from the keyboard reaches the driver alone."""

    def __init__(self, command: list[str], threads: int, log: Path, timeout: float):
        self.started = time.perf_counter()
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [*command, "--threads", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                env=environment(threads),
                start_new_session=True,
            )
        self.buffer, self.busy = b"", True
        try:
            greeting = self.read(timeout)
            if not greeting.get("ready"):
                raise WorkerError(f"the worker's first line is {json.dumps(greeting)[:200]}")
            if greeting.get("threads") != threads:
                raise WorkerError(f"the worker uses {greeting.get('threads')} threads instead of {threads}")
        except BaseException:
            self.end()
            raise
        self.about = greeting.get("about", {})

    def ask(self, request: dict, timeout: float) -> dict:
        """The answer; a worker that fails to give one is ended."""
        self.busy = True
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self.broken() from error
        answer = self.read(timeout)
        if not answer.get("ok"):
            raise WorkerError(str(answer.get("error", "no reason given")), bool(answer.get("skipped")))
        return answer

    def read(self, timeout: float) -> dict:
        """The next line."""
        until = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.buffer:
                left = until - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self.end()
                    raise WorkerError(f"no answer within {timeout:g} s")
                part = os.read(self.process.stdout.fileno(), 1 << 16)
                if not part:
                    raise self.broken()
                self.buffer += part
        line, self.buffer = self.buffer.split(b"\n", 1)
        self.busy = False
        try:
            return json.loads(line)
        except ValueError as error:
            self.end()
            raise WorkerError(f"the worker said {line[:200]!r}, which is no JSON") from error

    def broken(self) -> WorkerError:
        self.end()
        return WorkerError(f"the worker ended with {self.process.returncode}")

    def alive(self) -> bool:
        return self.process.poll() is None

    def quit(self) -> None:
        """Lets the worker go, gently if it listens."""
        if not self.busy and self.alive():
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self.process.stdin.write(b'{"op": "quit"}\n')
                self.process.stdin.close()
                self.process.wait(5)
        self.end()

    def end(self) -> None:
        """Ends the worker and whatever it has started."""
        # the group may outlive its leader, as compilers do
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(OSError):
                    pipe.close()
