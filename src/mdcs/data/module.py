"""Splits to batches: the order of pictures in an epoch, how ranks share it, and Lightning's data module around it."""

from collections.abc import Iterator
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mdcs.data.splits import Pictures, Splits
from mdcs.errors import UserError
from mdcs.randomness import generator
from mdcs.types import Batch


class Request(NamedTuple):
    """What one step of one rank takes, so that a worker needs to know nothing else."""

    index: list[int]  # type: ignore[assignment]  # positions in the split; hides tuple.index, which nobody calls
    draw: list[int]  # rows of the epoch's random numbers
    epoch: int


class EpochOrder(Sampler[Request]):
    """For each step of one rank, the positions in the split that it takes.

    A global batch of `batch_size` consecutive pictures of the epoch's order is cut into `world_size` contiguous parts whose sizes differ by
    at most one; the last, partial batch likewise. The order is a function of (`seed`, epoch): all ranks share it, whatever their number.
    With `shuffle` a last batch of fewer pictures than ranks is dropped, since a rank without pictures cannot take a training step.
    Without it nothing is dropped and the order is that of the split; then a rank's part may be empty, so that all ranks make as many steps.
    """

    def __init__(self, num_pictures: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1, shuffle: bool = True) -> None:
        self.num_pictures = num_pictures
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
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
        if self.shuffle:
            order = torch.randperm(self.num_pictures, generator=generator(self.seed, "order", self.epoch))
        else:
            order = torch.arange(self.num_pictures)
        for step in range(len(self)):
            start, rows = step * self.batch_size, self.rows(step)
            share = order[start + rows * self.rank // self.world_size : start + rows * (self.rank + 1) // self.world_size].tolist()
            yield Request(share, share, self.epoch)


class PictureBatches(Dataset[Batch]):
    """A split that answers a `Request` with a whole `Batch`: one gather, or one decoded picture after the other.

    `num_views` random crops of each picture are made where pictures are decoded; None = each as evaluation sees it.
    """

    def __init__(self, pictures: Pictures, seed: int = 0, num_views: int | None = None) -> None:
        self.pictures = pictures
        self.seed = seed
        self.num_views = num_views

    def __len__(self) -> int:
        return len(self.pictures.labels)

    def __getitem__(self, request: Request) -> Batch:
        index_B, draw_B = (torch.tensor(rows, dtype=torch.int64) for rows in request[:2])  # the dtype matters for an empty list
        images, labels, meta = self.pictures.images, self.pictures.labels, self.pictures.meta
        if isinstance(images, Tensor) or self.num_views is None:
            images_VB3HW = self.pictures.plain(index_B)[None]
        else:
            images_VB3HW = images.random(index_B, draw_B, request.epoch, self.seed, self.num_views)
        return Batch(images_VB3HW, labels[index_B], index_B, None if meta is None else meta[index_B], draw_B)


def require_even_share(batch_size: int, num_devices: int, micro_batches: int = 1) -> None:
    """Refuse a batch that devices and accumulated micro-batches cannot share evenly; `batch_size` counts pictures per optimiser step."""
    if batch_size < 1:
        raise UserError(f"data.batch_size={batch_size}: expected at least 1 picture per optimiser step")
    shares = num_devices * micro_batches
    if batch_size % shares:
        below = batch_size - batch_size % shares
        of = f" of {micro_batches} micro-batches" if micro_batches > 1 else ""
        choices = " or ".join(str(size) for size in (below, below + shares) if size)
        raise UserError(
            f"data.batch_size={batch_size} cannot be shared evenly by {num_devices} devices{of}: choose a multiple, such as {choices}"
        )


class LongTailData(pl.LightningDataModule):
    """Loaders over `splits`.

    `batch_size` counts pictures per optimiser step, over all devices and accumulated micro-batches; `eval_batch_size` those of one device.
    `num_views` are those of the loss. Each rank takes its own share here, so the Trainer must be built with
    `use_distributed_sampler=False`.
    """

    def __init__(
        self, splits: Splits, batch_size: int, num_workers: int = 0, seed: int = 0, num_views: int = 1, eval_batch_size: int = 512
    ) -> None:
        super().__init__()
        require_even_share(batch_size, 1)
        if num_workers < 0:
            raise UserError(f"data.num_workers={num_workers}: expected 0 (load in the main process) or more")
        self.splits = splits
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.num_views = num_views
        self.eval_batch_size = eval_batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled training batches of this rank; the loader's `sampler` is an `EpochOrder`."""
        rank, world_size = self._rank_and_world_size()
        micro = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        require_even_share(self.batch_size, world_size, micro)
        train = self.splits.train
        order = EpochOrder(len(train.labels), self.batch_size // micro, self.seed, rank, world_size)
        if self.trainer is not None:  # workers of a resumed run begin to load before Lightning calls set_epoch
            order.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return self._loader(PictureBatches(train, self.seed, self.num_views), order)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """This rank's share of the validation split, or an empty list.

        Lightning warns of an empty list unless its Trainer has `limit_val_batches=0`.
        """
        return [] if self.splits.val is None else self.eval_loader("val", *self._rank_and_world_size())

    def eval_loader(self, split: str, rank: int = 0, world_size: int = 1) -> DataLoader[Batch]:
        """Every picture of "train", "val" or "test" once, in the split's order; the ranks' shares are disjoint, some batches empty."""
        splits = self.splits.named()
        if (pictures := splits.get(split)) is None:
            there = ", ".join(splits)
            raise UserError(f"split={split}: this dataset has {there}" + ("; data.val_fraction=0.1 makes one" if split == "val" else ""))
        order = EpochOrder(len(pictures.labels), self.eval_batch_size * world_size, self.seed, rank, world_size, shuffle=False)
        return self._loader(PictureBatches(pictures), order)

    def _loader(self, batches: PictureBatches, order: EpochOrder) -> DataLoader[Batch]:
        # batch_size=None: the order yields whole batches, so torch must not batch again
        return DataLoader(batches, batch_size=None, sampler=order, num_workers=self.num_workers, persistent_workers=self.num_workers > 0)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
