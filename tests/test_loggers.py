"""Loggers: what an offline W&B run says when it is read back, what Lightning's loggers are fed, and that none can end a training."""

import csv
import http.server
import importlib.util
import json
import logging
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning.loggers import Logger

import mdcs
from conftest import ROOT
from mdcs import cli
from mdcs.config import compose, plain, with_names
from mdcs.errors import UserError
from mdcs.report.results import results
from mdcs.training.loggers import RunLogger, WandB, make_logger, why_silent
from mdcs.training.meters import columns
from run_cases import make_run
from wandb_file import OfflineRun, offline_runs

EPOCHS = 2
WANDB_VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE")


@pytest.fixture(autouse=True, scope="module")
def own_wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of W&B's outside the test's folders, and nobody is logged in."""
    place = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in WANDB_VARIABLES:
            patch.delenv(name, raising=False)
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
            patch.setenv(name, str(place))
        patch.setenv("NETRC", str(place / "netrc"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a validation split, logged offline for want of a login."""
    folder = tmp_path_factory.mktemp("runs") / "wandb run"
    words = ["logger=wandb", "logger.tags=[mine]", "logger.project=trees", "data.val_fraction=0.2", f"trainer.max_epochs={EPOCHS}"]
    mdcs.run([*words, f"hydra.run.dir={folder}"])
    return folder


@pytest.fixture(scope="module")
def logged(folder: Path) -> OfflineRun:
    (only,) = offline_runs(folder)
    return only


# ------------------------------------------------------------------------------------------------------- W&B, read back


def test_the_run_is_named_grouped_and_tagged(logged: OfflineRun, folder: Path) -> None:
    assert logged.run.project == "trees"
    assert logged.run.run_group == "digits-resnet8-mdcs"
    assert set(logged.run.tags) == {"mine", "digits", "resnet8", "mdcs"}
    assert logged.run.display_name == "/".join(folder.parts[-2:])
    assert logged.exit_code == 0
    kept = json.loads((folder / "wandb.json").read_text())
    assert kept["id"] == logged.run.run_id and kept["url"] is None


def test_the_configuration_is_the_runs_as_plain_values(logged: OfflineRun, folder: Path) -> None:
    config = {key: value for key, value in logged.config.items() if not key.startswith("_wandb")}
    names = {key: config.pop(key) for key in ("data_name", "model_name", "loss_name")}
    assert names == {"data_name": "digits", "model_name": "resnet8", "loss_name": "mdcs"}
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert config == stored
    assert config["loss"]["alpha"] == 0.6 and config["trainer"]["max_epochs"] == EPOCHS


def test_each_epoch_is_a_row_under_the_names_of_metrics_csv(logged: OfflineRun, folder: Path) -> None:
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == EPOCHS and len(logged.history) == EPOCHS + 1
    for row, item in zip(rows, logged.history, strict=False):
        known = {name: float(cell) for name, cell in row.items() if cell}
        assert {name for name in item if not name.startswith("_")} == set(known) <= set(columns(3))
        assert {name: item[name] for name in known} == pytest.approx(known, rel=1e-6)
    assert {"val/acc_expert_3", "train/confident_few", "train/consistency"} <= set(logged.history[0])
    assert {"val/disagreement", "val/recall_sd", "val/oracle_gap", "val/disagreement_few"} <= set(logged.history[0])


def test_final_figures_are_those_of_scores_json(logged: OfflineRun, folder: Path) -> None:
    scores = json.loads((folder / "scores.json").read_text())
    summary = logged.summary
    assert summary["test/acc"] == scores["accuracy"]
    assert summary["test/acc_few_expert_3"] == scores["experts"][2]["accuracy_few"]
    assert summary["test/ece"] == scores["ece"] and summary["test/oracle_accuracy"] == scores["oracle_accuracy"]
    assert summary["test/disagreement"] == pytest.approx(scores["diversity"]["disagreement"])
    assert summary["test/kl"] == pytest.approx(scores["diversity"]["kl"])
    assert summary["cost/parameters"] == 126672
    assert summary["epoch"] == EPOCHS


def test_tables_and_figures_are_complete(logged: OfflineRun, folder: Path) -> None:
    scores, shown = json.loads((folder / "scores.json").read_text()), logged.history[-1]
    files = {name.removesuffix(".path"): logged.folder / "files" / place for name, place in shown.items() if name.endswith(".path")}
    tables = ("per_class", "answerers", "diversity", "test_distributions", "reliability", "confused")
    figures = ("frequency", "experts", "reliability", "agreement", "agnostic", "training")
    assert set(files) == {*(f"tables/{name}" for name in tables), *(f"figures/{name}" for name in figures)}
    table = json.loads(files["tables/per_class"].read_text())
    assert table["columns"] == ["name", "group", "train_count", "n", "accuracy", "expert_1", "expert_2", "expert_3"]
    assert [row[4] for row in table["data"]] == [of["accuracy"] for of in scores["per_class"]]
    diversity = json.loads(files["tables/diversity"].read_text())
    assert [row[0] for row in diversity["data"]] == ["all", "many", "medium", "few"]
    for name in figures:
        assert files[f"figures/{name}"].read_bytes()[:4] == b"\x89PNG"


def test_the_runs_report_is_an_artifact(logged: OfflineRun, folder: Path) -> None:
    (report,) = [artifact for artifact in logged.artifacts if artifact.type == "report"]
    assert [entry.path for entry in report.manifest.contents] == ["report.html"]
    assert report.name == f"report-{logged.run.run_id}"


def test_neither_screen_nor_code_nor_differences_are_sent(logged: OfflineRun) -> None:
    assert logged.output == []
    names = {path.name for path in (logged.folder / "files").rglob("*")}
    assert not names & {"output.log", "diff.patch", "requirements.txt", "code"}


# ------------------------------------------------------------------------------------------- resumed, swept, failed runs


def test_a_resumed_run_continues_its_wandb_run(folder: Path, logged: OfflineRun) -> None:
    cli.train_words([f"resume={folder}", f"trainer.max_epochs={EPOCHS + 1}"])
    first, second = offline_runs(folder)
    assert first.run.run_id == second.run.run_id == logged.run.run_id
    assert [item["epoch"] for item in second.history] == [EPOCHS + 1, EPOCHS + 1], "one row, and the results"


def test_jobs_of_a_sweep_are_runs_of_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "-m", "loss=ce,mdcs", "logger=wandb", "logger.mode=offline", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["mdcs", *words, "logger.group=losses"])
    cli.main()
    (one,), (other,) = (offline_runs(tmp_path / str(job)) for job in range(2))
    assert one.run.run_id != other.run.run_id
    assert one.run.run_group == other.run.run_group == "losses"
    assert (one.config["loss_name"], other.config["loss_name"]) == ("ce", "mdcs")
    assert len(one.history) == len(other.history) == 2, "each has its own rows, and none of the other's"
    assert (one.exit_code, other.exit_code) == (0, 0)


def test_a_run_that_fails_is_closed_as_failed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the loss of epoch"):
        mdcs.run(["logger=wandb", "logger.mode=offline", "optim.lr=1e30", "optim.warmup_epochs=0", f"hydra.run.dir={tmp_path / 'run'}"])
    (only,) = offline_runs(tmp_path / "run")
    assert only.exit_code == 1


@pytest.mark.slow
def test_only_the_first_rank_logs(tmp_path: Path) -> None:
    words = [
        "trainer.devices=2",
        "trainer.accelerator=cpu",
        "trainer.strategy=ddp",
        "trainer.max_epochs=1",
        "logger=wandb",
        "logger.mode=offline",
    ]
    command = [sys.executable, "-m", "mdcs", "train", *words, f"hydra.run.dir={tmp_path / 'run'}"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (only,) = offline_runs(tmp_path / "run")
    assert [item["epoch"] for item in only.history] == [1, 1]


# ---------------------------------------------------------------------------------------------- no login, no network, off


def started(folder: Path, caplog: pytest.LogCaptureFixture, **settings: Any) -> tuple[OfflineRun, str]:
    """A logger that was started and closed, and the one line that was said."""
    folder.mkdir(exist_ok=True)
    node = {"_target_": "mdcs.training.loggers.WandB", **settings}
    with caplog.at_level(logging.INFO, "mdcs"), RunLogger({"seed": 0, "logger": node}, folder) as logger:
        logger.start()
        logger.epoch({"epoch": 1, "train/loss": 2.0})
    (only,) = offline_runs(folder)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "mdcs"]
    return only, said


@pytest.mark.parametrize("mode", [None, "online"])
def test_without_a_login_the_run_is_offline_and_says_so(mode: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, said = started(tmp_path / "run", caplog, mode=mode)
    assert said.startswith("W&B: not logged in (`wandb login`), so offline; `wandb sync ")
    assert run.history[0]["train/loss"] == 2.0


def test_a_malformed_key_is_no_login(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    run, said = started(tmp_path / "run", caplog)
    assert said.startswith("W&B: the login cannot be used (") and "so offline" in said
    assert run.history[0]["train/loss"] == 2.0


def test_asked_to_be_offline_it_gives_no_excuse(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    _, said = started(tmp_path / "run", caplog)
    assert said.startswith("W&B: offline; `wandb sync ")


def started_online(folder: Path, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> tuple[OfflineRun, str]:
    """`started` by somebody who has a key for the server at `url`."""
    import wandb

    monkeypatch.setattr("mdcs.training.loggers.INIT_TIMEOUT", 1.0)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb.teardown()  # it reads the environment once
    began = time.perf_counter()
    try:
        return started(folder, caplog, mode="online")
    finally:
        assert time.perf_counter() - began < 20
        wandb.teardown()


def test_a_server_that_does_not_answer_costs_seconds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "wandb.json").write_text('{"id": "continued"}')
        run, said = started_online(tmp_path / "run", url, caplog, monkeypatch)
    assert said.startswith(f"W&B: no connection to {url} (timed out), so offline; `wandb sync ")
    assert run.run.run_id == "continued" and run.history[0]["epoch"] == 1 and run.exit_code == 0
    assert why_silent("http://127.0.0.1:9") == "no connection to http://127.0.0.1:9 ([Errno 111] Connection refused)"


def test_a_server_that_refuses_costs_seconds(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run, said = started_online(tmp_path / "run", f"http://127.0.0.1:{server.server_port}", caplog, monkeypatch)
        server.shutdown()
    assert said.startswith("W&B: refused (") and "so offline; `wandb sync " in said
    assert run.history[0]["epoch"] == 1 and run.exit_code == 0


def test_disabled_leaves_no_trace(tmp_path: Path) -> None:
    node = {"_target_": "mdcs.training.loggers.WandB", "mode": "disabled"}
    with RunLogger({"logger": node}, tmp_path) as logger:
        logger.start()
        logger.epoch({"epoch": 1})
    assert logger.logger is None and not list(tmp_path.iterdir())


def test_one_expert_has_no_diversity_to_log(tmp_path: Path) -> None:
    scalars, tables, _ = results(make_run(tmp_path / "run", num_experts=1))
    assert "diversity" not in tables and not [name for name in scalars if "disagreement" in name or "kappa" in name]
    assert scalars["test/acc"] == scalars["test/acc_expert_1"]


# --------------------------------------------------------------------------------------------------- Lightning's loggers


def test_any_logger_of_lightnings_is_fed_the_same_rows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    target = ["+logger._target_=pytorch_lightning.loggers.CSVLogger", "+logger.name=again", "+logger.version=''"]
    mdcs.run(["trainer.max_epochs=2", *target, f"hydra.run.dir={folder}"])
    with open(folder / "metrics.csv", newline="") as file, open(folder / "again" / "metrics.csv", newline="") as copy:
        ours, theirs = list(csv.DictReader(file)), list(csv.DictReader(copy))
    for row, other in zip(ours, theirs, strict=False):
        assert all(float(other[name]) == pytest.approx(float(cell), rel=1e-6) for name, cell in row.items() if cell)
    scores = json.loads((folder / "scores.json").read_text())
    assert float(theirs[-1]["test/acc"]) == scores["accuracy"]
    assert yaml.safe_load((folder / "again" / "hparams.yaml").read_text())["loss"]["alpha"] == 0.6


def test_tensorboard_is_fed_or_its_absence_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["mdcs", "train", "logger=tensorboard", "trainer.max_epochs=1", f"hydra.run.dir={folder}"])
    if importlib.util.find_spec("tensorboard") is not None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        cli.main()
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert {"train/loss", "train/acc", "test/acc"} <= set(events.Tags()["scalars"])
        return
    with pytest.raises(SystemExit) as end:
        cli.main()
    message = "mdcs: logger: TensorBoardLogger needs a package that is not installed: pip install 'mdcs[tensorboard]', or logger=none\n"
    assert end.value.code == 2 and capsys.readouterr().err == message
    assert not folder.exists()


class Broken(Logger):
    """Takes the configuration, then fails."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    name = version = None

    def log_hyperparams(self, params: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls += 1
        raise ConnectionError("gone\nfor good")


def test_a_logger_that_fails_ends_the_logging_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = RunLogger({}, tmp_path)
    logger.logger = broken = Broken()
    with caplog.at_level(logging.INFO, "mdcs"), logger:
        logger.start()
        for epoch in (1, 2):
            logger.epoch({"epoch": epoch})
        logger.conclude(2, lambda: pytest.fail("nobody asks for results"))
    assert broken.calls == 1
    assert [record.getMessage() for record in caplog.records] == ["logger: ConnectionError: gone for good; the run goes on without it"]


# ----------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["logger=wandb", "logger.mode=onlin"], r"logger.mode='onlin': expected one of online, offline, disabled or null"),
        (["logger=wandb", "logger.tags=digits"], r"logger.tags='digits': expected a list of texts"),
        (["logger=wandb", "+logger.colour=red"], r"logger.colour is not a setting of WandB: there is mode, project, .*"),
        (["+logger._target_=torch.os.system"], r"logger._target_=torch.os.system is not allowed here: expected a subclass of .*Logger"),
        (["logger=csv"], r"logger=csv: there is no such choice; there is none, tensorboard, wandb"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{message}$"):
        mdcs.run([*words, f"hydra.run.dir={tmp_path / 'run'}"])
    assert not list(tmp_path.iterdir())


def test_an_odd_wandb_mode_or_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match=r"^WANDB_MODE=sometimes: expected online, offline or disabled$"):
        WandB(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^logger=wandb needs the package wandb: pip install 'mdcs\[wandb\]', or choose another logger$"):
        make_logger({"_target_": "mdcs.training.loggers.WandB"}, tmp_path)


def test_names_of_choices_reach_the_logger_that_asks_for_them() -> None:
    cfg = compose("train", ["logger=wandb", "experiment=cifar100_if100", "data.root=x"])
    node = with_names(plain(cfg), cfg.hydra.runtime.choices)["logger"]
    assert node["group"] == "cifar100_if100"
    assert node["choices"] == {"data": "cifar100", "model": "resnet32", "loss": "mdcs"}
    cfg = compose("train", ["logger=tensorboard"])
    assert with_names(plain(cfg), cfg.hydra.runtime.choices) == plain(cfg)


@pytest.mark.slow
def test_a_run_without_a_logger_does_not_load_wandb() -> None:
    program = "import sys, mdcs.train; print('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_extras_name_what_the_loggers_need() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [word.partition(">")[0] for word in extras["wandb"]] == ["wandb", "wandb-workspaces"]
    assert [word.partition(">")[0] for word in extras["tensorboard"]] == ["tensorboard"]
    assert "wandb" in extras["all"][0] and "tensorboard" in extras["all"][0]
