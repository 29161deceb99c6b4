"""The W&B dashboard: its specification asks for nothing that a run does not log, and is written without login or network."""

import json
from pathlib import Path
from typing import Any

import pytest

from mdcs.cli import other_words, run_verb
from mdcs.dashboarding import publish
from mdcs.errors import UserError
from mdcs.report.dashboard import dashboard
from mdcs.report.results import results
from mdcs.training.meters import DIVERSITY, columns
from run_cases import make_run

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # wandb-workspaces 0.4 with pydantic 2.14

NUM_EXPERTS = 3


def specification(tmp_path: Path, *words: str) -> dict[str, Any]:
    """What `mdcs dashboard dry_run=true` writes."""
    output = tmp_path / "a dashboard.json"
    other_words("dashboard", ["project=me/trees", "dry_run=true", f"output={output}", *words])
    content: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return content


def sections(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Panels by the name of their section."""
    return {section["name"]: section["panels"] for section in spec["spec"]["section"]["panelBankConfig"]["sections"]}


def asked(panel: dict[str, Any]) -> set[str]:
    """The keys of a run's history or summary that a panel shows."""
    config = panel["config"]
    axes = [config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis") if config.get(axis)]
    return {*(config.get("metrics") or []), *axes, *(config.get("mediaKeys") or [])}


def test_it_has_the_panels_that_compare_experts(tmp_path: Path) -> None:
    spec = specification(tmp_path)
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("me", "trees", "Experts")
    of = sections(spec)
    assert [asked(panel) for panel in of["Accuracy by shot group"]] == [{f"test/acc{g}"} for g in ("", "_many", "_medium", "_few")]
    assert asked(of["Accuracy of each expert"][0]) == {f"test/acc_expert_{k}" for k in (1, 2, 3)}
    against = [asked(panel) for panel in of["Diversity against accuracy"]]
    assert {"test/disagreement", "test/acc"} in against and {"test/kl", "test/acc_few"} in against
    assert {panel["viewType"] for panel in of["Diversity against accuracy"]} == {"Scatter Plot"}
    confident = of["Confident instance sampling over epochs"]
    assert [asked(panel) - {"epoch"} for panel in confident[:3]] == [{f"train/confident_{g}"} for g in ("many", "medium", "few")]
    assert all(panel["config"]["xAxis"] == "epoch" for panel in confident)
    assert asked(of["Calibration"][0]) == {"test/ece"}
    over_epochs = [asked(panel) - {"epoch"} for panel in of["Experts on validation over epochs"]]
    assert {"val/disagreement"} in over_epochs and {"val/oracle_gap_few"} in over_epochs and {"val/acc_expert_3"} in over_epochs
    assert len(over_epochs) == 4 * len(DIVERSITY) + NUM_EXPERTS


def test_runs_are_grouped_by_loss(tmp_path: Path) -> None:
    spec = specification(tmp_path)
    (runset,) = spec["spec"]["section"]["runSets"]
    assert [(key["section"], key["name"]) for key in runset["grouping"]] == [("config", "loss_name.value")]
    for panels in sections(spec).values():
        for panel in panels:
            if panel["viewType"] in ("Bar Chart", "Run History Line Plot"):
                assert "loss_name" in panel["config"]["groupBy"]
                assert (panel["config"]["groupAgg"], panel["config"]["groupArea"]) == ("mean", "stddev")


def test_every_metric_is_one_that_runs_log(tmp_path: Path) -> None:
    scalars, _, figures = results(make_run(tmp_path / "run", num_experts=NUM_EXPERTS))
    logged = {*scalars, *columns(NUM_EXPERTS), *(f"figures/{name}" for name in figures)}
    for title, panels in sections(specification(tmp_path)).items():
        assert panels, title
        for panel in panels:
            assert asked(panel) and asked(panel) <= logged, panel["config"]


def test_number_of_experts_and_split_may_be_others(tmp_path: Path) -> None:
    of = sections(specification(tmp_path, "num_experts=2", "split=val", "name=Two"))
    assert asked(of["Accuracy of each expert"][0]) == {"val/acc_expert_1", "val/acc_expert_2"}


def test_without_a_file_the_specification_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_verb("dashboard", ["project=me/trees", "--dry-run"])  # or dry_run=true
    assert sections(json.loads(capsys.readouterr().out)).keys() == sections(specification(tmp_path)).keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["project=trees", "dry_run=true", "output=x.json"], "project=trees: expected ENTITY/PROJECT, .*"),
        (
            ["project=me/trees", "output=x.json"],
            "output=.*x.json is for dry_run=true, which publishes nothing: give both, or none to publish",
        ),
        (["project=me/trees", "dry_run=true", "output=x.txt"], "output=.*x.txt: expected a file that ends in .json"),
        (
            ["project=me/trees", "dry_run=true", "output=/nowhere/x.json"],
            "output=/nowhere/x.json: there is no folder /nowhere; make it first",
        ),
        (["project=me/trees", "num_experts=0"], "num_experts=0: expected a whole number from 1"),
        (["project=me/trees", "split=train"], "dashboard.split='train': expected one of test, val"),
        (["dry_run=true"], r"project=\.\.\. is missing: this verb needs it"),
        (["project=me/trees"], r"W&B: not logged in \(`wandb login`\); dry_run=true shows the specification without it"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=f"^{message}$"):
        other_words("dashboard", words)
    assert not list(tmp_path.iterdir())


def test_a_refusal_of_the_server_is_told_in_one_line() -> None:
    class Refused:
        def save(self) -> None:
            raise ValueError("permission\ndenied")

    with pytest.raises(UserError, match=r"^project=me/trees: W&B refuses the dashboard: permission denied$"):
        publish(Refused(), "me/trees")


def test_it_is_made_without_a_network_and_the_same_each_time() -> None:
    def names() -> list[str]:
        return [panel.title for section in dashboard("me", "trees").sections for panel in section.panels]

    assert names() == names() and len(set(names())) == len(names())
