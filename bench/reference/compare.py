"""Runs the attacks of the reference implementations and those of talion on the same classifiers and images.

    compare.py CONFIG.toml --models FOLDER -o RESULT.json

A row of the config is run on both sides, one after the other; the result is written after each row, and a row
that is in it already is not run again. `table.py` makes a table of the result. See README.md.
"""

import argparse
import json
import os
import platform
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the result; it is gone on with")
    parser.add_argument("--models", type=Path, required=True, help="the folder of the config's checkpoints")
    program = HERE.parent.parent / "target/release/talion"
    parser.add_argument("--talion", type=Path, default=program, help="the program to compare")
    parser.add_argument("--threads", type=int, help="threads on both sides, instead of the config's")
    parser.add_argument("--most", type=int, help="no row uses more images than this: for a quick look")
    parser.add_argument(
        "--only", action="append", help="only rows whose title contains this; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="say which rows there are, and run nothing")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    # imported late: --help should not wait for PyTorch
    import jobs
    from ours import Talion

    config = jobs.load(args.config, args.threads, args.most)
    chosen = [job for job in config.jobs if not args.only or any(part in job.title() for part in args.only)]
    result = Result(args.output)
    checksums = {job.file: checksum(args.models / job.file) for job in config.jobs}
    keys = [job.key(checksums[job.file]) for job in chosen]
    if args.list:
        for job, key in zip(chosen, keys, strict=True):
            print("done " if result.done(key) else "     ", job.title())
        return
    talion = Talion(args.talion, config.data, args.output.with_suffix(".work"))
    data = talion.images(config.images)
    result.begin(config, talion, [job.key(checksums[job.file]) for job in config.jobs])
    models = {}
    for count, (job, key) in enumerate(zip(chosen, keys, strict=True), 1):
        if result.done(key):
            continue
        say(f"[{count}/{len(chosen)}] {job.title()}")
        file = args.models / job.file
        if job.classifier not in models:
            models[job.classifier] = Network(job, file, talion, data)
            result.classifier(job.classifier, models[job.classifier].about)
        result.row(key, models[job.classifier].compare(job))


def checksum(file: Path) -> str:
    from networks import sha256

    if not file.is_file():
        raise SystemExit(f"{file}: no such checkpoint; README.md says how the three are made")
    return sha256(file)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Result:
    """The file of results: whole after every row."""

    def __init__(self, path: Path):
        self.path = path
        empty = {"about": {}, "bounds": {}, "classifiers": {}, "order": [], "rows": {}}
        self.content = json.loads(path.read_text()) if path.exists() else empty

    def done(self, key: str) -> bool:
        # a row in which a side failed is tried again
        row = self.content["rows"].get(key)
        return row is not None and "error" not in row["peer"] and "error" not in row["ours"]

    def begin(self, config, talion, keys: list[str]) -> None:
        packages = ("torch", "autoattack", "torchattacks", "foolbox", "adv-lib", "numpy")
        self.content["about"] = {
            "data": config.data,
            "talion": talion.version(),
            "talion_sha256": talion.checksum,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in packages},
            "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        }
        self.content["bounds"] = config.bounds
        self.content["order"] = keys
        self.save()

    def classifier(self, name: str, about: dict) -> None:
        self.content["classifiers"][name] = about
        self.save()

    def row(self, key: str, row: dict) -> None:
        self.content["rows"][key] = row
        self.save()

    def save(self) -> None:
        part = self.path.with_name(self.path.name + ".new")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(part, self.path)


def processor() -> str:
    """What the processor is called, where the system says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class Network:
    """A classifier on both sides, and the images that it is attacked on."""

    def __init__(self, job, file: Path, talion, data: dict):
        import torch

        from counting import predictions
        from networks import load, sha256

        torch.set_num_threads(job.threads)
        self.file, self.talion, self.data = file, talion, data
        self.model = load(file)
        card = self.model.card
        self.predicted = predictions(self.model, data["images"])
        right = self.predicted == data["labels"]
        self.about = {
            "file": file.name,
            "sha256": sha256(file),
            "architecture": card["spec"]["architecture"],
            "training": card["training"],
            "metrics": card["metrics"],
            "images": len(right),
            "right": int(right.sum()),
            "same_network": self.same_network(job),
        }

    def same_network(self, job) -> dict:
        """Whether PyTorch computes what talion computes: predictions, and signs of gradients.

        talion does not print logits. But FGSM's image is the benign one plus the budget times the sign of the
        gradient, so two programs that agree on all its values have the same gradients, up to those so close
        to zero that rounding decides.
        """
        from dataclasses import replace

        import torch

        count, eps = min(256, len(self.predicted)), 0.1
        probe = replace(job, ours="fgsm", norm="linf", eps=eps, images=count, whole=True, target=None)
        _, tensors, _ = self.talion.attack(self.file, probe)
        self.same_images(tensors, count, None)
        images, labels = self.data["images"][:count], self.data["labels"][:count]
        wrong = self.predicted[:count] != labels
        point = images.clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(self.model(point), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
        expected = (images + eps * gradient.sign()).clamp(0, 1)
        # talion gives back the benign image where nothing fooled
        fooled = tensors["fooled"] >= 0
        equal = (expected - tensors["adversarial"])[fooled].abs() <= 1e-6
        found = {
            "images": count,
            "predictions_differ": int((wrong != (tensors["fooled"] == -1)).sum()),
            "fgsm_images": int(fooled.sum()),
            "fgsm_values_equal": float(equal.float().mean()) if equal.numel() else None,
        }
        say(f"    same network? {json.dumps(found)}")
        if found["predictions_differ"] > count // 100:
            raise SystemExit("the rebuilt network is not talion's: its predictions differ; see networks.py")
        return found

    def same_images(self, tensors: dict, count: int, target: int | None) -> None:
        """Whether talion has attacked the images that it had exported."""
        same = tensors["ids"].equal(self.data["ids"][:count])
        if target is None:
            same = same and tensors["labels"].equal(self.data["labels"][:count])
        if not same:
            raise SystemExit("talion attacked other images than it exported")

    def compare(self, job) -> dict:
        """A row of the result."""
        images, labels = self.data["images"][: job.images], self.data["labels"][: job.images]
        predicted = self.predicted[: job.images]
        # aiming at a class, a sample counts until it is taken for that class
        given = predicted == labels if job.target is None else predicted != job.target
        row = {
            "title": job.title(),
            "classifier": job.classifier,
            "peer_name": job.peer,
            "attack": job.attack,
            "ours_name": job.ours,
            "norm": job.norm,
            "eps": job.eps,
            "kind": job.kind,
            "whole": job.whole,
            "shows": job.shows,
            "note": job.note,
            "settings": {"steps": job.steps, "step": job.step, "target": job.target, **job.settings},
            "images": job.images,
            "given": int(given.sum()),
            "seed": job.seed,
            "threads": job.threads,
            "batch": job.batch,
        }
        row["peer"], theirs = self.side(self.peer_side, job, images, labels, given)
        row["ours"], own = self.side(self.our_side, job, images, labels, given)
        if theirs and own:
            self.pair(row, job, given, theirs, own)
        report(row)
        return row

    def side(self, run, job, images, labels, given) -> tuple[dict, tuple | None]:
        """One side's numbers, its images and what became of them; or what went wrong."""
        from judge import Verdict, robust

        try:
            numbers, adversarial, claimed = run(job, images, labels, given)
        except Exception as error:
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"[:300]}, None
        verdict = Verdict(
            self.model, images, labels, adversarial, norm=job.norm, eps=job.eps, target=job.target
        )
        numbers["robust"] = robust(verdict, given, job.images)
        numbers["violations"] = verdict.violations()
        if claimed is not None:
            # on the boundary itself, rounding decides
            numbers["claims_not_confirmed"] = int((given & claimed & ~verdict.fooled).sum())
        return numbers, (adversarial, verdict)

    def peer_side(self, job, images, labels, given) -> tuple[dict, object, None]:
        import peers

        answer = peers.run(self.model, images, labels, given, job)
        numbers = {"seconds": answer.seconds, "passes": answer.passes}
        numbers |= {"stages": answer.stages} if answer.stages else {}
        numbers |= {"says": answer.says} if answer.says else {}
        return numbers, answer.adversarial, None

    def our_side(self, job, images, labels, given) -> tuple[dict, object, object]:
        report, tensors, kept = self.talion.attack(self.file, job)
        self.same_images(tensors, job.images, job.target)
        stages = [
            {name: stage[name] for name in ("attack", "given", "fooled", "seconds")} | stage["passes"]
            for stage in report["stages"]
        ]
        numbers = {
            "seconds": sum(stage["seconds"] for stage in stages),
            "passes": {name: sum(stage[name] for stage in stages) for name in ("forward", "backward")},
            "stages": stages,
            "adjustments": report["adjustments"],
            "alarms": report["alarms"],
            "from_an_earlier_row": kept,
        }
        return numbers, tensors["adversarial"], tensors["fooled"] >= 0

    def pair(self, row: dict, job, given, theirs: tuple, own: tuple) -> None:
        """What can be said of both sides together."""
        from judge import alike, paired, smallest

        both = theirs[1].fooled & own[1].fooled & given
        row["paired"] = paired(theirs[1], own[1], given, job.kind == "minimum")
        if job.kind == "minimum":
            row["peer"]["smallest"] = smallest(theirs[1], given, both)
            row["ours"]["smallest"] = smallest(own[1], given, both)
        if job.whole:
            row["alike"] = alike(theirs[0], own[0], both)


def report(row: dict) -> None:
    """Progress: the two numbers that matter."""

    def words(side: dict) -> str:
        if "error" in side:
            return side["error"]
        found = f"{100 * side['robust']['share']:.1f} %"
        if "smallest" in side and side["smallest"]["median_both"] is not None:
            found = f"{100 * side['smallest']['success']:.1f} %, {side['smallest']['median_both']:.5g}"
        return found + f" in {side['seconds']:.1f} s"

    say(f"    peer {words(row['peer'])}; ours {words(row['ours'])}")


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    say(f"{time.perf_counter() - started:.0f} s")
