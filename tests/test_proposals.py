"""Hydra's grammar as a space, and proposals that depend on nothing but the seed and the trials before."""

import math
from typing import Any

import pytest

from mdcs.errors import UserError
from mdcs.proposals import distributions, in_words, proposed, words_of

LR = "optim.lr=tag(log,interval(0.001,1))"


def searched(space: dict[str, Any], value: Any, trials: int, minimised: bool = False, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of a search whose trials have the value `value(params)`."""
    done: list[dict[str, Any]] = []
    while len(done) < trials and (params := proposed(space, done, minimised, seed)) is not None:
        done.append({"params": params, "value": value(params)})
    return done


def test_the_space_is_read_from_sweeps() -> None:
    words = [LR, "trainer.max_epochs=int(interval(10,20))", "model.num_experts=range(1,8,2)", "loss=ce,mdcs", "loss.views=[weak],[strong]"]
    space = distributions(words)
    assert list(space) == ["optim.lr", "++trainer.max_epochs", "model.num_experts", "loss", "loss.views"]
    kinds = [type(distribution).__name__.removesuffix("Distribution") for distribution in space.values()]
    assert kinds == ["Float", "Int", "Int", "Categorical", "Categorical"]
    lr, epochs, experts, loss, views = space.values()
    assert (lr.low, lr.high, lr.log) == (0.001, 1, True) and (epochs.low, epochs.high) == (10, 20)
    assert (experts.low, experts.high, experts.step) == (1, 7, 2)
    assert loss.choices == ("ce", "mdcs") and views.choices == ("[weak]", "[strong]")
    params = proposed(space, [], False, 0)
    assert params is not None
    assert in_words(params) == " ".join(words_of(params)).replace("++", "")


@pytest.mark.parametrize("word", ["optim.lr=interval(1,0)", "optim.lr=tag(log,interval(0,1))", "seed=range(3,3)", "loss=glob(*)"])
def test_a_space_that_makes_no_sense_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="=") as refusal:
        distributions([word])
    assert str(refusal.value).startswith(f"{word}: ")


def test_proposals_are_a_function_of_what_was_done() -> None:
    space = distributions([LR, "loss=ce,mdcs"])
    rows = searched(space, lambda params: params["optim.lr"], 14)
    for n in (0, 7, 13):  # also beyond the first ten, which are drawn at random
        assert proposed(space, rows[:n], False, 0) == rows[n]["params"]
    assert searched(space, lambda params: params["optim.lr"], 3, seed=1) != rows[:3]
    assert all(float(f"{row['params']['optim.lr']:.4g}") == row["params"]["optim.lr"] for row in rows)


@pytest.mark.parametrize("minimised", [True, False])
def test_it_goes_where_it_is_better(minimised: bool) -> None:
    """Distances from the optimum 0.03 in powers of ten: those of TPE's last ten proposals against those of its ten random ones."""
    sign, first, last = 1 if minimised else -1, 0.0, 0.0
    for seed in range(3):
        rows = searched(distributions([LR]), lambda params: sign * abs(math.log10(params["optim.lr"] / 0.03)), 40, minimised, seed)
        first += sum(abs(row["value"]) for row in rows[:10])
        last += sum(abs(row["value"]) for row in rows[-10:])
    assert last < 0.6 * first


def test_a_grid_is_tried_once_and_ends() -> None:
    space = distributions(["loss=ce,mdcs,ride", "model.num_experts=range(1,5)"])
    rows = searched(space, lambda params: None if params["loss"] == "ride" else params["model.num_experts"], 50)
    combinations = {tuple(row["params"].values()) for row in rows}
    assert len(rows) == len(combinations) == 12


def test_numbers_stay_within_their_ends() -> None:
    space = distributions(["optim.lr=interval(0.12345678,0.12345679)"])
    params = proposed(space, [], False, 0)
    assert params is not None and 0.12345678 <= params["optim.lr"] <= 0.12345679
