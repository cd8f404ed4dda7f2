"""What a config asks for: rows, each for one classifier, with all numbers filled in."""

import json
import tomllib
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

NORMS = ("linf", "l2", "l1", "l0")
KINDS = ("attack", "cascade", "minimum")


def number(value: float | str) -> float:
    """A number, or a fraction such as "8/255"."""
    return float(Fraction(value)) if isinstance(value, str) else float(value)


@dataclass
class Job:
    """One comparison: a peer's attack and ours, on one classifier, the same images, the same budget."""

    classifier: str
    file: str
    peer: str
    attack: str
    ours: str
    norm: str
    kind: str
    eps: float | None
    images: int
    batch: int
    seed: int
    threads: int
    whole: bool
    steps: int | None = None
    step: float | None = None
    target: int | None = None
    shows: bool = False
    note: str = ""
    settings: dict = field(default_factory=dict)

    def key(self, checksum: str) -> str:
        """Tells this comparison from every other; prose is not part of it."""
        parts = asdict(self) | {"checksum": checksum}
        for prose in ("note", "shows", "file"):
            del parts[prose]
        return json.dumps(parts, sort_keys=True)

    def title(self) -> str:
        budget = "smallest" if self.eps is None else f"{self.eps:.4g}"
        return f"{self.classifier}, {self.norm} {budget}: {self.peer}.{self.attack} and {self.ours}"


# what a row may say, or its group for it
ROW_KEYS = "peer ours norm kind eps images batch steps step target whole shows note settings on".split()
CONFIG_KEYS = "data images batch seed threads bounds classifiers groups".split()


@dataclass
class Config:
    """A whole comparison."""

    data: str
    images: int
    bounds: dict[str, float]
    classifiers: dict[str, dict]
    jobs: list[Job]


def load(path: Path, threads: int | None = None, most: int | None = None) -> Config:
    """Reads a config; whatever it says that is not understood is an error."""
    with open(path, "rb") as file:
        raw = tomllib.load(file)
    known("the config", raw, CONFIG_KEYS)
    classifiers = raw["classifiers"]
    rows = []
    for group in raw["groups"]:
        usual = {name: value for name, value in group.items() if name != "rows"}
        rows += [usual | row for row in group["rows"]]
    jobs = [
        job(raw, name, row, threads) for name in classifiers for row in rows if name in row.get("on", [name])
    ]
    for one in jobs:
        one.images = min(one.images, most or one.images)
    bounds = {"attack": 0.5, "cascade": 0.2, "minimum": 0.02} | raw.get("bounds", {})
    return Config(raw["data"], max(job.images for job in jobs), bounds, classifiers, jobs)


def known(where: str, found: dict, keys: list[str]) -> None:
    unknown = set(found) - set(keys)
    if unknown:
        raise SystemExit(f"{where}: unknown {', '.join(sorted(unknown))}")


def job(raw: dict, name: str, row: dict, threads: int | None) -> Job:
    """A row on one classifier."""
    where = f"row {row['peer']}"
    known(where, row, ROW_KEYS)
    absent = [other for other in row.get("on", []) if other not in raw["classifiers"]]
    if absent:
        raise SystemExit(f"{where}: no classifier is called {', '.join(absent)}")
    norm, kind = row["norm"], row.get("kind", "attack")
    if norm not in NORMS or kind not in KINDS:
        raise SystemExit(f"{where}: norm is one of {NORMS}, kind one of {KINDS}")
    eps = None
    if kind != "minimum":
        budgets = raw["classifiers"][name].get("eps", {})
        if "eps" not in row and norm not in budgets:
            raise SystemExit(f"{where}: no eps for {norm} on {name}")
        eps = number(row.get("eps", budgets.get(norm)))
    # a step is given as a share of the budget
    step = None if "step" not in row else number(row["step"]) * (eps if eps is not None else 1.0)
    values = {"steps": row.get("steps"), "step": repr(step), "eps": repr(eps)}
    return Job(
        classifier=name,
        file=raw["classifiers"][name]["file"],
        peer=row["peer"].split(".", 1)[0],
        attack=row["peer"].split(".", 1)[1],
        ours=row["ours"].format(**values),
        norm=norm,
        kind=kind,
        eps=eps,
        images=row.get("images", raw["images"]),
        batch=row.get("batch", raw.get("batch", 250)),
        seed=raw.get("seed", 1),
        threads=threads or raw.get("threads", 2),
        # what looks for the smallest change has to be let go on after the first success
        whole=row.get("whole", kind == "minimum"),
        steps=row.get("steps"),
        step=step,
        target=row.get("target"),
        shows=row.get("shows", False),
        note=row.get("note", ""),
        settings=row.get("settings", {}),
    )
