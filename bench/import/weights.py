"""Checkpoints as others write them, and what talion makes of them.

    weights.py -o RESULT.json [--work FOLDER] [--full] [--keep]

Networks of the four architectures that public checkpoints for small images use, with random weights, are saved in the
ways that occur: state dictionaries plain, wrapped, with prefixes, as safetensors; TorchScript traced and scripted; ONNX
of both exporters. Each file is loaded as `talion` loads classifiers, and logits and gradients have to be PyTorch's.
Files that talion must not load are among them, too: whole modules, the network of another architecture, a part of a file;
and some that run a command if they are unpickled, which must not happen. The exit status is 1 if anything is not as it
should be. See README.md.
"""

import argparse
import copy
import itertools
import os
import sys
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import common
import exporting
from networks import PreActResNet18, ResNet18, Standardised, Vgg16, WideResNet28, pictures, unsettle

MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
# the largest relative errors that are rounding; where it switches a ReLU, the gradient jumps a little
BOUNDS = {"logits": 1e-4, "gradient": 2e-2}
# architecture, class, its width here and in its paper
NETWORKS = [
    ("resnet18-w{}", ResNet18, 16, 64),
    ("preactresnet18-w{}", PreActResNet18, 16, 64),
    ("wrn-28-{}", WideResNet28, 2, 10),
    ("vgg16bn-w{}", Vgg16, 16, 64),
]
# what may be refused has to be right if it is not
MAY_BE_REFUSED = ("old format", "hostile among the weights", "hostile beside the weights")
REFUSED = ("whole module", "other architecture", "cut short")


class Case:
    """A network, images, and what PyTorch answers."""

    def __init__(self, name: str, network: nn.Module, channels: int = 3, side: int = 32):
        self.name, self.size, self.channels = name, (side, side), channels
        self.mean, self.std = MEAN[:channels], STD[:channels]
        self.network = unsettle(network, torch.empty(32, channels, side, side), 1)
        draw = torch.Generator().manual_seed(2)
        self.images = pictures(4, channels, side, side, draw=draw)
        self.whole = Standardised(self.network, self.mean, self.std).eval()
        x = self.images.double().requires_grad_()
        logits = copy.deepcopy(self.whole).double()(x)
        self.cotangent = torch.randn(logits.shape, generator=draw)
        (gradient,) = torch.autograd.grad((logits * self.cotangent).sum(), x)
        self.expected = {"logits": logits.detach(), "gradient": gradient}

    def forms(self, folder: Path):
        """Every file, made when it is asked for: its form, and whether a sidecar states the standardisation."""
        weights = self.network.state_dict()
        prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
        optimiser = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        training = {"epoch": 199, "best_acc": 93.2, "optimizer": optimiser.state_dict(), "arch": self.name}
        yield "state dict", saved(weights, folder / "plain.pt"), True
        yield "wrapped", saved({"state_dict": prefixed, **training}, folder / "wrapped.pth.tar"), True
        yield "wrapped as net", saved({"net": weights, "acc": 93.2}, folder / "net.pth"), True
        yield "with standardisation", saved(self.whole.state_dict(), folder / "standardised.pt"), False
        path = folder / "old.pt"
        torch.save(weights, path, _use_new_zipfile_serialization=False)
        yield "old format", path, True
        path = folder / "weights.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
        yield "safetensors", path, True
        path = folder / "traced.pt"
        exporting.traced(self.network, self.images[:2], path)
        yield "traced", path, True
        path = folder / "scripted.pt"
        exporting.scripted(self.network, path)
        yield "scripted", path, True
        for exporter, opset in (("legacy", 17), ("dynamo", exporting.NEWEST_DYNAMO)):
            path = folder / f"{exporter}.onnx"
            exporting.onnx(self.network, self.images[:2], path, exporter, opset)
            yield f"ONNX {exporter} {opset}", path, True

    def doubtful(self, folder: Path):
        """Files that must not be loaded, or not wholly."""
        yield "whole module", saved(self.network, folder / "module.pt"), True
        marker = folder / "executed"
        weights = dict(self.network.state_dict())
        command = Command(f"touch {marker}")
        yield "hostile among the weights", saved({**weights, "epoch": command}, folder / "among.pt"), True
        apart = {"state_dict": weights, "epoch": command}
        yield "hostile beside the weights", saved(apart, folder / "beside.pt"), True
        other = torchvision.models.resnet18(num_classes=10).state_dict()
        yield "other architecture", saved(other, folder / "imagenet.pt"), True
        whole = saved(weights, folder / "short.pt").read_bytes()
        (folder / "short.pt").write_bytes(whole[: len(whole) // 2])
        yield "cut short", folder / "short.pt", True

    def describe(self, path: Path, stated: bool) -> None:
        """Writes what the file does not say itself beside it."""
        lines = ["[input]", f"size = [{self.size[0]}, {self.size[1]}]", f"channels = {self.channels}"]
        if stated:
            lines += [f"mean = {self.mean}", f"std = {self.std}"]
        path.with_name(path.name + ".toml").write_text("\n".join(lines) + "\n")


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def saved(what, path: Path) -> Path:
    torch.save(what, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder for the files (beside the result by default)")
    parser.add_argument("--examples", type=Path, default=common.EXAMPLES, help="folder of talion's examples")
    parser.add_argument("--full", action="store_true", help="the papers' widths: hundreds of megabytes")
    parser.add_argument("--keep", action="store_true", help="keep the files")
    parser.add_argument("--files-only", action="store_true", help="write the files, and do not ask talion")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.work = args.work or args.output.with_suffix(".work")
    args.keep |= args.files_only
    torch.set_num_threads(args.threads)
    programs = [] if args.files_only else [common.program(args.examples, "logits")]
    result = {"about": common.about(programs, args.threads), "bounds": BOUNDS, "rows": []}
    for case in cases(args.full):
        folder = args.work / case.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "executed").unlink(missing_ok=True)
        print(case.name, file=sys.stderr, flush=True)
        save_file({"images": case.images, "cotangent": case.cotangent}, folder / "in.safetensors")
        save_file(case.expected, folder / "expected.safetensors")
        for form, path, stated in itertools.chain(case.forms(folder), case.doubtful(folder)):
            case.describe(path, stated)
            if not args.files_only:
                result["rows"].append(ask(case, form, path, folder, args))
            if not args.keep:
                path.unlink()
                path.with_name(path.name + ".toml").unlink()
        common.save(args.output, result, page(result))
    wrong = [row for row in result["rows"] if not row["as_it_should_be"]]
    for row in wrong:
        print(f"not as it should be: {row}", file=sys.stderr)
    sys.exit(bool(wrong))


def cases(full: bool):
    for pattern, network, small, paper in NETWORKS:
        torch.manual_seed(1)
        width = paper if full else small
        yield Case(pattern.format(width), network(width))
    torch.manual_seed(1)
    yield Case("resnet18-w8", ResNet18(8, channels=1), channels=1, side=28)
    yield Case("vgg16bn-w8", Vgg16(8, classes=100, bias=False))


def ask(case: Case, form: str, path: Path, folder: Path, args: argparse.Namespace) -> dict:
    """What talion makes of a file."""
    row = {"network": case.name, "form": form, "bytes": path.stat().st_size}
    out = folder / "out.safetensors"
    out.unlink(missing_ok=True)
    try:
        common.call([args.examples / "logits", path, folder / "in.safetensors", out], args.threads)
        found = load_file(out)
        row["errors"] = {part: common.relative(found[part], case.expected[part]) for part in case.expected}
        right = all(row["errors"][part] <= BOUNDS[part] for part in BOUNDS)
        row["as_it_should_be"] = right and form not in REFUSED
    except common.Failed as error:
        row["refused"] = str(error)
        # an error names the file, and a panic is no error
        proper = path.name in row["refused"] and "panicked" not in row["refused"]
        row["as_it_should_be"] = proper and form in (*REFUSED, *MAY_BE_REFUSED)
    if (folder / "executed").exists():
        row["executed"] = True
        row["as_it_should_be"] = False
    return row


def page(result: dict) -> str:
    """The result as Markdown."""
    table = [["network", "form", "kB", "logits", "gradient", "refused", "as it should be"]]
    for row in result["rows"]:
        errors = [common.short(row.get("errors", {}).get(part)) for part in ("logits", "gradient")]
        refused = "`" + row["refused"].replace("|", "/")[-160:] + "`" if "refused" in row else ""
        mark = "yes" if row["as_it_should_be"] else "NO"
        table.append([row["network"], row["form"], str(row["bytes"] // 1000), *errors, refused, mark])
    right = sum(row["as_it_should_be"] for row in result["rows"])
    parts = [
        "# Checkpoints as others write them",
        f"{common.described(result['about'])} Random weights and statistics, four images. Errors are the largest "
        "difference from what PyTorch computes in f64 by the largest of those values; at most "
        + " and ".join(f"{bound:g} for the {part}" for part, bound in result["bounds"].items())
        + f" is as it should be. So are {right} of {len(result['rows'])} files. The hostile ones run a command when Python "
        f"unpickles them; talion ran it {sum('executed' in row for row in result['rows'])} times.",
        common.markdown(table),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
