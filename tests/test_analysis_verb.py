"""`mdcs analyse`: what is told, what is written, what is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mdcs.analyse import analyse
from mdcs.analysis.bias_variance import decompose
from mdcs.errors import UserError
from mdcs.evaluation.predictions import Predictions, classes_from_json
from run_cases import CONFIG, make_run


def test_diversity_of_each_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(make_run(tmp_path / "three")), str(make_run(tmp_path / "one", num_experts=1))]
    features = np.random.RandomState(0).randn(120, 3, 4).astype(np.float32)
    np.save(tmp_path / "three" / "predictions" / "test" / "features.npy", features)
    rows = analyse(runs, output=str(tmp_path / "table.json"))
    assert [(Path(row["run"]).name, row["group"]) for row in rows[:5]] == [
        *(("three", group) for group in ("all", "many", "medium", "few")),
        ("one", "all"),
    ]
    known = json.loads((tmp_path / "three" / "scores.json").read_text())["diversity"]
    assert rows[0]["disagreement"] == pytest.approx(known["disagreement"]) and rows[0]["kl"] == pytest.approx(known["kl"])
    assert rows[4]["disagreement"] is None and np.array(rows[0]["cka"]).shape == (3, 3)
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    told = capsys.readouterr().out
    assert "three: K = 3 experts" in told and "a single expert has no diversity" in told and f"{100 * rows[0]['disagreement']:.1f}" in told


def test_variance_groups_runs_by_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / f"mdcs-{seed}", seed=seed) for seed in range(3)]
    for seed in range(2):
        data = CONFIG["data"] | {"subset_seed": seed}
        runs.append(make_run(tmp_path / f"plain-{seed}", seed=seed, loss=CONFIG["loss"] | {"alpha": 0.0}, data=data))
    rows = analyse([str(run) for run in runs], kind="variance", output=str(tmp_path / "table.csv"), figure=str(tmp_path / "it.svg"))
    assert "variance in %" in (tmp_path / "it.svg").read_text()
    assert [(row["method"], row["runs"], row["varied"]) for row in rows[::16]] == [
        ("MDCS, K = 3, loss.alpha=0.6", 3, "seed"),
        ("MDCS, K = 3, loss.alpha=0.0", 2, "seed and data.subset_seed"),
    ]
    predictions = [Predictions.read(run / "predictions" / "test") for run in runs[:3]]
    values = decompose(predictions, classes_from_json(runs[0] / "classes.json"))
    assert rows[0]["variance"][0] == pytest.approx(values["ensemble"][:, 2].mean())
    mean_error = 1 - np.mean([json.loads((run / "scores.json").read_text())["accuracy_few"] for run in runs[:3]])
    few = next(row for row in rows if row["group"] == "few")
    assert few["error"][0] == pytest.approx(mean_error) and few["error"][1] < mean_error < few["error"][2]
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows) == 32
    assert float(written[0]["variance_upper"]) == rows[0]["variance"][2] and written[3]["of"] == "ensemble" and written[3]["group"] == "few"
    assert "3 runs, seed drawn anew" in capsys.readouterr().out


def test_refusals(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", seed=1)
    lone = make_run(tmp_path / "lone", num_experts=2)
    renamed = make_run(tmp_path / "renamed", names=tuple("ABCDEFGHIJ"), seed=2)
    fewer = make_run(tmp_path / "fewer", per_class=5, seed=3)
    (tmp_path / "copy").mkdir()
    for name in ("config.yaml", "classes.json"):
        (tmp_path / "copy" / name).write_text((one / name).read_text())
    for runs, expected in [
        ([one], "1 run, a variance needs at least two"),
        ([one, one], "each once"),
        ([one, two, lone], "lone is the only run of its method"),
        ([one, renamed], "renamed has other classes"),
        ([one, fewer], r"different predictions|different pictures"),
        ([one, tmp_path / "copy"], "same configuration and seeds"),
        ([one, tmp_path], "is not a run folder"),
    ]:
        with pytest.raises(UserError, match=expected):
            analyse([str(run) for run in runs], kind="variance", output=str(tmp_path / "table.csv"))
    with pytest.raises(UserError, match=r"`mdcs evaluate run=.*one split=val` makes them"):
        analyse([str(one)], split="val")
    with pytest.raises(UserError, match=r"ends in \.csv or \.json"):
        analyse([str(one)], output=str(tmp_path / "table.txt"))
    with pytest.raises(UserError, match="is drawn for kind=variance"):
        analyse([str(one)], figure=str(tmp_path / "table.png"))
    assert not list(tmp_path.glob("*table*"))
