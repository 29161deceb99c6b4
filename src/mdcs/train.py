"""Fit, predict on the test split, evaluate: from a configuration to a run folder, new or resumed."""

import logging
import platform
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.utils.flop_counter import FlopCounterMode

import mdcs
from mdcs.build import Run, build, git_commit, load, make_schedule
from mdcs.data.module import require_even_share
from mdcs.data.splits import several
from mdcs.errors import UserError
from mdcs.evaluate import write_scores
from mdcs.evaluation.comparison import choice_of
from mdcs.evaluation.predictions import classes_to_json, read_scores
from mdcs.predict import predict_split
from mdcs.report.results import results
from mdcs.reporting import write_report
from mdcs.training.checkpoint import RunFolder, read_checkpoint, read_rows
from mdcs.training.loggers import RunLogger
from mdcs.training.memory import begin_on, freed_memory_kept, peak_mib
from mdcs.training.trainer import make_trainer, resolved_trainer_arguments

log = logging.getLogger("mdcs")
log.setLevel(logging.DEBUG)  # all of it goes to run.log; the screen takes what is INFO and above

# What may differ in a resumed run: how long it trains and on what. A longer run stretches the learning-rate schedule from there on.
RESUMABLE = tuple(f"trainer.{name}" for name in ("max_epochs", "max_time", "devices", "accelerator", "strategy", "num_nodes"))
RESUMABLE += ("data.num_workers",)

NEEDS_QUOTES = re.compile('[,"\\r\\n]').search  # of a cell of a CSV file


def train(cfg: Mapping[str, Any], folder: Path, said: Sequence[str] = ()) -> Run:
    """Train from scratch into `folder`, which must be new or empty. `said`: lines on how `cfg` came about, before all others."""
    if getattr(rank_zero_only, "rank", 0) == 0 and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        going_on = f"continue it with resume={folder}, or " if (folder / "config.yaml").exists() else ""
        raise UserError(f"{folder} exists already: {going_on}choose another folder with hydra.run.dir=...")
    return fit(build(cfg), folder, said)


def resume(cfg: Mapping[str, Any], folder: Path) -> Run:
    """Continue `folder` after its last finished epoch. A finished run is loaded and left as it is."""
    make_schedule(cfg)  # refuses a wrong trainer.max_epochs
    rows = read_rows(folder)
    scored, most = read_scores(folder) if (folder / "scores.json").exists() else {}, cfg["trainer"]["max_epochs"]
    if rows and scored.get("epochs") == int(rows[-1]["epoch"]) == most:
        log.info(f"{folder} has finished its {scored['epochs']} epochs; trainer.max_epochs=N continues it to epoch N")
        return load(folder)
    last = folder / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last) if last.exists() else None
    if checkpoint is not None and "optimizer_states" not in checkpoint:
        raise UserError(f"{folder} was imported, without an optimiser to go on with: train on in a new run with model.pretrained={folder}")
    if checkpoint is not None and checkpoint["epoch"] >= most:
        raise UserError(f"trainer.max_epochs={most}: {folder} has trained {checkpoint['epoch'] + 1} epochs, and cannot have fewer")
    run = build(cfg, resumed=checkpoint is not None)
    subset = (folder / "subset.csv").read_bytes().decode() if (folder / "subset.csv").exists() else None
    if subset is not None and subset != (now := first_files(run)["subset.csv"]):
        before, after = subset.count("\n") - 1, now.count("\n") - 1
        raise UserError(
            f"{folder} was trained on the {before} pictures of its subset.csv, and the dataset now gives {after}, not all of them the "
            "same: put the pictures back as they were, or start a new run"
        )
    return fit(run, folder)


def fit(run: Run, folder: Path, said: Sequence[str] = ()) -> Run:
    """Train `run` in `folder` from its last finished epoch to its last, then predict and evaluate.

    With trainer.max_time it may end before that, without predictions; resuming goes on. The lines of `said` come before the introduction,
    and both after all mistakes, for which one line has to be enough.
    """
    with freed_memory_kept(), RunLogger(run.config, folder) as logger:
        return fit_logged(run, folder, logger, said)


def fit_logged(run: Run, folder: Path, logger: RunLogger, said: Sequence[str]) -> Run:
    """`fit`, telling `logger` of it."""
    pl.seed_everything(run.config["seed"], workers=True, verbose=False)
    run.config["trainer"]["precision"] = resolved_trainer_arguments(run.config)["precision"]
    facts = static_facts(run)
    run_folder = RunFolder(folder, run.net.num_experts, first_files(run), [*said, *introduction(run, facts)], logger)
    trainer = make_trainer(run.config, run_folder, run.splits.val is not None)
    require_even_share(run.config["data"]["batch_size"], trainer.world_size, trainer.accumulate_grad_batches)

    last = folder / "checkpoints" / "last.ckpt"
    refuse_unkept_steps(trainer, run, facts["train_pictures"], last.exists())
    begin_on(trainer.strategy.root_device)
    if run.module.compiled is not None:
        torch.compiler.reset()  # after some networks in one process torch trains the next ones uncompiled, without a word
    try:
        trainer.fit(run.module, datamodule=run.data(), ckpt_path=last if last.exists() else None, weights_only=True)
    except SIGTERMException:
        log.info(f"terminated; `mdcs train resume={run_folder.folder}` goes on after the last finished epoch")
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit:  # so Lightning ends on Ctrl-C, and leaves the signal ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log.info(f"interrupted; `mdcs train resume={run_folder.folder}` goes on after the last finished epoch")
        raise KeyboardInterrupt from None
    except MisconfigurationException as refusal:
        raise UserError(f"trainer: {refusal}") from refusal
    run.module.trainer = None  # whose loaders hold the pictures on the device
    spent = {"wall_seconds": round(run_folder.wall_seconds, 2), **hours(trainer, run_folder)}

    run.folder = folder = run_folder.folder
    epochs = len(read_rows(folder))
    if run.config["trainer"].get("max_time") and epochs < run.config["trainer"]["max_epochs"]:
        if trainer.is_global_zero:
            run_folder.open()
        with closing(run_folder):
            log.info(f"trainer.max_time is over after epoch {epochs} of {trainer.max_epochs}; `mdcs train resume={folder}` goes on")
        return run
    run.net.float()  # as it will be loaded, whatever it was trained in
    run.load_weights(folder / "checkpoints" / f"{run.config['checkpoint']}.ckpt")
    for split in [name for name in run.splits.named() if name != "train"]:
        place = folder / "predictions" / split
        predict_split(run, split, place, trainer.strategy.root_device, trainer.global_rank, trainer.world_size)
    run.net.cpu()
    if trainer.is_global_zero:
        measured = measured_facts(trainer, folder) | {"epochs": epochs} | spent
        measured["checkpoint_epoch"] = run.epoch
        run_folder.open()
        with closing(run_folder):
            write_scores(folder, run.classes, run.splits.scored, run.config["checkpoint"], facts | measured)
            with reported_only():
                log.info(f"report: {write_report(folder, run.splits.named()[run.splits.scored])}")
        logger.conclude(epochs, lambda: results(folder))
    return run


def refuse_unkept_steps(trainer: pl.Trainer, run: Run, num_pictures: int, begun: bool) -> None:
    """UserError for a trainer.val_check_interval beyond an epoch, and a trainer.max_steps within the first one (`begun`: it is over)."""
    interval, micro_batches = run.config["trainer"].get("val_check_interval"), trainer.accumulate_grad_batches
    steps = -(-num_pictures // (run.config["data"]["batch_size"] // micro_batches))
    if isinstance(interval, int) and interval > steps and run.splits.val is not None:
        raise UserError(f"trainer.val_check_interval={interval}: an epoch has {steps} steps, expected at most as many")
    limit, most = trainer.limit_train_batches, trainer.max_steps
    taken = -(-(min(limit, steps) if isinstance(limit, int) else int(limit * steps)) // micro_batches)
    if 0 <= most < taken and not begun:
        short = f"trainer.limit_train_batches={max(1, most * micro_batches)} trainer.max_epochs=1"
        raise UserError(f"trainer.max_steps={most}: an epoch has {taken} steps, and only whole ones are kept; for a short try set {short}")


@contextmanager
def reported_only() -> Iterator[None]:
    """The run is trained and scored: what goes wrong from here on is said, and can be tried again."""
    try:
        yield
    except (UserError, OSError) as error:
        log.warning(f"there is no report: {error}; `mdcs report` makes one")


def first_files(run: Run) -> dict[str, str]:
    """What a new run folder holds before the first epoch."""
    train = run.splits.train
    classes = [f"{label},{csv_cell(name)}" for label, name in enumerate(run.classes.names)]
    paths: Iterable[str] = list(train.paths)
    if NEEDS_QUOTES("".join(paths)):  # asked once: there may be a million, and hardly ever one that does
        paths = map(csv_cell, paths)
    rows = zip(train.positions.tolist(), train.labels.tolist(), paths, strict=True)
    lines = [f"{position},{classes[label]},{path}\n" for position, label, path in rows]
    return {
        "config.yaml": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),  # first: with it the run can be resumed
        "classes.json": classes_to_json(run.classes, run.splits.counts_before_validation, run.splits.label_map),
        "subset.csv": "".join(["position,label,class,path\n", *lines]),
    }


def csv_cell(text: str) -> str:
    """The text as csv.writer puts it, which takes three times as long for a million rows."""
    return '"' + text.replace('"', '""') + '"' if NEEDS_QUOTES(text) else text


def introduction(run: Run, facts: Mapping[str, Any]) -> list[str]:
    """What is about to be trained on what, in lines."""
    groups = ", ".join(f"{int(group.sum())} {name}-shot" for name, group in run.classes.groups.items())
    counts, trainer = run.classes.counts, run.config["trainer"]
    words = {"val": "validation", "test": "test"}
    begins = getattr(run.module.loss, "reweight_epoch", None)
    late = [f"note: loss.reweight_epoch={begins} is not reached by trainer.max_epochs={trainer['max_epochs']}"]
    others = ", ".join(several(len(part.labels), f"{words[name]} picture") for name, part in run.splits.named().items() if name in words)
    return [
        *(f"note: {note}" for note in (*run.splits.notes, *run.notes)),
        *(late if begins is not None and begins >= trainer["max_epochs"] else []),
        f"{facts['train_pictures']} training pictures of {len(run.classes)} classes ({int(counts.max())} to {int(counts.min())} a class; "
        f"{groups}), {others}",
        f"{choice_of(run.config, 'loss')} ({run.module.loss.extra_repr()}) on "
        f"{type(run.net.backbone).__name__} with K = {run.net.num_experts}, "
        f"{facts['parameters']:,} parameters, {facts['macs_per_picture'] / 1e6:.1f} million multiply-adds a picture",
        f"views {', '.join(run.module.loss.views)}; up to epoch {trainer['max_epochs']} in {trainer['precision']}",
    ]


def static_facts(run: Run) -> dict[str, Any]:
    """What the configuration decides, for scores.json. The cost is counted in one forward pass of one picture."""
    image = run.module.augment.plain(run.splits.train.plain(torch.zeros(1, dtype=torch.int64)), next(run.net.parameters()).dtype)
    run.net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run.net(image)
    run.net.train()  # Lightning would leave batch-norm in eval mode
    return {
        "parameters": sum(parameter.numel() for parameter in run.net.parameters()),
        "macs_per_picture": counter.get_total_flops() // 2,
        "views": len(run.module.loss.views),
        "train_pictures": len(run.splits.train.labels),
        "seed": run.config["seed"],
        "git_commit": git_commit(),
    }


def hours(trainer: pl.Trainer, run_folder: RunFolder) -> dict[str, float]:
    """What training has taken of processors (rank 0's time, with its workers', times the ranks) and of GPUs, over all resumed pieces."""
    spent = {"cpu_hours": run_folder.cpu_seconds * trainer.world_size / 3600}
    if trainer.strategy.root_device.type == "cuda":
        spent["gpu_hours"] = run_folder.wall_seconds * trainer.world_size / 3600
    return {name: round(value, 5) for name, value in spent.items()}


def measured_facts(trainer: pl.Trainer, folder: Path) -> dict[str, Any]:
    """What only the run itself knows, for scores.json: pictures per second (median over epochs), peak memory of rank 0 in MiB."""
    device = trainer.strategy.root_device
    speeds = [float(row["images_per_second"]) for row in read_rows(folder)]
    memory = {"peak_memory_mib": int(peak_mib())}
    if device.type == "cuda":
        memory["peak_device_memory_mib"] = torch.cuda.max_memory_allocated(device) // 2**20
    packages = {package.__name__: package.__version__ for package in (mdcs, torch, pl, np)}
    return {
        "world_size": trainer.world_size,
        "threads": torch.get_num_threads(),
        "images_per_second": round(float(np.median(speeds)), 1),
        **memory,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": trainer.precision,
        "versions": {"python": platform.python_version()} | {name: str(version) for name, version in packages.items()},
    }
