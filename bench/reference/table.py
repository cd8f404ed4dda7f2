"""Makes a Markdown table of a result of compare.py.

table.py RESULT.json -o TABLE.md
"""

import argparse
import json
import re
from pathlib import Path

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}
PEERS = {
    "autoattack": "AutoAttack",
    "torchattacks": "torchattacks",
    "foolbox": "Foolbox",
    "adv_lib": "adv-lib",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.write_text(render(json.loads(args.result.read_text())))


def render(result: dict) -> str:
    rows = [result["rows"][key] for key in result["order"] if key in result["rows"]]
    parts = [heading(result, rows)]
    for name, about in result["classifiers"].items():
        mine = [row for row in rows if row["classifier"] == name]
        if mine:
            parts.append(section(name, about, mine, result["bounds"]))
    return "\n\n".join(parts) + "\n"


def heading(result: dict, rows: list[dict]) -> str:
    about, bounds = result["about"], result["bounds"]
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    machine = about["machine"]
    threads = sorted({row["threads"] for row in rows})
    plain = [row for row in rows if not row["shows"]]
    marks = [mark(row, bounds) for row in plain]
    missing = len(result["order"]) - len(rows)
    words = [
        "# talion's attacks beside the reference implementations",
        f"{about['talion']}; {packages}; Python {about['python']}. {machine['processor']}, "
        f"{machine['cores']} cores seen by the system, threads: {', '.join(map(str, threads))}. "
        f"Data: {about['data']}, first images of the test split.",
        f"Of {len(plain)} comparisons with equal settings {marks.count('yes')} are within bounds, "
        f"{marks.count('NO')} are not, {marks.count('-')} cannot be judged. "
        + (f"{missing} rows have not been run yet. " if missing else "")
        + f"Bounds: robust accuracy of one attack at most {bounds['attack']} points above the peer's, of a "
        f"whole AutoAttack {bounds['cascade']} points; medians of smallest changes at most "
        f"{100 * bounds['minimum']:g} % above. Lower is stronger, and within bounds.",
        "Passes, forward + backward, and seconds are for a sample that was attacked. *Only peer / ours*: "
        "samples that one side alone fooled. *Same*: of the samples that both fooled, those with the same "
        "image up to 1e-4; it can be all of them only where nothing is random and every sample goes through "
        "the whole attack.",
    ]
    return "\n\n".join(words)


def section(name: str, about: dict, rows: list[dict], bounds: dict) -> str:
    same = about["same_network"]
    equal = same["fgsm_values_equal"]
    share = "none fooled" if equal is None else f"{100 * equal:.4f} % equal"
    parts = [
        f"## {name}",
        f"`{about['file']}`, {about['architecture']}, sha256 `{about['sha256'][:16]}`. {about['right']} of "
        f"{about['images']} images right. The network rebuilt in PyTorch beside talion's: "
        f"{same['predictions_differ']} predictions of {same['images']} differ, values of "
        f"{same['fgsm_images']} FGSM images {share}.",
    ]
    fair = [row for row in rows if not row["shows"]]
    shown = [row for row in rows if row["shows"]]
    parts += block("### Robust accuracy", [row for row in fair if row["kind"] != "minimum"], accuracy, bounds)
    parts += block("### Smallest changes", [row for row in fair if row["kind"] == "minimum"], change, bounds)
    title = "### Settings that differ: peers' defaults beside talion"
    parts += block(title, [row for row in shown if row["kind"] != "minimum"], accuracy, bounds)
    title = "### Settings that differ: smallest changes"
    parts += block(title, [row for row in shown if row["kind"] == "minimum"], change, bounds)
    parts += stages([row for row in rows if row["kind"] == "cascade"])
    parts += notes(rows)
    return "\n\n".join(parts)


def block(title: str, rows: list[dict], columns, bounds: dict) -> list[str]:
    if not rows:
        return []
    table = [columns(None, bounds)] + [columns(row, bounds) for row in rows]
    return [title, markdown(table)]


def markdown(table: list[list[str]]) -> str:
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def accuracy(row: dict | None, bounds: dict) -> list[str]:
    """A line of the table of robust accuracies; the heading for no row."""
    if row is None:
        names = "peer|ours|budget|images|peer %|ours %|difference|within|only peer / ours|same|passes peer"
        return (names + "|passes ours|s peer|s ours").split("|")
    theirs, own = row["peer"], row["ours"]
    difference = points(row)
    return [
        peer_name(row),
        our_name(row),
        f"{NORMS[row['norm']]} {row['eps']:.4g}",
        str(row["images"]),
        share(theirs),
        share(own),
        "" if difference is None else f"{difference:+.1f}",
        mark(row, bounds),
        only(row),
        same(row),
        passes(theirs, row),
        passes(own, row),
        seconds(theirs, row),
        seconds(own, row),
    ]


def change(row: dict | None, bounds: dict) -> list[str]:
    """A line of the table of smallest changes; the heading for no row."""
    if row is None:
        names = "peer|ours|norm|images|found peer %|found ours %|median peer|median ours|of both peer"
        names += "|of both ours|means of both|ours / peer|within|ours smaller / same / larger|same"
        return (names + "|passes peer|passes ours|s peer|s ours").split("|")
    theirs, own = row["peer"].get("smallest", {}), row["ours"].get("smallest", {})
    pair = row.get("paired", {})
    compared = [pair.get(name) for name in ("ours_smaller", "within_a_thousandth", "ours_larger")]
    quotient = ratio(row, "median_both")
    return [
        peer_name(row),
        our_name(row),
        NORMS[row["norm"]],
        str(row["images"]),
        percent(theirs.get("success")),
        percent(own.get("success")),
        value(theirs, "median_all"),
        value(own, "median_all"),
        value(theirs, "median_both"),
        value(own, "median_both"),
        f"{value(theirs, 'mean_both')} / {value(own, 'mean_both')}",
        "" if quotient is None else f"{quotient:.4f}",
        mark(row, bounds),
        "" if None in compared else " / ".join(map(str, compared)),
        same(row),
        passes(row["peer"], row),
        passes(row["ours"], row),
        seconds(row["peer"], row),
        seconds(row["ours"], row),
    ]


def mark(row: dict, bounds: dict) -> str:
    """Whether talion's number is within the wanted bound of the peer's, or better."""
    if "error" in row["peer"] or "error" in row["ours"]:
        return "-"
    if row["ours"]["violations"]:
        return "NO"
    if row["kind"] != "minimum":
        # a hair more, for the sum of two shares in binary
        return "yes" if points(row) <= bounds[row["kind"]] + 1e-9 else "NO"
    theirs, own = row["peer"]["smallest"], row["ours"]["smallest"]
    if 100 * (theirs["success"] - own["success"]) > bounds["attack"] + 1e-9:
        return "NO"
    quotients = [ratio(row, "median_all"), ratio(row, "median_both")]
    known = [quotient for quotient in quotients if quotient is not None]
    if not known:
        # nothing to be compared
        return "yes" if own["success"] > theirs["success"] else "-"
    return "yes" if max(known) <= 1 + bounds["minimum"] else "NO"


def points(row: dict) -> float | None:
    """By how many points talion's robust accuracy is above the peer's."""
    if "error" in row["peer"] or "error" in row["ours"]:
        return None
    return 100 * (row["ours"]["robust"]["share"] - row["peer"]["robust"]["share"])


def ratio(row: dict, name: str) -> float | None:
    theirs = row["peer"].get("smallest", {}).get(name)
    own = row["ours"].get("smallest", {}).get(name)
    return own / theirs if own is not None and theirs else None


def peer_name(row: dict) -> str:
    settings = {name: value for name, value in row["settings"].items() if value is not None}
    words = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                      for name, value in settings.items())  # fmt: skip
    return f"{PEERS[row['peer_name']]} {row['attack']}" + (f" ({words})" if words else "")


def our_name(row: dict) -> str:
    # step sizes are handed over to the last digit; here four will do
    short = re.sub(r"\d+\.\d{5,}", lambda found: f"{float(found.group()):.4g}", row["ours_name"])
    return f"`{short}`" + (" --whole" if row["whole"] else "")


def share(side: dict) -> str:
    if "error" in side:
        return "failed"
    outside = side["violations"]
    return f"{100 * side['robust']['share']:.1f}" + (f" ({outside['images']} outside)" if outside else "")


def percent(found: float | None) -> str:
    return "failed" if found is None else f"{100 * found:.1f}"


def value(side: dict, name: str) -> str:
    found = side.get(name)
    return "-" if found is None else f"{found:.5g}"


def only(row: dict) -> str:
    pair = row.get("paired")
    return "" if pair is None else f"{pair['only_peer']} / {pair['only_ours']}"


def same(row: dict) -> str:
    found = row.get("alike")
    return "" if not found else f"{found['images']} of {found['of']}"


def passes(side: dict, row: dict) -> str:
    if "error" in side:
        return ""
    each = max(1, row["given"])
    return f"{side['passes']['forward'] / each:.1f} + {side['passes']['backward'] / each:.1f}"


def seconds(side: dict, row: dict) -> str:
    return "" if "error" in side else f"{side['seconds'] / max(1, row['given']):.4f}"


def stages(rows: list[dict]) -> list[str]:
    """What each attack of a cascade did."""
    lines = [["AutoAttack", "side", "attack", "fooled", "of", "passes", "seconds"]]
    for row in rows:
        for side, words in (("peer", "peer"), ("ours", "ours")):
            for stage in row[side].get("stages", []):
                each = max(1, stage["given"])
                lines.append([
                    f"{PEERS[row['peer_name']]} {row['attack']}, {NORMS[row['norm']]} {row['eps']:.4g}",
                    words,
                    stage["attack"],
                    str(stage["fooled"]),
                    str(stage["given"]),
                    f"{stage['forward'] / each:.1f} + {stage['backward'] / each:.1f}",
                    f"{stage['seconds']:.1f}",
                ])  # fmt: skip
    if len(lines) == 1:
        return []
    title = "### AutoAttack's attacks in turn"
    return [title, "Passes for a sample that the attack was given.", markdown(lines)]


def notes(rows: list[dict]) -> list[str]:
    """What has to be said of single rows."""
    lines = []
    for row in rows:
        words = [" ".join(row["note"].split())] if row["note"] else []
        for side in ("peer", "ours"):
            words += remarks(side, row[side])
        if words:
            lines.append(f"- {peer_name(row)}, {our_name(row)}, {NORMS[row['norm']]}: {' '.join(words)}")
    return ["Notes:", "\n".join(lines)] if lines else []


def remarks(side: str, found: dict) -> list[str]:
    name = "The peer" if side == "peer" else "talion"
    words = []
    if "error" in found:
        return [f"{name} failed: {found['error']}."]
    outside = found["violations"]
    if outside:
        words.append(
            f"{name} returned {outside['images']} images outside box or budget, {outside['of_these_nan']} of "
            f"them NaN (at most {outside['most_beyond_budget']:.2g} beyond the budget, "
            f"{outside['most_beyond_box']:.2g} beyond the box); {outside['of_these_misclassified']} are "
            f"misclassified and are not counted."
        )
    if found.get("claims_not_confirmed"):
        words.append(
            f"{found['claims_not_confirmed']} images that fool talion do not fool the rebuilt network."
        )
    words += [f"talion says: {text}." for text in found.get("adjustments", [])]
    words += [f"{name} says: {text}" for text in found.get("says", [])]
    return words


if __name__ == "__main__":
    main()
