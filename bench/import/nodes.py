"""Runs the ONNX project's own operator tests on talion, and says how many pass.

    nodes.py -o RESULT.json [--work FOLDER]

The tests come from the installed onnx package, which computes inputs and expected outputs with NumPy; they are written
to the work folder once (some 1900 folders) and run by talion's example `node_tests`. The exit status is 1 if a result
is wrong; operators that are refused, and tests that are not covered, are only counted. See README.md.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper

import common


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder for the tests (beside the result by default)")
    parser.add_argument("--examples", type=Path, default=common.EXAMPLES, help="folder of talion's examples")
    parser.add_argument("--write-only", action="store_true", help="write the tests, and do not run them")
    args = parser.parse_args()
    folder = (args.work or args.output.with_suffix(".work")) / f"node-{onnx.__version__}"
    program = None if args.write_only else common.program(args.examples, "node_tests")
    if not (folder / "COMPLETE").exists():
        write_all(folder)
    if program is None:
        print(folder)
        return
    done = subprocess.run([program, folder, "--json"], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"node_tests: {done.stderr.strip()}")
    result = {"about": common.about([program], 1), **json.loads(done.stdout)}
    common.save(args.output, result, page(result))
    wrong = [test["name"] for test in result["tests"] if test["outcome"] == "wrong"]
    if wrong:
        print(f"wrong: {', '.join(wrong)}", file=sys.stderr)
    sys.exit(bool(wrong))


def write_all(folder: Path) -> None:
    """Every node test of the package, as `test_*/model.onnx` and `test_*/test_data_set_0/{input,output}_N.pb`."""
    # newer packages no longer bring these files; they bring what makes them
    from onnx.backend.test.loader import load_model_tests

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for case in load_model_tests(kind="node"):
        place = folder / case.name
        place.mkdir()
        (place / "model.onnx").write_bytes(case.model.SerializeToString())
        for count, (inputs, outputs) in enumerate(case.data_sets):
            data = place / f"test_data_set_{count}"
            data.mkdir()
            write_values(data, "input", inputs, case.model.graph.input)
            write_values(data, "output", outputs, case.model.graph.output)
    (folder / "COMPLETE").touch()


def write_values(folder: Path, role: str, values, ports) -> None:
    """Tensors as serialised `TensorProto`s; sequences and optionals are not covered, and left out."""
    for place, (value, port) in enumerate(zip(values, ports, strict=True)):
        if port.type.WhichOneof("value") != "tensor_type":
            continue
        proto = value if isinstance(value, TensorProto) else numpy_helper.from_array(value, port.name)
        (folder / f"{role}_{place}.pb").write_bytes(proto.SerializeToString())


def page(result: dict) -> str:
    """The result as Markdown."""
    outcomes = ("passed", "wrong", "refused", "not covered")
    rows: dict[str, Counter] = {}
    for test in result["tests"]:
        operators = test["operators"]
        row = operators[0] if len(operators) == 1 else "(several)"
        rows.setdefault(row, Counter())[test["outcome"]] += 1
    totals = sum(rows.values(), Counter())
    covered = {name: counts for name, counts in rows.items() if set(counts) != {"not covered"}}
    table = [["operator", *outcomes]]
    table += [[name, *(str(counts[each]) for each in outcomes)] for name, counts in sorted(covered.items())]
    table.append(["all", *(str(totals[each]) for each in outcomes)])
    reasons = Counter(test["reason"] for test in result["tests"] if test["outcome"] == "not covered")
    failed = [test for test in result["tests"] if test["outcome"] in ("wrong", "refused")]
    tested = totals["passed"] + totals["wrong"] + totals["refused"]
    parts = [
        "# The ONNX project's node tests on talion",
        f"onnx {result['about']['packages']['onnx']}. Of {sum(totals.values())} tests {tested} are covered: all their "
        "operators are known, their operator set is read, and their values are tensors of types that libtorch has. Of "
        f"these {totals['passed']} pass, {totals['refused']} are refused with an error, {totals['wrong']} give another "
        "result. Tolerances are the ONNX runner's (relative 1e-3, absolute 1e-7, in bfloat16 two units in the last place), and "
        "two units in FLOAT16; whole numbers have to be equal. A test of several operators counts under *(several)*: mostly "
        "operators written out as others.",
        common.markdown(table),
        "## Covered and not passed",
        "\n".join(f"- `{test['name']}` (opset {test['opset']}), {test['outcome']}: {test['reason']}" for test in failed)
        or "None.",
        "## Not covered",
        "\n".join(f"- {reason}: {count}" for reason, count in reasons.most_common()) or "None.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
