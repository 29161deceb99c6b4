"""Finished runs, read from their folders, and grouped by configuration: what differs only by seed is one method, repeated."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcs.config import conf_dir, read_yaml
from mdcs.errors import UserError
from mdcs.evaluation.predictions import Predictions, classes_from_json, read_scores

SEEDS = ("seed", "data.subset_seed")
# Where and on what a run was trained; it is meant not to change the result. (Precision may, and stays.)
PLACE = (
    *("data.root", "data.cache", "data.num_workers", "logger"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.max_time", "trainer.enable_progress_bar"),
)
COMPONENTS = ("data", "augment", "model", "loss", "optim", "trainer")


@dataclass(frozen=True)
class FinishedRun:
    """One run folder with its scores.json."""

    folder: Path
    config: dict[str, Any]
    scores: dict[str, Any]

    @staticmethod
    def read(folder: Path) -> "FinishedRun":
        """UserError if `folder` is no run, or has no scores yet."""
        if not (folder / "config.yaml").exists():
            raise UserError(f"runs: {folder} is not a run folder, it has no config.yaml")
        if not (folder / "scores.json").exists():
            raise UserError(f"runs: {folder} has no scores.json, so it has not finished: `mdcs train resume={folder}` goes on")
        return FinishedRun(folder, read_yaml(folder / "config.yaml"), read_scores(folder))

    @property
    def seeds(self) -> tuple[Any, Any]:
        """(seed, data.subset_seed)."""
        return self.config.get("seed"), (self.config.get("data") or {}).get("subset_seed")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that makes a method: the configuration with dots, without seeds and places.

        What it lacks, because the run is older than the setting, has the value of the nearest YAML file.
        """
        flat = {name: value for name, value in flattened(self.config).items() if name not in SEEDS and not name.startswith(PLACE)}
        for component in COMPONENTS:
            _, known = nearest(flat, component) or ("", {})
            flat = {**known, **flat}
        return flat

    @cached_property
    def subset_sha256(self) -> str | None:
        """Names the training pictures by position and label; None for a run without subset.csv."""
        file = self.folder / "subset.csv"
        if not file.exists():
            return None
        with open(file, encoding="utf-8", newline="") as rows:
            pairs = [f"{row['position']} {row['label']}" for row in csv.DictReader(rows)]
        return hashlib.sha256("\n".join(pairs).encode()).hexdigest()

    def hits(self) -> NDArray[np.bool_]:
        """(N,) whether the ensemble is right, from the stored predictions."""
        from mdcs.evaluation.agnostic import answers

        predictions = Predictions.read(self.folder / "predictions" / self.scores["split"])
        return np.asarray(answers(predictions, classes_from_json(self.folder / "classes.json")).numpy() == predictions.labels)


@dataclass(frozen=True)
class Method:
    """Runs that differ only by seed, in the order of their seeds."""

    name: str
    runs: tuple[FinishedRun, ...]

    def values(self, key: str) -> list[float]:
        """One figure of scores.json for each run; none if a run does not have it."""
        known = [run.scores[key] for run in self.runs if run.scores.get(key) is not None]
        return known if len(known) == len(self.runs) else []

    def fact(self, key: str) -> Any:
        """A figure of scores.json that does not depend on the seed; None if it is not known."""
        return self.runs[0].scores.get(key)

    @property
    def augmentation(self) -> str:
        """The nearest YAML file of conf/augment, and what differs from it."""
        return ", ".join(word.removeprefix("augment=") for word in words(self.runs[0].settings) if word.startswith("augment"))

    @property
    def seconds(self) -> float | None:
        """Median training time."""
        return float(np.median(self.values("wall_seconds"))) if self.values("wall_seconds") else None

    @property
    def budget(self) -> int | None:
        """Rows forwarded in training: epochs × views × pictures."""
        factors = [self.fact(key) for key in ("epochs", "views", "train_pictures")]
        return None if None in factors else int(np.prod(factors))

    @property
    def repeated(self) -> str:
        """What was drawn anew from run to run."""
        if len(self.runs) == 1:
            return "one run"
        return "seed and subset" if len({run.seeds[1] for run in self.runs}) > 1 else "seed"


def grouped(runs: Sequence[FinishedRun]) -> tuple[list[Method], list[str]]:
    """The methods, in the order in which the runs name them, and notes: of two runs with the same settings and seeds the later counts."""
    notes: list[str] = []
    groups: dict[str, dict[tuple[Any, Any], FinishedRun]] = {}
    for run in runs:
        same = {name: float(value) if type(value) is int else value for name, value in run.settings.items()}  # alpha=0 is alpha=0.0
        group = groups.setdefault(json.dumps(same, sort_keys=True, default=str), {})
        if run.seeds in group and group[run.seeds].folder != run.folder:
            notes.append(f"{group[run.seeds].folder} is left out: {run.folder} has the same settings and seeds")
        group[run.seeds] = run
    members = [tuple(group[seeds] for seeds in sorted(group, key=in_order)) for group in groups.values()]
    names = short_names([group[0].settings for group in members])
    return [Method(name, group) for name, group in zip(names, members, strict=True)], notes


def in_order(seeds: tuple[Any, Any]) -> list[tuple[bool, Any]]:
    """Sorts seeds as numbers; a run without one comes first."""
    return [(seed is not None, seed or 0) for seed in seeds]


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def nearest(settings: Mapping[str, Any], component: str) -> tuple[str, dict[str, Any]] | None:
    """Name and content of the file of conf/`component` that makes the same class with the fewest other settings; None if there is none."""
    own = {name: value for name, value in settings.items() if name.startswith(f"{component}.")}
    candidates = []
    for choice, known in choices(component):
        if known.get(f"{component}._target_") == own.get(f"{component}._target_"):
            candidates.append((sum(name in own and own[name] != value for name, value in known.items()), choice, known))
    return min(candidates, key=lambda candidate: candidate[:2])[1:] if candidates else None


def choice_of(config: Mapping[str, Any], component: str) -> str:
    """What a run's `component` is called: the nearest YAML file, or its class where there is none."""
    flat = flattened(config)
    found = nearest(flat, component)
    return found[0] if found else str(flat.get(f"{component}._target_")).rpartition(".")[2]


@cache
def choices(component: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and own settings of each file of conf/`component`."""
    files = [(file.stem, flattened(read_yaml(file), f"{component}.")) for file in sorted((conf_dir() / component).glob("*.yaml"))]
    return [(name, {key: value for key, value in settings.items() if own_value(key, value)}) for name, settings in files]


def own_value(name: str, value: Any) -> bool:
    """Whether a setting of a YAML file is a method's own: not a seed, a place, a reference to other settings or to other files."""
    return name not in SEEDS and not name.startswith(PLACE) and "${" not in str(value) and not name.endswith(".defaults")


def words(settings: Mapping[str, Any]) -> list[str]:
    """The settings as one would type them: the nearest YAML file for each component, and what differs from it."""
    found = [f"{name}={typed(value)}" for name, value in settings.items() if name.split(".")[0] not in COMPONENTS]
    for component in COMPONENTS:
        choice, known = nearest(settings, component) or (None, {})
        found += [f"{component}={choice}"] if choice else []
        for name, value in settings.items():
            if name.startswith(f"{component}.") and not (name in known and known[name] == value):
                found.append(f"{name}={typed(value)}")
    return found


def typed(value: Any) -> str:
    """A value as one would type it on the command line: [weak,strong], null, true."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def short_names(all_settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each method by its loss and by what not all have."""
    all_words = [words(settings) for settings in all_settings]
    first, *others = all_settings
    common = set(all_words[0]).intersection(*all_words[1:])
    # A value that is the default of one loss and was typed for another is common to both, too.
    common |= {f"{name}={typed(value)}" for name, value in first.items() if all(other.get(name, ...) == value for other in others)}
    names = []
    for own in all_words:
        loss = next((word.removeprefix("loss=") for word in own if word.startswith("loss=")), "")
        rest = [word for word in own if word not in common and not word.startswith("loss=")]
        names.append(", ".join([loss, *rest] if loss else rest) or "all")
    return names
