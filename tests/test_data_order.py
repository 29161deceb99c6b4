"""Epochs other than every picture once: what is drawn, how often, and that it is a function of (seed, epoch) alone."""

import itertools

import pytest
import torch
from torch import Tensor

from mdcs.data.order import POWERS, EpochOrder, Request, Resampling, joined, take_turns
from mdcs.errors import UserError

COUNTS = torch.tensor([400, 90, 0, 9, 1])
LABELS = torch.arange(5).repeat_interleave(COUNTS)[torch.randperm(500, generator=torch.Generator().manual_seed(7))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(world_size: int, resampling: Resampling | None, epoch: int = 0, batch_size: int = 48) -> list[tuple[list[int], list[int]]]:
    """(index, draw) of each global batch."""
    orders = [EpochOrder(500, batch_size, 0, rank, world_size, resampling=resampling) for rank in range(world_size)]
    for order in orders:
        order.set_epoch(epoch)
    shared = [[(request.index, request.draw, request.epoch) for request in step] for step in zip(*orders, strict=True)]
    assert all(of_epoch == epoch for step in shared for _, _, of_epoch in step)
    return [([*itertools.chain(*(part[0] for part in step))], [*itertools.chain(*(part[1] for part in step))]) for step in shared]


@pytest.mark.parametrize("sampler", POWERS)
def test_classes_are_drawn_as_stated(sampler: str) -> None:
    resampling = Resampling(LABELS, sampler)
    drawn = torch.cat([LABELS[resampling(epoch)] for epoch in range(40)]).bincount(minlength=5).double()
    expected = torch.where(COUNTS > 0, COUNTS.double() ** POWERS[sampler], 0.0)
    share, error = expected / expected.sum(), (expected / expected.sum() / 20_000).sqrt()
    assert ((drawn / 20_000 - share).abs() <= 4 * error).all() and drawn[2] == 0


@pytest.mark.parametrize("sampler", POWERS)
def test_the_pictures_of_a_class_take_turns(sampler: str) -> None:
    order = Resampling(LABELS, sampler)(3)
    assert order.shape == (500,)
    times = order.bincount(minlength=500)
    for label in (0, 1, 3, 4):
        of_class = times[label == LABELS]
        assert of_class.max() - of_class.min() <= 1
        rows = order[LABELS[order] == label]
        for start in range(0, len(rows), int(COUNTS[label])):
            lap = rows[start : start + int(COUNTS[label])]
            assert len(lap.unique()) == len(lap)


def test_turns_are_shuffled_anew_in_every_round() -> None:
    labels, classes = torch.tensor([0] * 5 + [1] * 8), torch.tensor([1, 0] * 4000)
    rounds = take_turns(labels, classes, generator())[::2].view(-1, 8)
    assert (rounds.sort(dim=1).values == torch.arange(5, 13)).all()
    places = torch.stack([(rounds == picture).nonzero()[:, 1].bincount(minlength=8) for picture in range(5, 13)]).double()
    assert ((places - 62.5).abs() < 4 * 62.5**0.5).all()  # every picture at every place
    assert (rounds[1:] != rounds[:-1]).any(1).float().mean() > 0.99


@pytest.mark.parametrize("sampler", ["shuffle", *POWERS])
@pytest.mark.parametrize("repeats", [1, 3])
def test_epochs_do_not_depend_on_the_number_of_ranks(sampler: str, repeats: int) -> None:
    resampling = Resampling(LABELS, sampler, repeats)
    alone = steps(1, resampling)
    assert steps(2, resampling) == steps(5, resampling) == alone
    assert steps(2, Resampling(LABELS, sampler, repeats), epoch=1) == steps(1, resampling, epoch=1) != alone
    assert steps(1, Resampling(LABELS, sampler, repeats, seed=1)) != alone or resampling.changes_nothing


@pytest.mark.parametrize("repeats", [2, 3, 7])
def test_repeated_pictures(repeats: int) -> None:
    """Copies stand side by side, so mostly in one batch, and have other random numbers; each epoch draws other pictures."""
    resampling = Resampling(LABELS, repeats=repeats)
    order, other = resampling(0), resampling(1)
    assert order.shape == (500,) and len(order.unique()) == -(-500 // repeats)
    assert torch.equal(order, order[::repeats].repeat_interleave(repeats)[:500])
    assert 0.5 / repeats < torch.isin(order, other).float().mean() < 1.5 / repeats
    drawn = list(itertools.chain(*(draw for _, draw in steps(2, resampling))))
    assert drawn == list(range(500))


def test_without_resampling_draws_are_the_pictures_own() -> None:
    assert Resampling(LABELS).changes_nothing
    plain = steps(1, None)
    assert plain == steps(1, Resampling(LABELS)) and all(index == draw for index, draw in plain)
    expected = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    assert sorted(itertools.chain(*(index for index, _ in plain))) == sorted(expected.tolist())


def test_a_class_of_one_picture_fills_its_rows_with_it() -> None:
    labels: Tensor = torch.tensor([0] * 9 + [1])
    order = Resampling(labels, "class_balanced", seed=2)(0)
    assert 2 <= (order == 9).sum() <= 8


def test_requests_are_joined_while_they_are_equally_large() -> None:
    requests = list(EpochOrder(23, 5, seed=1, resampling=Resampling(LABELS[:23], repeats=2)))
    whole = list(joined(requests, 3))
    assert [(len(request.index), many) for request, many in whole] == [(15, 3), (5, 1), (3, 1)]
    for column in (0, 1):
        assert list(itertools.chain(*(request[column] for request, _ in whole))) == list(
            itertools.chain(*(one[column] for one in requests))
        )
    assert list(joined(requests, 1)) == [(request, 1) for request in requests] and list(joined([], 3)) == []
    assert next(joined([Request([0], [0], 7)] * 2, 5)) == (Request([0, 0], [0, 0], 7), 2)


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"^data\.sampler=balanced: expected shuffle, class_balanced or square_root$"):
        Resampling(LABELS, "balanced")
    for repeats in (0, 501, 1.5):
        with pytest.raises(UserError, match=rf"^data\.repeats={repeats}: expected a whole number from 1 to the 500"):
            Resampling(LABELS, repeats=repeats)  # type: ignore[arg-type]
