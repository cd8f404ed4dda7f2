"""The ways out of PyTorch: both ONNX exporters and TorchScript, with batches of any size."""

import contextlib
import logging
import os
import sys
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

# the fused attention that nn.MultiheadAttention takes in evaluation has no ONNX operator, and no derivative
torch.backends.mha.set_fastpath_enabled(False)

# operator sets: the oldest and the newest that the new exporter writes and talion reads
OLDEST_DYNAMO, NEWEST_DYNAMO = 18, 25


def onnx(network: nn.Module, images: Tensor, path: Path, exporter: str, opset: int, optimise: bool = True) -> None:
    """Writes `network` to `path`; `exporter` is `legacy` (torch.jit.trace) or `dynamo` (torch.export)."""
    names = {"input_names": ["images"], "output_names": ["logits"], "opset_version": opset}
    if exporter == "legacy":
        axes = {"images": {0: "N"}, "logits": {0: "N"}}
        how = {"dynamo": False, "dynamic_axes": axes}
    else:
        # a shape for each argument, by position
        shapes = ({0: torch.export.Dim("N", min=1, max=4096)},)
        how = {"dynamo": True, "dynamic_shapes": shapes, "optimize": optimise, "external_data": False}
        how["verbose"] = False
    with quiet():
        torch.onnx.export(network, (images,), str(path), **names, **how)


def traced(network: nn.Module, images: Tensor, path: Path) -> None:
    """Writes what `network` did with `images` as TorchScript."""
    with quiet():
        torch.jit.trace(network, images, check_trace=False).save(str(path))


def scripted(network: nn.Module, path: Path) -> None:
    """Compiles `network` to TorchScript."""
    with quiet():
        torch.jit.script(network).save(str(path))


def without_debug(path: Path) -> None:
    """Takes the names of source files, and whatever else is for debuggers only, out of a TorchScript file."""
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in kept.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


@contextlib.contextmanager
def quiet():
    """Without what exporters say while all goes well; errors come out as exceptions."""
    before = logging.root.manager.disable
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    logging.disable(logging.WARNING)
    # some of it is said by libtorch itself, past Python's files
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for file in (*kept, nowhere):
            os.close(file)
        logging.disable(before)
