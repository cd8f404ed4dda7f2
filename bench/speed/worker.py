"""The peers' side of the benchmark: a process that is told what to load and what to time.

    worker.py --threads N

A line of JSON in, a line of JSON out; README.md says which. Whatever libraries print goes to standard error.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import shared  # noqa: F401  (finds `networks`)
import attacks
import classifiers
import flops
import machine
import networks
import restorers
import torch
import torch.nn.functional as F
import training
import trn
from classifiers import Skipped
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PACKAGES = (
    "torch",
    "torchattacks",
    "foolbox",
    "adversarial-robustness-toolbox",
    "adv-lib",
    "autoattack",
    "numpy",
)


def about() -> dict:
    """Versions, and the kernels that PyTorch chose."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {
        "packages": found,
        "python": sys.version.split()[0],
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "cuda_build": torch.version.cuda is not None,
        "bf16": machine.bf16(),
    }


def timed(action: Callable[[], object]) -> tuple[float, object]:
    """Seconds of an action, and what it gave."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


class Worker:
    """What has been loaded, and what has been made of it so far."""

    def __init__(self) -> None:
        self.classifier: tuple[dict, dict[str, Tensor]] | None = None
        self.trn: tuple[dict, dict[str, Tensor]] | None = None
        self.images = self.labels = torch.empty(0)
        self.made: dict[tuple, nn.Module] = {}

    def load(self, request: dict) -> dict:
        self.made = {}
        model, network = request.get("model"), request.get("trn")
        self.classifier = networks.read(model) if model else None
        self.trn = trn.read(network) if network else None
        data = load_file(request["data"])
        self.images, self.labels = data["images"].float(), data["labels"].long()
        return {"images": len(self.images)}

    def run(self, job: dict) -> dict:
        kind = job.get("kind")
        action = JOBS.get(kind)
        if action is None:
            raise ValueError(f"no job is called {kind}; known: {', '.join(JOBS)}")
        job = {"setting": "default", "seed": 1} | job
        classifiers.usable(job["setting"], job.get("force", False))
        return action(self, job)

    def rows(self, count: int | None) -> tuple[Tensor, Tensor]:
        """The first images."""
        if len(self.images) == 0:
            raise ValueError("no data has been loaded")
        if count is not None and count > len(self.images):
            raise ValueError(f"{count} images asked for, {len(self.images)} loaded")
        return self.images[:count], self.labels[:count]

    def once(self, key: tuple, make: Callable[[], nn.Module]) -> nn.Module:
        """What is built once, before any clock starts."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def bare(self, setting: str) -> nn.Module:
        if self.classifier is None:
            raise ValueError("no classifier has been loaded")
        return self.once(("classifier", setting), lambda: classifiers.build(*self.classifier, setting))

    def defended(self, setting: str, mode: str = "detached") -> nn.Module:
        """The classifier behind the TRN; autocast is put around the two together."""
        if self.trn is None:
            raise ValueError("no TRN has been loaded")
        inner = "best" if setting == "autocast" else setting
        network = self.once(("trn", inner), lambda: trn.build(*self.trn, inner))
        whole = trn.Defended(self.bare(inner), network, mode).eval()
        return classifiers.Autocast(whole).eval() if setting == "autocast" else whole

    def model(self, job: dict) -> nn.Module:
        """What the job attacks."""
        mode = job.get("defended")
        return self.defended(job["setting"], mode) if mode else self.bare(job["setting"])

    def gradient(self, job: dict) -> dict:
        model = self.model(job)
        images, labels = self.rows(job["batch"])

        def work() -> None:
            for _ in range(job.get("repeat", 1)):
                point = images.detach().clone().requires_grad_(True)
                loss = F.cross_entropy(model(point), labels, reduction="sum")
                torch.autograd.grad(loss, point)

        seconds, _ = timed(work)
        return {"seconds": seconds, "images": len(images) * job.get("repeat", 1)}

    def attack(self, job: dict) -> dict:
        images, labels = self.rows(job["images"])
        if self.classifier is None:
            raise ValueError("no classifier has been loaded")
        job = job | {"classes": self.classifier[0]["spec"]["classes"]}
        model = self.model(job)
        library(job["peer"])
        seconds, adversarial = timed(lambda: attacks.run(model, images.clone(), labels.clone(), job))
        found = {"seconds": seconds, "images": len(images), "robust": accuracy(model, adversarial, labels)}
        if "eps" in job and job["attack"] in ("pgd", "fgsm", "apgd-ce", "standard"):
            found["farthest"] = float((adversarial - images).abs().max())
        return found

    def autoattack(self, job: dict) -> dict:
        model = self.model(job)
        images, labels = self.rows(job["images"])
        clean = accuracy(model, images, labels)
        found = self.attack({"peer": "autoattack"} | job | {"attack": "standard"})
        return found | {"clean": clean}

    def train_classifier(self, job: dict) -> dict:
        images, labels = self.rows(job.get("images"))
        run = training.ClassifierTraining(images, labels, job)
        seconds, loss = timed(run.run)
        # a last partial batch is left out
        steps = len(images) // job["batch"] * job.get("epochs", 1)
        return {"seconds": seconds, "images": steps * job["batch"], "loss": loss}

    def train_trn(self, job: dict) -> dict:
        images, labels = self.rows(job["pool"])
        if self.trn is None:
            raise ValueError("no TRN has been loaded")
        run = training.TrnTraining(self.bare(job["setting"]), *self.trn, images, labels, job)
        seconds, loss = timed(run.run)
        return {"seconds": seconds, "images": len(images), "loss": loss}

    def restore(self, job: dict) -> dict:
        return self.calls(self.defended(job["setting"]), job)

    def restore_with(self, job: dict) -> dict:
        images, _ = self.rows(1)
        bare = self.bare("best" if job["setting"] == "autocast" else job["setting"])
        key = tuple(str(job.get(name)) for name in ("restorer", "steps", "width", "setting"))
        restorer = self.once(key, lambda: restorers.build(job, images.shape[1]))
        model = nn.Sequential(restorer, bare)
        return self.calls(classifiers.Autocast(model) if job["setting"] == "autocast" else model, job)

    def calls(self, model: nn.Module, job: dict) -> dict:
        """The same images again and again, with the time of each call."""
        images, _ = self.rows(job["batch"])
        each = []
        with torch.no_grad():
            for _ in range(job.get("repeat", 1)):
                each.append(timed(lambda: model(images))[0])
        return {"seconds": sum(each), "images": len(images) * len(each), "each": each}

    def answers(self, job: dict) -> dict:
        """Logits; behind a TRN, the restored images and the logits of those."""
        images, _ = self.rows(job.get("count", 8))
        found = {}
        with torch.no_grad():
            if self.trn is None:
                found["logits"] = self.bare(job["setting"])(images)
            else:
                defended = self.defended(job["setting"])
                inner = getattr(defended, "model", defended)
                found["restored"] = inner.trn.restore(inner.classifier, images)
                found["logits"] = defended(images)
        save_file({name: tensor.float().contiguous() for name, tensor in found.items()}, job["output"])
        return {"seconds": 0.0, "images": len(images)}

    def relabel(self, job: dict) -> dict:
        """Writes the images with the labels that the classifier gives them: then every image is attacked."""
        images, _ = self.rows(None)
        with torch.no_grad():
            labels = torch.cat([self.bare("best")(part).argmax(1) for part in images.split(64)])
        save_file({"images": images.contiguous(), "labels": labels}, job["output"])
        return {"seconds": 0.0, "images": len(images)}

    def matmul(self, job: dict) -> dict:
        return {"gflops": flops.matmul(job.get("n", 1024))}

    def count_flops(self, job: dict) -> dict:
        return {"flops": flops.gradient(self.bare("default"), job["size"])}


JOBS = {
    "gradient": Worker.gradient,
    "attack": Worker.attack,
    "autoattack": Worker.autoattack,
    "train-classifier": Worker.train_classifier,
    "train-trn": Worker.train_trn,
    "restore": Worker.restore,
    "restore-with": Worker.restore_with,
    "answers": Worker.answers,
    "relabel": Worker.relabel,
    "matmul": Worker.matmul,
    "flops": Worker.count_flops,
}


def library(peer: str) -> None:
    """Imports what a peer needs before the clock starts."""
    modules = {
        "torchattacks": ["torchattacks"],
        "foolbox": ["foolbox"],
        "art": ["art.attacks.evasion", "art.estimators.classification"],
        "adv_lib": ["adv_lib.attacks"],
        "autoattack": ["autoattack"],
    }
    for name in modules.get(peer, []):
        __import__(name)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 64) -> float:
    """Share of images that are classified right."""
    right = 0
    with torch.no_grad():
        for part, truth in zip(images.split(batch), labels.split(batch), strict=True):
            right += int((model(part).argmax(1) == truth).sum())
    return right / max(len(images), 1)


def answer(worker: Worker, request: dict) -> dict:
    """What a request is answered with; a failure is an answer, too."""
    try:
        operation = request.get("op")
        if operation == "load":
            return {"ok": True} | worker.load(request)
        if operation == "run":
            return {"ok": True} | worker.run(request["job"])
        if operation == "memory":
            return {"ok": True, "peak_kib": machine.peak_kib()}
        raise ValueError(f"no operation is called {operation}")
    except Skipped as reason:
        return {"ok": False, "error": str(reason), "skipped": True}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    # libraries print; the protocol keeps standard output for itself
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(args.threads)
    print(json.dumps({"ready": True, "threads": args.threads, "about": about()}), file=out)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("op") == "quit":
            print(json.dumps({"ok": True}), file=out)
            break
        print(json.dumps(answer(worker, request)), file=out)


if __name__ == "__main__":
    main()
