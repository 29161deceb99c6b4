"""What a search tries next: Hydra's grammar of sweeps as Optuna's distributions, and a proposal from the trials that are done.

A proposal is a function of the seed and the trials before it, so that a search that was interrupted goes on as if it had not been.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mdcs import config
from mdcs.errors import UserError
from mdcs.randomness import key


def distributions(space: Sequence[str]) -> dict[str, Any]:
    """Hydra's sweeps as Optuna's distributions: interval(a, b) is continuous, int(interval(a, b)) and range(a, b) are whole numbers,
    anything else is a choice of words; tag(log, ...) searches the logarithm.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(config.hydra_words(space)):
        name, sweep = override.get_key_element(), override.value()
        logarithm = "log" in getattr(sweep, "tags", ())
        try:
            if isinstance(sweep, IntervalSweep):
                kind: Any = IntDistribution if type(sweep.start) is int else FloatDistribution
                found[name] = kind(sweep.start, sweep.end, log=logarithm)
            elif isinstance(sweep, RangeSweep) and isinstance(numbers := sweep.range(), range):
                found[name] = IntDistribution(numbers[0], numbers[-1], step=1 if logarithm else numbers.step, log=logarithm)
            elif isinstance(sweep, Glob):
                raise ValueError("name the choices, without glob(...)")
            else:
                found[name] = CategoricalDistribution(list(override.sweep_string_iterator()))
        except (ValueError, IndexError) as refusal:
            raise UserError(f"{override.input_line}: {refusal}") from refusal
    return found


def examples(distribution: Any) -> list[Any]:
    """The choices; of numbers the lower end."""
    return list(distribution.choices) if hasattr(distribution, "choices") else [distribution.low]


def proposed(space: Mapping[str, Any], done: Sequence[Mapping[str, Any]], minimised: bool, seed: int) -> dict[str, Any] | None:
    """Parameters of the next trial, by the tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), which draws the first ten at
    random; None if there are no others. Continuous ones have 4 digits. What was tried already is not tried again.

    `space` is that of `distributions`, a row of `done` {"params": {...}, "value": the lower or higher the better, None = it failed}.
    """
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=key(seed, "search", len(done)) % 2**32)
    study = optuna.create_study(direction="minimize" if minimised else "maximize", sampler=sampler)
    for row in done:
        state = TrialState.FAIL if row["value"] is None else TrialState.COMPLETE
        study.add_trial(create_trial(state=state, params=row["params"], distributions=dict(space), value=row["value"]))
    params = study.ask(dict(space)).params
    for name, value in params.items():
        if isinstance(value, float):
            params[name] = min(max(float(f"{value:.4g}"), space[name].low), space[name].high)
    tried = [row["params"] for row in done]
    continuous = any(isinstance(distribution, FloatDistribution) for distribution in space.values())
    if params not in tried or continuous:
        return dict(params)
    grids = [d.choices if hasattr(d, "choices") else range(d.low, d.high + 1, d.step) for d in space.values()]
    combinations = (dict(zip(space, values, strict=True)) for values in itertools.product(*grids))
    return next((combination for combination in combinations if combination not in tried), None)


def words_of(params: Mapping[str, Any]) -> list[str]:
    """Parameters as words of `mdcs train`."""
    return [f"{name}={value}" for name, value in params.items()]


def in_words(params: Mapping[str, Any]) -> str:
    """The same for people."""
    return " ".join(word.lstrip("+") for word in words_of(params))
