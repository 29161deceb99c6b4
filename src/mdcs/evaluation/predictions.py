"""Stored predictions: the wall between training and everything that is computed from it."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mdcs.errors import UserError
from mdcs.types import Classes

UNTRAINED = -1e4  # logit of a class that had no training picture (loss.mask_empty): it cannot be the answer
CHUNK = 2**21  # logits looked at at once: 8 MiB of float32, which the processor's cache nearly holds


class Predictions(NamedTuple):
    """One split's logits, stored as z − max_c z for each picture and expert in float16.

    The shift changes neither softmax nor argmax nor, up to a constant, the mean over experts; without it float16 would round logits near
    30 so coarsely that classes tie.
    """

    logits: NDArray[Any]  # (N, K, C) float16, memory-mapped
    labels: NDArray[np.int64]  # (N,)
    index: NDArray[Any]  # type: ignore[assignment]  # (N,) int64, position in the split
    paths: list[str]  # (N) where each picture comes from

    @staticmethod
    def read(folder: Path) -> "Predictions":
        """What `write_shard` and `merge_shards` left in `folder`."""
        if not (folder / "logits.npy").exists():
            raise UserError(f"{folder}: no stored predictions there")
        with damage_told(folder):
            paths = (folder / "paths.txt").read_text(encoding="utf-8").split("\n")[:-1]
            labels, index = np.load(folder / "labels.npy"), np.load(folder / "index.npy")
            logits = np.load(folder / "logits.npy", mmap_mode="r")
            if not len(paths) == len(labels) == len(index) == len(logits):
                raise ValueError("its files are of different length")
        return Predictions(logits, labels, index, paths)

    def chunks(self, classes: Classes, offset_C: torch.Tensor | None = None) -> Iterator[tuple[slice, torch.Tensor]]:
        """Which pictures, and their logits (n, K, C) in float32, a few at a time; classes without training pictures at UNTRAINED.

        `offset` (C,) is added to all of them.
        """
        num_pictures, num_experts, num_classes = self.logits.shape
        untrained_C = classes.counts == 0
        step = max(1, CHUNK // (num_experts * num_classes))
        for start in range(0, num_pictures, step):
            rows = slice(start, min(start + step, num_pictures))
            logits_NKC = torch.from_numpy(np.array(self.logits[rows])).float()
            if offset_C is not None:
                logits_NKC += offset_C.to(logits_NKC)
            if untrained_C.any():
                logits_NKC[..., untrained_C] = UNTRAINED
            yield rows, logits_NKC

    def sha256(self) -> str:
        """Names the test set: the labels as little-endian int64, then the paths, a line each."""
        digest = hashlib.sha256(self.labels.astype("<i8").tobytes())
        digest.update("".join(f"{path}\n" for path in self.paths).encode())
        return digest.hexdigest()


@contextmanager
def damage_told(folder: Path, part: str = "", words: str = "") -> Iterator[None]:
    """UserError where arrays in `folder`, or the `part` of them that `words` of `mdcs evaluate` ask for, cannot be read."""
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        again = f"mdcs evaluate run={folder.parent.parent} split={folder.name.partition('_')[0]}{words}"
        raise UserError(f"{folder / part} is damaged ({error}): remove it, and `{again}` makes it again") from error


def read_scores(folder: Path) -> dict[str, Any]:
    """scores.json of the run in `folder`; UserError if it is damaged."""
    content = known_scores(folder / "scores.json")
    if "split" not in content:
        raise UserError(f"{folder}/scores.json cannot be read, it is damaged; `mdcs evaluate run={folder}` writes it again")
    return content


def known_scores(file: Path) -> dict[str, Any]:
    """What a file of scores says; {} where there is none, or it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError:
        content = {}
    return content if isinstance(content, dict) else {}


def judged_by(folder: Path) -> str:
    """The split of the run's own scores.json: test, or val where the dataset has no test split."""
    if split := known_scores(folder / "scores.json").get("split"):
        return str(split)
    has = [split for split in ("test", "val") if (folder / "predictions" / split).exists()]
    return has[0] if has else "test"


def read_views(folder: Path) -> NDArray[Any] | None:
    """(N, 2, K, C) logits of two augmented views of each picture in `folder`/views, memory-mapped; None where they were not stored."""
    place = folder / "views" / "logits.npy"
    with damage_told(folder, "views", " views=true"):
        return np.load(place, mmap_mode="r") if place.exists() else None


def read_features(folder: Path) -> NDArray[Any] | None:
    """(N, K, D) features of each picture in `folder`/features.npy, memory-mapped; None where they were not stored."""
    place = folder / "features.npy"
    with damage_told(folder, "features.npy", " features=true"):
        return np.load(place, mmap_mode="r") if place.exists() else None


def stored(logits_NKC: torch.Tensor) -> NDArray[np.float16]:
    """Logits as they are written: shifted to a maximum of 0, float16."""
    logits_NKC = logits_NKC.float()
    shifted: NDArray[np.float16] = (logits_NKC - logits_NKC.amax(-1, keepdim=True)).half().cpu().numpy()
    return shifted


def open_shard(folder: Path, rank: int, index: NDArray[Any], logits_shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Room on disk for one rank's logits (n, K, C), mapped into memory, beside the place where they will be merged; `index` is (n,)."""
    part = shards(folder)
    part.mkdir(parents=True, exist_ok=True)
    np.save(part / f"index.{rank}.npy", index)
    return np.lib.format.open_memmap(part / f"logits.{rank}.npy", "w+", np.float16, (len(index), *logits_shape))


def write_shard(folder: Path, rank: int, logits: NDArray[np.float16], index: NDArray[Any]) -> None:
    """One rank's predictions, all at once."""
    open_shard(folder, rank, index, logits.shape[1:])[:] = logits


def merge_shards(folder: Path, world_size: int, labels: NDArray[np.int64], paths: list[str]) -> None:
    """Put the shards of all ranks in the split's order into `folder`, which appears whole or not at all."""
    part = shards(folder)
    index_parts = [np.load(part / f"index.{rank}.npy") for rank in range(world_size)]
    logits_parts = [np.load(part / f"logits.{rank}.npy", mmap_mode="r") for rank in range(world_size)]
    seen = np.sort(np.concatenate(index_parts))
    assert np.array_equal(seen, np.arange(len(labels))), "every picture of the split must be predicted once"
    shape = (len(labels), *logits_parts[0].shape[1:])
    merged = np.lib.format.open_memmap(part / "logits.npy", "w+", np.float16, shape)
    for index, logits in zip(index_parts, logits_parts, strict=True):
        merged[index] = logits
    merged.flush()
    np.save(part / "labels.npy", labels)
    np.save(part / "index.npy", np.arange(len(labels)))
    (part / "paths.txt").write_text("".join(f"{one_line(path)}\n" for path in paths), encoding="utf-8")
    for shard in part.glob("*.*.npy"):  # also those that a killed run of more ranks has left
        shard.unlink()
    put_in_place(part, folder)


def put_in_place(part: Path, folder: Path) -> None:
    """Give the folder `part` the name `folder`, and delete what had it before."""
    old = folder.with_name(folder.name + ".old")  # renamed before it is deleted: half a folder must never have the name
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def one_line(path: str) -> str:
    """A file's name may hold line breaks; its line in paths.txt may not."""
    return path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") if "\n" in path or "\r" in path else path


def shards(folder: Path) -> Path:
    """Where predictions are collected before they take their place."""
    return folder.with_name(folder.name + ".part")


def classes_to_json(classes: Classes, counts_before_validation: tuple[int, ...], label_map: tuple[int, ...] | None = None) -> str:
    """Content of classes.json. `label_map` (C): the dataset's own number of each class, where labels were renumbered."""
    return json.dumps(
        {
            "names": list(classes.names),
            "counts": classes.counts.tolist(),
            "counts_before_validation": list(counts_before_validation),
            "many_above": classes.many_above,
            "few_below": classes.few_below,
            "label_map": None if label_map is None else list(label_map),
        },
        indent=1,
        ensure_ascii=False,
    )


def classes_from_json(path: Path) -> Classes:
    """The classes a run was trained on."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Classes(tuple(content["names"]), torch.tensor(content["counts"]), content["many_above"], content["few_below"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): a run of the same words writes such a file") from error
