"""`mdcs dashboard`: the workspace of report/dashboard.py, published on W&B or written to a file."""

import importlib.util
import re
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from mdcs.errors import UserError
from mdcs.output import check_output, complete_or_absent
from mdcs.training.loggers import why_offline


def dashboard(
    project: str,
    name: str = "Experts",
    num_experts: int = 3,
    split: Literal["test", "val"] = "test",
    dry_run: bool = False,
    output: str | None = None,
    overwrite: bool = False,
) -> Any:
    """Publish a workspace that compares diversity and accuracy of the experts of all runs in `project` (ENTITY/PROJECT), by loss.

    With `dry_run` nothing is sent: the specification is written to `output` (.json), or printed, without login or network. Runs come into
    a project by `mdcs train logger=wandb`. Published again, it is another view; W&B keeps the older one. Returns the workspace.
    """
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", project):
        raise UserError(f"project={project}: expected ENTITY/PROJECT, as in the address of the project, for example my-team/mdcs")
    if num_experts < 1:
        raise UserError(f"num_experts={num_experts}: expected a whole number from 1")
    if output is not None and not dry_run:
        raise UserError(f"output={output} is for dry_run=true, which publishes nothing: give both, or none to publish")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("mdcs dashboard needs the package wandb-workspaces: pip install 'mdcs[wandb]'")
    if output is not None:
        check_output(Path(output), (".json",), overwrite)
    from mdcs.report.dashboard import dashboard as made

    entity, _, in_entity = project.partition("/")
    workspace = made(entity, in_entity, name, num_experts, split)
    if dry_run:
        text = workspace._to_model().model_dump_json(by_alias=True, indent=1)
        if output is not None:
            with complete_or_absent(Path(output)) as part:
                part.write_text(text + "\n", encoding="utf-8")
            text = f"specification: {output}"
        Console().print(text, highlight=False, soft_wrap=True, markup=False)
    elif reason := why_offline():
        raise UserError(f"W&B: {reason}; dry_run=true shows the specification without it")
    else:
        publish(workspace, project)
    return workspace


def publish(workspace: Any, project: str) -> None:
    """Save the workspace on W&B."""
    import wandb

    try:
        workspace.save()
    except (wandb.Error, ValueError, OSError) as refusal:
        raise UserError(f"project={project}: W&B refuses the dashboard: {' '.join(str(refusal).split())[:200]}") from refusal
    Console().print(f"dashboard: {workspace.url}", highlight=False, soft_wrap=True, markup=False)
