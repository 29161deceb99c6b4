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


def test_a_run_without_a_test_split_is_analysed_on_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "predictions" / "test").rename(folder / "predictions" / "val")
    scores = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(scores | {"split": "val"}))
    assert analyse([str(folder)])[0]["n"] == 120
    assert "val split" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"has no predictions of a test split but of val, which split=val chooses; .* has that split$"):
        analyse([str(folder)], split="test")


def test_damaged_features_are_told_with_what_makes_them_again(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    place = folder.resolve() / "predictions" / "test" / "features.npy"
    place.write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError) as mistake:
        analyse([str(folder)])
    assert str(mistake.value).startswith(f"{place} is damaged (")
    assert str(mistake.value).endswith(f"remove it, and `mdcs evaluate run={folder.resolve()} split=test features=true` makes it again")


def test_runs_that_are_judged_by_different_splits(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("test", "val")]
    (runs[1] / "predictions" / "test").rename(runs[1] / "predictions" / "val")
    (runs[1] / "scores.json").write_text("{")  # damaged, and left as it is
    assert [row["n"] for row in analyse([str(run) for run in runs])[::4]] == [120, 120]
    assert (runs[1] / "scores.json").read_text() == "{"


def test_runs_in_folders_and_by_pattern_are_found_and_tables_are_csv_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (2, 10, 1):
        make_run(tmp_path / "sweep" / str(number), seed=number)
    (make_run(tmp_path / "sweep" / "11", seed=11) / "scores.json").unlink()
    for runs in ([str(tmp_path / "sweep")], [str(tmp_path / "sweep" / "*"), str(tmp_path / "sweep" / "2")]):
        rows = analyse(runs, output=str(tmp_path / "table.csv"), overwrite=True)
        assert [Path(row["run"]).name for row in rows[::4]] == ["1", "2", "10"]
        assert "11 has not finished and is left out" in capsys.readouterr().out
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [float(row["kl"]) for row in written] == pytest.approx([row["kl"] for row in rows])
    assert json.loads(written[0]["agreement"]) == rows[0]["agreement"]


def test_variance_groups_runs_by_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / f"mdcs-{seed}", seed=seed) for seed in range(3)]
    for seed in range(2):
        data = CONFIG["data"] | {"subset_seed": seed}
        runs.append(make_run(tmp_path / f"plain-{seed}", seed=seed, loss=CONFIG["loss"] | {"alpha": 0.0}, data=data))
    rows = analyse([str(run) for run in runs], kind="variance", output=str(tmp_path / "table.csv"), figure=str(tmp_path / "it.svg"))
    assert "variance in %" in (tmp_path / "it.svg").read_text()
    assert [(row["method"], row["runs"], row["varied"]) for row in rows[:32:16]] == [
        ("mdcs", 3, "seed"),
        ("mdcs, loss.alpha=0.0", 2, "seed and data.subset_seed"),
    ]
    predictions = [Predictions.read(run / "predictions" / "test") for run in runs[:3]]
    values = decompose(predictions, classes_from_json(runs[0] / "classes.json"))
    assert rows[0]["variance"][0] == pytest.approx(values["ensemble"][:, 2].mean())
    mean_error = 1 - np.mean([json.loads((run / "scores.json").read_text())["accuracy_few"] for run in runs[:3]])
    few = next(row for row in rows if row["group"] == "few")
    assert few["error"][0] == pytest.approx(mean_error) and few["error"][1] < mean_error < few["error"][2]
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows) == 32 + 4
    assert float(written[0]["variance_upper"]) == rows[0]["variance"][2] and written[3]["of"] == "ensemble" and written[3]["group"] == "few"
    told = capsys.readouterr().out
    assert "mdcs: K = 3, M = 3 runs, seed drawn anew" in told and "the same in all runs" in told and "± " not in told
    assert rows[32]["method"] == "mdcs, loss.alpha=0.0 − mdcs" and rows[32]["against"] == "mdcs"
    assert rows[32]["error"][0] == pytest.approx(rows[16]["error"][0] - rows[0]["error"][0])
    assert rows[32]["over_runs"] is None, "two runs cannot be left out, and their seeds are others"


def test_differences_are_paired_by_picture_and_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def runs(name: str, seeds: list[int], **config: object) -> list[Path]:
        return [make_run(tmp_path / f"{name}-{seed}", seed=seed, **config) for seed in seeds]

    plain, other = runs("plain", [0, 1, 2]), runs("other", [2, 0, 1], loss=CONFIG["loss"] | {"alpha": 0.0})
    rows = analyse([str(run) for run in plain + other], kind="variance", output=str(tmp_path / "it.csv"))
    difference = rows[-4]
    # `make_run` draws the same predictions for the same seed, so the two methods are one.
    assert difference["error"] == [0, 0, 0] and difference["over_runs"]["disagreement"] == 0
    assert rows[0]["over_runs"]["disagreement"] > 0 and rows[4]["of"] == "expert 1" and rows[4]["over_runs"] is None
    told = capsys.readouterr().out
    assert "mdcs, loss.alpha=0.0 − mdcs" in told and "+0.0 [+0.0, +0.0] ± 0.0" in told
    with open(tmp_path / "it.csv", newline="", encoding="utf-8") as file:
        assert float(next(csv.DictReader(file))["kl_variance_over_runs"]) == pytest.approx(rows[0]["over_runs"]["kl_variance"])
    unpaired = runs("third", [5, 6, 7], loss=CONFIG["loss"] | {"alpha": 0.1})
    assert analyse([str(run) for run in plain + unpaired], kind="variance")[-4]["over_runs"] is None
    assert "±" not in capsys.readouterr().out


def test_methods_are_named_as_in_compare(tmp_path: Path) -> None:
    prior = {"_target_": "mdcs.losses.prior.PriorAdjusted", "reduction": "sum", "views": ["weak"], "mask_empty": False}
    runs = []
    for name, value, num_experts in (("ce", 0.0, 1), ("balanced", 1.0, 3)):
        for seed in range(2):
            runs.append(make_run(tmp_path / f"{name}-{seed}", seed=seed, num_experts=num_experts, loss=prior | {"lambdas": value}))
    rows = analyse([str(run) for run in runs], kind="variance")
    assert list(dict.fromkeys(row["method"] for row in rows))[:2] == ["ce, model.num_experts=1", "balanced_softmax"]


def test_a_single_expert_is_not_told_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(make_run(tmp_path / f"{seed}", seed=seed, num_experts=1)) for seed in range(2)]
    assert {row["of"] for row in analyse(runs, kind="variance")} == {"ensemble", "expert 1"}
    assert "expert 1" not in capsys.readouterr().out


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
        ([one, one], "1 run, a variance needs at least two"),
        ([one, two, lone], "lone is the only run of its method"),
        ([one, renamed], "renamed has other classes"),
        ([one, fewer], r"different predictions|different pictures"),
        ([one, tmp_path / "copy"], "same configuration and seeds"),
        ([one, tmp_path / "none"], "nothing is named"),
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
