"""Runs side by side: what is one method, what may be compared, the numbers of the table, mistakes in one line."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

import mdcs
from mdcs.compare import compare, costs_grid, difference, file_name, in_words, scores_grid, signs
from mdcs.errors import UserError
from mdcs.evaluation.comparison import FinishedRun, Method, grouped, typed
from mdcs.evaluation.paired import fairness
from mdcs.evaluation.predictions import Predictions


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep folder: CE and MDCS, three seeds each, for two epochs."""
    sweep = tmp_path_factory.mktemp("compare") / "sweep"
    for number, (loss, seed) in enumerate((loss, seed) for loss in ("ce", "mdcs") for seed in (0, 1, 2)):
        mdcs.run([f"loss={loss}", f"seed={seed}", "trainer.max_epochs=2", f"hydra.run.dir={sweep / str(number)}"])
    return sweep


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "sweep"))


def changed(folder: Path, file: str, **values: object) -> None:
    """Set keys, with dots as __, in a run's config.yaml or scores.json."""
    text = (folder / file).read_text()
    tree = yaml.safe_load(text) if file.endswith("yaml") else json.loads(text)
    for name, value in values.items():
        *parents, last = name.split("__")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
    (folder / file).write_text(yaml.safe_dump(tree) if file.endswith("yaml") else json.dumps(tree))


def accuracy(sweep: Path, number: int, key: str = "accuracy") -> float:
    return json.loads((sweep / str(number) / "scores.json").read_text())[key]


def test_table_and_tests_of_a_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = compare([str(sweep)], str(sweep.parent / "out"))
    ce, ours = result["methods"]
    assert (ce["method"], ours["method"], result["reference"]) == ("ce", "mdcs", "ce")
    assert (ce["n"], ours["n"], ours["pairs"], ours["repeated"]) == (3, 3, 3, "seed")
    of_ce, of_mdcs = [np.array([accuracy(sweep, n) for n in numbers]) for numbers in ((0, 1, 2), (3, 4, 5))]
    assert ce["accuracy"] == pytest.approx(of_ce.mean()) and ce["accuracy_sd"] == pytest.approx(of_ce.std(ddof=1))
    expected = stats.ttest_rel(of_mdcs, of_ce)
    assert ours["accuracy_p"] == pytest.approx(expected.pvalue) and ours["accuracy_p_holm"] == ours["accuracy_p"]
    assert ours["accuracy_low"] == pytest.approx(expected.confidence_interval().low)
    assert ours["pictures_difference"] == pytest.approx((of_mdcs - of_ce).mean())
    assert ours["pictures_low"] < ours["pictures_difference"] < ours["pictures_high"]
    assert result["notes"] == ["mdcs: another budget (epochs × views × pictures), 1,220 against 610"]
    assert "another budget" in capsys.readouterr().out

    with open(sweep.parent / "out" / "compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["accuracy_few"]) == pytest.approx(ours["accuracy_few"]) and rows[0]["accuracy_p"] == ""
    assert (rows[0]["num_experts"], rows[0]["views"], rows[1]["views"], rows[0]["augmentation"]) == ("3", "1", "2", "digits")
    text = (sweep.parent / "out" / "compare.md").read_text()
    assert f"| ce | 3 | {100 * of_ce.mean():.1f} ± {100 * of_ce.std(ddof=1):.1f} |" in text and "- mdcs: another budget" in text
    figures = {file.name for file in (sweep.parent / "out").glob("*.svg")}
    assert figures == {"groups.svg", "frequency-ce.svg", "frequency-mdcs.svg", "agnostic.svg"}
    assert all(file.with_suffix(".png").stat().st_size > 5000 for file in (sweep.parent / "out").glob("*.svg"))
    assert ">mdcs</text>" in (sweep.parent / "out" / "agnostic.svg").read_text()
    tex = (sweep.parent / "out" / "compare.tex").read_text()
    assert tex.count(r"\begin{tabular}") == 3 and r"$\pm$" in tex


def test_one_run_each_has_no_spread_and_mcnemars_test(sweep: Path) -> None:
    result = compare([str(sweep / "0"), str(sweep / "3")], str(sweep.parent / "out"))
    ours = result["methods"][1]
    assert ours["accuracy_sd"] is None and ours["accuracy_p"] is None and ours["repeated"] == "one run"
    hits = []
    for number in ("0", "3"):
        stored = Predictions.read(sweep / number / "predictions" / "test")
        hits.append(stored.logits.astype(np.float32).mean(1).argmax(-1) == stored.labels)
    b, c = int((hits[1] & ~hits[0]).sum()), int((hits[0] & ~hits[1]).sum())
    assert ours["pictures_p"] == pytest.approx(stats.binomtest(b, b + c).pvalue)
    assert "±" not in (sweep.parent / "out" / "compare.md").read_text().split("\n")[4]
    (sweep.parent / "out" / "mine.txt").write_text("kept")
    before = {file.name for file in (sweep.parent / "out").glob("frequency-*.svg")}
    compare([str(sweep / "0")], str(sweep.parent / "out"), overwrite=True)
    after = {file.name for file in (sweep.parent / "out").glob("frequency-*.svg")}
    assert len(before) == 2 and len(after) == 1 and (sweep.parent / "out" / "mine.txt").exists()


def test_runs_are_named_in_any_way(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep.parent)
    by_folder = compare(["sweep"], "out", overwrite=True)["methods"]
    assert compare(["sweep/*"], "out", overwrite=True)["methods"] == by_folder
    assert compare([str(sweep / "[0-2]"), "sweep/3", "sweep/3", "sweep/4", "sweep/5"], "out", overwrite=True)["methods"][1]["n"] == 3
    assert compare(["sweep/3", "sweep/0"])["reference"] == "mdcs"
    assert [file.name for file in sorted((sweep.parent / "runs" / "comparisons").glob("*/compare.*"))] == [
        "compare.csv",
        "compare.md",
        "compare.tex",
    ]
    for reference in ("mdcs", "sweep/4", str(sweep / "5")):
        assert compare(["sweep"], "out", overwrite=True, reference=reference)["reference"] == "mdcs"
    odd = sweep.rename(sweep.parent / "a [1], ü=图")
    assert len(compare([str(odd)], "out", overwrite=True)["methods"]) == 2


def test_what_is_one_method(sweep: Path) -> None:
    changed(sweep / "1", "config.yaml", data__root="/elsewhere", data__num_workers=3, trainer__devices=2)  # another place
    changed(sweep / "2", "config.yaml", data__subset_seed=7)
    changed(sweep / "4", "config.yaml", loss__alpha=0.0)
    changed(sweep / "5", "config.yaml", loss__alpha=0.0, model__num_experts=1)
    shutil.copytree(sweep / "4", sweep / "6")
    changed(sweep / "6", "config.yaml", loss__alpha=0, seed=9)  # the same number, written otherwise
    methods, notes = grouped([FinishedRun.read(sweep / str(number)) for number in range(7)])
    assert {method.name: len(method.runs) for method in methods} == {
        "ce": 3,
        "mdcs": 1,
        "mdcs, loss.alpha=0.0": 2,
        "mdcs, model.num_experts=1, loss.alpha=0.0": 1,
    }
    assert methods[0].repeated == "seed and subset" and notes == []
    assert any("seed and data.subset_seed change from run to run" in note for note in fairness(methods, methods[0]))
    changed(sweep / "0", "config.yaml", seed=10)
    assert [run.seeds[0] for run in grouped([FinishedRun.read(sweep / n) for n in ("0", "1")])[0][0].runs] == [1, 10]


def test_a_run_that_is_older_than_a_setting(sweep: Path) -> None:
    tree = yaml.safe_load((sweep / "0" / "config.yaml").read_text())
    del tree["loss"]["mask_empty"]
    (sweep / "0" / "config.yaml").write_text(yaml.safe_dump(tree))
    scores = json.loads((sweep / "0" / "scores.json").read_text())
    del scores["nll"]
    (sweep / "0" / "scores.json").write_text(json.dumps(scores))
    result = compare([str(sweep / "[01]")], str(sweep.parent / "out"))
    assert [row["n"] for row in result["methods"]] == [2] and result["methods"][0]["nll"] is None
    assert result["notes"] == [f"{sweep / '0'}/scores.json has no NLL; `mdcs evaluate run={sweep / '0'}` adds it"]


def test_of_two_equal_runs_the_later_counts(sweep: Path) -> None:
    shutil.copytree(sweep / "0", sweep / "6")
    changed(sweep / "6", "scores.json", accuracy=0.5)
    result = compare([str(sweep)], str(sweep.parent / "out"))
    assert result["methods"][0]["n"] == 3 and any(f"{sweep / '0'} is left out" in note for note in result["notes"])
    assert result["methods"][0]["accuracy"] == pytest.approx(np.mean([0.5, accuracy(sweep, 1), accuracy(sweep, 2)]))


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"parameters": 10}, "another size, 10 parameters against 126,672"),
        ({"epochs": 9}, "another budget"),
        ({"checkpoint": "best"}, "another selection rule, best against last"),
        ({"git_commit": "other"}, "2 versions of the code"),
    ],
)
def test_unfair_comparisons_are_noted(sweep: Path, values: dict, note: str) -> None:
    for number in ("3", "4", "5"):
        changed(sweep / number, "scores.json", views=1, **values)
    notes = compare([str(sweep)], str(sweep.parent / "out"))["notes"]
    assert len(notes) == 1 and note in notes[0]


def test_other_training_pictures_and_augmentation_are_noted(sweep: Path) -> None:
    for number in ("3", "4", "5"):
        changed(sweep / number, "scores.json", views=1)
        changed(sweep / number, "config.yaml", augment__weak__shift=2)
        lines = (sweep / number / "subset.csv").read_text().splitlines()
        (sweep / number / "subset.csv").write_text("\n".join(lines[:-1]) + "\n")
    other, augmentation = compare([str(sweep)], str(sweep.parent / "out"))["notes"]
    assert "trained on other pictures than ce" in other
    assert "another augmentation, digits, augment.weak.shift=2 against digits" in augmentation


def test_three_methods_are_corrected_by_holm(sweep: Path) -> None:
    for number, seed in ((6, 0), (7, 1), (8, 2)):
        shutil.copytree(sweep / str(number - 3), sweep / str(number))
        changed(sweep / str(number), "config.yaml", loss__alpha=0.1)
        changed(sweep / str(number), "scores.json", accuracy=accuracy(sweep, number - 6) + 0.01 * (1 + 0.1 * seed))
    rows = compare([str(sweep)], str(sweep.parent / "out"))["methods"][1:]
    p, smaller = sorted((row["accuracy_p"] for row in rows), reverse=True)
    corrected = sorted((row["accuracy_p_holm"] for row in rows), reverse=True)
    assert corrected == pytest.approx([max(p, 2 * smaller), 2 * smaller])


def test_mistakes_are_told_in_one_line(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep.parent)
    (sweep.parent / "empty").mkdir()
    (sweep / "2" / "scores.json").unlink()
    for runs, message in (
        (["nowhere"], "nothing is named nowhere, or matches it"),
        (["sweep/x*"], "nothing is named sweep/x\\*, or matches it"),
        (["empty"], "empty is no run folder and holds none"),
        ([], "names no run"),
        (["sweep/2"], "sweep/2 has no scores.json, so it has not finished: `mdcs train resume=sweep/2`"),
        (["sweep/[2]"], "none of the 1 runs has finished"),
    ):
        with pytest.raises(UserError, match=message) as mistake:
            compare(runs, "out")
        assert "\n" not in str(mistake.value) and not (sweep.parent / "out").exists()
    assert "sweep/2 has not finished and is left out" in compare(["sweep"], "out")["notes"]
    with pytest.raises(UserError, match="output=out holds a comparison already: choose another folder, or set overwrite=true"):
        compare(["sweep"], "out")
    with pytest.raises(UserError, match=r"reference=x: expected one of the compared runs, or a name in the table: ce \| mdcs"):
        compare(["sweep"], "out", reference="x", overwrite=True)
    (sweep.parent / "file").write_text("")
    with pytest.raises(UserError, match="output=file: file is no folder; choose another place"):
        compare(["sweep"], "file")
    changed(sweep / "4", "scores.json", test_set_sha256="other")
    with pytest.raises(UserError, match="not scored on the same test set"):
        compare(["sweep"], "out", overwrite=True)
    (sweep / "4" / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"4/scores\.json cannot be read"):
        compare(["sweep"], "out", overwrite=True)


def test_without_stored_predictions_there_is_no_test_over_pictures(sweep: Path) -> None:
    shutil.rmtree(sweep / "4" / "predictions")
    ours = compare([str(sweep)], str(sweep.parent / "out"))["methods"][1]
    assert ours["pictures_p"] is None and ours["accuracy_p"] is not None


def test_words_of_the_table(sweep: Path) -> None:
    assert in_words(0.8123, 0.0041, 100) == "81.2 ± 0.4" and in_words(0.8123, None, 100) == "81.2" and in_words(None, None, 100) == "n/a"
    test = {"mean": 0.026, "interval": [0.006, 0.047], "p_holm": 0.0214}
    assert difference(test, " 5/5") == "+2.6 [+0.6, +4.7] 5/5 p = 0.021" and difference(None, "") == "n/a"
    assert difference({"mean": -0.026, "interval": None, "p_holm": 0.0001}, "") == "-2.6 p < 0.001"
    tied = {"mean": 0.0, "interval": [-0.01, 0.01], "p_holm": 1.0, "signs": None, "unequal": 2}
    assert difference(tied, signs(tied)) == "0.0 [-1.0, +1.0] p = 1.000"
    tied |= {"interval": [0.0, 0.0], "p_holm": None, "unequal": 0}
    assert difference(tied, signs(tied)) == "0.0 all equal" and signs(None) == ""
    assert signs({"signs": 8, "unequal": 12}) == " 8/12"
    assert [typed(value) for value in (["weak", "strong"], None, True, 0.5, "a")] == ["[weak,strong]", "null", "true", "0.5", "a"]
    changed(sweep / "0", "scores.json", accuracy_few=None)
    grid = scores_grid(grouped([FinishedRun.read(sweep / "0")])[0])
    assert grid.rows[0][5] == "n/a" and grid.rows[0][:2] == ("ce", "1")
    one = grouped([FinishedRun.read(sweep / "0")])[0]
    costs = costs_grid([*one, *grouped([FinishedRun.read(sweep / "3")])[0]])
    assert costs.header == ("method", "views", "seconds") and "All have K 3, parameters 126,672" in costs.title
    assert "epochs" in costs_grid(one).header and "All have" not in costs_grid(one).title
    methods = [Method(name, one[0].runs) for name in ("a=1", "a_1", "b, [c]", "x" * 300)]
    assert [file_name(method, methods) for method in methods] == ["a_1-0", "a_1-1", "b_c", f"{'x' * 80}-3"]
