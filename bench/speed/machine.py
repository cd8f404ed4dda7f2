"""What a figure depends on besides the programs: the processor, its memory, who else is busy."""

import os
import platform
from pathlib import Path

# flags that decide which kernels run
TELLING = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)


def text(path: str) -> str:
    """A file of the system, or nothing where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def field(content: str, name: str) -> str:
    """The first value of a line `name: value`."""
    for line in content.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return ""


def flags() -> list[str]:
    """Those of the telling flags that the processor has."""
    content = text("/proc/cpuinfo")
    found = set((field(content, "flags") or field(content, "Features")).split())
    return [flag for flag in TELLING if flag in found]


def bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware."""
    return bool({"avx512_bf16", "amx_bf16"} & set(flags()))


def about() -> dict:
    """The machine."""
    content = text("/proc/cpuinfo")
    memory = field(text("/proc/meminfo"), "MemTotal").split()
    return {
        "processor": field(content, "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(int(memory[0]) / 2**20, 1) if memory else None,
        "flags": flags(),
        "system": f"{platform.system()} {platform.release()}",
    }


def load() -> float:
    """How many processes have been busy during the last minute, on average."""
    return os.getloadavg()[0]


def peak_kib(process: str = "self") -> int:
    """The most memory that a process has held so far."""
    value = field(text(f"/proc/{process}/status"), "VmHWM").split()
    if not value:
        raise OSError("the system does not say how much memory a process has held")
    return int(value[0])
