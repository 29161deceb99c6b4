"""The learning-rate schedule against all published configurations, and what it refuses."""

from typing import Any

import pytest

from conftest import golden
from mdcs.errors import UserError
from mdcs.training.schedule import Schedule

PUBLISHED = {name: config for name, config in golden("lr_schedules.json").items() if isinstance(config, dict)}


def as_schedule(published: dict[str, Any]) -> Schedule:
    """The published epochs as fractions of the run."""
    epochs, scheduler = published["epochs"], published["scheduler"]
    arguments = scheduler["args"]
    if scheduler["type"] == "CosineAnnealingLR":
        assert arguments["T_max"] == epochs
        return Schedule(epochs, "cosine")
    milestones = [arguments[step] / epochs for step in ("step1", "step2", "step3") if step in arguments]
    return Schedule(epochs, "step", arguments["warmup_epoch"], milestones, arguments["gamma"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_epoch_of_the_published_schedules(name: str) -> None:
    published = PUBLISHED[name]
    schedule = as_schedule(published)
    ours = [schedule.factor(epoch) for epoch in range(1, published["epochs"] + 1)]
    assert ours == pytest.approx(published["factor"], rel=1e-6, abs=0)


def test_all_ten_published_schedules_are_there() -> None:
    assert len(PUBLISHED) == 10
    assert {config["scheduler"]["type"] for config in PUBLISHED.values()} == {"CosineAnnealingLR", "CustomLR"}


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_warm_up_starts_above_zero_and_is_over_at_its_last_epoch(kind: str) -> None:
    warm, cold = (Schedule(60, kind, warmup_epochs) for warmup_epochs in (4, 0))
    assert [warm.factor(epoch) / cold.factor(epoch) for epoch in range(1, 7)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_the_last_epoch_of_a_cosine_still_learns() -> None:
    assert 0 < Schedule(60, "cosine").factor(60) < 1e-3
    assert Schedule(1, "cosine").factor(1) == 1


def test_milestones_scale_with_the_run() -> None:
    steps = Schedule(10, "step", 0, [0.5, 0.8, 0.95])  # 0.95 of 10 rounds to 10: never reached
    assert [steps.factor(epoch) for epoch in range(1, 11)] == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_epochs": -1}, r"optim.warmup_epochs=-1 must be >= 0"),
        ({"milestones": [0.5, 160]}, r"optim.milestones=\[0.5, 160\] are fractions of the run"),
        ({"milestones": [-0.1]}, r"numbers from 0 to 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Schedule(60, **arguments)
