"""Which runs are runs of one method, and what it is called: configurations compared, apart from their seeds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdcs.errors import UserError

SEEDS = ("seed", "data.subset_seed")
MAIN = ("loss._target_", "model.num_experts")


def flattened(node: Any, name: str = "") -> dict[str, Any]:
    """Nested settings as one level, keys joined by dots."""
    if not isinstance(node, Mapping):
        return {name: node}
    prefix = f"{name}." if name else ""
    return {key: value for child, below in node.items() for key, value in flattened(below, f"{prefix}{child}").items()}


def by_method(configs: Mapping[Path, Mapping[str, Any]]) -> dict[str, list[Path]]:
    """Run folders by what their configurations share apart from SEEDS. Refused: two runs of a method with the same seeds."""
    # who is told of a run does not make it another method
    flat = {folder: flattened({key: value for key, value in config.items() if key != "logger"}) for folder, config in configs.items()}
    seeds = {folder: tuple(settings.pop(key, None) for key in SEEDS) for folder, settings in flat.items()}
    methods: dict[str, list[Path]] = {}
    for folder, settings in flat.items():
        methods.setdefault(json.dumps(settings, sort_keys=True), []).append(folder)
    for members in methods.values():
        for i, folder in enumerate(members):
            twin = next((other for other in members[:i] if seeds[other] == seeds[folder]), None)
            if twin is not None:
                raise UserError(f"{folder} and {twin} have the same configuration and seeds: runs must be drawn independently")
    settings_of = [flat[members[0]] for members in methods.values()]
    return {method_name(settings, settings_of): members for settings, members in zip(settings_of, methods.values(), strict=True)}


def method_name(settings: Mapping[str, Any], of_all: Sequence[Mapping[str, Any]]) -> str:
    """The loss and the number of experts, then what tells it from other methods where these are the same."""
    alike = [of for of in of_all if all(of.get(key) == settings.get(key) for key in MAIN)]
    telling = [key for key, value in settings.items() if any(of.get(key, "absent") != value for of in alike)]
    others = [f"{key}={json.dumps(settings[key])}" for key in telling]
    loss, num_experts = (settings.get(key) for key in MAIN)
    return ", ".join([str(loss).rpartition(".")[2], f"K = {num_experts}", *others])


def varied(configs: Sequence[Mapping[str, Any]]) -> str:
    """Which seeds differ among the runs of a method."""
    flat = [flattened(config) for config in configs]
    return " and ".join(key for key in SEEDS if len({settings.get(key) for settings in flat}) > 1)
