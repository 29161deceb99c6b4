"""Where a run's figures go beside its folder: to one of Lightning's loggers, or to W&B. `metrics.csv` is written in any case."""

import importlib.util
import inspect
import io
import json
import logging
import os
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pytorch_lightning.loggers import Logger

from mdcs.durable import write_durably
from mdcs.errors import UserError
from mdcs.instantiate import instantiate, resolve

INIT_TIMEOUT = 10.0  # seconds for a server that does not answer; then the run is offline
FINISH_TIMEOUT = 60.0  # seconds, at the end, for what is not uploaded yet; it stays on disk
DOTS_PER_INCH = 150

# Numbers, rows of tables, and matplotlib figures, each by name.
Results = tuple[Mapping[str, float], Mapping[str, Sequence[Mapping[str, Any]]], Mapping[str, Any]]

log = logging.getLogger("mdcs")


class RunLogger:
    """Feeds the logger of the `logger` node: the configuration at the start, a row an epoch, the results at the end. Rank 0 calls it.

    Bad settings are refused when it is made. What a logger raises later is said in one line and ends the logging, never the run. Without
    a node all this does nothing. It is a context: the logger is closed at the end of it, also when the run fails.
    """

    def __init__(self, cfg: Mapping[str, Any], folder: Path) -> None:
        self.config = cfg
        self.logger = make_logger(cfg["logger"], folder) if cfg.get("logger") else None

    def start(self) -> None:
        """Hand over the configuration. W&B starts its process here."""
        self._tell(lambda logger: logger.log_hyperparams(dict(self.config)))

    def epoch(self, row: Mapping[str, float]) -> None:
        """The row of metrics.csv, under the same names. Once an epoch: nothing is logged in a step."""

        def tell(logger: Logger) -> None:
            logger.log_metrics(dict(row), step=int(row["epoch"]))
            logger.save()

        self._tell(tell)

    def conclude(self, epoch: int, results: Callable[[], Results]) -> None:
        """What the run has to show after `epoch`; asked for only if there is a logger. Tables, figures and the report are for W&B alone."""

        def tell(logger: Logger) -> None:
            if isinstance(logger, WandB):
                logger.log_results(epoch, results())
            else:
                logger.log_metrics(dict(results()[0]), step=epoch)
                logger.save()

        self._tell(tell)

    def _tell(self, telling: Callable[[Logger], None]) -> None:
        if self.logger is None:
            return
        try:
            telling(self.logger)
        except Exception as error:  # whatever goes wrong in a logger or its service, the training is worth more
            log.warning(f"logger: {type(error).__name__}: {' '.join(str(error).split())}; the run goes on without it")
            self.logger = None

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tell(lambda logger: logger.finalize("success" if kind is None else "failed"))


def make_logger(node: Mapping[str, Any], folder: Path) -> Logger | None:
    """The logger that `node` describes, writing below `folder`; None for logger.mode=disabled. UserError if its package is missing."""
    cls = resolve(node.get("_target_"), Logger, "logger")
    place = {"save_dir": str(folder)} if "save_dir" in inspect.signature(cls).parameters else {}
    try:
        logger: Logger = instantiate(node, Logger, "logger", **place)
    except ModuleNotFoundError as missing:
        extra = "mdcs[tensorboard]" if cls.__name__ == "TensorBoardLogger" else missing.name or "what it needs"
        raise UserError(f"logger: {cls.__name__} needs a package that is not installed: pip install '{extra}', or logger=none") from missing
    return None if getattr(logger, "mode", None) == "disabled" else logger


class WandB(Logger):
    """A run on W&B (https://docs.wandb.ai): configuration, a row an epoch, tables, figures, and the report as an artifact.

    `mode` is online, offline or disabled; None = what WANDB_MODE says, else online if W&B has credentials on this machine. Where it cannot
    be online it is offline, which is said. Offline runs lie in the run folder, in wandb/, until `wandb sync` uploads them.
    `group` and `choices` (the names of data, model and loss: tags, and what a dashboard groups by) come from the command line where they
    are not given. `name` None = the last two parts of the run folder. A resumed run continues the W&B run whose id wandb.json keeps.
    Everything is handed to a process of W&B's, so training does not wait for the network. Not sent: the screen, code, git differences.
    """

    def __init__(
        self,
        save_dir: str,
        mode: Literal["online", "offline", "disabled"] | None = None,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        choices: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if importlib.util.find_spec("wandb") is None:
            raise UserError("logger=wandb needs the package wandb: pip install 'mdcs[wandb]', or choose another logger")
        asked = mode or os.environ.get("WANDB_MODE") or None
        if asked not in (None, "online", "offline", "disabled"):
            raise UserError(f"WANDB_MODE={asked}: expected online, offline or disabled")
        self.mode = asked
        self.folder = Path(save_dir)
        self.choices = dict(choices or {})
        self.about = {
            "project": project or os.environ.get("WANDB_PROJECT") or "mdcs",
            "entity": entity,
            "group": group,
            "name": name or "/".join(self.folder.parts[-2:]),
            "tags": [*tags, *self.choices.values()],
        }
        self.run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return str(self.about["project"])

    @property
    def version(self) -> str | None:
        """The id of the W&B run, once it has started."""
        return None if self.run is None else str(self.run.id)

    def log_hyperparams(self, params: dict[str, Any]) -> None:  # type: ignore[override]
        """Start the run, new or continued, with the resolved configuration."""
        kept = self.folder / "wandb.json"
        known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        # `wandb agent` names the runs of its sweep by this variable.
        run_id = known.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(6)
        config = params | {f"{group}_name": name for group, name in self.choices.items()}
        reason = self._start(config, run_id)
        online = not self.run.offline
        where = {"id": self.run.id, "project": self.run.project, "entity": self.run.entity, "url": self.run.url if online else None}
        write_durably(kept, json.dumps(where, indent=1) + "\n")
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")  # W&B counts calls, which a resumed or synced run does anew
        offline = f"{f'{reason}, so ' if reason else ''}offline; `wandb sync {Path(self.run.dir).parent}` uploads it"
        log.info(f"W&B: {self.run.url if online else offline}")

    def _start(self, config: dict[str, Any], run_id: str) -> str | None:
        """Open the run; why it is offline, if that was not asked for."""
        import wandb

        # No prompt, no wrapped screen, no code, no differences to the last commit; versions and commit are in scores.json.
        quiet: dict[str, Any] = {"silent": True, "console": "off", "disable_git": True, "disable_code": True, "x_save_requirements": False}
        settings = wandb.Settings(init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, **quiet)
        known: dict[str, Any] = {**self.about, "config": config, "id": run_id, "resume": "allow", "dir": str(self.folder)}
        # Jobs of one sweep, or a run of the user's own in a notebook, must not become one run with this one.
        known |= {"reinit": "create_new", "settings": settings}
        reason = None if self.mode == "offline" else why_offline()
        if self.mode != "offline" and reason is None:
            try:
                self.run = wandb.init(**known, mode="online")
            except wandb.Error as error:
                reason = f"refused ({' '.join(str(error).split())[:100]})"
                known["id"] = secrets.token_hex(6)  # W&B's process does not let go of the other one
        if self.run is None:
            self.run = wandb.init(**known, mode="offline")
        return reason

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """A row, which says its epoch itself."""
        self.run.log(dict(metrics))

    def log_results(self, epoch: int, results: Results) -> None:
        """Final figures (also the run's summary), tables, plots, and the report if the folder has one."""
        import wandb
        from PIL import Image

        scalars, tables, figures = results
        shown: dict[str, Any] = {"epoch": epoch, **scalars}
        for name, rows in tables.items():
            columns: list[str | int] = list(dict.fromkeys(key for row in rows for key in row))
            shown[f"tables/{name}"] = wandb.Table(columns=columns, data=[[row.get(str(key)) for key in columns] for row in rows])
        for name, figure in figures.items():
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
            shown[f"figures/{name}"] = wandb.Image(Image.open(file))
        self.run.log(shown)
        if (self.folder / "report.html").exists():
            report = wandb.Artifact(f"report-{self.run.id}", type="report", description="one self-contained page about the run")
            report.add_file(str(self.folder / "report.html"))
            self.run.log_artifact(report)

    def finalize(self, status: str) -> None:
        """Close the run, so that the next job of a sweep begins its own."""
        if self.run is not None:
            self.run.finish(exit_code=0 if status == "success" else 1)
            self.run = None


def why_offline() -> str | None:
    """What keeps W&B from being used online from here; None if nothing does. Nobody is asked for a login."""
    import wandb

    host = wandb.setup().settings.base_url
    try:
        from wandb.sdk.lib import wbauth

        known = wbauth.authenticate_session(host=host, source="mdcs", prompt=False, update_session=False) is not None
    except wandb.Error as error:
        return f"the login cannot be used ({' '.join(str(error).split())[:100]})"
    except (ImportError, AttributeError, TypeError):  # not a public part of wandb; other versions may differ
        known = bool(os.environ.get("WANDB_API_KEY"))
    return why_silent(host) if known else "not logged in (`wandb login`)"


def why_silent(host: str) -> str | None:
    """Why nothing answers at the address `host`; None if something does, whatever it says."""
    try:
        urllib.request.urlopen(host, timeout=INIT_TIMEOUT).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # W&B has settings of its own for certificates
            return f"no connection to {host} ({reason})"
    return None
