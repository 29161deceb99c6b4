"""Is a dataset complete, readable and as published? Asked before a long run rather than during it."""

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mdcs import config
from mdcs.augment.views import Augment
from mdcs.build import LOADER_KEYS, make_source
from mdcs.contact_sheet import contact_sheet, example_rows
from mdcs.data.benchmarks import Facts, published
from mdcs.data.decode import Decoded
from mdcs.data.files import Files
from mdcs.data.folder import LEFT_OUT, SMALL
from mdcs.data.module import LongTailData
from mdcs.data.splits import DataSource, Pictures, Splits, having, listed, several
from mdcs.data.store import Directory, Store, is_hidden
from mdcs.data.survey import COPIES, evenly, in_threads, refusals
from mdcs.errors import UserError
from mdcs.instantiate import check_arguments, instantiate
from mdcs.output import check_output, complete_or_absent, numbered
from mdcs.recipe import AUTO

NAMED = 3  # of the files that something is wrong with
COLOURS = {"ok": "green", "note": "yellow", "off": "red"}


class Finding(NamedTuple):
    """The outcome of one check. Only "off" makes the dataset unfit."""

    what: str
    state: Literal["ok", "note", "off"]
    detail: str


def check(
    data: Mapping[str, Any],
    augment: Mapping[str, Any],
    sample: int | Literal["all"] = 256,
    output: str | None = None,
    overwrite: bool = False,
    seed: int = 0,
    **_settings: Any,
) -> list[Finding]:
    """Look at the dataset `data`, print what was found, write a contact sheet of `augment` to `output`. Nothing of the dataset is changed.

    `output` None = check_<dataset>.png here, numbered where there is one already and it is not to be overwritten. `sample` pictures are
    decoded, spread evenly over the splits. Raises SystemExit(1) after printing if something is off; UserError for wrong settings. Further
    settings of a training run are taken and not looked at.
    """
    if sample != "all" and sample < 0:
        raise UserError(f"sample={sample}: expected a number of pictures from 0, or all")
    place = Path(output or f"check_{name_of(data)}.png")
    if output is None and not overwrite:
        place = numbered(place)
    check_output(place, (".png",), overwrite)
    for key in ("root", "file"):
        if data.get(key) and not data.get("download") and not os.path.exists(data[key]):
            raise UserError(f"data.{key}={data[key]}: there is no such file or folder; data/README.md says how each dataset is laid out")
    data, augment, findings = with_choices(data, augment)
    strict = data.get("on_bad") == "stop"  # here the rest is looked at, too
    source = make_source({**data, "on_bad": "skip"} if strict else data)
    try:
        splits = source.splits()
    except UserError as mistake:
        if str(mistake).startswith(("data.", "few_below=")):
            raise  # a word is wrong, not the dataset
        return told([Finding("reading", "off", str(mistake))])
    loader = {key: data[key] for key in LOADER_KEYS if key in data}
    check_arguments(LongTailData, loader, "data", {"splits": splits})
    splits = LongTailData(splits, **loader).splits  # as the loaders of a run crop them
    files, good = of_files(splits)
    for note in splits.notes:
        what = "decoding" if LEFT_OUT in note else "splits" if COPIES in note else "dataset"
        stops = strict and LEFT_OUT in note
        findings.append(
            Finding(what, "off" if stops else "note", f"{note}; `mdcs train` stops there unless data.on_bad=skip" if stops else note)
        )
    findings += [of_counts(splits, published(data)), *files]
    findings += [of_sample(splits, good, sample), of_overlap(splits), *of_single_pictures(splits)]
    findings.append(of_views(splits, source, augment, seed, place))
    return told(findings, place if findings[-1].state == "ok" else None)


def name_of(data: Mapping[str, Any]) -> str:
    """A short name of the dataset, for a file: that of the choice `data=`, as far as the settings tell it."""
    source = str(data["_target_"]).rpartition(".")[2].lower()
    if source == "inaturalist":
        return f"inat{data['year'] % 100}"
    return str(data.get("dataset") or (f"{source}{data['num_classes']}" if source == "cifar" else source))


def with_choices(data: Mapping[str, Any], augment: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any], list[Finding]]:
    """Settings in which what is left to the pictures is decided, as `mdcs train` does; and what was found on the way."""
    findings = []
    source = make_source(data)  # refuses a size that is none
    if data.get("image_size") == AUTO:
        survey = source.survey()
        data = {**data, "image_size": survey.image_size}
        findings.append(Finding("size", "ok", f"{survey.lines[-1]}; data.image_size={survey.image_size}"))
    if augment.get("_target_") == AUTO:
        augment = config.plain(config.compose("train", [f"augment={'cifar' if data['image_size'] <= SMALL else 'imagenet'}"]))["augment"]
    return data, augment, findings


def of_counts(splits: Splits, facts: Facts | None) -> Finding:
    """Pictures and classes against those published."""
    counts = np.array(splits.counts_before_validation)
    found = {name: len(pictures.labels) for name, pictures in splits.named().items()}
    groups = ", ".join(f"{int(group.sum())} {name}-shot" for name, group in splits.classes.groups.items())
    detail = ", ".join(f"{count:,} {name}" for name, count in found.items())
    trained = splits.classes.counts
    detail += f"; {len(counts):,} classes of {int(trained.max()):,} to {int(trained.min()):,} training pictures; {groups}"
    if len(counts) < 2:
        return Finding("counts", "off", f"there is one class only, {splits.classes.names[0]!r}: a classifier needs at least two")
    if facts is None:
        return Finding("counts", "ok", detail)
    found["train"] = int(counts.sum())
    shots = (int((counts > 100).sum()), int(((counts >= 20) & (counts <= 100)).sum()), int((counts < 20).sum()))
    pairs = {f"{name} pictures": (found.get(name, 0), want) for name, want in facts.pictures.items()}
    pairs |= {"classes": (len(counts), facts.classes), "pictures in the largest class": (int(counts.max()), facts.largest or counts.max())}
    pairs["pictures in the smallest class"] = (int(counts.min()), facts.smallest or counts.min())
    for name, is_, want in zip(splits.classes.groups, shots, facts.groups or shots, strict=True):
        pairs[f"{name}-shot classes"] = (is_, want)
    wrong = [f"{is_:,} {name} instead of {want:,}" for name, (is_, want) in pairs.items() if is_ != want]
    if wrong:
        return Finding("counts", "off", f"not as published: {'; '.join(wrong)}")
    return Finding("counts", "ok", f"{detail}; as published")


def of_files(splits: Splits) -> tuple[list[Finding], dict[str, np.ndarray]]:
    """Are the files there, with content, and what else lies in their folders? Also which rows of each split can be tried to decode."""
    bad: dict[str, list[str]] = {"missing": [], "empty": []}
    good: dict[str, np.ndarray] = {}
    folders: set[str] = set()
    there: list[np.ndarray] = []  # hashes of paths
    content = 0
    for name, pictures in splits.named().items():
        store = stored_in(pictures)
        if store is None:
            continue
        sizes = np.fromiter(in_threads(partial(_size, store, pictures.paths), len(pictures.paths), f"looking for {name} files"), np.int64)
        bad["missing"] += [pictures.paths[row] for row in np.flatnonzero(sizes < 0).tolist()]
        bad["empty"] += [pictures.paths[row] for row in np.flatnonzero(sizes == 0).tolist()]
        good[name] = np.flatnonzero(sizes > 0)
        there.append(_hashes(pictures.paths)[sizes >= 0])
        content += int(sizes.clip(min=0).sum())
        if isinstance(store, Directory):
            folders |= {os.path.dirname(os.path.join(store.root, path)) for path in pictures.paths}
    if not good:
        return [Finding("files", "ok", f"{several(_total(splits), 'picture')} read into memory")], good
    total = sum(map(len, there)) + len(bad["missing"])
    findings = [Finding("files", "off", f"{len(of):,} of {total:,} {what}: {listed(of, NAMED)}") for what, of in bad.items() if of]
    if not findings:
        size = f"{content / 2**30:,.0f} GiB" if content > 10 * 2**30 else f"{content / 2**20:,.1f} MiB"
        findings.append(Finding("files", "ok", f"all {total:,} are there, {size}"))
    if (others := _files_in(folders) - len(np.unique(np.concatenate(there)))) > 0:
        findings.append(Finding("files", "ok", f"{several(others, 'other file')} in the same folders"))
    return findings, good


def stored_in(pictures: Pictures) -> Store | None:
    """Where pictures lie that are decoded when they are asked for."""
    picture = pictures.images.picture if isinstance(pictures.images, Files) else None
    return picture.store if isinstance(picture, Decoded) else None


def _total(splits: Splits) -> int:
    return sum(len(pictures.labels) for pictures in splits.named().values())


def _size(store: Store, paths: Sequence[str], row: int) -> int:
    """Bytes, −1 where there is no such file."""
    try:
        return store.size(paths[row])
    except UserError:
        return -1


def _hashes(paths: Sequence[str]) -> np.ndarray:
    """(N,) int64: paths to compare, in little memory; two of millions have the same one with a chance below 1e-5."""
    return np.fromiter(map(hash, paths), np.int64, len(paths))


def _files_in(folders: set[str]) -> int:
    """How many files lie directly in these folders, without hidden ones."""
    names = [folder for folder in folders if os.path.isdir(folder)]

    def count(place: int) -> int:
        with os.scandir(names[place]) as entries:
            return sum(entry.is_file() and not is_hidden(entry.name) for entry in entries)

    return sum(in_threads(count, len(names), "looking into folders"))


def of_sample(splits: Splits, good: Mapping[str, np.ndarray], sample: int | Literal["all"]) -> Finding:
    """Can pictures be decoded? `good` has the rows of each split to choose from; splits that it leaves out were decoded already."""
    if not good:
        return Finding("decoding", "ok", f"{several(_total(splits), 'picture')} decoded when read")
    names = list(good)
    ends = np.cumsum([len(good[name]) for name in names])
    total = int(ends[-1])
    chosen = evenly(total, total if sample == "all" else sample)
    if not len(chosen):
        return Finding("decoding", "note", "no picture was decoded" if total else "there is no picture to decode")
    sides: list[int] = []

    def look(place: int) -> None:
        part = int(np.searchsorted(ends, place, side="right"))
        images = splits.named()[names[part]].images
        assert isinstance(images, Files)
        sides.append(min(images.picture(int(images.positions[good[names[part]][place - ends[part]]])).shape[:2]))

    started = time.perf_counter()
    bad = refusals(look, chosen, "decoding")
    seconds = time.perf_counter() - started
    if bad:
        return Finding("decoding", "off", f"{len(bad):,} of {len(chosen):,} cannot be: {listed(list(bad.values()), NAMED)}")
    spread = f"of {min(sides)} to {max(sides)} pixels, {int(np.median(sides))} in the median"
    return Finding("decoding", "ok", f"{len(chosen):,} of {total:,} decoded, {len(chosen) / seconds:,.0f} a second; short sides {spread}")


def of_overlap(splits: Splits) -> Finding:
    """Is a picture listed in two splits? By its place: whether two files have the same bytes is another question."""
    parts = list(splits.named().items())
    found = []
    for number, (name, pictures) in enumerate(parts):
        hashes = _hashes(pictures.paths)
        for other, others in parts[number + 1 :]:
            shared = np.intersect1d(hashes, _hashes(others.paths))
            if len(shared):
                first = pictures.paths[int(np.flatnonzero(hashes == shared[0])[0])]
                found.append(f"{several(len(shared), 'picture')} listed in {name} and in {other}, the first being {first}")
    return Finding("splits", "off", "; ".join(found)) if found else Finding("splits", "ok", "no file is listed in two of them")


def of_single_pictures(splits: Splits) -> list[Finding]:
    """Which classes have one training picture?"""
    single = [splits.classes.names[label] for label in (splits.classes.counts == 1).nonzero()[:, 0].tolist()]
    return [Finding("classes", "note", f"{having(single)} a single picture to train on")] if single else []


def of_views(splits: Splits, source: DataSource, augment: Mapping[str, Any], seed: int, place: Path) -> Finding:
    """Draw the contact sheet."""
    rows = example_rows(splits.train, splits.classes)
    if not rows:
        return Finding("views", "off", "no training picture could be read, so there is no contact sheet")
    made = instantiate(augment, Augment, "augment", mean=source.mean, std=source.std, num_pictures=len(rows), seed=seed)
    sheet = contact_sheet(splits.train, rows, made, splits.classes, seed)
    with complete_or_absent(place) as part:
        sheet.save(part, format="PNG")
    return Finding("views", "ok", f"weak and strong views of {several(len(rows), 'picture')}")


def told(findings: Sequence[Finding], sheet: Path | None = None) -> list[Finding]:
    """Print the table and where the contact sheet is, if there is one; SystemExit(1) after it if something is off."""
    table = Table()
    for column in ("check", "", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.what, Text(finding.state, COLOURS[finding.state]), Text(finding.detail))
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    if sheet is not None:
        console.print(f"contact sheet: {sheet.absolute()}", highlight=False, soft_wrap=True, markup=False)
    off = [finding.what for finding in findings if finding.state == "off"]
    if off:
        console.print(Text(f"something is off with this dataset: {', '.join(dict.fromkeys(off))}"))
        raise SystemExit(1)
    notes = sum(finding.state == "note" for finding in findings)
    console.print("nothing is off" + f"; {several(notes, 'note')} to read" * bool(notes), highlight=False)
    return list(findings)
