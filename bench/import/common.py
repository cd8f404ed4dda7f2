"""What the scripts of this folder share: talion's examples as programs, comparing, machines, tables, files."""

import hashlib
import json
import math
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EXAMPLES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/examples"
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "numpy")


class Failed(Exception):
    """A program or a step that ended with an error; the text is for the result."""


def program(folder: Path, name: str) -> Path:
    """The example `name` of talion's."""
    path = folder / name
    if not path.is_file():
        raise SystemExit(f"{path}: no such program; cargo build --release --workspace --examples makes it")
    return path


def call(command: list, threads: int, limit: float = 600.0) -> subprocess.CompletedProcess:
    """Runs a program with so many threads; an exit status other than 0 is `Failed`, with its last words."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise Failed(f"{Path(command[0]).name}: not done after {limit:.0f} s") from None
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Failed(" / ".join(words[-3:])[:600])
    return done


def first_line(error: BaseException) -> str:
    """An error in a line."""
    words = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {words[0]}"[:300]


def relative(found, expected) -> float:
    """The largest difference, by the largest expected value (or absolute, where all are zero)."""
    if tuple(found.shape) != tuple(expected.shape):
        raise Failed(f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    found, expected = found.double(), expected.double()
    off, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    if not math.isfinite(off):
        raise Failed("values that are not finite")
    return off / scale if scale > 0 else off


def about(programs: list[Path], threads: int) -> dict:
    """With what a result was made."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "programs": {path.name: sha256(path) for path in programs},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "threads": threads,
    }


def sha256(path: Path) -> str:
    """The checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def processor() -> str:
    """What the processor is called, where the system says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def described(about: dict) -> str:
    """The same in a sentence or two."""
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    machine = about["machine"]
    return (
        f"{packages}, Python {about['python']}; {machine['processor']}, {machine['cores']} cores seen by the "
        f"system, {about['threads']} threads."
    )


def markdown(table: list[list[str]]) -> str:
    """A table whose first row is its heading."""
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def short(number: float | None) -> str:
    """An error in a cell."""
    return "" if number is None else f"{number:.1e}"


def save(path: Path, content: dict, page: str) -> None:
    """Writes a result, and as a page beside it, each whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, text in ((path, json.dumps(content, indent=1) + "\n"), (path.with_suffix(".md"), page)):
        part = target.with_name(target.name + ".new")
        part.write_text(text)
        os.replace(part, target)
