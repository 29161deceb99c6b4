"""Which runs are runs of one method, and what it is called: configurations compared, apart from their seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdcs.errors import UserError
from mdcs.evaluation.comparison import SEEDS, FinishedRun, flattened, grouped


def by_method(configs: Mapping[Path, Mapping[str, Any]]) -> dict[str, list[Path]]:
    """Run folders by what their configurations share apart from SEEDS, in the order of their seeds, named as in `mdcs compare`.

    Refused: two runs of a method with the same seeds.
    """
    methods, _ = grouped([FinishedRun(folder, dict(config), {}) for folder, config in configs.items()])
    members = {method.name: [run.folder for run in method.runs] for method in methods}
    twin = next(iter(set(configs).difference(*members.values())), None)
    if twin is not None:
        raise UserError(f"{twin} has the same configuration and seeds as another of the runs: they must be drawn independently")
    return members


def seeds_of(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """The SEEDS of a run."""
    settings = flattened(config)
    return tuple(settings.get(key) for key in SEEDS)


def varied(configs: Sequence[Mapping[str, Any]]) -> str:
    """Which seeds differ among the runs of a method."""
    values = zip(SEEDS, zip(*map(seeds_of, configs), strict=True), strict=True)
    return " and ".join(key for key, of in values if len(set(of)) > 1)
