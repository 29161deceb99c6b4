"""Network and pictures to predictions: of a split, on one device or several; of anyone's files, into a table."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from mdcs.answers import SUFFIXES, Cell, check_table, columns, rows, table
from mdcs.augment.views import Augment
from mdcs.build import Run, load
from mdcs.data.crops import Crop
from mdcs.data.decode import Decoded
from mdcs.data.files import Files
from mdcs.data.inputs import pictures_of
from mdcs.data.module import Batches, PictureBatches
from mdcs.data.order import EpochOrder
from mdcs.data.paths import Paths
from mdcs.data.splits import several
from mdcs.data.squares import evaluation_crop
from mdcs.data.store import Store
from mdcs.errors import UserError
from mdcs.evaluation.predictions import merge_shards, open_shard, put_in_place, shards, stored
from mdcs.instantiate import instantiate
from mdcs.output import check_output, complete_or_absent
from mdcs.randomness import key

MOST_WORKERS = 8  # where nobody chose
FEW_PICTURES = 500  # for which starting workers does not pay
NAMED = 5  # unreadable files and frequent classes in the summary


@torch.no_grad()
def predict_split(run: Run, split: str, folder: Path, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1) -> None:
    """Write the logits of every picture of `split` (train, val or test) to `folder`: each rank its share, rank 0 the whole.

    In the weights' own precision, without autocast, so that the result does not depend on how the run was trained.
    """
    loader = run.data().eval_loader(split, rank, world_size, torch.device(device))
    net, plain = run.net.to(device).eval(), run.module.augment.to(device).plain
    dtype = next(net.parameters()).dtype
    index = np.array([position for request in loader.sampler for position in request.index], dtype=np.int64)
    logits_NKC, done = open_shard(folder, rank, index, (net.num_experts, len(run.classes))), 0
    for batch in loader:
        meta = None if batch.meta is None else batch.meta.to(device)
        rows = slice(done, done := done + len(batch.index))
        logits_NKC[rows] = stored(net(plain(batch.images[0].to(device), dtype), meta).logits)
    barrier(world_size)
    if rank == 0:
        pictures = getattr(run.splits, split)
        merge_shards(folder, world_size, pictures.labels.numpy(), list(pictures.paths))
    barrier(world_size)


@torch.no_grad()
def predict_views(run: Run, split: str, folder: Path, device: torch.device | str = "cpu") -> None:
    """Write to `folder`/views the logits (N, 2, K, C) of two augmented views of each picture of `split`, whose predictions are in `folder`.

    For SADE's weights of the experts (`agreement_weights`). Its published code for CIFAR takes two draws of one augmentation that is
    stronger than the one it trains with: crop, flip, colour, grey, blur. Here it is the run's own `augment.strong`, after a random crop for
    each view where pictures are decoded. The draws are keyed by the run's seed, the split, the picture and the view.
    """
    data = run.data()
    require_same_pictures(run, split, folder)
    pictures = data.eval_loader(split).dataset.pictures  # type: ignore[attr-defined]
    train = data.splits.train.images
    if isinstance(pictures.images, Files) and isinstance(train, Files):  # crops as in training
        pictures = pictures._replace(images=Files(pictures.images.picture, pictures.images.positions, train.crop))
    seed, num_pictures = key(run.config["seed"], f"views of {split}"), len(pictures.labels)
    statistics = {"mean": run.source.mean, "std": run.source.std}
    augment = instantiate(run.config["augment"], Augment, "augment", **statistics, num_pictures=num_pictures, seed=seed).to(device)
    order = EpochOrder(num_pictures, max(1, data.eval_batch_size // 2), shuffle=False)
    net = run.net.to(device).eval()
    dtype, num_experts, num_classes = next(net.parameters()).dtype, net.num_experts, len(run.classes)
    part = shards(folder / "views")
    part.mkdir(exist_ok=True)
    logits_N2KC = np.lib.format.open_memmap(part / "logits.npy", "w+", np.float16, (num_pictures, 2, num_experts, num_classes))
    for batch in Batches(PictureBatches(pictures, seed, num_views=2), order, data.num_workers, device=torch.device(device)):
        views = augment(batch._replace(images=batch.images.to(device)), ("strong", "strong"), num_classes, 0, dtype)
        meta = None if batch.meta is None else batch.meta.repeat(2, 1).to(device)
        logits = stored(net(views.images.flatten(0, 1), meta).logits)
        logits_N2KC[batch.index.numpy()] = logits.reshape(2, -1, num_experts, num_classes).swapaxes(0, 1)
    logits_N2KC.flush()
    put_in_place(part, folder / "views")


@torch.no_grad()
def predict_features(run: Run, split: str, folder: Path, device: torch.device | str = "cpu") -> None:
    """Write to `folder`/features.npy what the classifiers read, (N, K, D) float32, of each picture of `split`, predicted in `folder`."""
    require_same_pictures(run, split, folder)
    loader = run.data().eval_loader(split, device=torch.device(device))
    net, plain = run.net.to(device).eval(), run.module.augment.to(device).plain
    dtype, shape = next(net.parameters()).dtype, (len(getattr(run.splits, split).labels), net.num_experts, net.backbone.num_features)
    with complete_or_absent(folder / "features.npy") as part:
        features_NKD = np.lib.format.open_memmap(part, "w+", np.float32, shape)
        for batch in loader:
            meta = None if batch.meta is None else batch.meta.to(device)
            features_NKD[batch.index.numpy()] = net(plain(batch.images[0].to(device), dtype), meta).features.float().cpu().numpy()
        features_NKD.flush()


def require_same_pictures(run: Run, split: str, folder: Path) -> None:
    """Refuse a dataset whose `split` is no longer the one that was predicted in `folder`."""
    if not np.array_equal(getattr(run.splits, split).labels.numpy(), np.load(folder / "labels.npy")):
        raise UserError(f"{folder} is of other pictures than the {split} split has now: name checkpoint=last, too, to predict them again")


def barrier(world_size: int) -> None:
    """Wait for the other ranks, if there are any."""
    if world_size > 1:
        torch.distributed.barrier()


class Squares(Dataset[tuple[Tensor, list[str | None]]]):
    """Files as the network sees them, in batches: indexed by a list of positions."""

    def __init__(self, store: Store, files: Paths, crop: Crop) -> None:
        self.picture = Decoded(store, files)
        self.crop = crop

    def __getitem__(self, positions: Sequence[int]) -> tuple[Tensor, list[str | None]]:
        """(b, 3, S, S) uint8 of those that can be read, and for each position why it cannot, or None."""
        squares_b3SS, errors = torch.empty(len(positions), 3, self.crop.size, self.crop.size, dtype=torch.uint8), list[str | None]()
        num_read = 0
        for position in positions:
            try:
                square_3SS = self.crop.plain(self.picture(position))
            except (UserError, ValueError, OSError, MemoryError) as error:  # the last three where a picture is too long and thin
                errors.append(" ".join(str(error).split()) or type(error).__name__)
                continue
            squares_b3SS[num_read] = torch.from_numpy(square_3SS)
            num_read += 1
            errors.append(None)
        return squares_b3SS[:num_read], errors


@dataclass
class Summary:
    """What the rows say altogether."""

    pictures: int = 0
    unreadable: int = 0
    errors: list[str] = field(default_factory=list)  # of the first few
    agreement: float = 0.0  # summed over the readable ones
    answers: Counter[str] = field(default_factory=Counter)

    def add(self, batch: Sequence[Sequence[Cell]]) -> None:
        """Count rows of the table."""
        for _, answer, *_, agreement, error in batch:
            self.pictures += 1
            if error is None:
                self.answers[str(answer)] += 1
                self.agreement += float(agreement or 0)
            else:
                self.unreadable += 1
                self.errors += [str(error)] if len(self.errors) < NAMED else []

    def lines(self, seconds: float) -> list[str]:
        """For people."""
        answered = self.pictures - self.unreadable
        lines = [f"{several(self.pictures, 'picture')} in {seconds:.1f} s ({self.pictures / seconds:.0f}/s), {self.unreadable} unreadable"]
        lines += [f"  {error}" for error in self.errors]
        lines += ["  ... (the others stand in the column error)"] if self.unreadable > len(self.errors) else []
        if answered:
            most = ", ".join(f"{name} {count}" for name, count in self.answers.most_common(NAMED))
            lines.append(f"most frequent answers: {most}; experts agree with the ensemble in {100 * self.agreement / answered:.1f} %")
        return lines


def predict(
    run: str,
    input: str,
    output: str,
    top_k: int | None = None,
    checkpoint: str | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Summary:
    """Classify every picture in `input` (a folder, zip, tar, list of paths, or one picture) into the table `output` (.csv or .parquet).

    One row a picture, in the order of names, or of the list. `top_k` None = 5, or all classes if there are fewer. `checkpoint`: last or
    best, None = the run's own choice. `num_workers` processes decode; None = one for each processor up to 8, and none for a few hundred
    pictures. What cannot be read is named in the table and at the end.
    """
    place = Path(output)
    check_output(place, SUFFIXES, overwrite)
    check_table(place)
    trained = trained_run(run, checkpoint)
    names = trained.classes.names
    if top_k is not None and not 1 <= top_k <= len(names):
        raise UserError(f"top_k={top_k}: expected 1 to {len(names)}, the number of classes of {run}")
    if batch_size < 1 or (num_workers or 0) < 0:
        raise UserError(f"batch_size={batch_size}, num_workers={num_workers}: expected at least 1 picture and no fewer than 0 processes")
    top_k = top_k or min(5, len(names))
    trained.net.to(chosen := chosen_device(device))
    store, listed, skipped = pictures_of(Path(input))
    if not listed:
        raise UserError(f"input={input}: there are no pictures in it" + (f", only files such as {skipped[0]}" if skipped else ""))
    files = Paths(listed)
    some = (skipped[0] if skipped else "") + ", ..." * (len(skipped) > 1)
    left_out = [f"not pictures by their names, so left out: {several(len(skipped), 'file')} ({some})"] if skipped else []
    left_out += not_among(names, listed)
    del listed, skipped  # up to a million objects
    if num_workers is None:
        num_workers = min(MOST_WORKERS, os.cpu_count() or 1) if len(files) > FEW_PICTURES else 0

    order = BatchSampler(SequentialSampler(files), batch_size, drop_last=False)
    pictures = Squares(store, files, evaluation_crop(trained.source))
    loader = DataLoader(pictures, batch_size=None, sampler=order, num_workers=num_workers, pin_memory=chosen.type == "cuda")
    summary, started = Summary(), time.perf_counter()
    header = columns(top_k, trained.net.num_experts)
    with lost_workers_told(), complete_or_absent(place) as part, table(part, header) as write, bar() as progress:
        task = progress.add_task(f"on {chosen}", total=len(files))
        for images, errors in loader:
            done = range(summary.pictures, summary.pictures + len(errors))
            batch = rows([files[place] for place in done], errors, logits_of(trained, images), names, top_k)
            write(batch)
            summary.add(batch)
            progress.advance(task, len(errors))
        if summary.unreadable == summary.pictures:
            raise UserError(
                f"input={input}: none of {several(summary.pictures, 'picture')} can be read, the first because: {summary.errors[0]}"
            )
    lines = [*summary.lines(time.perf_counter() - started), *left_out, f"table: {output}"]
    Console().print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    return summary


def not_among(names: Sequence[str], files: Sequence[str]) -> list[str]:
    """A sentence on class folders that the run does not know: folders beside others that are called as its classes."""
    above, known = {tuple(file.split("/")[:-1]) for file in files}, set(names)
    depths = Counter(next(depth for depth, part in enumerate(parts) if part in known) for parts in above if known.intersection(parts))
    if not depths:
        return []
    depth = depths.most_common(1)[0][0]
    folders = {parts[depth] for parts in above if len(parts) > depth}
    if not (unknown := sorted(folders - known)):
        return []
    some = ", ".join(unknown[:NAMED]) + (" ..." if len(unknown) > NAMED else "")
    return [f"{len(unknown)} of {len(folders)} folders are called as no class of the run ({some}): it answers with the classes it knows"]


def trained_run(folder: str, checkpoint: str | None) -> Run:
    """The run in `folder` with the weights of `checkpoint`: last, best, or None for its own choice."""
    if checkpoint not in (None, "last", "best"):
        raise UserError(f"checkpoint={checkpoint}: expected last or best")
    run = load(folder)
    return run if checkpoint is None else run.load_weights(Path(folder) / "checkpoints" / f"{checkpoint}.ckpt")


def logits_of(run: Run, images: Tensor) -> Tensor:
    """(B, K, C) on the CPU; UserError if they do not fit on the device."""
    try:
        return run.predict(images, max(1, len(images)))
    except torch.OutOfMemoryError as error:
        raise UserError(f"the device has too little memory for {len(images)} pictures at once: lower batch_size") from error


@contextmanager
def lost_workers_told() -> Iterator[None]:
    """UserError where the system has ended a process that decodes."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = "a process that decodes pictures was ended, as happens when memory (or /dev/shm in a container) is short"
        raise UserError(f"{reason}: lower num_workers or batch_size; num_workers=0 needs neither") from error


def chosen_device(name: str) -> torch.device:
    """The device called `name`; "auto" is an accelerator if there is one, else the CPU."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: there is no such device here; expected auto, cpu, or one such as cuda:0") from error


def bar() -> Progress:
    """Pictures done, on a terminal only."""
    parts = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*parts, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
