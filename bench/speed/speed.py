"""Times talion beside its Python peers: the same networks, the same images, the same jobs.

    speed.py CONFIG.toml -o RESULT.json

Every row starts a fresh worker for each side, checks that they answer alike, and repeats the job in turn:
ours, a peer, the next peer, ours again, one at a time. The result is written after every repetition, and what
is in it is not run again. `table.py` makes a table of it. See README.md.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import config as configs
import machine
import summary
from processes import Worker, WorkerError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# images on which answers are compared
CHECKED = 8
# seconds that starting, loading and checking may take
PATIENCE = 900.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the result; it is gone on with")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="where the config's files lie")
    parser.add_argument("--ours", type=Path, default=ROOT / "target/release/talion-bench", help="our worker")
    parser.add_argument("--threads", type=int, help="threads on both sides, instead of the config's")
    parser.add_argument("--repeat", type=int, help="repetitions, instead of the config's")
    parser.add_argument(
        "--only", action="append", help="only rows whose section or name contains this; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="say which rows there are, and run nothing")
    parser.add_argument("--retry", action="store_true", help="try again what failed before")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    config = configs.load(args.config, args.threads, args.repeat)
    chosen = [row for row in config.rows if not args.only or any(part in title(row) for part in args.only)]
    result = Result(args.output)
    if args.list:
        print("\n".join(f"{result.progress(row)} {title(row)}" for row in chosen))
        return
    work = args.output.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(config, result, args.models, args.ours.resolve(), work, args.retry)
    # ended from outside, it ends its workers too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        bench.run(chosen)
    except KeyboardInterrupt:
        say("interrupted; what was finished is kept")
        raise SystemExit(130) from None


def title(row: configs.Row) -> str:
    return f"{row.section}: {row.name}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Result:
    """The file of results: whole after every repetition."""

    def __init__(self, path: Path):
        self.path = path
        empty = {"about": {}, "peaks": {}, "flops": {}, "order": [], "rows": {}}
        self.content = json.loads(path.read_text()) if path.exists() else empty

    def save(self) -> None:
        part = self.path.with_name(self.path.name + ".new")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(part, self.path)

    def progress(self, row: configs.Row) -> str:
        """What is there of a row, whatever the files were that it was run on."""
        for kept in self.content["rows"].values():
            if (kept["section"], kept["name"]) == (row.section, row.name):
                counts = [len(kept["workers"].get(name, {}).get("repetitions", [])) for name in row.workers]
                failed = sum("error" in kept["workers"].get(name, {}) for name in row.workers)
                words = f", {failed} failed" if failed else ""
                return f"{min(counts)} to {max(counts)} of {row.repeat}{words}:"
        return "not run:"


def done(side: dict, repeat: int) -> bool:
    return "error" in side or len(side["repetitions"]) >= repeat


class Files:
    """Models and data, made where they have to be, and their checksums."""

    def __init__(self, config: configs.Config, models: Path, program: Path, work: Path):
        self.config, self.models, self.program, self.work = config, models, program, work
        self.sums: dict[tuple, str] = {}

    def model(self, name: str) -> Path:
        entry = self.config.models[name]
        if "file" in entry:
            return self.there(self.models / entry["file"])
        options = {key: entry[key] for key in ("channels", "classes", "size", "seed") if key in entry}
        return self.made(["make-model", entry["make"]], options)

    def trn(self, name: str) -> Path:
        return self.there(self.models / self.config.models[name]["trn"])

    def data(self, name: str) -> Path:
        entry = self.config.data[name]
        if "file" in entry:
            return self.there(self.models / entry["file"])
        options = {key: value for key, value in entry.items() if key != "make"}
        return self.made(["data"] if "dataset" in entry else ["make-data"], options)

    def there(self, path: Path) -> Path:
        if not path.is_file():
            raise WorkerError(f"{path.name}: no such file in the folder of models")
        return path

    def made(self, command: list[str], options: dict) -> Path:
        """Our program makes a file; the same arguments make the same."""
        words = command + [
            part for key, value in sorted(options.items()) for part in (f"--{key}", str(value))
        ]
        name = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]
        path = self.work / f"{command[0]}-{name}.safetensors"
        if not path.exists():
            say(f"    making {' '.join(words)}")
            part = path.with_suffix(".part")
            if not self.program.is_file():
                raise WorkerError(f"{self.program.name} is not there, which makes models and data: build it")
            done = subprocess.run([self.program, *words, "-o", part], capture_output=True, text=True)
            if done.returncode != 0:
                raise WorkerError(
                    f"{' '.join(words)} failed: {' / '.join(done.stderr.strip().splitlines()[-3:])}"
                )
            os.replace(part, path)
        return path

    def checksum(self, path: Path) -> str:
        stamp = path.stat()
        key = (str(path), stamp.st_mtime_ns, stamp.st_size)
        if key not in self.sums:
            self.sums[key] = sha256(path)
        return self.sums[key]


class Bench:
    """A run of the benchmark."""

    def __init__(
        self, config: configs.Config, result: Result, models: Path, program: Path, work: Path, retry: bool
    ):
        self.config, self.result, self.program, self.work, self.retry = config, result, program, work, retry
        self.files = Files(config, models, program, work)
        self.peers = [sys.executable, str(HERE / "worker.py")]
        self.log = work / "workers.log"

    def command(self, worker: str) -> list[str]:
        return [str(self.program)] if worker.startswith("ours/") else self.peers

    def start(self, worker: str, threads: int) -> Worker:
        return Worker(self.command(worker), threads, self.log, PATIENCE)

    def run(self, rows: list[configs.Row]) -> None:
        content = self.result.content
        content["about"] = {"machine": machine.about(), "date": now(), "settle": self.config.settle}
        content["order"] = [title(row) for row in self.config.rows]
        self.result.save()
        for threads in sorted({row.threads for row in rows}):
            self.measure_peak(threads)
        for count, row in enumerate(rows, 1):
            say(f"[{count}/{len(rows)}] {title(row)}")
            try:
                self.row(row)
            except WorkerError as error:
                say(f"    not run: {error}")
                self.keep_failed(row, str(error))

    def measure_peak(self, threads: int) -> None:
        """How fast the machine multiplies: the best seen so far, since others may be busy now."""
        peaks = self.result.content["peaks"]
        worker = None
        try:
            worker = self.start("peer/default", threads)
            found = worker.ask({"op": "run", "job": {"kind": "matmul", "n": 1024}}, PATIENCE)["gflops"]
            peaks[str(threads)] = max(found, peaks.get(str(threads), 0.0))
            self.result.save()
            say(f"{threads} threads: a matrix product reaches {peaks[str(threads)]:.0f} GFLOP/s")
        except WorkerError as error:
            say(f"the machine's peak could not be measured: {error}")
        finally:
            if worker is not None:
                worker.quit()

    def keep_failed(self, row: configs.Row, reason: str) -> None:
        """A row that could not even begin, unless there is something of it from before."""
        rows = self.result.content["rows"]
        if all((kept["section"], kept["name"]) != (row.section, row.name) for kept in rows.values()):
            sides = {name: {"repetitions": [], "error": reason, "where": "files"} for name in row.workers}
            rows[f"failed: {title(row)}"] = self.heading(row, {}) | {"workers": sides}
            self.result.save()

    def heading(self, row: configs.Row, checksums: dict[str, str]) -> dict:
        names = "name section job model data threads measure warmup labels note seed".split()
        return {name: getattr(row, name) for name in names} | {"checksums": checksums, "flops": None}

    def row(self, row: configs.Row) -> None:
        paths = {"data": self.files.data(row.data)}
        if row.model is not None:
            paths["model"] = self.files.model(row.model)
        if row.trn:
            paths["trn"] = self.files.trn(row.model)
        checksums = {name: self.files.checksum(path) for name, path in paths.items()}
        if any(name.startswith("ours/") for name in row.workers):
            # before anything is touched: a wrong path must not make place for nothing
            if not self.program.is_file():
                raise WorkerError(f"{self.program.name} is not there: build it, or name it with --ours")
            checksums["ours"] = self.files.checksum(self.program)
        kept = self.kept(row, checksums)
        if all(done(kept["workers"][name], row.repeat) for name in row.workers):
            say("    there already")
            return
        if row.labels == "predicted" and row.model is not None:
            paths["data"] = self.relabelled(paths["model"], paths["data"], row.threads)
        if summary.gradients(row.job):
            kept["flops"] = self.flops(paths, checksums["model"])
        load = {"op": "load"} | {name: str(path) for name, path in paths.items()}
        todo = [name for name in row.workers if not done(kept["workers"][name], row.repeat)]
        if row.measure == "start-up":
            self.start_ups(row, kept, todo, load)
        else:
            self.repetitions(row, kept, todo, load)

    def kept(self, row: configs.Row, checksums: dict[str, str]) -> dict:
        """The row in the result, begun or not; rows of that name on other files or settings make place."""
        rows = self.result.content["rows"]
        key = hashlib.sha256(row.key(checksums).encode()).hexdigest()[:24]
        kept = rows.get(key, {"workers": {}})
        for old, other in list(rows.items()):
            if old != key and (other["section"], other["name"]) == (row.section, row.name):
                del rows[old]
        rows[key] = kept | self.heading(row, checksums) | {"flops": kept.get("flops")}
        # in the config's order; who is no longer asked is no longer shown
        sides = {}
        for name in row.workers:
            side = kept["workers"].get(name, {"repetitions": []})
            if self.retry and "error" in side:
                side = {"repetitions": []}
            sides[name] = side
        rows[key]["workers"] = sides
        self.result.save()
        return rows[key]

    def relabelled(self, model: Path, data: Path, threads: int) -> Path:
        """The same images with the labels that the classifier gives them."""
        name = hashlib.sha256((self.files.checksum(model) + self.files.checksum(data)).encode()).hexdigest()[
            :12
        ]
        path = self.work / f"predicted-{name}.safetensors"
        if not path.exists():
            part = path.with_suffix(".part")
            self.once(
                {"model": str(model), "data": str(data)}, {"kind": "relabel", "output": str(part)}, threads
            )
            os.replace(part, path)
        return path

    def flops(self, paths: dict[str, Path], checksum: str) -> int | None:
        """Nominal cost of a gradient, or nothing where it cannot be counted."""
        from safetensors import safe_open

        with safe_open(paths["data"], "np") as file:
            size = list(file.get_slice("images").get_shape()[1:])
        key, counted = f"{checksum} {size}", self.result.content["flops"]
        if key not in counted:
            files = {"model": str(paths["model"]), "data": str(paths["data"])}
            try:
                counted[key] = self.once(files, {"kind": "flops", "size": size}, 1)["flops"]
            except WorkerError as error:
                say(f"    operations could not be counted: {error}")
                return None
        return counted[key]

    def once(self, files: dict[str, str], job: dict, threads: int) -> dict:
        """A job for a peer that is started for it alone."""
        worker = self.start("peer/default", threads)
        try:
            worker.ask({"op": "load"} | files, PATIENCE)
            return worker.ask({"op": "run", "job": job}, PATIENCE)
        finally:
            worker.quit()

    def repetitions(self, row: configs.Row, kept: dict, todo: list[str], load: dict) -> None:
        """Workers side by side, busy one at a time."""
        running: dict[str, Worker] = {}
        try:
            reference = None
            for name in todo:
                side, where = kept["workers"][name], "start"
                try:
                    running[name] = self.start(name, row.threads)
                    side["about"] = running[name].about
                    running[name].ask(load, PATIENCE)
                    if row.check:
                        where = "check"
                        reference = self.compare(name, running[name], row, side, reference)
                    where = "warm-up"
                    self.warm(name, running[name], row, side)
                except WorkerError as error:
                    self.failed(name, side, error, where, running)
            while pending := [name for name in running if not done(kept["workers"][name], row.repeat)]:
                # whoever is behind catches up first, so that rounds stay together
                turn = min(len(kept["workers"][name]["repetitions"]) for name in pending)
                for name in pending:
                    side = kept["workers"][name]
                    if len(side["repetitions"]) == turn:
                        self.repeat(name, running, row, side, turn)
            for name, worker in running.items():
                self.memory(worker, kept["workers"][name])
        finally:
            for worker in running.values():
                worker.quit()
            self.result.save()
        self.report(kept)

    def compare(
        self, name: str, worker: Worker, row: configs.Row, side: dict, reference: dict | None
    ) -> dict | None:
        """Whether a worker has the network that the first has; one that does not is not timed."""
        from safetensors.numpy import load_file

        path = self.work / f"answers-{os.getpid()}.safetensors"
        job = {"kind": "answers", "count": CHECKED, "output": str(path), "setting": name.split("/")[1]}
        if row.job.get("force"):
            job["force"] = True
        try:
            worker.ask({"op": "run", "job": job}, PATIENCE)
            found = load_file(path)
        finally:
            path.unlink(missing_ok=True)
        if reference is None:
            side["answers"] = "the others are compared with these"
            return found
        side["answers"] = differences(reference, found)
        # bf16 has eight bits: only whether it is the same network can be told
        allowed = 0.05 if name.endswith("/autocast") else self.config.tolerance
        for tensor, far in side["answers"].items():
            if not far <= allowed:
                raise WorkerError(f"its {tensor} differ from the first worker's by {far:.2g}")
        return reference

    def warm(self, name: str, worker: Worker, row: configs.Row, side: dict) -> None:
        job = row.warmup_of(name)
        if job is not None:
            started = time.perf_counter()
            worker.ask({"op": "run", "job": job}, row.timeout)
            side["warmup_seconds"] = time.perf_counter() - started

    def repeat(self, name: str, running: dict[str, Worker], row: configs.Row, side: dict, turn: int) -> None:
        # threads of the worker before may still be waiting for work
        time.sleep(self.config.settle)
        before = {"round": turn, "at": now(), "load": machine.load()}
        try:
            answer = running[name].ask({"op": "run", "job": row.job_of(name)}, row.timeout)
            answer.pop("ok")
            if not answer.get("seconds", -1) >= 0:
                raise WorkerError(f"the answer has no seconds: {json.dumps(answer)[:200]}")
        except WorkerError as error:
            self.failed(name, side, error, f"repetition {turn + 1}", running)
            return
        side["repetitions"].append(before | answer)
        self.result.save()

    def memory(self, worker: Worker, side: dict) -> None:
        """The most that a worker has held. Where the system does not say, nothing else is lost."""
        try:
            peak = worker.ask({"op": "memory"}, PATIENCE)["peak_kib"]
            side["peak_kib"] = max(peak, side.get("peak_kib", 0))
        except WorkerError as error:
            say(f"    no peak memory: {error}")

    def start_ups(self, row: configs.Row, kept: dict, todo: list[str], load: dict) -> None:
        """From nothing to the first answer, in a new process each time."""
        while pending := [name for name in todo if not done(kept["workers"][name], row.repeat)]:
            turn = min(len(kept["workers"][name]["repetitions"]) for name in pending)
            for name in pending:
                side = kept["workers"][name]
                if len(side["repetitions"]) > turn:
                    continue
                time.sleep(self.config.settle)
                before = {"round": turn, "at": now(), "load": machine.load()}
                worker = None
                try:
                    worker = self.start(name, row.threads)
                    worker.ask(load, row.timeout)
                    answer = worker.ask({"op": "run", "job": row.job_of(name)}, row.timeout)
                    seconds = time.perf_counter() - worker.started
                    side["about"] = worker.about
                    self.memory(worker, side)
                    side["repetitions"].append(
                        before | {"seconds": seconds, "images": answer.get("images", 1)}
                    )
                except WorkerError as error:
                    self.failed(name, side, error, f"repetition {turn + 1}", {})
                finally:
                    if worker is not None:
                        worker.quit()
                self.result.save()
        self.report(kept)

    def failed(
        self, name: str, side: dict, error: WorkerError, where: str, running: dict[str, Worker]
    ) -> None:
        """Written down; the others go on."""
        side["error"], side["where"], side["skipped"] = str(error)[:500], where, error.skipped
        worker = running.pop(name, None)
        if worker is not None:
            worker.quit()
        say(f"    {name}: {error}")
        self.result.save()

    def report(self, kept: dict) -> None:
        """Progress: a line a worker."""
        for name, side in kept["workers"].items():
            values = summary.seconds(side)
            if values:
                found = summary.spread(values)
                say(f"    {name}: {found['median']:.3f} s ({found['least']:.3f} to {found['most']:.3f})")


def differences(reference: dict, found: dict) -> dict[str, float]:
    """How far answers are apart, relative to the largest where that is above 1."""
    import numpy

    if set(reference) != set(found):
        raise WorkerError(f"it answers with {sorted(found)}, the first worker with {sorted(reference)}")
    far = {}
    for name, expected in reference.items():
        if found[name].shape != expected.shape:
            raise WorkerError(
                f"its {name} have the shape {found[name].shape}, the first worker's {expected.shape}"
            )
        gap = numpy.abs(found[name] - expected).max(initial=0.0)
        far[name] = float(gap / max(1.0, float(numpy.abs(expected).max(initial=0.0))))
    return far


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    say(f"{time.perf_counter() - began:.0f} s")
