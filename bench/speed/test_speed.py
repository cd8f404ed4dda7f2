"""Tests of the benchmark itself: python -m unittest, in this folder. They need neither our program nor a
network."""

import json
import os
import sys
import tempfile
import textwrap
import time
import unittest
from pathlib import Path
from unittest import mock

import config
import numpy
import speed
import summary
import table
from processes import Worker, WorkerError
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent

# a worker that knows no networks: what it says stands in its arguments
FAKE = """
import json, os, sys, time
from pathlib import Path
arguments = json.loads(sys.argv[1])
threads = int(sys.argv[sys.argv.index("--threads") + 1])
if arguments.get("mute"):
    time.sleep(60)
about = {"program": "fake", "pid": os.getpid()}
print(json.dumps({"ready": True, "threads": threads, "about": about}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    job = request.get("job", {})
    kind = job.get("kind", request["op"])
    answer = {"ok": True}
    if arguments.get("log"):
        with open(arguments["log"], "a") as log:
            log.write(f"{arguments['name']} {kind} {os.getpid()}\\n")
    if kind in arguments.get("fails", []):
        answer = {"ok": False, "error": "it would not"}
    elif kind in arguments.get("hangs", []):
        time.sleep(60)
    elif kind in arguments.get("dies", []):
        sys.exit(3)
    elif request["op"] == "memory":
        answer["peak_kib"] = 2048
    elif kind == "answers":
        import numpy
        from safetensors.numpy import save_file
        save_file({"logits": numpy.full((2, 3), arguments.get("logit", 1.0), "float32")}, job["output"])
        answer["seconds"] = 0.0
    elif kind == "relabel":
        Path(job["output"]).write_bytes(Path(arguments["data"]).read_bytes())
        answer["seconds"] = 0.0
    elif kind == "flops":
        answer["flops"] = 10**9
    elif kind == "matmul":
        answer["gflops"] = 100.0
    elif request["op"] == "run":
        answer |= {"seconds": arguments.get("seconds", 1.0), "images": job.get("images", 1), "robust": 0.5}
    if request["op"] == "quit":
        break
    print(json.dumps(answer), flush=True)
"""

CONFIG = """
repeat = 3
settle = 0.0
[models.net]
file = "net.safetensors"
[data.some]
file = "data.safetensors"
[[rows]]
section = "Attacks"
name = "{attack}-{steps}"
model = "net"
data = "some"
images = 4
batch = 2
job = { kind = "attack", attack = "pgd", steps = 20, eps = "8/255", step = "2/255" }
peers = ["loop/default", "foolbox/best"]
"""


class Workshop(unittest.TestCase):
    """A folder with a config, files, and workers that only pretend."""

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        data = {"images": numpy.zeros((4, 3, 8, 8), "float32"), "labels": numpy.zeros(4, "int64")}
        for name in ("net.safetensors", "data.safetensors"):
            save_file(data, self.folder / name)
        (self.folder / "program").write_text("the program")
        (self.folder / "fake.py").write_text(FAKE)
        self.asked = self.folder / "asked"
        self.enterContext(mock.patch("speed.say"))

    def fake(self, name: str, **arguments) -> list[str]:
        arguments |= {"name": name, "data": str(self.folder / "data.safetensors"), "log": str(self.asked)}
        return [sys.executable, str(self.folder / "fake.py"), json.dumps(arguments)]

    def run_bench(
        self, text: str = CONFIG, repeat: int | None = None, retry: bool = False, **workers
    ) -> dict:
        """The result of a run in which each worker is a fake with the arguments given for its name."""
        (self.folder / "config.toml").write_text(text)
        loaded = config.load(self.folder / "config.toml", None, repeat)
        result = speed.Result(self.folder / "result.json")
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        bench = speed.Bench(loaded, result, self.folder, self.folder / "program", work, retry)
        bench.command = lambda worker: self.fake(worker, **workers.get(worker.split("/")[0], {}))
        bench.run(loaded.rows)
        return json.loads((self.folder / "result.json").read_text())

    def lines(self, kind: str) -> list[str]:
        """Who was asked for this, in order."""
        said = [line.split() for line in self.asked.read_text().splitlines()]
        return [name for name, found, _ in said if found == kind]


class Driving(Workshop):
    def test_repetitions_take_turns_and_every_worker_is_a_process_of_its_own(self):
        result = self.run_bench(ours={"seconds": 0.5})
        (row,) = result["rows"].values()
        order = ["ours/default", "loop/default", "foolbox/best"]
        # one warm-up each, then three rounds
        self.assertEqual(self.lines("attack"), order + 3 * order)
        self.assertEqual(list(row["workers"]), order)
        pids = {side["about"]["pid"] for side in row["workers"].values()}
        self.assertEqual(len(pids), 3)
        ours = row["workers"]["ours/default"]
        self.assertEqual([one["round"] for one in ours["repetitions"]], [0, 1, 2])
        self.assertEqual((ours["peak_kib"], row["flops"], result["peaks"]), (2048, 10**9, {"1": 100.0}))
        self.assertTrue(all({"load", "at", "seconds", "robust"} <= set(one) for one in ours["repetitions"]))
        self.assertEqual(set(row["checksums"]), {"data", "model", "ours"})

    def test_what_is_there_is_not_run_again_and_more_repetitions_are_added(self):
        first = self.run_bench()
        asked = len(self.lines("attack"))
        self.assertEqual(self.run_bench()["rows"], first["rows"])
        self.assertEqual(len(self.lines("attack")), asked)
        again = self.run_bench(repeat=4)
        (row,) = again["rows"].values()
        self.assertEqual([len(side["repetitions"]) for side in row["workers"].values()], [4, 4, 4])
        # three warm-ups, three repetitions
        self.assertEqual(len(self.lines("attack")), asked + 6)

    def test_another_program_is_another_row(self):
        first = self.run_bench()
        (self.folder / "program").write_text("another program")
        second = self.run_bench(ours={"seconds": 2.0})
        self.assertEqual(len(second["rows"]), 1)
        self.assertNotEqual(set(first["rows"]), set(second["rows"]))

    def test_a_program_that_is_not_there_leaves_what_was_measured(self):
        first = self.run_bench()
        (self.folder / "program").unlink()
        self.assertEqual(self.run_bench()["rows"], first["rows"])

    def test_a_failure_is_kept_shown_and_only_tried_again_when_asked(self):
        for cause in ({"fails": ["attack"]}, {"dies": ["attack"]}, {"fails": ["load"]}):
            with self.subTest(cause=cause):
                (self.folder / "result.json").unlink(missing_ok=True)
                result = self.run_bench(foolbox=cause)
                (row,) = result["rows"].values()
                self.assertIn("error", row["workers"]["foolbox/best"])
                self.assertEqual(len(row["workers"]["loop/default"]["repetitions"]), 3)
                text = table.render(result)
                self.assertIn("Foolbox, best failed", text)
                self.assertIn("1 lines failed", text)
                self.assertIn("error", self.only_row(self.run_bench())["foolbox/best"])
                fixed = self.only_row(self.run_bench(retry=True))["foolbox/best"]
                self.assertEqual(len(fixed["repetitions"]), 3)

    def only_row(self, result: dict) -> dict:
        (row,) = result["rows"].values()
        return row["workers"]

    def test_a_worker_with_other_answers_is_not_timed(self):
        result = self.run_bench(loop={"logit": 1.01})
        side = self.only_row(result)["loop/default"]
        self.assertEqual(side["repetitions"], [])
        self.assertIn("differ", side["error"])
        self.assertAlmostEqual(side["answers"]["logits"], 0.01, places=4)

    def test_who_takes_too_long_is_ended(self):
        text = CONFIG.replace("repeat = 3", "repeat = 1\ntimeout = 0.5")
        started = time.monotonic()
        result = self.run_bench(text, foolbox={"hangs": ["attack"]})
        self.assertLess(time.monotonic() - started, 20)
        self.assertIn("within 0.5 s", self.only_row(result)["foolbox/best"]["error"])
        self.assertEqual(len(self.only_row(result)["ours/default"]["repetitions"]), 1)

    def test_an_interrupt_keeps_what_was_finished_and_ends_the_workers(self):
        seen = []
        save = speed.Result.save

        def interrupt(result):
            save(result)
            for row in result.content["rows"].values():
                if not seen and len(row["workers"]["ours/default"]["repetitions"]) == 2:
                    seen.extend(side["about"]["pid"] for side in row["workers"].values())
                    raise KeyboardInterrupt

        with mock.patch.object(speed.Result, "save", interrupt), self.assertRaises(KeyboardInterrupt):
            self.run_bench()
        self.assertEqual(len(seen), 3)
        for pid in seen:
            with self.assertRaises(ProcessLookupError):
                os.kill(pid, 0)
        kept = json.loads((self.folder / "result.json").read_text())
        self.assertEqual([len(side["repetitions"]) for side in self.only_row(kept).values()], [2, 1, 1])
        # and it goes on from there
        after = self.only_row(self.run_bench())
        self.assertEqual([len(side["repetitions"]) for side in after.values()], [3, 3, 3])

    def test_start_up_is_a_new_process_each_time(self):
        text = CONFIG.replace('kind = "attack", attack = "pgd"', 'kind = "gradient"').replace(
            'peers = ["loop/default", "foolbox/best"]', 'peers = ["torch/default"]\nmeasure = "start-up"'
        )
        text = text.replace('name = "{attack}-{steps}"', 'name = "start"').replace("steps = 20, ", "")
        self.run_bench(text)
        said = [line.split() for line in self.asked.read_text().splitlines()]
        pids = {pid for name, kind, pid in said if kind == "gradient"}
        self.assertEqual(len(pids), 6)

    def test_a_missing_model_fails_the_row_alone(self):
        other = CONFIG.replace("[models.net]", '[models.gone]\nfile = "gone.safetensors"\n[models.net]')
        rows = other[other.index("[[rows]]") :]
        other += rows.replace('name = "{attack}-{steps}"', 'name = "gone"').replace(
            'model = "net"', 'model = "gone"'
        )
        result = self.run_bench(other)
        names = {row["name"]: row["workers"] for row in result["rows"].values()}
        self.assertIn("no such file", names["gone"]["ours/default"]["error"])
        self.assertEqual(len(names["pgd-20"]["ours/default"]["repetitions"]), 3)


class Processes(Workshop):
    def test_a_worker_that_does_not_greet_is_ended(self):
        with self.assertRaises(WorkerError):
            Worker(self.fake("mute", mute=True), 1, self.folder / "log", 0.3)

    def test_both_sides_are_told_how_many_threads_there_are(self):
        from processes import environment

        told = environment(2)
        self.assertEqual((told["OMP_NUM_THREADS"], told["MKL_NUM_THREADS"]), ("2", "2"))


class Configs(unittest.TestCase):
    def write(self, text: str) -> Path:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (folder / "config.toml").write_text(textwrap.dedent(text))
        return folder / "config.toml"

    def test_the_configs_are_read(self):
        for name in ("smoke.toml", "full.toml"):
            rows = config.load(HERE / name).rows
            self.assertGreater(len(rows), 10, name)
            asked = {worker.split("/")[0] for row in rows for worker in row.workers}
            self.assertEqual(asked, set(table.NAMES), name)

    def test_the_smoke_test_has_a_row_of_every_kind_and_setting(self):
        rows = config.load(HERE / "smoke.toml").rows
        self.assertEqual({row.job["kind"] for row in rows}, set(config.KINDS))
        self.assertEqual({row.measure for row in rows}, set(config.MEASURES))
        settings = {worker.split("/")[1] for row in rows for worker in row.workers}
        self.assertEqual(settings, {"default", "best", "compile", "autocast"})

    def test_fractions_are_numbers_and_peers_get_their_names(self):
        (row,) = config.load(self.write(CONFIG)).rows
        self.assertEqual(row.name, "pgd-20")
        job = row.job_of("foolbox/best")
        self.assertAlmostEqual(job["eps"], 8 / 255)
        self.assertEqual(
            (job["peer"], job["setting"], job["images"], job["batch"]), ("foolbox", "best", 4, 2)
        )
        self.assertNotIn("peer", row.job_of("ours/default"))
        self.assertEqual(row.labels, "predicted")

    def test_warm_ups_are_short(self):
        (row,) = config.load(self.write(CONFIG)).rows
        job = row.warmup_of("loop/default")
        self.assertEqual((job["images"], job["steps"]), (2, 3))
        row.warmup = "gradient"
        self.assertEqual(row.warmup_of("loop/default")["kind"], "gradient")
        row.warmup = "none"
        self.assertIsNone(row.warmup_of("loop/default"))

    def test_searches_stand_in_our_attacks_names(self):
        text = CONFIG.replace('attack = "pgd"', 'attack = "cw-l2", search = 3')
        (row,) = config.load(self.write(text)).rows
        self.assertEqual(row.job_of("ours/default")["attack"], "cw-l2:search=3")
        self.assertEqual(row.job_of("foolbox/best")["search"], 3)

    def test_each_makes_a_row_of_every_change(self):
        text = CONFIG + "each = [{ job = { steps = 10 } }, { job = { steps = 50 }, images = 2 }]\n"
        rows = config.load(self.write(text)).rows
        self.assertEqual([row.name for row in rows], ["pgd-10", "pgd-50"])
        self.assertEqual([row.job["images"] for row in rows], [4, 2])

    def test_prose_and_peers_do_not_make_another_row(self):
        (row,) = config.load(self.write(CONFIG)).rows
        key = row.key({"data": "x"})
        row.note, row.workers, row.repeat = "words", ["ours/default"], 9
        self.assertEqual(row.key({"data": "x"}), key)
        self.assertNotEqual(row.key({"data": "y"}), key)
        row.job["steps"] = 21
        self.assertNotEqual(row.key({"data": "x"}), key)

    def test_what_is_not_understood_is_an_error(self):
        for old, new in (
            ("images = 4", "image = 4"),
            ('kind = "attack"', 'kind = "dance"'),
            ('model = "net"', 'model = "nets"'),
            ('data = "some"', 'data = "none"'),
            ("batch = 2", 'warmup = "long"\nbatch = 2'),
            ("batch = 2", ""),
            ("batch = 2", "trn = true\nbatch = 2"),
            ("settle = 0.0", "settles = 0.0"),
            ('"loop/default"', '"loop"'),
        ):
            with self.subTest(new=new), self.assertRaises(SystemExit):
                config.load(self.write(CONFIG.replace(old, new)))
        with self.assertRaises(SystemExit):
            config.load(self.write(CONFIG + CONFIG[CONFIG.index("[[rows]]") :]))


def side(values: list[float], images: int = 1, **more) -> dict:
    repetitions = [
        {"round": at, "seconds": value, "images": images, "load": 0.0} for at, value in enumerate(values)
    ]
    return {"repetitions": repetitions} | more


class Statistics(unittest.TestCase):
    def test_quantiles_lie_on_a_line_between_neighbours(self):
        self.assertEqual(summary.quantile([3.0, 1.0, 2.0], 0.5), 2.0)
        self.assertEqual(summary.quantile([1.0, 2.0], 0.25), 1.25)
        self.assertEqual(summary.quantile([5.0], 0.99), 5.0)
        found = summary.spread([4.0, 1.0, 2.0, 3.0, 100.0])
        self.assertEqual((found["median"], found["least"], found["most"]), (3.0, 1.0, 100.0))
        self.assertEqual((found["lower"], found["upper"]), (2.0, 4.0))

    def test_ratios_are_of_medians_and_within_rounds(self):
        found = summary.ratio(side([2.0, 4.0, 6.0]), side([1.0, 2.0, 1.0]))
        self.assertEqual((found["medians"], found["least"], found["most"]), (4.0, 2.0, 6.0))
        self.assertIsNone(summary.ratio(side([]), side([1.0])))
        # sides that did not do the same number of images
        self.assertEqual(summary.ratio(side([2.0], 4), side([1.0], 1))["medians"], 0.5)

    def test_the_share_of_the_peak_counts_nominal_gradients(self):
        row = {"job": {"kind": "attack", "attack": "pgd", "steps": 20}, "flops": 10**9}
        self.assertAlmostEqual(summary.share_of_peak(row, side([2.0], 4), 100.0), 0.4)
        self.assertEqual(summary.gradients({"kind": "attack", "attack": "apgd-ce", "steps": 50}), 51)
        self.assertIsNone(summary.gradients({"kind": "attack", "attack": "deepfool", "steps": 50}))
        self.assertIsNone(
            summary.gradients({"kind": "attack", "attack": "pgd", "steps": 5, "defended": "bpda"})
        )
        self.assertIsNone(summary.share_of_peak(row | {"flops": None}, side([2.0], 4), 100.0))

    def test_latencies_are_of_all_calls(self):
        one = side([1.0, 1.0])
        for at, repetition in enumerate(one["repetitions"]):
            repetition["each"] = [0.001 * (at + 1)] * 50
        found = summary.latencies(one)
        self.assertEqual(found["count"], 100)
        self.assertAlmostEqual(found["p50"], 1.5)
        self.assertAlmostEqual(found["p99"], 2.0)
        self.assertIsNone(summary.latencies(side([1.0])))

    def test_differences_are_relative_to_large_answers(self):
        expected = {"logits": numpy.array([100.0, 1.0])}
        found = speed.differences(expected, {"logits": numpy.array([100.0, 1.1])})
        self.assertAlmostEqual(found["logits"], 0.001)
        with self.assertRaises(WorkerError):
            speed.differences(expected, {"logits": numpy.zeros(3)})
        with self.assertRaises(WorkerError):
            speed.differences(expected, {})
        not_a_number = speed.differences(expected, {"logits": numpy.array([numpy.nan, 1.0])})
        self.assertFalse(not_a_number["logits"] <= 1.0)


class Tables(unittest.TestCase):
    def result(self, workers: dict, **more) -> dict:
        job = {"kind": "attack", "attack": "pgd", "steps": 20}
        row = {
            "section": "Attacks",
            "name": "pgd-20",
            "job": job,
            "threads": 1,
            "measure": "time",
            "note": "",
        }
        row |= {"flops": 10**9, "workers": workers} | more
        machine = {"processor": "P", "cores": 2, "memory_gib": 1.0, "flags": ["avx2"], "system": "S"}
        return {
            "about": {"machine": machine, "date": "2000-01-01T00:00:00"},
            "peaks": {"1": 100.0},
            "flops": {},
            "order": ["Attacks: pgd-20", "Attacks: never"],
            "rows": {"k": row},
        }

    def test_a_table_says_how_fast_how_often_and_beside_whom(self):
        workers = {
            "ours/default": side([1.0, 1.2]),
            "loop/best": side([2.0, 2.2]),
            "foolbox/default": side([3.0, 3.0]),
        }
        text = table.render(self.result(workers))
        self.assertIn("1 rows have not been run", text)
        (line,) = [line for line in text.splitlines() if "PyTorch loop, best" in line and "pgd-20 " in line][
            1:
        ]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        self.assertEqual(cells[:4], ["pgd-20", "1", "PyTorch loop, best", "2"])
        self.assertIn("1.91 (1.83 - 2.00)", cells)
        fastest = text[text.index("## Beside the fastest peer") : text.index("## Attacks")]
        self.assertIn("PyTorch loop, best", fastest)
        self.assertNotIn("Foolbox", fastest)

    def test_nothing_that_failed_is_left_out(self):
        workers = {
            "ours/default": side([1.0]),
            "loop/autocast": side([], error="skipped: no bf16", skipped=True, where="start"),
            "art/default": side([1.0], error="no answer within 5 s", where="repetition 2"),
        }
        text = table.render(self.result(workers, note="A note."))
        for words in ("skipped: no bf16", "ART failed (repetition 2): no answer within 5 s", "A note."):
            self.assertIn(words, text)
        self.assertIn("1 lines failed, 1 were skipped", text)

    def test_a_busy_machine_is_mentioned(self):
        busy = side([1.0])
        busy["repetitions"][0]["load"] = 3.5
        self.assertIn("load average of up to 3.5", table.render(self.result({"ours/default": busy})))

    def test_a_result_of_nothing_is_a_table(self):
        empty = self.result({}) | {"rows": {}}
        self.assertIn("2 rows have not been run", table.render(empty))


if __name__ == "__main__":
    unittest.main()
