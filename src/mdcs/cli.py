"""The command line: `mdcs VERB key=value ...`. Help and mistakes in the verb answer before Hydra or torch is imported."""

import importlib
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdcs import config
from mdcs.errors import UserError
from mdcs.help import VERBS, usage
from mdcs.instantiate import check_arguments, suggestion
from mdcs.sweep import Sweep, is_of_launcher, note_failure, refuse_ranks_in_a_sweep, train_or_go_on

if TYPE_CHECKING:
    from mdcs.build import Run

# What each verb calls with its configuration; `train` has its own ways, for it may resume or sweep.
FUNCTIONS = {
    "evaluate": ("mdcs.evaluate", "evaluate"),
    "check": ("mdcs.check", "check"),
    "predict": ("mdcs.predict", "predict"),
    "compare": ("mdcs.compare", "compare"),
    "analyse": ("mdcs.analyse", "analyse"),
    "report": ("mdcs.reporting", "report"),
    "dashboard": ("mdcs.dashboarding", "dashboard"),
    "export": ("mdcs.export", "export"),
    "import": ("mdcs.published", "import_published"),
}

# Of those that Hydra takes, with and without a value.
HYDRA_FLAGS = (
    "-m",
    "--multirun",
    "-c",
    "--cfg",
    "--resolve",
    "-p",
    "--package",
    "-i",
    "--info",
    "-cd",
    "--config-dir",
    "-cn",
    "--config-name",
)

log = logging.getLogger("mdcs")


def main() -> None:
    """Entry point. Exit code 0 = done, 2 = the user's mistake in one line on stderr, 130 = interrupted."""
    words = sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files that the terminal cannot show end no verb
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(usage(config.conf_dir()))
        elif words[0] == "--version":
            import mdcs

            print(mdcs.__version__)
        elif words[0] not in VERBS:
            raise UserError(f"{words[0]}: there is no such verb{suggestion(words[0], list(VERBS))}; `mdcs --help` explains them")
        elif {"-h", "--help"} & set(words[1:]):
            print(usage(config.conf_dir(), words[0]))
        else:
            run_verb(words[0], words[1:])
    except UserError as mistake:
        sys.exit(told(mistake))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `mdcs --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def told(mistake: UserError) -> int:
    """Print the mistake in one line, once for all ranks; exit code 2."""
    if config.first_rank():
        print(f"mdcs: {' '.join(str(mistake).split())}", file=sys.stderr)
    return 2


def run_verb(verb: str, words: list[str]) -> None:
    """Dispatch; words that begin with - are Hydra's own flags."""
    screen = logging.StreamHandler(sys.stderr)
    log.setLevel(logging.DEBUG)
    screen.setLevel(logging.INFO)
    screen.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(screen)
    log.propagate = False  # Hydra gives the root logger a handler in sweeps
    without_advice()
    if verb == "dashboard":
        words = ["dry_run=true" if word == "--dry-run" else word for word in words]
    try:
        if any(word.startswith("-") for word in words):
            through_hydra(verb, words)
        elif verb == "train":
            train_words(words)
        elif verb == "search":
            importlib.import_module("mdcs.search").search(words)
        else:
            other_words(verb, words)
    finally:
        log.removeHandler(screen)
        log.propagate = True


def without_advice() -> None:
    """Lightning's warnings are for those who write the training loop."""
    warnings.filterwarnings("ignore", module="(pytorch_lightning|lightning_fabric)[.]")


def train_words(words: list[str]) -> "Run":
    """`mdcs train` for a single run."""
    resumed = [word for word in words if word.startswith("resume=")]
    if resumed:
        if not resumed[0].removeprefix("resume="):
            raise UserError("resume= is empty: give the folder of the run to continue")
        folder = Path(config.absolute(resumed[0].removeprefix("resume=")))
        return resume_words(folder, [word for word in words if word not in resumed])
    from mdcs.recipe import composed

    cfg, said = composed(words)
    return train_config(config.with_names(config.plain(cfg), cfg.hydra.runtime.choices), Path(config.run_dir(cfg)), said)


def train_config(cfg: dict[str, Any], folder: Path, said: Sequence[str], again: bool = False) -> "Run":
    """Train a composed configuration, of which something was said. `again`: `folder` may hold this run already."""
    from mdcs.train import train

    return (train_or_go_on if again else train)(config.with_absolute_paths(cfg), Path(config.absolute(str(folder))), said)


def resume_words(folder: Path, words: list[str]) -> "Run":
    """`mdcs train resume=DIR`: the run's own configuration; only what does not change the result may be overridden."""
    config.require_run("resume", folder)
    cfg = config.read_yaml(folder / "config.yaml")
    from omegaconf import OmegaConf

    from mdcs.train import RESUMABLE, resume

    for word in words:
        name, equals, value = word.lstrip("+").partition("=")
        if name.startswith("hydra."):  # added by launchers
            continue
        if not equals or name not in RESUMABLE:
            raise UserError(f"{word}: a resumed run keeps its configuration; only {', '.join(RESUMABLE)} may be changed")
        cfg = OmegaConf.to_container(OmegaConf.merge(cfg, OmegaConf.from_dotlist([f"{name}={value}"])))  # type: ignore[assignment]
    return resume(cfg, folder)


def other_words(verb: str, words: list[str]) -> Any:
    """Every verb but `train`: its function, called with its configuration."""
    if verb == "evaluate":
        for word in words:
            if word.startswith("data="):
                raise UserError(f"{word}: a run is evaluated on its own kind of dataset; give data.root=... or other settings of it")
        words = [f"++{word}" if word.startswith("data.") else word for word in words]  # any setting of whichever dataset the run has
    cfg = config.with_absolute_paths(config.plain(config.compose(verb, words)))
    module, name = FUNCTIONS[verb]
    function = getattr(importlib.import_module(module), name)
    check_arguments(function, cfg, verb)
    return function(**cfg)


def through_hydra(verb: str, words: list[str]) -> None:
    """Hydra's own entry point: sweeps (-m), --cfg, --info, --config-dir."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    if verb != "train":
        raise UserError(f"mdcs {verb} takes key=value words only, not {' '.join(word for word in words if word.startswith('-'))}")
    for flag in [word for word in words if word.startswith("-") and word.partition("=")[0] not in HYDRA_FLAGS]:
        raise UserError(f"{flag}: there is no such flag; settings are written key=value, as in `mdcs train data=folder data.root=photos`")
    if any(word.startswith("resume=") for word in words):
        raise UserError("resume=DIR continues one run and takes no flags: leave out " + " ".join(w for w in words if w.startswith("-")))
    sweep = Sweep.of(words) if {"-m", "--multirun"} & set(words) else None
    given = list(sys.argv)

    def task(cfg: Any) -> None:
        hydra_cfg = HydraConfig.get()
        folder = Path(hydra_cfg.runtime.output_dir)
        # Lightning starts other ranks by repeating sys.argv, which must be what the user wrote.
        inner, sys.argv = sys.argv, given
        try:
            if hydra_cfg.mode is RunMode.MULTIRUN:
                without_advice()  # in whichever process a launcher runs this
                refuse_ranks_in_a_sweep(str(cfg.trainer.devices), str(cfg.trainer.num_nodes))
            choices, said = hydra_cfg.runtime.choices, list[str]()
            if "auto" in choices.values():
                from mdcs.recipe import composed

                cfg, said = composed(list(hydra_cfg.overrides.task))
                choices = cfg.hydra.runtime.choices
            train_config(config.with_names(config.plain(cfg), choices), folder, said, again=hydra_cfg.mode is RunMode.MULTIRUN)
        except Exception as failure:
            if hydra_cfg.mode is not RunMode.MULTIRUN:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
                raise
            reason = note_failure(folder, hydra_cfg.overrides.task, failure)
            if not isinstance(failure, UserError):
                traceback.print_exc()
            told(UserError(f"job {hydra_cfg.job.num} {reason}"))
        finally:
            sys.argv = inner

    config.register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing several lines and exiting 1
    sys.argv = [given[0], *config.hydra_words(sweep.words if sweep else words)]
    try:
        hydra.main(config_path=str(config.conf_dir()), config_name="config", version_base=config.VERSION_BASE)(task)()
    except (HydraException, OmegaConfBaseException) as refusal:
        if sweep:
            sweep.remove_if_unused()
        raise UserError(config.in_one_line(refusal)) from refusal
    except (KeyboardInterrupt, SystemExit):
        if sweep:
            sweep.settle()
            log.info(f"the sweep is interrupted; {sweep.go_on()}")
        raise
    except Exception as failure:
        if sweep and is_of_launcher(failure):
            sweep.settle()
            raise UserError(f"the launcher lost a job ({type(failure).__name__}, its process was ended): {sweep.go_on()}") from failure
        raise
    finally:
        sys.argv = given
    if sweep:
        sweep.conclude()
