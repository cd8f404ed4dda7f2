"""Makes Markdown tables of a result of speed.py.

table.py RESULT.json -o TABLE.md
"""

import argparse
import json
from pathlib import Path

import summary

NAMES = {
    "ours": "talion",
    "loop": "PyTorch loop",
    "torch": "PyTorch",
    "torchattacks": "torchattacks",
    "foolbox": "Foolbox",
    "art": "ART",
    "adv_lib": "adv-lib",
    "autoattack": "AutoAttack",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.write_text(render(json.loads(args.result.read_text())))


def render(result: dict) -> str:
    order = {title: place for place, title in enumerate(result["order"])}
    rows = sorted(result["rows"].values(), key=lambda row: order.get(title(row), len(order)))
    shown = [row for row in rows if title(row) in order]
    parts = [heading(result, shown), *overview(shown)]
    for section in dict.fromkeys(row["section"] for row in shown):
        parts += section_of(section, [row for row in shown if row["section"] == section], result["peaks"])
    return "\n\n".join(parts) + "\n"


def title(row: dict) -> str:
    return f"{row['section']}: {row['name']}"


def heading(result: dict, rows: list[dict]) -> str:
    machine = result["about"]["machine"]
    peaks = ", ".join(
        f"{peak:.0f} GFLOP/s with {threads} threads" for threads, peak in sorted(result["peaks"].items())
    )
    missing = [name for name in result["order"] if name not in {title(row) for row in rows}]
    words = [
        "# talion's speed beside its Python peers",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{', '.join(machine['flags']) or 'no telling flags'}, {machine['system']}. "
        f"{versions(rows)} {result['about']['date'][:10]}."
        + (f" A product of two 1024 x 1024 matrices reaches {peaks}." if peaks else ""),
        "Every line is a process of its own, and the lines of a row took turns, one at a time. *Seconds* is "
        "the median of the n repetitions, beside it the least and the most. *Beside talion* is how many "
        "times as long a peer took for an image: of the medians, and in brackets the least and the most of "
        "single rounds. Above 1 talion is faster, below 1 the peer. *Of peak* is the share of that matrix "
        "product's speed that the nominal operations of forward passes and input gradients reach. *Robust* "
        "is the share that an attack left right: where it differs much, the two did not do the same. "
        "*Memory* is the most that the process has held; that of *compile* includes the compiler.",
    ]
    failures = [(row, name, side) for row in rows for name, side in row["workers"].items() if "error" in side]
    skipped = sum(bool(side.get("skipped")) for _, _, side in failures)
    counts = f"{len(rows)} rows; {len(failures) - skipped} lines failed, {skipped} were skipped"
    words.append(counts + (f", {len(missing)} rows have not been run." if missing else "."))
    return "\n\n".join(words)


def versions(rows: list[dict]) -> str:
    """Of the programs, as the workers said."""
    ours, peers = {}, {}
    for row in rows:
        for name, side in row["workers"].items():
            (ours if name.startswith("ours/") else peers).update(side.get("about", {}))
    words = []
    if ours:
        words.append(f"{ours.get('program', 'talion')} {ours.get('version', '')}".strip())
    packages = {name: number for name, number in peers.get("packages", {}).items() if number}
    words += [f"{name} {number}" for name, number in packages.items()]
    if peers:
        words.append(f"Python {peers.get('python', '?')}")
        words.append(f"PyTorch's {peers.get('kernels', '?')} kernels")
    return ", ".join(words) + "." if words else ""


def overview(rows: list[dict]) -> list[str]:
    """Talion beside the fastest of its peers, a line a row."""
    lines = [["row", "talion s", "fastest peer", "s", "beside talion"]]
    for row in rows:
        ours = first_of_ours(row)
        peers = {name: side for name, side in row["workers"].items() if not name.startswith("ours/")}
        found = {name: summary.ratio(side, ours) for name, side in peers.items()} if ours else {}
        found = {name: ratio for name, ratio in found.items() if ratio}
        if not found:
            continue
        fastest = min(found, key=lambda name: found[name]["medians"])
        lines.append([
            title(row),
            seconds(ours),
            worker_name(fastest),
            seconds(peers[fastest]),
            times(found[fastest]),
        ])  # fmt: skip
    return ["## Beside the fastest peer", markdown(lines)] if len(lines) > 1 else []


def first_of_ours(row: dict) -> dict | None:
    """What peers are compared with: the first of our settings that has repetitions."""
    for name, side in row["workers"].items():
        if name.startswith("ours/") and side.get("repetitions"):
            return side
    return None


def section_of(section: str, rows: list[dict], peaks: dict) -> list[str]:
    columns = [column for column in COLUMNS if any(column.shown(row) for row in rows)]
    lines, notes = [[column.title for column in columns]], []
    for row in rows:
        for name, side in row["workers"].items():
            lines.append([column.cell(row, name, side, peaks) for column in columns])
        notes += remarks(row)
    parts = [f"## {section}", markdown(lines)]
    return parts + (["\n".join(notes)] if notes else [])


class Column:
    """A title, what stands below it, and whether any row has something to say there."""

    def __init__(self, name: str, cell, shown=lambda row: True):
        self.title, self.cell, self.shown = name, cell, shown


def has(name: str):
    return lambda row: any(
        name in repetition for side in row["workers"].values() for repetition in side.get("repetitions", [])
    )


def seconds(side: dict | None) -> str:
    values = summary.seconds(side or {})
    return digits(summary.spread(values)["median"]) if values else "-"


def digits(value: float) -> str:
    """Three that tell."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def result_cell(row: dict, name: str, side: dict, peaks: dict) -> str:
    if "error" in side:
        return "skipped" if side.get("skipped") else "failed"
    return seconds(side)


def range_cell(row: dict, name: str, side: dict, peaks: dict) -> str:
    values = summary.seconds(side)
    if not values:
        return ""
    found = summary.spread(values)
    return f"{digits(found['least'])} - {digits(found['most'])}"


def rate_cell(row: dict, name: str, side: dict, peaks: dict) -> str:
    if row["measure"] == "start-up":
        return ""
    values = summary.per_image(side)
    return digits(1 / summary.spread(values)["median"]) if values and min(values) > 0 else ""


def ratio_cell(row: dict, name: str, side: dict, peaks: dict) -> str:
    ours = first_of_ours(row)
    if ours is None or side is ours:
        return ""
    return times(summary.ratio(side, ours))


def times(ratio: dict | None) -> str:
    if not ratio:
        return ""
    within = f" ({ratio['least']:.2f} - {ratio['most']:.2f})" if ratio["rounds"] > 1 else ""
    return f"{ratio['medians']:.2f}" + within


def peak_cell(row: dict, name: str, side: dict, peaks: dict) -> str:
    if row["measure"] == "start-up":
        return ""
    share = summary.share_of_peak(row, side, peaks.get(str(row["threads"])))
    return "" if share is None else f"{100 * share:.0f} %"


def has_peak(row: dict) -> bool:
    return bool(summary.gradients(row["job"]) and row.get("flops") and row["measure"] != "start-up")


def share_cell(field: str):
    def cell(row: dict, name: str, side: dict, peaks: dict) -> str:
        found = sorted({one[field] for one in side.get("repetitions", []) if field in one})
        return (
            " - ".join(f"{100 * value:.1f} %" for value in dict.fromkeys((found[0], found[-1])))
            if found
            else ""
        )

    return cell


def latency_cell(field: str):
    def cell(row: dict, name: str, side: dict, peaks: dict) -> str:
        found = summary.latencies(side)
        return digits(found[field]) if found else ""

    return cell


def memory_cell(row: dict, name: str, side: dict, peaks: dict) -> str:
    return f"{side['peak_kib'] / 1024:.0f}" if side.get("peak_kib") else ""


def count_cell(row: dict, name: str, side: dict, peaks: dict) -> str:
    return str(len(side.get("repetitions", [])))


def is_latency(row: dict) -> bool:
    return row["measure"] == "latency" and has("each")(row)


COLUMNS = [
    Column("row", lambda row, name, side, peaks: row["name"]),
    Column("threads", lambda row, name, side, peaks: str(row["threads"])),
    Column("program", lambda row, name, side, peaks: worker_name(name)),
    Column("n", count_cell),
    Column("seconds", result_cell),
    Column("least - most", range_cell),
    Column("images/s", rate_cell, lambda row: row["measure"] != "start-up"),
    Column("beside talion", ratio_cell, lambda row: first_of_ours(row) is not None),
    Column("p50 ms", latency_cell("p50"), is_latency),
    Column("p99 ms", latency_cell("p99"), is_latency),
    Column("of peak", peak_cell, has_peak),
    Column("clean", share_cell("clean"), has("clean")),
    Column("robust", share_cell("robust"), has("robust")),
    Column("memory MiB", memory_cell),
]


def worker_name(name: str) -> str:
    peer, setting = name.split("/")
    return NAMES.get(peer, peer) + ("" if setting == "default" else f", {setting}")


def remarks(row: dict) -> list[str]:
    """What has to be said of a row beneath its table: nothing that went wrong is left out."""
    words = [row["note"]] if row["note"] else []
    for name, side in row["workers"].items():
        if "error" in side:
            how = "was skipped" if side.get("skipped") else "failed"
            words.append(f"{worker_name(name)} {how} ({side.get('where', '?')}): {side['error']}.")
        if side.get("warmup_seconds", 0) > 10 and name.endswith("/compile"):
            words.append(f"{worker_name(name)} took {side['warmup_seconds']:.0f} s to compile and warm up.")
    busy = summary.busiest(row)
    if busy > row["threads"] + 0.5:
        words.append(f"The machine was busy: a load average of up to {busy:.1f} before a repetition.")
    return [f"- {row['name']}: {' '.join(words)}"] if words else []


def markdown(lines: list[list[str]]) -> str:
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


if __name__ == "__main__":
    main()
