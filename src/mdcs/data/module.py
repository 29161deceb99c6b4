"""Splits to batches: Lightning's data module and the loaders in it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mdcs.data.files import Files
from mdcs.data.order import EpochOrder, Request, Resampling, joined
from mdcs.data.splits import Pictures, Splits
from mdcs.errors import UserError
from mdcs.types import Batch, Part

CPU = torch.device("cpu")
SHARE_OF_DEVICE = 0.25  # of the free memory of a GPU, for the training pictures
MOST_PIXELS = 128 * 224 * 224  # of a batch in evaluation: bounds the memory that its activations take
# Of the batches that are loaded at once, so that their views are made at once: 512 and 2,048 pictures of 32 x 32. On a CPU more would not
# stay in its cache. An accelerator is busy with so many, and starts no more kernels for them than for one batch.
PIXELS_AT_ONCE, PIXELS_AT_ONCE_ON_ACCELERATORS = 2**19, 2**21


class PictureBatches(Dataset[Batch]):
    """A split that answers a `Request` with a whole `Batch`: one gather, or one decoded picture after the other.

    `num_views` random crops of each picture are made where pictures are decoded; None = each as evaluation sees it. In a worker a UserError
    is answered, not raised: torch would put a traceback into its one line.
    """

    def __init__(self, pictures: Pictures, seed: int = 0, num_views: int | None = None) -> None:
        self.pictures = pictures._replace(paths=())  # workers need no second copy of them
        self.seed = seed
        self.num_views = num_views

    def __len__(self) -> int:
        return len(self.pictures.labels)

    def __getitem__(self, request: Request) -> Batch:
        try:
            return self._batch(request)
        except UserError as error:
            if get_worker_info() is None:
                raise
            return error  # type: ignore[return-value]  # `Batches` raises it

    def _batch(self, request: Request) -> Batch:
        images, labels, meta = self.pictures.images, self.pictures.labels, self.pictures.meta
        rows_of = (torch.tensor(rows, dtype=torch.int64) for rows in request[:2])  # the dtype matters for an empty list
        index_B, draw_B = (rows_B.to(labels.device, non_blocking=True) for rows_B in rows_of)
        if isinstance(images, Tensor) or self.num_views is None:
            images_VB3HW = self.pictures.plain(index_B)[None]
        else:
            images_VB3HW = images.random(index_B, draw_B, request.epoch, self.seed, self.num_views)
        return Batch(images_VB3HW, labels[index_B], index_B, None if meta is None else meta[index_B], draw_B)


class Batches(DataLoader[Batch]):
    """Loads what `order` asks for, in the main process or in workers that live as long as the loader.

    `at_once`: so many batches are one gather, of which each batch is a `Part`; for pictures in memory, without workers. `device`: where
    the batches will go.
    """

    def __init__(self, batches: PictureBatches, order: EpochOrder, num_workers: int, at_once: int = 1, device: torch.device = CPU) -> None:
        # batch_size=None: the order yields whole batches, so torch must not batch again
        pin = device.type == "cuda" and batches.pictures.labels.device.type == "cpu"
        super().__init__(
            batches, batch_size=None, sampler=order, num_workers=num_workers, persistent_workers=num_workers > 0, pin_memory=pin
        )
        self.at_once = at_once

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if self.at_once > 1:
            return self._parts()
        return map(_raised, super().__iter__())  # workers begin now, not with the first batch that is taken

    def _parts(self) -> Iterator[Batch]:
        for request, steps in joined(self.sampler, self.at_once):
            whole = self.dataset[request]
            rows = len(request.index) // steps
            for number in range(steps):
                own = slice(number * rows, (number + 1) * rows)
                meta, draw = (None if column is None else column[own] for column in (whole.meta, whole.draw))
                yield Batch(whole.images[:, own], whole.labels[own], whole.index[own], meta, draw, Part(whole, number))


def _raised(batch: Batch | UserError) -> Batch:
    if isinstance(batch, UserError):
        raise batch
    return batch


def resident(pictures: Pictures, device: torch.device, free_bytes: int) -> Pictures:
    """`pictures` on `device`, if they are in memory and take at most `SHARE_OF_DEVICE` of its free bytes; otherwise as they are."""
    images, meta = pictures.images, pictures.meta
    if not isinstance(images, Tensor) or images.nbytes > SHARE_OF_DEVICE * free_bytes:
        return pictures
    return pictures._replace(images=images.to(device), labels=pictures.labels.to(device), meta=None if meta is None else meta.to(device))


def batches_at_once(pictures: Pictures, rows: int, device: torch.device) -> int:
    """How many batches of `rows` pictures to load and to augment at once on `device`; 1 unless the pictures are there already."""
    images = pictures.images
    if not isinstance(images, Tensor) or images.device != device:
        return 1
    pixels = PIXELS_AT_ONCE if device.type == "cpu" else PIXELS_AT_ONCE_ON_ACCELERATORS
    return max(1, pixels // (rows * images.shape[2] * images.shape[3]))


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

    `batch_size` counts pictures per optimiser step, over all devices and accumulated micro-batches; `eval_batch_size` those of one device,
    None = 512 or, of large pictures, fewer. `num_views` are those of the loss. `sampler`, `repeats`: see `Resampling`. `crop_scale`,
    `crop_ratio`: see `Crop`, where pictures are decoded when they are asked for; the others are not cropped here. Each rank takes its own
    share here, so the Trainer must be built with `use_distributed_sampler=False`.

    Training pictures that are in memory go to a GPU once, as uint8, if they fit well; batches are then gathered there, without workers.
    Where no workers do it, several batches of them are gathered at once: see `batches_at_once`.
    """

    def __init__(
        self,
        splits: Splits,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        num_views: int = 1,
        eval_batch_size: int | None = None,
        sampler: str = "shuffle",
        repeats: int = 1,
        crop_scale: Sequence[float] = (0.08, 1.0),
        crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
    ) -> None:
        super().__init__()
        require_even_share(batch_size, 1)
        if num_workers < 0:
            raise UserError(f"data.num_workers={num_workers}: expected 0 (load in the main process) or more")
        train = splits.train
        if isinstance(train.images, Files):
            for key, pair in (("crop_scale", crop_scale), ("crop_ratio", crop_ratio)):
                if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(end, int | float) for end in pair):
                    raise UserError(f"data.{key}={pair}: expected two numbers, the smallest and the largest")
            crop = replace(train.images.crop, scale=(crop_scale[0], crop_scale[1]), ratio=(crop_ratio[0], crop_ratio[1]))
            train = train._replace(images=Files(train.images.picture, train.images.positions, crop))
        if eval_batch_size is None:
            eval_batch_size = min(512, max(1, MOST_PIXELS // (train.images.shape[2] * train.images.shape[3])))
        self.splits = splits._replace(train=train)
        self.resampling = Resampling(train.labels, sampler, repeats, seed)
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
        train, num_workers = self.splits.train, self.num_workers
        device = self.device
        if device.type == "cuda":
            train = resident(train, device, torch.cuda.mem_get_info(device)[0])
            num_workers = num_workers if train is self.splits.train else 0
        order = EpochOrder(len(train.labels), self.batch_size // micro, self.seed, rank, world_size, resampling=self.resampling)
        if self.trainer is not None:  # workers of a resumed run begin to load before Lightning calls set_epoch
            order.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        at_once = 1 if num_workers else batches_at_once(train, order.batch_size // world_size, device)
        return Batches(PictureBatches(train, self.seed, self.num_views), order, num_workers, at_once, device)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """This rank's share of the validation split, or an empty list.

        Lightning warns of an empty list unless its Trainer has `limit_val_batches=0`.
        """
        return [] if self.splits.val is None else self.eval_loader("val", *self._rank_and_world_size(), self.device)

    def eval_loader(self, split: str, rank: int = 0, world_size: int = 1, device: torch.device = CPU) -> DataLoader[Batch]:
        """Every picture of "train", "val" or "test" once, in the split's order; the ranks' shares are disjoint, some batches empty.

        `device`: where the batches will go.
        """
        splits = self.splits.named()
        if (pictures := splits.get(split)) is None:
            there = ", ".join(splits)
            raise UserError(f"split={split}: this dataset has {there}" + ("; data.val_fraction=0.1 makes one" if split == "val" else ""))
        order = EpochOrder(len(pictures.labels), self.eval_batch_size * world_size, self.seed, rank, world_size, shuffle=False)
        return Batches(PictureBatches(pictures), order, self.num_workers, device=device)

    @property
    def device(self) -> torch.device:
        """The Trainer's; the CPU without one."""
        return CPU if self.trainer is None else self.trainer.strategy.root_device

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
