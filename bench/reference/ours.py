"""talion's side: its command, called as a user calls it."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from jobs import Job
from judge import UNLIMITED
from networks import sha256


class Talion:
    """The program, and a folder where it writes and where its answers are kept for rows that ask the same."""

    def __init__(self, program: Path, data: str, folder: Path):
        self.program, self.data, self.folder = program.resolve(), data, folder
        if not self.program.is_file():
            raise SystemExit(f"{program}: no such program; build talion, or name one with --talion")
        self.checksum = sha256(self.program)
        folder.mkdir(parents=True, exist_ok=True)
        if "--whole" not in self.call(["attack", "--help"]):
            raise SystemExit(f"{program}: `attack` has no --whole; it is older than this comparison")

    def call(self, arguments: list[str], threads: int = 1) -> str:
        """Runs a command; what it prints."""
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            words = done.stderr.strip().splitlines()[-3:]
            raise RuntimeError(f"talion {' '.join(arguments[:2])} failed: {' / '.join(words)}")
        return done.stdout

    def version(self) -> str:
        return self.call(["--version"]).strip()

    def images(self, count: int) -> dict[str, Tensor]:
        """The first images of the test split: `images`, `labels`, `ids`."""
        file = (
            self.folder / f"images-{hashlib.sha256(self.data.encode()).hexdigest()[:8]}-{count}.safetensors"
        )
        if not file.exists():
            part = file.with_suffix(".new")
            count = ["--images", str(count)]
            self.call(["data", "export", self.data, "--split", "test", *count, "-o", str(part)])
            part.rename(file)
        return load_file(file)

    def attack(self, model: Path, job: Job) -> tuple[dict, dict[str, Tensor], bool]:
        """The report and the tensors of `talion attack`, and whether they were there from an earlier row."""
        eps = job.eps if job.eps is not None else UNLIMITED[job.norm]
        arguments = ["attack", job.ours, "--data", self.data, "--images", str(job.images)]
        arguments += ["--norm", job.norm, "--eps", repr(eps), "--seed", str(job.seed), "--json"]
        arguments += ["--whole"] if job.whole else []
        arguments += [] if job.target is None else ["--target", str(job.target)]
        name = json.dumps([self.checksum, sha256(model), job.threads, arguments])
        file = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"
        report = file.with_suffix(".json")
        kept = file.exists() and report.exists()
        if not kept:
            # what an interrupted run left belongs to nobody
            file.with_suffix(".partial").unlink(missing_ok=True)
            printed = self.call([*arguments, "--model", str(model), "-o", str(file)], job.threads)
            report.write_text(printed)
        return json.loads(report.read_text()), load_file(file), kept
