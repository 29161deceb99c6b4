"""Which pictures an epoch shows, in which order, and how ranks share them."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from mdcs.errors import UserError
from mdcs.randomness import generator

# The probability of a class is its number of pictures to this power; "shuffle" shows every picture once instead.
POWERS = {"class_balanced": 0.0, "square_root": 0.5}


class Request(NamedTuple):
    """What one step of one rank takes, so that a worker needs to know nothing else."""

    index: list[int]  # type: ignore[assignment]  # positions in the split; hides tuple.index, which nobody calls
    draw: list[int]  # rows of the epoch's random numbers
    epoch: int


def joined(requests: Iterable[Request], most: int) -> Iterator[tuple[Request, int]]:
    """Consecutive requests for equally many pictures joined into one, at most `most` of them, and how many they are."""
    waiting: list[Request] = []
    for request in requests:
        if waiting and (len(waiting) == most or len(request.index) != len(waiting[0].index)):
            yield _one(waiting), len(waiting)
            waiting = []
        waiting.append(request)
    if waiting:
        yield _one(waiting), len(waiting)


def _one(requests: list[Request]) -> Request:
    index, draw = ([*chain.from_iterable(column)] for column in zip(*((one.index, one.draw) for one in requests), strict=True))
    return Request(index, draw, requests[0].epoch)


class Resampling:
    """Other epochs than every picture once: rows drawn by class, and pictures repeated. It maps an epoch to (N,) positions in the split.

    `sampler`: "class_balanced" draws a class uniformly for each row, "square_root" with a probability in proportion to √n_c
    (arXiv:1805.00932), "shuffle" takes every picture. The pictures of a class take turns: each comes again only when all have
    come, in another order every time. `repeats`: every row stands so many times in a row (arXiv:1901.09335), for N / `repeats` rows.
    """

    def __init__(self, labels: Tensor, sampler: str = "shuffle", repeats: int = 1, seed: int = 0) -> None:
        if sampler != "shuffle" and sampler not in POWERS:
            raise UserError(f"data.sampler={sampler}: expected shuffle, {' or '.join(POWERS)}")
        if type(repeats) is not int or not 1 <= repeats <= len(labels):
            raise UserError(f"data.repeats={repeats}: expected a whole number from 1 to the {len(labels)} training pictures")
        self.labels = labels
        self.sampler = sampler
        self.repeats = repeats
        self.seed = seed

    @property
    def changes_nothing(self) -> bool:
        """Whether every picture comes once, as without it."""
        return self.sampler == "shuffle" and self.repeats == 1

    def __call__(self, epoch: int) -> Tensor:
        rows, random = -(-len(self.labels) // self.repeats), generator(self.seed, "order", epoch)
        if self.sampler == "shuffle":
            order = torch.randperm(len(self.labels), generator=random)[:rows]
        else:
            weights_C = self.labels.bincount().double()
            weights_C = torch.where(weights_C > 0, weights_C ** POWERS[self.sampler], 0.0)
            ends_C = weights_C.cumsum(0)
            classes = torch.searchsorted(ends_C, ends_C[-1] * torch.rand(rows, generator=random, dtype=torch.float64), right=True)
            order = take_turns(self.labels, classes, random)
        return order.repeat_interleave(self.repeats)[: len(self.labels)]


def take_turns(labels_N: Tensor, classes_M: Tensor, random: torch.Generator) -> Tensor:
    """(M,) positions in `labels` of pictures of the given classes; those of a class take turns, shuffled anew in every round."""
    counts_C = labels_N.bincount()
    wanted_C = classes_M.bincount(minlength=len(counts_C))
    rounds_C = -(-wanted_C // counts_C.clamp(min=1))
    dealt_C = rounds_C * counts_C
    # The pictures of all rounds of all classes, class after class; sorting (round + random) shuffles within each round.
    class_D = torch.arange(len(counts_C)).repeat_interleave(dealt_C)
    place_D = torch.arange(len(class_D)) - _starts(dealt_C)[class_D]
    picture_D = labels_N.argsort(stable=True)[_starts(counts_C)[class_D] + place_D % counts_C[class_D]]
    round_D = _starts(rounds_C)[class_D] + place_D // counts_C[class_D]
    shuffled_D = picture_D[(round_D + torch.rand(len(round_D), generator=random, dtype=torch.float64)).argsort(stable=True)]
    # The j-th row of a class takes the j-th picture dealt to it.
    rows_M = classes_M.argsort(stable=True)
    class_M = classes_M[rows_M]
    turn_M = torch.arange(len(classes_M)) - _starts(wanted_C)[class_M]
    order_M = torch.empty_like(classes_M)
    order_M[rows_M] = shuffled_D[_starts(dealt_C)[class_M] + turn_M]
    return order_M


def _starts(sizes: Tensor) -> Tensor:
    return sizes.cumsum(0) - sizes


class EpochOrder(Sampler[Request]):
    """For each step of one rank, the positions in the split that it takes.

    A global batch of `batch_size` consecutive pictures of the epoch's order is cut into `world_size` contiguous parts whose sizes differ by
    at most one; the last, partial batch likewise. The order is a function of (`seed`, epoch): all ranks share it, whatever their number.
    With `shuffle` a last batch of fewer pictures than ranks is dropped, since a rank without pictures cannot take a training step.
    Without it nothing is dropped and the order is that of the split; then a rank's part may be empty, so that all ranks make as many steps.

    A picture's random numbers are the row of its position; with `resampling` that of its place in the epoch, for it may come several times.
    """

    def __init__(
        self,
        num_pictures: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        resampling: Resampling | None = None,
    ) -> None:
        self.num_pictures = num_pictures
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.resampling = None if resampling is None or resampling.changes_nothing else resampling
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch, with 0 for the first, on what is the `sampler` of a loader."""
        self.epoch = epoch

    @property
    def dropped(self) -> int:
        """Pictures left out of each epoch."""
        rest = self.num_pictures % self.batch_size
        return rest if self.shuffle and rest < self.world_size else 0

    def __len__(self) -> int:
        """Steps of an epoch, the same on every rank."""
        return -(-(self.num_pictures - self.dropped) // self.batch_size)

    def rows(self, step: int) -> int:
        """Pictures that all ranks together take in `step` = 0, 1, ..."""
        return min(self.batch_size, self.num_pictures - step * self.batch_size)

    def __iter__(self) -> Iterator[Request]:
        draw = order = torch.arange(self.num_pictures)
        if self.resampling is not None:
            order = self.resampling(self.epoch)
        elif self.shuffle:
            draw = order = torch.randperm(self.num_pictures, generator=generator(self.seed, "order", self.epoch))
        for step in range(len(self)):
            start, rows = step * self.batch_size, self.rows(step)
            share = slice(start + rows * self.rank // self.world_size, start + rows * (self.rank + 1) // self.world_size)
            yield Request(order[share].tolist(), draw[share].tolist(), self.epoch)
