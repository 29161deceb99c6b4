"""`mdcs search`: the settings that do best on validation. Optuna proposes, the folder remembers, and the test split is never predicted.

Each trial is an ordinary run folder that is judged by its validation split.
"""

import csv
import fcntl
import hashlib
import importlib
import io
import json
import logging
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from mdcs import config
from mdcs.build import Run, build
from mdcs.durable import write_durably
from mdcs.errors import UserError
from mdcs.evaluate import screen
from mdcs.evaluation.predictions import read_scores
from mdcs.proposals import distributions, examples, in_words, proposed, words_of
from mdcs.recipe import composed
from mdcs.sweep import refuse_ranks_in_a_sweep
from mdcs.train import fit

OWN = ("trials", "metric", "output")  # settings of the search; all others are those of `mdcs train`
HIGHER = ("balanced_accuracy", "accuracy", "accuracy_many", "accuracy_medium", "accuracy_few", "macro_f1")
LOWER = ("nll", "brier", "ece", "adaptive_ece")
EXAMPLE = "'optim.lr=tag(log,interval(0.01,0.3))' loss.alpha=0.0,0.3,0.6"
SHOWN = 10  # trials in the table on the screen; trials.csv has all

log = logging.getLogger("mdcs")


@dataclass
class Search:
    """What search.json holds. A row of `done` is {"params": {key: value}, "state": running | finished | failed, "value", "reason"}."""

    folder: Path
    words: list[str]  # of `mdcs train`, which all trials share
    space: list[str]  # in the grammar of Hydra's sweeps
    metric: str
    trials: int
    seed: int
    validation_sha256: str | None = None  # the pictures that all trials are judged by
    has_test: bool = False  # whether the dataset has a test split, to score the best trial on afterwards
    done: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def read(folder: Path) -> "Search":
        """UserError if `folder` is no search."""
        if not (folder / "search.json").exists():
            raise UserError(f"resume={folder}: not the folder of a search, it has no search.json")
        return Search(folder, **json.loads((folder / "search.json").read_text(encoding="utf-8")))

    def write(self) -> None:
        """search.json, from which the search goes on, and trials.csv to read."""
        content = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_durably(self.folder / "search.json", json.dumps(content, indent=1, ensure_ascii=False))
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["trial", "state", self.metric, *distributions(self.space), "reason"])
        writer.writerows([n, row["state"], row["value"], *row["params"].values(), row["reason"]] for n, row in enumerate(self.done))
        write_durably(self.folder / "trials.csv", table.getvalue())

    def append_trial(self) -> bool:
        """Begin one more trial, unless there is no combination left."""
        params = proposed(distributions(self.space), self.done, self.metric in LOWER, self.seed)
        if params is not None:
            self.done.append({"params": params, "state": "running", "value": None, "reason": None})
        return params is not None

    def finished(self) -> list[int]:
        """The numbers of the trials with a value, the best first."""
        sign = 1 if self.metric in LOWER else -1
        return sorted((n for n, row in enumerate(self.done) if row["state"] == "finished"), key=lambda n: sign * self.done[n]["value"])


def search(words: Sequence[str]) -> Search:
    """Do what is left of a search: a new one, given by `words` of `mdcs train` of which some have several values, or `resume=DIR`."""
    try:
        importlib.import_module("optuna")
    except ModuleNotFoundError as missing:
        raise UserError("mdcs search needs an extra: pip install 'mdcs[sweeps]'") from missing
    if any(word.startswith("resume=") for word in words):
        this = resumed(words)
    else:
        this = planned(words)
        this.append_trial()
        prepared(this, 0)  # a mistake is told before anything is written
        try:
            this.folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"output={this.folder} cannot be made: {error.strerror}; choose another place") from error
    with alone_in(this.folder):
        do_the_rest(this)
    tell(this)
    return this


def do_the_rest(this: Search) -> None:
    """Trial after trial, until there are as many as wanted."""
    for number in range(this.trials):
        if number == len(this.done) and not this.append_trial():
            log.info(f"all {number} combinations have been tried")
            return
        if this.done[number]["state"] == "running":
            this.write()
            try:
                attempt(this, number)
            except (KeyboardInterrupt, SystemExit):
                log.info(
                    f"the search is interrupted; `mdcs search resume={this.folder}` goes on with trial {number}, rather than `mdcs train`"
                )
                raise
            this.write()


def planned(words: Sequence[str]) -> Search:
    """A new search, of which nothing is on disk yet; every choice of its space can be composed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(config.hydra_words(words))
    except HydraException as refusal:
        raise UserError(config.in_one_line(refusal)) from refusal
    space = [word for word, override in zip(words, parsed, strict=True) if override.is_sweep_override()]
    given = [with_absolute_path(word) for word in words if word not in space]
    if not space:
        raise UserError(f"a search needs settings with several values, for example {EXAMPLE}")
    for name in [bare(word) for word in words]:
        if name.startswith("hydra"):
            raise UserError(f"{name}: a search is one process; its folder is output=DIR")
    choices = {name: examples(distribution) for name, distribution in distributions(space).items()}
    first = [f"{name}={values[0]}" for name, values in choices.items()]
    settings = config.compose("search", [word for word in [*given, *first] if "." not in bare(word)])
    if settings.metric not in (*HIGHER, *LOWER):
        raise UserError(f"metric={settings.metric}: expected one of {', '.join((*HIGHER, *LOWER))}")
    require_trials(settings.trials)
    folder = Path(config.absolute(settings.output or f"runs/searches/{datetime.now():%Y-%m-%d_%H-%M-%S}"))
    if folder.exists():
        raise UserError(f"output={folder} exists already: go on with resume={folder}, or choose another folder")

    cfg, said = composed([word for word in [*given, *first] if bare(word) not in OWN])
    refuse_ranks_in_a_sweep(str(cfg.trainer.devices), str(cfg.trainer.num_nodes))
    shared = [word for word in cfg.hydra.overrides.task if bare(word) not in map(bare, choices)]
    for name, values in choices.items():
        for value in values[1:]:
            config.compose("train", [*shared, *(word for word in first if bare(word) != bare(name)), f"{name}={value}"])
    for line in said:
        log.info(line)
    return Search(folder, shared, space, str(settings.metric), settings.trials, cfg.seed)


def resumed(words: Sequence[str]) -> Search:
    """The search of `resume=DIR`, whose number of trials may be changed."""
    settings = dict(word.partition("=")[::2] for word in words)
    for name in settings:
        if name not in ("resume", "trials"):
            raise UserError(f"{name}: a resumed search keeps its settings; only trials=N may be changed")
    this = Search.read(Path(config.absolute(settings["resume"])))
    if "trials" in settings:
        this.trials = int(settings["trials"]) if settings["trials"].isdecimal() else 0
        require_trials(this.trials)
    return this


def require_trials(trials: Any) -> None:
    """UserError unless it is a number of trials."""
    if type(trials) is not int or trials < 1:
        raise UserError(f"trials={trials}: expected a whole number from 1")


def bare(word: str) -> str:
    """The setting that a word is about."""
    return word.partition("=")[0].lstrip("+~")


def with_absolute_path(word: str) -> str:
    """`word`, whose path will still be right when the search goes on in another folder."""
    name, equals, value = word.partition("=")
    if bare(word) in (*config.PATH_KEYS, "data.cache") or (bare(word) in config.OPTIONAL_PATHS and os.path.exists(config.absolute(value))):
        return f"{name}{equals}{value if value in config.NO_PATHS else config.absolute(value)}"
    return word


def attempt(this: Search, number: int) -> None:
    """Train trial `number` from its last finished epoch and note its value, or why it has none."""
    row, folder = this.done[number], this.folder / str(number)
    log.info(f"trial {number} of {this.trials}: {in_words(row['params'])}")
    try:
        if not (folder / "scores.json").exists():
            fit(prepared(this, number), folder)
        row["value"], row["state"] = value_of(folder, this.metric), "finished"
    except Exception as failure:  # also a want of memory: other settings may do
        row["state"], row["reason"] = "failed", " ".join(str(failure).split()) or type(failure).__name__
        log.info(f"trial {number} failed: {row['reason']}", exc_info=not isinstance(failure, UserError))
        return
    best = this.finished()[0]
    log.info(f"trial {number}: {this.metric} {row['value']:.4f} on validation; best so far {this.done[best]['value']:.4f}, trial {best}")


def prepared(this: Search, number: int) -> Run:
    """The trial's run, without its test split: so it is judged by validation. UserError if there is none, or another than before."""
    folder = this.folder / str(number)
    if (folder / "config.yaml").exists():
        cfg = config.read_yaml(folder / "config.yaml")
    else:
        made = config.compose("train", [*this.words, *words_of(this.done[number]["params"])])
        cfg = config.with_absolute_paths(config.with_names(config.plain(made), made.hydra.runtime.choices))
    run = build(cfg, resumed=(folder / "checkpoints" / "last.ckpt").exists())
    if run.splits.val is None:
        raise UserError("a search chooses on validation pictures, and there are none: set data.val_fraction, for example 0.2")
    rows = (run.splits.val.positions, run.splits.val.labels)
    validation = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in rows)).hexdigest()
    if this.validation_sha256 not in (None, validation):
        raise UserError("it would be validated on other pictures than the trials before; a search compares on the same ones")
    this.validation_sha256, this.has_test = validation, run.splits.test is not None
    run.splits = run.splits._replace(test=None)
    return run


def value_of(folder: Path, metric: str) -> float:
    """The figure of a finished trial; UserError if it has none."""
    if not (folder / "scores.json").exists():
        raise UserError("it ended before its last epoch")
    scores = read_scores(folder)
    if scores["split"] != "val":
        raise UserError(f"{folder} was trained on by hand and is judged by {scores['split']} now")
    if scores[metric] is None or not math.isfinite(scores[metric]):
        raise UserError(f"its {metric} on validation is not a number: there may be no pictures for it")
    return float(scores[metric])


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """UserError if another process searches in `folder`."""
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise UserError(f"{folder}: another process searches there") from held
        yield
    finally:
        os.close(place)


def tell(this: Search) -> None:
    """The best trials, and what to do with the first. UserError if there is none."""
    ranked = this.finished()
    failed = [n for n, row in enumerate(this.done) if row["state"] == "failed"]
    for n in failed:
        log.info(f"failed: trial {n} ({in_words(this.done[n]['params'])}): {this.done[n]['reason']}")
    if not ranked:
        raise UserError(f"none of the {len(failed)} trials has finished, see above")
    table = Table(title=f"{this.metric} on validation, best of {len(ranked)} finished trials", title_justify="left", title_style="bold")
    for column in ("trial", this.metric, "settings"):
        table.add_column(column, justify="left" if column == "settings" else "right", overflow="fold")
    for n in ranked[:SHOWN]:
        table.add_row(str(n), f"{this.done[n]['value']:.4f}", in_words(this.done[n]["params"]))
    screen().print(table)
    best = [word.removeprefix("++") for word in [*this.words, *words_of(this.done[ranked[0]]["params"])]]
    lines = [
        f"all trials: {this.folder}/trials.csv",
        "the best of many trials is lucky, too: train it anew with other seeds before you believe its figures, for example",
        f"  mdcs train -m {shlex.join(best)} 'seed=range(1,4)'",
    ]
    if this.has_test:
        evaluate = shlex.join(["mdcs", "evaluate", f"run={this.folder / str(ranked[0])}", "split=test"])
        lines.append(f"no trial was scored on the test split; `{evaluate}` does so with the best one")
    for line in lines:
        screen().print(line, highlight=False, soft_wrap=True, markup=False)
