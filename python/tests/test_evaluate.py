"""Evaluations: small plans, reports, and runs that go on where they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import talion


def small(model: Any, images: torch.Tensor, labels: torch.Tensor, **settings: Any) -> talion.Report:
    common: dict[str, Any] = {
        "protocol": ["noise", "pgd-3", "apgd-ce-3"],
        "eps": 0.1,
        "pictures": False,
        "latency": False,
    }
    return talion.evaluate(model, images, labels, **{**common, **settings})


def figures(report: talion.Report) -> Any:
    """What a run found, without what depends on the machine and the hour."""
    summary = report.summary
    for line in summary["lines"]:
        del line["seconds"]
    return [summary["header"]["config"], summary["headlines"], summary["lines"]]


def test_the_bundled_pair_on_the_bundled_sample(
    bundled: talion.Classifier, trn: talion.TRN, clothes: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    plan = ["fgsm", "pgd-5", "exact:fgsm", "exact:square-5@4/255"]
    told: list[tuple[int, int]] = []
    report = talion.evaluate(
        bundled,
        *clothes,
        trn,
        protocol=plan,
        adaptive=8,
        out=tmp_path / "run",
        name="sample",
        progress=lambda done, total: told.append((done, total)),
        latency=False,
    )
    assert told[-1] == (3 * 32 + 2 * 8, 3 * 32 + 2 * 8)
    summary = report.summary
    assert summary["complete"] and summary["header"]["config"]["samples"] == 32
    assert [line["contender"] for line in summary["headlines"]] == ["undefended", "TRN"]
    assert report.clean["undefended"] > 0.8 > 0.3 > report.worst["undefended"]
    oblivious = {line["key"]: line for line in summary["lines"]}[
        "undefended oblivious pgd-5 @ Linf 8/255 whole"
    ]
    assert oblivious["cells"][1]["accuracy"]["share"] > oblivious["cells"][0]["accuracy"]["share"]
    assert "undefended" in report.markdown() and str(report) == report.markdown()
    assert report.csv().count("\n") > 4 and "<html" in report.html()
    written = report.save_html(tmp_path / "report.html")
    assert [path.suffix for path in written] == [".html", ".md", ".csv", ".json"]
    assert json.loads(written[3].read_text())[0]["complete"] is True
    assert figures(talion.Report.load(tmp_path / "run")) == figures(report)
    assert "sample" in repr(report)


def test_a_module_is_evaluated_like_a_file(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, tmp_path: Path
) -> None:
    report = small(tiny, images, labels, surrogates={"other": lambda batch: tiny(batch + 0.01)})
    config = report.summary["header"]["config"]
    assert config["class_names"] == ["0", "1", "2", "3"]
    assert [player["name"] for player in config["surrogates"]] == ["other"]
    assert report.clean == {"undefended": 1.0} and report.worst["undefended"] < 1.0
    named = small(tiny, images, labels, protocol=["fgsm"], class_names=["a", "b", "c", "d"])
    assert [line["class"] for line in named.summary["classes"]] == ["a", "b", "c", "d"]
    other = type(tiny)(seed=5)
    others = small(other, images, labels, protocol=["fgsm"]).summary["header"]["config"]
    assert others["contenders"][0]["sha256"] != config["contenders"][0]["sha256"]
    assert named.summary["header"]["config"]["contenders"] == config["contenders"]


def test_a_protocol_by_name(tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    report = small(tiny, images[:8], labels[:8], protocol="quick")
    attacks = [line["attack"] for line in report.summary["lines"]]
    assert attacks == ["none", "noise", "fgsm", "pgd-20", "apgd-ce-20"]
    with pytest.raises(talion.UnknownNameError):
        small(tiny, images, labels, protocol="hasty")


def test_an_interrupted_run_goes_on(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, tmp_path: Path
) -> None:
    many = images.repeat(3, 1, 1, 1), labels.repeat(3)
    whole = small(tiny, *many)
    told: list[int] = []

    def stop(done: int, total: int) -> None:
        told.append(done)
        if done > total // 2:
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        small(tiny, *many, out=run, progress=stop)
    kept = talion.Report.load(run)
    assert not kept.summary["complete"]
    again: list[int] = []
    resumed = small(tiny, *many, out=run, progress=lambda done, total: again.append(done))
    assert figures(resumed) == figures(whole)
    assert min(again) > min(told)
    # finished: nothing is done again
    third: list[int] = []
    finished = small(tiny, *many, out=run, progress=lambda done, total: third.append(done))
    assert not third and figures(finished) == figures(whole)
    with pytest.raises(talion.FileError, match="other settings"):
        small(tiny, *many, out=run, seed=2)


def test_a_model_that_fails_leaves_nothing_wrong_behind(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, tmp_path: Path
) -> None:
    calls, last = 0, 10**9

    def model(batch: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > last:
            raise OSError("the GPU is gone")
        return tiny(batch)

    wrapped = talion.Classifier(model, classes=4)
    whole = small(wrapped, images, labels)
    needed = calls
    for last in range(3, needed, 5):
        calls, run = 0, tmp_path / str(last)
        with pytest.raises(OSError, match="GPU is gone"):
            small(wrapped, images, labels, out=run)
        last = 10**9
        assert figures(small(wrapped, images, labels, out=run)) == figures(whole)


def test_what_makes_no_sense_is_refused(
    tiny: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> None:
    with pytest.raises(talion.RefusedError, match="TRN"):
        small(tiny, images, labels, protocol=["exact:pgd-2"])
    with pytest.raises(talion.RangeError):
        small(tiny, images, labels, class_names=["one"])
    with pytest.raises(talion.RangeError):
        small(tiny, images[:0], labels[:0])
    with pytest.raises(talion.RangeError):
        small(tiny, images, labels, surrogates={"other": lambda batch: tiny(batch)[:, :3]})
    with pytest.raises(talion.RefusedError):
        small(tiny, images, labels, surrogates={"undefended": tiny})
