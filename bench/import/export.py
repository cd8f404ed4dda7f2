"""Runs a defence that `talion export` wrote in ONNX Runtime: the same answers? how fast?

    talion export --model M --trn T --data D --images 512 -o defended.onnx --samples samples.safetensors
    talion export --model M --bare -o bare.onnx
    export.py defended.onnx samples.safetensors --bare bare.onnx -o RESULT.json

The file of samples holds the images and, by the names of the file's outputs, talion's own answers. RESULT.md, beside
the result, is the table. The exit status is 1 if the median image's largest difference is above --tolerance. See README.md.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

import common

# rows of a batch in which the answers are compared
ROWS = 32
# outputs of which the largest value is a class
SCORES = ("logits", "undefended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="what talion export wrote")
    parser.add_argument("samples", type=Path, help="what its --samples wrote")
    parser.add_argument("--bare", type=Path, help="the classifier alone, to be compared in speed")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--images", type=int, help="compare on so many images only")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="batches that are timed")
    parser.add_argument("--repetitions", type=int, default=20, help="of each timing; medians are told")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference, in the median image, that is rounding")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    samples = load_file(args.samples)
    if "images" not in samples:
        raise SystemExit(f"{args.samples}: holds no `images`")
    samples = {name: values[: args.images] for name, values in samples.items()}
    defended = session(args.model, args.threads)
    result = {
        "about": common.about([], args.threads),
        "model": {"file": args.model.name, "sha256": common.sha256(args.model), **facts(args.model)},
        "images": len(samples["images"]),
        "tolerance": args.tolerance,
        "outputs": compare(defended, samples),
        "latency": latency(defended, samples["images"], args),
    }
    if args.bare:
        result["bare"] = {"file": args.bare.name, "sha256": common.sha256(args.bare), **facts(args.bare)}
        result["bare_latency"] = latency(session(args.bare, args.threads), samples["images"], args)
    common.save(args.output, result, page(result))
    print(json.dumps(result["outputs"], indent=1))
    # written so that NaN is above, too
    sys.exit(not all(each["median_of_images"] <= args.tolerance for each in result["outputs"].values()))


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def facts(path: Path) -> dict:
    """Size, operator set and operators of a file."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model)
    nodes = model.graph.node
    return {
        "bytes": path.stat().st_size,
        "opset": max(each.version for each in model.opset_import if each.domain in ("", "ai.onnx")),
        "nodes": len(nodes),
        "operators": sorted({node.op_type for node in nodes}),
    }


def compare(model: onnxruntime.InferenceSession, samples: dict) -> dict:
    """ONNX Runtime's answers beside talion's, output by output."""
    (port,) = model.get_inputs()
    names = [each.name for each in model.get_outputs()]
    missing = [name for name in names if name not in samples]
    if missing:
        raise SystemExit(f"talion's own answers are missing: {', '.join(missing)}")
    images = samples["images"]
    parts = [model.run(names, {port.name: images[at : at + ROWS]}) for at in range(0, len(images), ROWS)]
    found = {name: np.concatenate([part[place] for part in parts]) for place, name in enumerate(names)}
    return {name: differences(name, found[name], samples[name]) for name in names}


def differences(name: str, found: np.ndarray, expected: np.ndarray) -> dict:
    if found.shape != expected.shape:
        raise SystemExit(f"{name}: shape {found.shape}, talion's is {expected.shape}")
    off = np.abs(found.astype(np.float64) - expected)
    row = {"largest": float(off.max()), "mean": float(off.mean()), "scale": float(np.abs(expected).max())}
    # by image: where the classifier is sure of a label, the gradient at that label is rounding in f32
    rows = off.reshape(len(off), -1).max(1)
    row["median_of_images"], row["images_above_1e-4"] = float(np.median(rows)), int((rows > 1e-4).sum())
    if name in SCORES:
        row["other_class"] = int((found.argmax(1) != expected.argmax(1)).sum())
    return row


def latency(model: onnxruntime.InferenceSession, images: np.ndarray, args: argparse.Namespace) -> dict:
    """Milliseconds a batch."""
    (port,) = model.get_inputs()
    times = {}
    for rows in args.batches:
        batch = np.resize(images, (rows, *images.shape[1:]))
        taken = []
        for turn in range(args.repetitions + 3):
            started = time.perf_counter()
            model.run(None, {port.name: batch})
            # the first ones warm up
            if turn >= 3:
                taken.append(1e3 * (time.perf_counter() - started))
        times[str(rows)] = {"median_ms": statistics.median(taken), "best_ms": min(taken)}
    return times


def page(result: dict) -> str:
    """The result as Markdown."""
    table = [["output", "largest difference", "mean", "median of images", "largest value", "images above 1e-4", "other class"]]
    for name, row in result["outputs"].items():
        numbers = [f"{row[part]:.2e}" for part in ("largest", "mean", "median_of_images", "scale")]
        table.append([name, *numbers, str(row["images_above_1e-4"]), str(row.get("other_class", ""))])
    times = [["batch", "defended ms", "bare ms", "times", "images/s defended"]]
    for rows, row in result["latency"].items():
        bare = result.get("bare_latency", {}).get(rows)
        own = row["median_ms"]
        factor = "" if bare is None else f"{own / bare['median_ms']:.1f}"
        times.append(
            [rows, f"{own:.1f}", "" if bare is None else f"{bare['median_ms']:.1f}", factor,
             f"{1e3 * int(rows) / own:.0f}"]
        )  # fmt: skip
    model = result["model"]
    parts = [
        f"# {model['file']} in ONNX Runtime",
        f"{common.described(result['about'])} {model['nodes']} nodes of {len(model['operators'])} operators, operator "
        f"set {model['opset']}, {model['bytes'] / 1e6:.1f} MB. Compared with talion's own answers on {result['images']} "
        "images; differences are absolute.",
        common.markdown(table),
        "Medians of a batch, CPU:",
        common.markdown(times),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
