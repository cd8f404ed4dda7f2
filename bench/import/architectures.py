"""Common architectures through both ONNX exporters: PyTorch, ONNX Runtime and talion on the same weights and images.

    architectures.py -o RESULT.json [--work FOLDER] [--only NAME] [--keep]

Weights are random (one seed; `networks.unsettle` says how), images as small as the network takes them, so all of it
needs some 15 minutes on two cores. Each network has a process of its own: one at a time is in memory, and one that
fails does not stop the others. RESULT.md, beside the result, is the table. See README.md.
"""

import argparse
import contextlib
import copy
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import common
import exporting
from networks import pictures, unsettle

CLASSES = 10
BATCHES = (1, 3)
# name: settings, image size
TORCHVISION = {
    "resnet18": ({}, 64),
    "resnet50": ({}, 64),
    # its last pooling to 7x7 can be exported only where it has nothing to do
    "vgg11_bn": ({}, 224),
    "densenet121": ({}, 64),
    "mobilenet_v2": ({}, 64),
    "mobilenet_v3_small": ({}, 64),
    "efficientnet_b0": ({}, 64),
    "convnext_tiny": ({}, 64),
    "vit_b_16": ({"image_size": 64}, 64),
    "swin_t": ({}, 64),
    "squeezenet1_1": ({}, 64),
    "shufflenet_v2_x1_0": ({}, 64),
    "regnet_y_400mf": ({}, 64),
    "googlenet": ({"aux_logits": False, "init_weights": False}, 64),
    "inception_v3": ({"aux_logits": False, "init_weights": False}, 96),
    "maxvit_t": ({}, 224),
}
TIMM = {
    "resnet18": ({}, 64),
    "vit_tiny_patch16_224": ({"img_size": 64}, 64),
    "deit_tiny_distilled_patch16_224": ({"img_size": 64}, 64),
    "swin_tiny_patch4_window7_224": ({"img_size": 64}, 64),
    "convnext_atto": ({}, 64),
    "efficientnet_lite0": ({}, 64),
    "mobilenetv3_small_050": ({}, 64),
    "regnetz_b16": ({}, 64),
    "mixer_s32_224": ({"img_size": 64}, 64),
}
EXPORTS = [
    ("legacy", 17),
    ("dynamo", exporting.OLDEST_DYNAMO),
    ("dynamo", exporting.NEWEST_DYNAMO),
]
# these also in older operator sets
OLD_TOO = ("torchvision resnet18", "torchvision mobilenet_v2", "torchvision squeezenet1_1", "timm convnext_atto")
OLD = [("legacy", 11), ("legacy", 13)]
# the one that is also timed, and run in double precision with second derivatives
FULL = EXPORTS[-1]


def names() -> list[str]:
    """All networks, as `library name`."""
    return [f"torchvision {name}" for name in TORCHVISION] + [f"timm {name}" for name in TIMM]


def build(name: str) -> tuple[nn.Module, int]:
    """A network and the side of its images."""
    library, short = name.split()
    if library == "timm":
        settings, side = TIMM[short]
        return timm.create_model(short, pretrained=False, num_classes=CLASSES, **settings), side
    settings, side = TORCHVISION[short]
    return torchvision.models.get_model(short, weights=None, num_classes=CLASSES, **settings), side


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the result; others' rows in it are kept")
    parser.add_argument("--work", type=Path, help="folder for exported files (beside the result by default)")
    parser.add_argument("--only", action="append", help="networks whose name contains this; may be repeated")
    parser.add_argument("--examples", type=Path, default=common.EXAMPLES, help="folder of talion's examples")
    parser.add_argument("--exports-only", action="store_true", help="PyTorch and ONNX Runtime, without talion")
    parser.add_argument("--keep", action="store_true", help="keep the exported files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds a network may take")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.work = args.work or args.output.with_suffix(".work")
    args.work.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in names() if not args.only or any(part in name for part in args.only)]
    programs = [] if args.exports_only else [common.program(args.examples, each) for each in ("run_onnx", "logits")]
    result = json.loads(args.output.read_text()) if args.output.exists() else {"networks": {}}
    result["about"] = common.about(programs, args.threads)
    for count, name in enumerate(wanted, 1):
        print(f"[{count}/{len(wanted)}] {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        row = apart(name, args)
        row["seconds"] = round(time.monotonic() - started, 1)
        result["networks"][name] = row
        common.save(args.output, result, page(result))


def apart(name: str, args: argparse.Namespace) -> dict:
    """`examine` in a process of its own."""
    # forked, so that PyTorch is not imported anew; nothing has been computed here yet
    context = multiprocessing.get_context("fork")
    answer = args.work / "answer.json"
    answer.unlink(missing_ok=True)
    child = context.Process(target=examine_into, args=(answer, name, args))
    child.start()
    child.join(args.limit)
    if child.is_alive():
        # with the programs that it runs
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
        return {"error": f"not done after {args.limit:.0f} s"}
    if not answer.exists():
        return {"error": f"ended with status {child.exitcode}"}
    row = json.loads(answer.read_text())
    answer.unlink()
    return row


def examine_into(answer: Path, name: str, args: argparse.Namespace) -> None:
    os.setpgid(0, 0)
    try:
        row = Examination(name, args).row()
    except Exception as error:
        row = {"error": common.first_line(error)}
    answer.write_text(json.dumps(row))


class Examination:
    """One network: what PyTorch says, and what the others say of each of its exports."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, self.args = name, args
        torch.set_num_threads(args.threads)
        torch.manual_seed(1)
        network, side = build(name)
        self.shape = (3, side, side)
        self.network = unsettle(network, torch.empty(8, *self.shape), 1)
        draw = torch.Generator().manual_seed(2)
        count = max(BATCHES)
        self.images = pictures(count, *self.shape, draw=draw)
        self.cotangent = torch.randn(count, CLASSES, generator=draw)
        self.direction = torch.randn(1, *self.shape, generator=draw)

    def row(self) -> dict:
        row = {
            "images": list(self.shape),
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "pytorch": self.expect(),
            "exports": [],
        }
        for exporter, opset in (OLD if self.name in OLD_TOO else []) + EXPORTS:
            row["exports"].append(self.export(exporter, opset))
        row["torchscript"] = self.torchscript()
        return row

    def expect(self) -> dict:
        """Computes in f64 what all is measured by; returns how far PyTorch itself is from it in f32, and how fast."""
        double = copy.deepcopy(self.network).double()
        self.expected = {batch: self.derive(double, self.images[:batch].double()) for batch in BATCHES}
        # without the second derivative where PyTorch has none
        row = {"logits": {}, "gradient": {}}
        try:
            self.twice = self.derive(double, self.images[:1].double(), second=True)
        except RuntimeError as error:
            self.twice = {}
            row["no_second"] = common.first_line(error)
        for batch in BATCHES:
            found = self.derive(self.network, self.images[:batch])
            for part, value in found.items():
                row[part][str(batch)] = common.relative(value, self.expected[batch][part])
        return row | self.time()

    def derive(self, network: nn.Module, images: Tensor, second: bool = False) -> dict[str, Tensor]:
        """Logits and their gradient with the cotangent; with `second` of their log-softmax, and twice."""
        x = images.clone().requires_grad_()
        # of the ways to compute attention this one alone has second derivatives
        with sdpa_kernel(SDPBackend.MATH) if second else contextlib.nullcontext():
            logits = network(x)
            output = logits.log_softmax(-1) if second else logits
            product = (output * self.cotangent[: len(x)].to(x)).sum()
            (gradient,) = torch.autograd.grad(product, x, create_graph=second)
            answers = {"logits": logits.detach(), "gradient": gradient.detach()}
            if second:
                along = (gradient * self.direction.to(x)).sum()
                (answers["second"],) = torch.autograd.grad(along, x, materialize_grads=True)
        return answers

    def time(self) -> dict:
        """PyTorch's milliseconds for one image."""
        image = self.images[:1]

        def forward():
            with torch.no_grad():
                self.network(image)

        return {
            "forward_ms": median(forward),
            "forward_backward_ms": median(lambda: self.derive(self.network, image)),
        }

    def export(self, exporter: str, opset: int) -> dict:
        row = {"exporter": exporter, "opset": opset}
        path = self.args.work / f"{self.name.replace(' ', '-')}-{exporter}-{opset}.onnx"
        try:
            started = time.monotonic()
            # two images: a batch of one invites exporters to take the size for granted
            exporting.onnx(self.network, self.images[:2], path, exporter, opset)
            row["seconds"] = round(time.monotonic() - started, 1)
            row |= contents(path)
        except Exception as error:
            row["exporter_failed"] = common.first_line(error)
            return row
        try:
            row |= self.runtime(path, timed=(exporter, opset) == FULL)
        except Exception as error:
            row["runtime_failed"] = common.first_line(error)
        if not self.args.exports_only:
            try:
                row |= self.talion(path, full=(exporter, opset) == FULL)
            except common.Failed as error:
                row["talion_failed"] = str(error)
        if not self.args.keep:
            path.unlink()
        return row

    def runtime(self, path: Path, timed: bool) -> dict:
        """ONNX Runtime's logits."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.args.threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def logits(batch: int) -> Tensor:
            return torch.from_numpy(session.run(["logits"], {"images": self.images[:batch].numpy()})[0])

        errors = {
            str(batch): common.relative(logits(batch), self.expected[batch]["logits"]) for batch in BATCHES
        }
        row = {"onnxruntime": {"logits": errors}}
        if timed:
            row["onnxruntime"]["forward_ms"] = median(lambda: logits(1))
        return row

    def talion(self, path: Path, full: bool) -> dict:
        """talion's logits and gradients; with `full` also timed, and in double precision."""
        row = {"logits": {}, "gradient": {}}
        for batch in BATCHES:
            given = {"images": self.images[:batch], "cotangent": self.cotangent[:batch]}
            found, _ = self.ask([path], given)
            for part in ("logits", "gradient"):
                row[part][str(batch)] = common.relative(found[part], self.expected[batch][part])
        if full:
            given = {"images": self.images[:1], "cotangent": self.cotangent[:1]}
            _, said = self.ask([path], given, "--time", "7")
            row["time"] = json.loads(said.stdout)
            row |= self.precisely(path)
        return {"talion": row}

    def precisely(self, path: Path) -> dict:
        """talion in double precision, with second derivatives, on a file in double precision."""
        double = path.with_name(path.stem + "-f64.onnx")
        given = {"images": self.images[:1], "cotangent": self.cotangent[:1], "direction": self.direction}
        given = {name: tensor.double() for name, tensor in given.items()}
        row = {}
        try:
            # exported anew: in the other file, weights are f32 after the norms were folded into them
            exporting.onnx(copy.deepcopy(self.network).double(), self.images[:2].double(), double, *FULL)
            found, said = self.ask([double], given, "--log-softmax")
        except Exception as error:
            row["no_f64_file"] = common.first_line(error)
            found, said = self.ask([path], given, "--double", "--log-softmax")
        finally:
            if not self.args.keep:
                double.unlink(missing_ok=True)
        row["f64"] = {
            part: common.relative(found[part], value) for part, value in self.twice.items() if part in found
        }
        if "second" not in found:
            row["no_second"] = said.stderr.strip()[-300:]
        return row

    def ask(self, files: list, given: dict[str, Tensor], *options: str, example: str = "run_onnx"):
        """What an example answers: tensors, and what it said."""
        into, out = self.args.work / "in.safetensors", self.args.work / "out.safetensors"
        out.unlink(missing_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in given.items()}, into)
        command = [self.args.examples / example, *files, into, out, *options]
        said = common.call(command, self.args.threads, self.args.limit)
        return load_file(out), said

    def torchscript(self) -> dict:
        """The trace, loaded as `talion` loads classifiers."""
        path = self.args.work / f"{self.name.replace(' ', '-')}.pt"
        try:
            exporting.traced(self.network, self.images[:2], path)
            side = self.shape[1]
            path.with_name(path.name + ".toml").write_text(
                f"[input]\nsize = [{side}, {side}]\nchannels = {self.shape[0]}\n"
            )
        except Exception as error:
            return {"exporter_failed": common.first_line(error)}
        row = {}
        if not self.args.exports_only:
            try:
                given = {"images": self.images, "cotangent": self.cotangent}
                found, _ = self.ask([path], given, example="logits")
                batch = max(BATCHES)
                row["talion"] = {
                    part: {str(batch): common.relative(found[part], value)}
                    for part, value in self.expected[batch].items()
                }
            except common.Failed as error:
                row["talion_failed"] = str(error)
        if not self.args.keep:
            path.unlink()
            path.with_name(path.name + ".toml").unlink()
        return row


def median(work, repetitions: int = 7) -> float:
    """Milliseconds."""
    times = []
    for turn in range(repetitions + 3):
        started = time.perf_counter()
        work()
        # the first ones warm up
        if turn >= 3:
            times.append(1e3 * (time.perf_counter() - started))
    return round(statistics.median(times), 3)


def contents(path: Path) -> dict:
    """Size, nodes and operators of an ONNX file."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    return {
        "bytes": path.stat().st_size,
        "nodes": len(nodes),
        "operators": sorted({node.op_type for node in nodes}),
    }


HEADING = [
    "network", "image", "export", "nodes", "logits: PyTorch / ONNX Runtime / talion", "gradient: PyTorch / talion",
    "f64: logits / gradient / second", "ms forward: PyTorch / ONNX Runtime / talion", "ms with backward: PyTorch / talion",
]  # fmt: skip
FAILURES = ("exporter_failed", "runtime_failed", "talion_failed")


def page(result: dict) -> str:
    """The result as Markdown."""
    table, remarks, operators = [HEADING], [], set()
    for name, row in result["networks"].items():
        if "error" in row:
            remarks.append(f"- {name}: {row['error']}")
            continue
        if "no_second" in row["pytorch"]:
            remarks.append(f"- {name}: no second derivative in PyTorch: {row['pytorch']['no_second']}")
        for export in [*row["exports"], {"exporter": "TorchScript", "opset": "trace", **row["torchscript"]}]:
            operators |= set(export.get("operators", []))
            label = f"{export['exporter']} {export['opset']}"
            table.append([name, str(row["images"][1]), label, *cells(row["pytorch"], export)])
            remarks += [
                f"- {name}, {label}: {what.replace('_', ' ')}: {export[what]}" for what in FAILURES if what in export
            ]
            for what in ("no_f64_file", "no_second"):
                if what in export.get("talion", {}):
                    remarks.append(f"- {name}, {label}: {what.replace('_', ' ')}: {export['talion'][what]}")
    parts = [
        "# Common architectures: PyTorch, ONNX Runtime, talion",
        f"{common.described(result['about'])} Random weights, {CLASSES} classes. Errors are the largest difference from "
        "what PyTorch computes in f64, by the largest of those values; of batches of "
        f"{' and '.join(map(str, BATCHES))} images the larger error. Logits and gradients in f32: PyTorch's own error "
        "says how much rounding, and how many ReLUs that it switches, there are. In the column f64 talion computes in f64 on "
        "a file exported in f64: gradient and second derivative of the log-softmax, one image. Times are medians for one "
        "image.",
        common.markdown(table),
    ]
    if remarks:
        parts += ["## Remarks", "\n".join(remarks)]
    parts += ["## Operators", f"{len(operators)} in all of these files: {', '.join(sorted(operators))}."]
    return "\n\n".join(parts) + "\n"


def cells(pytorch: dict, export: dict) -> list[str]:
    """From the number of nodes on."""
    if "exporter_failed" in export:
        return ["", "not exported", "", "", "", ""]
    theirs, ours = export.get("onnxruntime", {}), export.get("talion", {})
    logits = [worst(pytorch["logits"]), worst(theirs.get("logits")), worst(ours.get("logits"))]
    gradients = [worst(pytorch["gradient"]), worst(ours.get("gradient"))]
    if "runtime_failed" in export:
        logits[1] = "failed"
    if "talion_failed" in export:
        logits[2] = gradients[1] = "failed"
    precise = [common.short(ours["f64"].get(part)) for part in ours["f64"]] if "f64" in ours else []
    if "no_second" in ours:
        precise.append("none")
    forward = backward = ""
    if "time" in ours:
        own = ours["time"]
        times = [pytorch["forward_ms"], theirs.get("forward_ms", float("nan")), own["forward_ms"]]
        forward = " / ".join(f"{each:.1f}" for each in times)
        backward = f"{pytorch['forward_backward_ms']:.1f} / {own['forward_backward_ms']:.1f}"
    nodes = str(export.get("nodes", ""))
    return [nodes, " / ".join(logits), " / ".join(gradients), " / ".join(precise), forward, backward]


def worst(errors: dict | None) -> str:
    """The largest of the batches' errors."""
    return common.short(max(errors.values())) if errors else "-"


if __name__ == "__main__":
    main()
