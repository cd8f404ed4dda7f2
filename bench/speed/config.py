"""What a config asks for: models, data, and rows with all numbers filled in."""

import copy
import json
import tomllib
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

KINDS = ("gradient", "attack", "autoattack", "train-classifier", "train-trn", "restore", "restore-with")
MEASURES = ("time", "latency", "start-up", "memory")
WARMUPS = ("full", "short", "gradient", "none")
LABELS = ("true", "predicted")
CONFIG_KEYS = "repeat threads timeout settle seed tolerance models data rows".split()
MODEL_KEYS = "file trn make channels classes size seed".split()
DATA_KEYS = "file dataset split count make channels classes size seed".split()
ROW_KEYS = (
    "name section model trn data images batch job ours peers repeat warmup timeout threads each note measure "
    "labels check"
).split()
# numbers of a job that may be written as fractions
FRACTIONS = ("eps", "step")


def known(where: str, found: dict, keys: list[str]) -> None:
    unknown = set(found) - set(keys)
    if unknown:
        raise SystemExit(f"{where}: unknown {', '.join(sorted(unknown))}")


def number(value: float | str) -> float:
    """A number, or a fraction such as "8/255"."""
    return float(Fraction(value)) if isinstance(value, str) else float(value)


def one_of(where: str, what: str, value: str, among: tuple[str, ...]) -> None:
    if value not in among:
        raise SystemExit(f"{where}: {what} is one of {', '.join(among)}, not {value}")


@dataclass
class Row:
    """One comparison: the same job for each of several workers, again and again."""

    name: str
    section: str
    job: dict
    model: str | None
    trn: bool
    data: str
    # whom to ask: "ours/SETTING" and "PEER/SETTING"
    workers: list[str]
    repeat: int
    warmup: str
    timeout: float
    threads: int
    measure: str
    labels: str
    check: bool
    seed: int
    note: str = ""

    def key(self, checksums: dict[str, str]) -> str:
        """Tells this row from every other; prose, and how often it is repeated, are no part of it."""
        parts = asdict(self) | {"checksums": checksums}
        for name in ("name", "section", "note", "repeat", "timeout", "workers", "model", "data"):
            del parts[name]
        return json.dumps(parts, sort_keys=True)

    def job_of(self, worker: str) -> dict:
        """What one worker is told."""
        peer, setting = worker.split("/")
        job = copy.deepcopy(self.job) | {"setting": setting, "seed": self.seed}
        search = job.get("search")
        if peer == "ours":
            # our attacks have their settings in their names
            if search is not None:
                job["attack"] += f":search={job.pop('search')}"
        elif self.job["kind"] in ("attack", "autoattack"):
            job["peer"] = peer
        return job

    def warmup_of(self, worker: str) -> dict | None:
        """What a worker does before its clock counts, so that nothing is compiled, allocated or read the
        first time."""
        job, kind = self.job_of(worker), self.job["kind"]
        if self.warmup == "none":
            return None
        if self.warmup == "gradient":
            return {"kind": "gradient", "batch": job.get("batch", 1), "repeat": 1, "setting": job["setting"]}
        if self.warmup == "short":
            if kind in ("attack", "autoattack"):
                job["images"] = min(job["images"], job["batch"])
            if kind == "attack" and "steps" in job:
                # fewer are not enough for some attacks that look for the smallest change
                job["steps"] = min(job["steps"], 3 if job["attack"] == "pgd" else 10)
            if "repeat" in job:
                job["repeat"] = min(job["repeat"], 3)
            if "pool" in job:
                job["pool"] = min(job["pool"], 2 * job["batch"])
            if kind == "train-classifier":
                job["images"] = min(job["images"], 2 * job["batch"])
        return job


@dataclass
class Config:
    """A whole benchmark."""

    models: dict[str, dict]
    data: dict[str, dict]
    rows: list[Row]
    settle: float
    tolerance: float
    raw: dict = field(default_factory=dict)


def merged(base: dict, more: dict) -> dict:
    """`more` over `base`, tables within tables too."""
    result = copy.deepcopy(base)
    for name, value in more.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if both else copy.deepcopy(value)
    return result


def load(path: Path, threads: int | None = None, repeat: int | None = None) -> Config:
    """Reads a config; whatever it says that is not understood is an error."""
    with open(path, "rb") as file:
        raw = tomllib.load(file)
    known("the config", raw, CONFIG_KEYS)
    models, data = raw.get("models", {}), raw.get("data", {})
    for name, value in models.items():
        known(f"model {name}", value, MODEL_KEYS)
        if ("file" in value) == ("make" in value):
            raise SystemExit(f"model {name}: has either a file or an architecture to make")
    for name, value in data.items():
        known(f"data {name}", value, DATA_KEYS)
        if sum(key in value for key in ("file", "dataset", "make")) != 1:
            raise SystemExit(f"data {name}: has one of file, dataset and make")
    rows = []
    for entry in raw.get("rows", []):
        for change in entry.get("each", [{}]):
            whole = merged({key: value for key, value in entry.items() if key != "each"}, change)
            rows.append(row(raw, whole, threads, repeat))
    names = [one.name for one in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SystemExit(f"rows of the same name: {', '.join(twice)}")
    return Config(models, data, rows, raw.get("settle", 0.5), raw.get("tolerance", 1e-4), raw)


def row(raw: dict, entry: dict, threads: int | None, repeat: int | None) -> Row:
    where = f"row {entry.get('name', '?')}"
    known(where, entry, ROW_KEYS)
    for needed in ("name", "job", "data"):
        if needed not in entry:
            raise SystemExit(f"{where}: has no {needed}")
    job = dict(entry["job"])
    kind = job.get("kind", "")
    one_of(where, "the kind of job", kind, KINDS)
    for name in FRACTIONS:
        if name in job:
            job[name] = number(job[name])
    for name in ("images", "batch"):
        if name in entry:
            job[name] = entry[name]
    needs = {"attack": ("attack", "images", "batch"), "autoattack": ("eps", "images", "batch")}
    needs |= {
        "train-classifier": ("architecture", "images", "batch"),
        "train-trn": ("pool", "batch", "attack"),
    }
    needs |= {"restore-with": ("restorer", "batch")}
    for name in needs.get(kind, ("batch",)):
        if name not in job:
            raise SystemExit(f"{where}: its job has no {name}")
    model = entry.get("model")
    if model is None and kind != "train-classifier":
        raise SystemExit(f"{where}: has no model")
    if model is not None and model not in raw.get("models", {}):
        raise SystemExit(f"{where}: no model is called {model}")
    if entry["data"] not in raw.get("data", {}):
        raise SystemExit(f"{where}: no data are called {entry['data']}")
    trn = entry.get("trn", kind in ("restore", "train-trn") or "defended" in job)
    if trn and "trn" not in raw["models"].get(model, {}):
        raise SystemExit(f"{where}: the model {model} has no TRN")
    ours = [f"ours/{setting}" for setting in entry.get("ours", ["default"])]
    peers = entry.get("peers", [])
    for peer in peers:
        if peer.count("/") != 1:
            raise SystemExit(f"{where}: a peer is written NAME/SETTING, not {peer}")
    result = Row(
        name=entry["name"].format(**(job | {"model": model, "data": entry["data"]})),
        section=entry.get("section", "Rows"),
        job=job,
        model=model,
        trn=trn,
        data=entry["data"],
        workers=ours + peers,
        repeat=repeat or entry.get("repeat", raw.get("repeat", 5)),
        warmup=entry.get("warmup", "short"),
        timeout=entry.get("timeout", raw.get("timeout", 600)),
        threads=threads or entry.get("threads", raw.get("threads", 1)),
        measure=entry.get("measure", "time"),
        # what is attacked has to be right at first, or one side leaves it alone and the other does not
        labels=entry.get("labels", "predicted" if kind in ("gradient", "attack") else "true"),
        check=entry.get("check", model is not None),
        seed=entry.get("seed", raw.get("seed", 1)),
        note=" ".join(entry.get("note", "").split()),
    )
    if not result.workers:
        raise SystemExit(f"{where}: nobody to ask")
    one_of(where, "measure", result.measure, MEASURES)
    one_of(where, "warmup", result.warmup, WARMUPS)
    one_of(where, "labels", result.labels, LABELS)
    return result
