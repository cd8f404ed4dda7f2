"""What repetitions amount to."""

import statistics


def quantile(values: list[float], share: float) -> float:
    """The value below which this share lies, with a straight line between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: list[float]) -> dict:
    """Median, quartiles, extremes, and how many there were."""
    return {
        "count": len(values),
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "lower": quantile(values, 0.25),
        "upper": quantile(values, 0.75),
    }


def seconds(side: dict) -> list[float]:
    """Of every repetition of a worker."""
    return [repetition["seconds"] for repetition in side.get("repetitions", [])]


def per_image(side: dict) -> list[float]:
    """Seconds an image: sides that count their images differently can still be compared."""
    return [one["seconds"] / max(one.get("images", 1), 1) for one in side.get("repetitions", [])]


def ratio(peer: dict, ours: dict) -> dict | None:
    """How many times as long the peer took for an image: of the medians, and within rounds.

    A round holds a repetition of each, one right after the other: what slows the machine for a while slows
    both.
    """
    theirs, own = per_image(peer), per_image(ours)
    if not theirs or not own:
        return None
    rounds = {one["round"]: value for one, value in zip(ours["repetitions"], own, strict=True)}
    pairs = [
        value / rounds[one["round"]]
        for one, value in zip(peer["repetitions"], theirs, strict=True)
        if rounds.get(one["round"], 0) > 0
    ]
    middle = statistics.median(own)
    if middle <= 0 or not pairs:
        return None
    return {
        "medians": statistics.median(theirs) / middle,
        "least": min(pairs),
        "most": max(pairs),
        "rounds": len(pairs),
    }


def latencies(side: dict) -> dict | None:
    """Milliseconds of single calls, over all repetitions."""
    calls = [1000 * call for one in side.get("repetitions", []) for call in one.get("each", [])]
    if not calls:
        return None
    return {
        "count": len(calls),
        "p50": quantile(calls, 0.5),
        "p99": quantile(calls, 0.99),
        "most": max(calls),
    }


def gradients(job: dict) -> int | None:
    """Gradients that a job nominally takes an image; `None` where that depends on the image."""
    if job["kind"] == "gradient":
        return 1
    if job["kind"] != "attack" or job.get("defended"):
        return None
    steps = job.get("steps", 0)
    return {"fgsm": 1, "pgd": steps, "apgd-ce": steps + 1}.get(job["attack"])


def share_of_peak(row: dict, side: dict, peak: float | None) -> float | None:
    """Nominal operations a second, as a share of what a matrix product reaches."""
    count, cost = gradients(row["job"]), row.get("flops")
    values = per_image(side)
    if not (count and cost and peak and values):
        return None
    return count * cost / statistics.median(values) / (1e9 * peak)


def busiest(row: dict) -> float:
    """The highest load average before any repetition."""
    loads = [one["load"] for side in row["workers"].values() for one in side.get("repetitions", [])]
    return max(loads, default=0.0)
