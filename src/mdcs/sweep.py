"""`mdcs train -m`: what a sweep needs beside Hydra's launchers. Jobs may run in other processes or on other machines, so they tell their
failures through the sweep's folder.
"""

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdcs import config
from mdcs.errors import UserError
from mdcs.output import check_folder

if TYPE_CHECKING:
    from mdcs.build import Run

LAUNCHERS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
}
DEFAULT_JOBS = 2  # at a time; joblib's own default is one for each core, and all of them share one device and its memory
OF_HYDRA = "multirun.yaml"  # what Hydra leaves in every sweep's folder
FAILED = "failed.txt"
OF_ANOTHER_SWEEP = "holds a run with other settings"

log = logging.getLogger("mdcs")


@dataclass(frozen=True)
class Sweep:
    """A sweep's words as Hydra is to read them, its folder, those of that folder's parents (with itself) that it makes, and what a sweep
    before it left there of its words.
    """

    words: list[str]
    folder: Path
    made: tuple[Path, ...]
    before: bytes | None

    @staticmethod
    def of(words: Sequence[str]) -> "Sweep":
        """Refuses what cannot be launched. `hydra/launcher=submitit` means SLURM; without hydra.sweep.dir=... the folder is named now."""
        settings = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
        refuse_ranks_in_a_sweep(settings.get("trainer.devices", "1"), settings.get("trainer.num_nodes", "1"))
        words = ["hydra/launcher=submitit_slurm" if word == "hydra/launcher=submitit" else word for word in words]
        launcher = next((word.partition("=")[2] for word in words if word.startswith("hydra/launcher=")), "basic")
        if launcher in LAUNCHERS:
            try:
                importlib.import_module(LAUNCHERS[launcher])
            except ModuleNotFoundError as missing:
                raise UserError(f"hydra/launcher={launcher} needs an extra: pip install 'mdcs[sweeps]'") from missing
        if launcher == "joblib" and "hydra.launcher.n_jobs" not in settings:
            words.append(f"hydra.launcher.n_jobs={DEFAULT_JOBS}")
            log.info(f"{DEFAULT_JOBS} jobs at a time; hydra.launcher.n_jobs=N changes it. They share this machine's device and memory")
        if "hydra.sweep.dir" not in settings:  # a time of day, which must be the same for all jobs, and known here
            words.append(f"hydra.sweep.dir={config.compose('train', []).hydra.sweep.dir}")
            settings["hydra.sweep.dir"] = words[-1].partition("=")[2]
        folder = Path(config.absolute(settings["hydra.sweep.dir"].strip("\"'")))
        check_folder("hydra.sweep.dir", folder)
        before = (folder / OF_HYDRA).read_bytes() if (folder / OF_HYDRA).exists() else None
        return Sweep(words, folder, tuple(place for place in (folder, *folder.parents) if not place.exists()), before)

    @property
    def finished(self) -> list[str]:
        """The jobs that have scores."""
        return sorted((file.parent.name for file in self.folder.glob("*/scores.json")), key=lambda name: (len(name), name))

    def go_on(self) -> str:
        """How to do the rest, in words."""
        done = f"finished jobs: {', '.join(self.finished)}" if self.finished else "no job has finished"
        queued = "; those in the queue go on by themselves" if any("submitit" in word for word in self.words) else ""
        return f"{done}{queued}; the same command with hydra.sweep.dir={self.folder} does what is left"

    def conclude(self) -> None:
        """After all jobs. UserError if some failed."""
        failures, others = self.settle()
        if failures:
            again = f"; {self.go_on()}" if self.finished and not others else ""
            raise UserError(f"{failures} of the sweep's jobs failed, see above{again}")

    def settle(self) -> tuple[int, bool]:
        """List the failures; their number, and whether the folder is another sweep's. Remove folders in which nothing was made."""
        others = False
        files = sorted(self.folder.glob(f"*/{FAILED}"), key=lambda file: (len(file.parent.name), file.parent.name))
        for file in files:
            reason = file.read_text(encoding="utf-8")
            log.info(f"failed: job {file.parent.name} {reason}")
            others |= OF_ANOTHER_SWEEP in reason
            file.unlink()
        if others and self.before is not None:
            (self.folder / OF_HYDRA).write_bytes(self.before)
        for place in self.folder.glob("*"):
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        self.remove_if_unused()
        return len(files), others

    def remove_if_unused(self) -> None:
        """Nothing is left of a sweep without a job that began."""
        if self.folder in self.made and self.folder.is_dir() and {place.name for place in self.folder.iterdir()} <= {OF_HYDRA}:
            (self.folder / OF_HYDRA).unlink(missing_ok=True)
            for place in self.made:
                if place.is_dir() and not any(place.iterdir()):
                    place.rmdir()


def refuse_ranks_in_a_sweep(devices: str, num_nodes: str) -> None:
    """Each rank that Lightning starts would walk the whole sweep by itself, into a folder of its own."""
    if devices != "1" or num_nodes != "1" or os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        raise UserError(
            f"-m with trainer.devices={devices}, trainer.num_nodes={num_nodes}: a sweep runs its jobs on one device each; "
            f"train on several with one command a job: `mdcs train trainer.devices={devices} ...`"
        )


def is_of_launcher(failure: Exception) -> bool:
    """Whether a launcher raised it: a job's process ended, by a signal or for want of memory, before it could tell."""
    from concurrent.futures.process import BrokenProcessPool

    return isinstance(failure, BrokenProcessPool) or type(failure).__module__.startswith("submitit.")


def note_failure(folder: Path, words: Sequence[str], failure: Exception) -> str:
    """Leave the reason in the job's folder, for `Sweep.conclude`; returns it."""
    what = "" if isinstance(failure, UserError) else f"{type(failure).__name__}: "
    reason = f"({' '.join(word.lstrip('+') for word in words)}): {what}{' '.join(str(failure).split())}"
    (folder / FAILED).write_text(reason, encoding="utf-8")
    return reason


def train_or_go_on(cfg: Mapping[str, Any], folder: Path, said: Sequence[str] = ()) -> "Run":
    """Train `cfg` in `folder`. If the folder holds this run already: what has finished is left as it is, what was interrupted goes on."""
    from mdcs.data.splits import listed
    from mdcs.train import resume, train

    (folder / FAILED).unlink(missing_ok=True)  # of a sweep that was killed
    if not (folder / "config.yaml").exists():
        return train(cfg, folder, said)
    before = config.read_yaml(folder / "config.yaml")
    differences = differing(cfg, before)
    if differences:
        raise UserError(f"{folder} {OF_ANOTHER_SWEEP} ({listed(differences, 3)}): choose another hydra.sweep.dir")
    return resume(before, folder)


def differing(cfg: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """The settings in which `cfg` asks for another run than the one stored, places and what was left to be chosen aside."""
    from mdcs.evaluation.comparison import PLACE, flattened

    stored = flattened(before)
    return [
        f"{name}={stored[name]} instead of {value}" if name in stored else f"{name}={value} is new"
        for name, value in flattened(cfg).items()
        if not name.startswith(PLACE) and value not in (None, "auto") and (name not in stored or stored[name] != value)
    ]
