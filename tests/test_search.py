"""`mdcs search` on digits-LT: it chooses on validation, never predicts the test split, and goes on after an interruption."""

import csv
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdcs import cli
from mdcs.cli import other_words
from mdcs.errors import UserError
from mdcs.search import Search, alone_in, search

SHORT = ["trainer.max_epochs=2", "trainer.limit_train_batches=2", "data.val_fraction=0.3", "model.num_experts=2"]
SPACE = ["optim.lr=tag(log,interval(0.01,0.3))", "loss=ce,mdcs"]

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


class Interrupt(logging.Handler):
    """Ctrl-C when `message` has been logged `times` times."""

    def __init__(self, message: str, times: int) -> None:
        super().__init__()
        self.message, self.left = message, times

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.message):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def content(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A search of three trials that nothing interrupts."""
    return search([*SHORT, *SPACE, "trials=3", f"output={tmp_path_factory.mktemp('searches') / 'whole'}"])


def test_the_test_split_is_never_predicted(whole: Search) -> None:
    assert len(whole.done) == 3 and whole.finished()
    for number in range(3):
        folder = whole.folder / str(number)
        assert [place.name for place in (folder / "predictions").iterdir()] == ["val"]
        scores = json.loads((folder / "scores.json").read_text())
        assert scores["split"] == "val" and scores["n"] == 93
        assert scores["balanced_accuracy"] == whole.done[number]["value"]
    values = [row["value"] for row in whole.done]
    assert values[whole.finished()[0]] == max(values)
    assert len(set(values)) > 1


def test_the_best_can_then_be_scored_on_the_test_split_and_compared(whole: Search, tmp_path: Path) -> None:
    scores = other_words("evaluate", [f"run={whole.folder / str(whole.finished()[0])}", "split=test"])
    assert scores["split"] == "test" and scores["n"] == 600
    compared = other_words("compare", [f"runs=[{whole.folder}]", f"output={tmp_path / 'compared'}"])
    assert len(compared["methods"]) == 3


def test_a_dataset_without_a_test_split(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for label in ("ant", "bee"):
        (tmp_path / "my photos" / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((24, 24, 3), 30 * i, np.uint8)).save(tmp_path / "my photos" / label / f"{i}.png")
    words = ["data=folder", f"data.root={tmp_path / 'my photos'}", "data.val_fraction=0.3", "model=resnet8,resnet14", "trials=1"]
    found = search([*words, "trainer.max_epochs=1", f"output={tmp_path / 'found'}"])
    shown = capfd.readouterr().out
    assert found.done[0]["state"] == "finished" and "split=test" not in shown
    assert f"mdcs train -m data.image_size=32 augment=cifar data.batch_size=32 data=folder 'data.root=\"{tmp_path}/my photos\"'" in shown


def test_the_record_can_be_read(whole: Search) -> None:
    again = Search.read(whole.folder)
    assert again == whole
    with open(whole.folder / "trials.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["balanced_accuracy"]) for row in rows] == [row["value"] for row in whole.done]
    assert [row["loss"] for row in rows] == [row["params"]["loss"] for row in whole.done]


def test_an_interrupted_search_goes_on_to_the_same_end(
    whole: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    handler = Interrupt("epoch 1/2", times=2)  # in trial 1, before its first checkpoint
    logging.getLogger("mdcs").addHandler(handler)
    monkeypatch.setattr(sys, "argv", ["mdcs", "search", *SHORT, *SPACE, "trials=2", "output=part"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    logging.getLogger("mdcs").removeHandler(handler)
    assert end.value.code == 130
    assert f"`mdcs search resume={tmp_path / 'part'}` goes on" in capfd.readouterr().err
    assert [row["state"] for row in content(tmp_path / "part")["done"]] == ["finished", "running"]

    monkeypatch.setattr(sys, "argv", ["mdcs", "search", "resume=part", "trials=3"])
    cli.main()
    assert content(tmp_path / "part") == content(whole.folder)
    before = (tmp_path / "part" / "2" / "scores.json").stat().st_mtime_ns
    cli.main()  # nothing is left to do
    assert (tmp_path / "part" / "2" / "scores.json").stat().st_mtime_ns == before


def test_a_failed_trial_does_not_end_the_search(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A learning rate of 1e30 gives a loss that is no number."""
    found = search([*SHORT, "optim.lr=0.05,1e30", "trials=5", "metric=nll", f"output={tmp_path / 'found'}"])
    assert sorted(row["state"] for row in found.done) == ["failed", "finished"]  # and there are no other combinations
    failed = next(row for row in found.done if row["state"] == "failed")
    assert failed["params"] == {"optim.lr": "1e+30"} and failed["value"] is None and failed["reason"]
    with pytest.raises(UserError, match="none of the 1 trials has finished"):
        search([*SHORT, "optim.lr=1e30,2e30", "trials=1", f"output={tmp_path / 'none'}"])


def test_all_trials_are_judged_by_the_same_pictures(tmp_path: Path) -> None:
    found = search([*SHORT, "data.subset_seed=0,1", "trials=2", f"output={tmp_path / 'found'}"])
    assert [row["state"] for row in found.done] == ["finished", "failed"]
    assert "other pictures than the trials before" in found.done[1]["reason"]


def test_a_trial_that_was_trained_on_by_hand_does_not_count(whole: Search, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "scores.json").write_text(json.dumps({"split": "test", "balanced_accuracy": 1.0}))
    Search(**{**vars(whole), "folder": folder, "trials": 1, "done": [{**whole.done[0], "state": "running"}]}).write()
    with pytest.raises(UserError, match="none of the 1 trials"):
        search([f"resume={folder}"])
    assert "is judged by test" in content(folder)["done"][0]["reason"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (SPACE, "a search chooses on validation pictures, and there are none: set data.val_fraction"),
        (SHORT, "a search needs settings with several values, for example 'optim.lr=tag(log,interval(0.01,0.3))'"),
        ([*SHORT, "optim.lrr=0.1,0.2"], "optim.lrr: there is no such setting: did you mean optim.lr?"),
        ([*SHORT, "loss=ce,nope"], "loss=nope: there is no such choice"),
        ([*SHORT, *SPACE, "loss.alpha=0.1,0.2"], "loss.alpha: there is no such setting"),  # of loss=ce
        ([*SHORT, *SPACE, "trails=3"], "trails: there is no such setting"),
        ([*SHORT, *SPACE, "trials=0"], "trials=0: expected a whole number from 1"),
        ([*SHORT, *SPACE, "metric=val/acc"], "metric=val/acc: expected one of balanced_accuracy, accuracy"),
        ([*SHORT, *SPACE, "output=."], "exists already: go on with resume="),
        ([*SHORT, *SPACE, "output=/proc/x"], "output=/proc/x cannot be made"),
        ([*SHORT, *SPACE, "hydra.run.dir=x"], "its folder is output=DIR"),
        ([*SHORT, *SPACE, "trainer.devices=2"], "one device each"),
        ([*SHORT, "optim.lr=interval(a"], "cannot read 'optim.lr=interval(a'"),
        ([*SHORT, "optim.lr=interval(-2,-1)"], "optim: SGD refuses its arguments"),
        (["resume=nowhere"], "not the folder of a search"),
        (["resume=x", "loss=ce"], "loss: a resumed search keeps its settings; only trials=N may be changed"),
        ([*SPACE, "-m"], "takes key=value words only"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mdcs", "search", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert error.startswith("mdcs: ") and error.count("\n") == 1 and message in error
    assert not any(tmp_path.iterdir())


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'mdcs\[sweeps\]'"):
        search([*SHORT, *SPACE])


def test_two_processes_do_not_search_in_one_folder(whole: Search) -> None:
    with alone_in(whole.folder), pytest.raises(UserError, match="another process searches there"):
        search([f"resume={whole.folder}", "trials=4"])
    assert len(content(whole.folder)["done"]) == 3
