"""A W&B workspace that compares the experts of all runs in a project, as code: made here without a network, published by its `save`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mdcs.report.contents import GROUPS

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import BarPlot, LinePlot, ScatterPlot
    from wandb_workspaces.workspaces import Workspace

LOSS = "loss_name"  # of the runs' configuration: the name of conf/loss/*.yaml
ALL_AND_GROUPS = {"": "all classes"} | {f"_{group}": f"{group}-shot classes" for group in GROUPS}
DIVERSITY = {
    "disagreement": "disagreement of two experts, share of pictures",
    "kl": "KL of two experts, nats",
    "recall_sd": "s.d. over experts of class recall",
    "oracle_gap": "any expert right − ensemble",
}
OVER_EPOCHS = ("disagreement", "recall_sd", "oracle_gap")  # columns of metrics.csv, too


def dashboard(entity: str, project: str, name: str = "Experts", num_experts: int = 3, split: str = "test") -> "Workspace":
    """Runs grouped by their loss; what each of them logs is described in mdcs.report.results and training.meters.

    Bars and lines are means over the runs of a loss, with standard deviations; dots are runs. `split` is the one that runs are judged by.
    """
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2 import MediaBrowser

    experts = range(1, num_experts + 1)
    accuracy = [bars(f"Accuracy, {where}", f"{split}/acc{of}") for of, where in ALL_AND_GROUPS.items()]
    of_experts = [
        bars(f"Accuracy of each expert, {where}", *(f"{split}/acc{of}_expert_{k}" for k in experts)) for of, where in ALL_AND_GROUPS.items()
    ]
    against = [
        dots(f"{label} / accuracy, {where}", f"{split}/{measure}", f"{split}/acc{of}")
        for measure, label in DIVERSITY.items()
        for of, where in {"": "all classes", "_few": "few-shot classes"}.items()
    ]
    confident = [lines(f"Confident pictures (CIS), {group}-shot classes", f"train/confident_{group}") for group in GROUPS]
    confident += [lines(f"Confident pictures (CIS), expert {k}", f"train/confident_{k}") for k in experts]
    differing = [
        lines(f"{label}, {where}, validation", f"val/{measure}{of}")
        for measure, label in DIVERSITY.items()
        if measure in OVER_EPOCHS
        for of, where in ALL_AND_GROUPS.items()
    ]
    differing += [lines(f"Accuracy of expert {k}, validation", f"val/acc_expert_{k}") for k in experts]
    calibration = [
        bars("Calibration error (ECE)", f"{split}/ece"),
        bars("Calibration error (ECE) of each expert", *(f"{split}/ece_expert_{k}" for k in experts)),
        dots("KL of two experts / calibration error", f"{split}/kl", f"{split}/ece"),
        MediaBrowser(title="Reliability diagrams", media_keys=["figures/reliability"], num_columns=3),
    ]
    over_epochs = [lines(name, f"train/{name}") for name in ("loss", "diversity", "consistency", "acc")]
    over_epochs += [lines(f"validation accuracy, {where}", f"val/acc{of}") for of, where in ALL_AND_GROUPS.items()]
    sections: dict[str, Sequence[Any]] = {
        "Accuracy by shot group": accuracy,
        "Accuracy of each expert": of_experts,
        "Diversity against accuracy": against,
        "Confident instance sampling over epochs": confident,
        "Experts on validation over epochs": differing,
        "Calibration": calibration,
        "Training": over_epochs,
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[ws.Section(name=title, panels=list(panels), is_open=title != "Training") for title, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(groupby=[ws.Config(LOSS)]),
    )


def bars(title: str, *metrics: str) -> "BarPlot":
    """Final figures, a bar for each loss and metric."""
    from wandb_workspaces.reports.v2 import BarPlot, Config

    return BarPlot(
        title=title, metrics=list(metrics), orientation="v", groupby=Config(LOSS), groupby_aggfunc="mean", groupby_rangefunc="stddev"
    )


def lines(title: str, *metrics: str) -> "LinePlot":
    """Columns of metrics.csv over epochs, a line for each loss."""
    from wandb_workspaces.reports.v2 import Config, LinePlot

    return LinePlot(
        title=title,
        x="epoch",
        y=list(metrics),
        title_x="epoch",
        groupby=Config(LOSS),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def dots(title: str, x: str, y: str) -> "ScatterPlot":
    """Two final figures against each other, a dot for each run."""
    from wandb_workspaces.reports.v2 import ScatterPlot, SummaryMetric

    return ScatterPlot(title=title, x=SummaryMetric(x), y=SummaryMetric(y), regression=False)
