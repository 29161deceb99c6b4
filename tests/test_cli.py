"""The command line: help, mistakes in one line with exit code 2 and nothing left behind, odd paths, sweeps."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mdcs import cli, config
from mdcs.help import VERBS, usage

QUICK = "trainer.max_epochs=1"


def mdcs(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the entry point in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["mdcs", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_help_and_wrong_verbs_answer_without_torch() -> None:
    program = (
        "import sys; from mdcs.cli import main; sys.argv = ['mdcs', *{words}]\n"
        "try: main()\n"
        "except SystemExit as end: print('code', end.code)\n"
        "print([name for name in ('torch', 'hydra', 'pytorch_lightning', 'numpy') if name in sys.modules])"
    )
    for words, expected in (
        (["--help"], "train"),
        (["train", "--help"], "optim=sgd"),
        (["check", "--help"], "sample=256"),
        (["trian"], "code 2"),
    ):
        done = subprocess.run([sys.executable, "-c", program.format(words=words)], capture_output=True, text=True)
        assert expected in done.stdout, done.stdout + done.stderr
        assert done.stdout.endswith("[]\n")
    assert done.stderr == "mdcs: trian: there is no such verb: did you mean train?; `mdcs --help` explains them\n"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_help_of_a_verb_names_its_settings_and_its_examples_are_taken(verb: str) -> None:
    text = usage(config.conf_dir(), verb)
    told = dict(re.findall(r"^  (\w+)=(\S+)", text.partition("\n\n")[2].partition("\n\n")[0], re.MULTILINE))
    node = yaml.safe_load((config.conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8"))
    assert told.keys() == node.keys() - {"defaults"}
    assert {name for name, value in told.items() if value == "..."} == {name for name, value in node.items() if value == "???"}
    examples = [line.strip() for line in text.partition("Examples:\n")[2].splitlines()]
    assert examples and all(f"mdcs {verb} " in line for line in examples)
    for words in (shlex.split(line.partition(f"mdcs {verb} ")[2], comments=True) for line in examples):
        if verb != "search":
            words = [f"++{word}" if verb == "evaluate" and word.startswith("data.") else word for word in words]
            config.plain(config.compose(verb, words))  # nothing that must be given is missing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lr=1"], "lr: there is no such setting: did you mean optim.lr?"),
        (["loss=nope"], "loss=nope: there is no such choice; there is balanced_softmax, "),
        (["loss.alpha=a b", "c"], "cannot read 'c': expected key=value"),
        (["optim.lr=fast"], "optim.lr='fast': expected a number"),
        (["optim.lr=-1"], "optim: SGD refuses its arguments: Invalid learning rate: -1"),
        (["trainer.max_epochs=many"], "trainer.max_epochs='many': expected a whole number"),
        (["trainer.max_epoch=3"], "trainer.max_epoch is not a setting of Trainer: did you mean max_epochs?"),
        (["trainer.precision=17"], "trainer.precision=17: expected one of"),
        (["trainer.accelerator=nonsense"], "trainer: Trainer refuses its arguments"),
        (["data.imbalance_factor=0.5"], "data.imbalance_factor=0.5: expected a number >= 1"),
        (["data.profile=flat"], "data.profile='flat': expected one of exp, step"),
        (["data.batch_size=0"], "data.batch_size=0: expected at least 1"),
        (["data.batch_size=33", "trainer.devices=2", "trainer.accelerator=cpu"], "cannot be shared evenly by 2 devices"),
        (["model.num_experts=0"], "model.num_experts=0: expected a whole number from 1"),
        (["model.head=round"], "model.head='round': expected one of cosine, linear"),
        (["loss.lambdas=[1,2]"], "2 values for model.num_experts=3"),
        (["loss.views=[weak,odd]"], "view 'odd': expected one of weak, strong"),
        (["loss._target_=torch.os.system"], "loss._target_=torch.os.system is not allowed here: expected a subclass of mdcs.types.Loss"),
        (["optim._target_=torch.os.system"], "expected a subclass of torch.optim.optimizer.Optimizer"),
        (["augment.weak._target_=torch.serialization.os.system"], "expected a subclass of mdcs.types.Policy"),
        (["data._target_=builtins.exec"], "expected a subclass of mdcs.data.splits.DataSource"),
        (["data=cifar100", "data.root=no such folder"], "no such folder"),
        (["data=cifar100", "data.root="], "data.root= is empty: expected a path"),
        (["checkpoint=best", "data.val_fraction=0.2", "trainer.limit_val_batches=0"], "checkpoint=best, but no epoch would be validated"),
        (["trainer.val_check_interval=100", "data.val_fraction=0.2"], "trainer.val_check_interval=100: an epoch has 8 steps"),
        (["trainer.max_time={minutes: -1}"], "trainer.max_time={'minutes': -1}: expected no negative times"),
        (["optim.lr=nan"], "optim.lr=nan: expected a finite number"),
        (["loss.lambdas=[inf,1,2]"], "loss.lambdas=[inf, 1, 2]: expected a list of numbers or null"),
        *(([f"~{group}"], f"{group} is missing: a run needs one, so leave out ~") for group in ("data", "model", "loss", "trainer")),
        (["data.batch_size=null"], "data.batch_size=null: expected a whole number"),
        (["trainer.logger=true"], "trainer.logger cannot be set: mdcs sets it itself"),
        (["trainer.overfit_batches=2"], "trainer.overfit_batches cannot be set"),
        (
            ["model.compile=max-autotune", "trainer.accumulate_grad_batches=2"],
            "with trainer.accumulate_grad_batches: on a GPU",
        ),
        (["model=timm", "augment.downscale=1", "trainer.sync_batchnorm=true"], "trainer.sync_batchnorm=true with model=timm: "),
        (["checkpoint=best"], "checkpoint=best needs a validation split"),
        (["hydra.run.dir=a${b}"], "hydra.run.dir: "),
        (["=3"], "cannot read '=3': expected key=value"),
        (["+foo=1"], "foo: there is no such setting"),
        (["hydra.run.dir=/proc/x"], "/proc/x cannot be made"),
        (["data=cifar10", "data.classes=[one]", "data.root=/proc"], "CIFAR-10 is not in /proc"),
        (["resume="], "resume= is empty"),
        (["resume=x", "-m"], "resume=DIR continues one run and takes no flags: leave out -m"),
        (["~optim.gamma"], "optim.gamma is missing from the configuration"),
        (["~model.head"], "model.head is missing from the configuration"),
        (["data.root=x"], "data.root: there is no such setting with the data chosen, but with data=cifar10, "),
        (["seed=-1"], "seed=-1: expected a whole number from 0"),
        (["resume=nowhere"], "not a run folder"),
        (["-m", "trainer.devices=2"], "a sweep runs its jobs on one device each"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mdcs(monkeypatch, "train", *words) == 2
    out, error = capfd.readouterr()
    assert out == ""
    assert error.startswith("mdcs: ") and error.count("\n") == 1
    assert message in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=x", "data=cifar10"], "data=cifar10: a run is evaluated on its own kind"),
        ([], "run=... is missing"),
        (["run=nowhere"], "not a run folder"),
        (["run="], "run= is empty: expected a path"),
        (["run=x", "-m"], "takes key=value words only"),
    ],
)
def test_mistakes_of_evaluate(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert mdcs(monkeypatch, "evaluate", *words) == 2
    assert message in capfd.readouterr().err


def test_an_unreadable_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 4), ("test", 1)):
        for name in ("ant", "bee"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)).save(tmp_path / "photos" / split / name / f"{i}.png")
    broken = tmp_path / "photos" / "train" / "ant" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    monkeypatch.chdir(tmp_path)
    words = ["data=cifar10", "data.root=photos", "data.classes=[ant,bee]", "data.imbalance_factor=1", "model=resnet8", QUICK]
    assert mdcs(monkeypatch, "train", *words) == 2
    error = capfd.readouterr().err
    assert "0.png" in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_class_without_training_pictures_is_named_or_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("train", 8), ("test", 2)):
        for name in ("ant", "bee", "cat"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / "photos" / split / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    words = ["data=cifar10", "data.root=photos", "data.classes=[ant,bee,cat]", "data.imbalance_factor=20", "model=resnet8", "augment=none"]
    assert mdcs(monkeypatch, "train", *words, QUICK) == 2
    assert capfd.readouterr().err.startswith("mdcs: class 'cat' has no training picture")
    assert mdcs(monkeypatch, "train", *words, QUICK, "loss.mask_empty=true", "hydra.run.dir=run") == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert [row["train_count"] for row in scores["per_class"]] == [8, 1, 0]


def test_a_folder_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name, count in (("ant", 3), ("bee", 9)):
        for split in ("train", "test"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(tmp_path / "photos" / split / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    words = ["data=cifar10", "data.root=photos", "data.classes=[ant,bee]", "model=resnet8", "augment=none", QUICK]
    assert mdcs(monkeypatch, "train", *words, "data.imbalance_factor=1", "hydra.run.dir=drawn") == 0
    assert "9 of 12 training pictures are drawn; data.imbalance_factor=null takes all as they are" in capfd.readouterr().err
    assert mdcs(monkeypatch, "train", *words, "data.imbalance_factor=null", "hydra.run.dir=whole") == 0
    assert json.loads((tmp_path / "whole" / "classes.json").read_text())["counts"] == [3, 9]
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(tmp_path / "photos" / "train" / "bee" / "0.png")
    assert mdcs(monkeypatch, "train", *words, "data.imbalance_factor=null", "hydra.run.dir=deep") == 0
    (tmp_path / "photos" / "train" / "bee" / "0.png").write_bytes(b"no picture")
    assert mdcs(monkeypatch, "train", *words, "data.imbalance_factor=null") == 2
    assert "train/bee/0.png" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["my photos (1)", "jörg", "图片", "a=b", "it's", "c,d", 'q"q', "x~y", "[1]"])
def test_odd_paths(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        for label in ("ant", "bee"):
            folder = tmp_path / name / "photos" / split / label
            folder.mkdir(parents=True)
            Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / "one.png")
    monkeypatch.chdir(tmp_path)
    place = f"{name}/run"
    data = [
        "data=cifar10",
        f"data.root={name}/photos",
        "data.classes=[ant,bee]",
        "data.imbalance_factor=1",
        "model=resnet8",
        "augment=none",
    ]
    assert mdcs(monkeypatch, "train", *data, QUICK, f"hydra.run.dir={place}") == 0, capfd.readouterr().err
    assert mdcs(monkeypatch, "evaluate", f"run={place}") == 0
    assert json.loads((tmp_path / place / "scores.json").read_text())["n"] == 2


def test_a_sweep_goes_on_after_a_failed_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert mdcs(monkeypatch, "train", "-m", "model.num_experts=0,1", "loss=ce,mdcs", QUICK, "hydra.sweep.dir=sweep") == 2
    error = capfd.readouterr().err
    assert error.count("model.num_experts=0: expected a whole number") == 4  # when they fail, and in the list at the end
    assert "2 of the sweep's jobs failed" in error
    runs = sorted(path.parent.name for path in (tmp_path / "sweep").glob("*/scores.json"))
    assert runs == ["2", "3"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["2", "3", "multirun.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "folder"], "--data: there is no such flag; settings are written key=value"),
        (["trainer.max_time={minuts: 2}"], "trainer.max_time={'minuts': 2}: minuts is not one of weeks, days, hours, minutes, seconds"),
        (["trainer.max_epoch=1", "data=folder", "data.root=photos"], "trainer.max_epoch is not a setting of Trainer"),
        (["data.val_fraction=1.5", "data=folder", "data.root=photos"], "data.val_fraction=1.5: expected"),
    ],
)
def test_a_mistake_is_all_that_is_said(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("ant", 4), ("bee", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    assert mdcs(monkeypatch, "train", *words) == 2
    told = capfd.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1 and message in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_own_configurations_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer: {max_epochs: 1}\nloss: {alpha: 0.1}\n")
    monkeypatch.chdir(tmp_path)
    assert mdcs(monkeypatch, "train", "--config-dir", "conf", "experiment=mine", "hydra.run.dir=run") == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["loss"]["alpha"] == 0.1
