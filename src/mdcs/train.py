"""Fit, predict on the test split, evaluate: from a configuration to a run folder, new or resumed."""

import csv
import io
import logging
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.flop_counter import FlopCounterMode

import mdcs
from mdcs.build import Run, build, git_commit
from mdcs.data.module import require_even_share
from mdcs.errors import UserError
from mdcs.evaluate import write_scores
from mdcs.evaluation.predictions import classes_to_json
from mdcs.instantiate import call, check_arguments
from mdcs.predict import predict_split
from mdcs.training.checkpoint import DurableCheckpointIO, RunFolder, read_rows
from mdcs.training.progress import RunProgress

log = logging.getLogger("mdcs")
log.setLevel(logging.DEBUG)  # all of it goes to run.log; the screen takes what is INFO and above
for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)  # greetings and advertisements

# What may differ in a resumed run: how long and on what, not what is computed.
RESUMABLE = ("trainer.max_epochs", "trainer.devices", "trainer.accelerator", "trainer.strategy", "trainer.num_nodes", "data.num_workers")


def train(cfg: Mapping[str, Any], folder: Path) -> Run:
    """Train from scratch into `folder`, which must be new or empty."""
    if getattr(rank_zero_only, "rank", 0) == 0 and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already: continue it with resume={folder}, or choose another folder with hydra.run.dir=...")
    return fit(build(cfg), folder, resumed=False)


def resume(cfg: Mapping[str, Any], folder: Path) -> Run:
    """Continue `folder` after its last finished epoch. A finished run is loaded and left as it is."""
    run = build(cfg)
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists() and (folder / "scores.json").exists():
        epochs = torch.load(last, map_location="cpu", weights_only=True)["epoch"] + 1
        if epochs >= cfg["trainer"]["max_epochs"]:
            log.info(f"{folder} has finished its {epochs} epochs; trainer.max_epochs=N continues it to epoch N")
            run.folder = folder
            return run.load_weights(folder / "checkpoints" / f"{cfg['checkpoint']}.ckpt")
    return fit(run, folder, resumed=True)


def fit(run: Run, folder: Path, resumed: bool) -> Run:
    """Train `run` in `folder` to its last epoch, then predict and evaluate."""
    run_folder = RunFolder(folder, run.net.num_experts, {} if resumed else first_files(run))
    trainer = make_trainer(run.config, run_folder)
    require_even_share(run.config["data"]["batch_size"], trainer.world_size, trainer.accumulate_grad_batches)
    facts = static_facts(run)
    if trainer.is_global_zero:
        introduce(run, facts, trainer)

    last = folder / "checkpoints" / "last.ckpt"
    try:
        trainer.fit(run.module, datamodule=run.data(), ckpt_path=last if resumed and last.exists() else None, weights_only=True)
    except SystemExit:  # so Lightning ends on Ctrl-C
        log.info(f"interrupted; `mdcs train resume={run_folder.folder}` goes on after the last finished epoch")
        raise KeyboardInterrupt from None

    run.folder = folder = run_folder.folder
    run.load_weights(folder / "checkpoints" / f"{run.config['checkpoint']}.ckpt")
    for split in ("test", "val") if run.splits.val is not None else ("test",):
        place = folder / "predictions" / split
        predict_split(run, split, place, trainer.strategy.root_device, trainer.global_rank, trainer.world_size)
    run.net.cpu()
    if trainer.is_global_zero:
        write_scores(folder, run.classes, "test", run.config["checkpoint"], facts | measured_facts(trainer, run_folder))
    return run


def make_trainer(cfg: Mapping[str, Any], run_folder: RunFolder) -> pl.Trainer:
    """Lightning's Trainer with every `trainer.*` argument, and ours for what the run folder and the loaders rely on."""
    arguments = dict(cfg["trainer"])
    if arguments.get("precision") == "auto":
        arguments["precision"] = "bf16-mixed" if fast_bfloat16(arguments.get("accelerator")) else "32-true"
        log.info(f"trainer.precision=auto: {arguments['precision']}")
    if arguments.get("overfit_batches"):
        raise UserError("trainer.overfit_batches would replace the order of the pictures: use trainer.limit_train_batches")
    ours: dict[str, Any] = {
        "callbacks": [RunProgress(), run_folder] if arguments.get("enable_progress_bar", True) else [run_folder],
        "plugins": [DurableCheckpointIO()],
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_model_summary": False,
    }
    if not cfg["data"].get("val_fraction"):
        ours["limit_val_batches"] = 0
    check_arguments(pl.Trainer, arguments, "trainer", ours)
    trainer: pl.Trainer = call(pl.Trainer, "trainer", also=MisconfigurationException, **arguments, **ours)
    return trainer


def fast_bfloat16(accelerator: str | None) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return accelerator in ("auto", "cpu") and torch.cpu._is_avx512_bf16_supported()


def first_files(run: Run) -> dict[str, str]:
    """What a new run folder holds before the first epoch."""
    train, names = run.splits.train, run.classes.names
    rows = zip(train.positions.tolist(), train.labels.tolist(), train.paths, strict=True)
    subset = io.StringIO()
    writer = csv.writer(subset, lineterminator="\n")
    writer.writerow(["position", "label", "class", "path"])
    writer.writerows([position, label, names[label], path] for position, label, path in rows)
    return {
        "classes.json": classes_to_json(run.classes, run.splits.counts_before_validation),
        "subset.csv": subset.getvalue(),
        "config.yaml": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    }


def introduce(run: Run, facts: Mapping[str, Any], trainer: pl.Trainer) -> None:
    """Say what is about to be trained on what."""
    for note in run.splits.notes:
        log.info(f"note: {note}")
    groups = ", ".join(f"{int(group.sum())} {name}-shot" for name, group in run.classes.groups.items())
    counts = run.classes.counts
    log.info(
        f"{facts['train_pictures']} training pictures of {len(run.classes)} classes ({int(counts.max())} to {int(counts.min())} a class; "
        f"{groups}), {len(run.splits.test.labels)} test pictures"
    )
    log.info(
        f"{type(run.module.loss).__name__} on {type(run.net.backbone).__name__} with K = {run.net.num_experts}, "
        f"{facts['parameters']:,} parameters, {facts['macs_per_picture'] / 1e6:.1f} million multiply-adds a picture"
    )
    log.info(
        f"views {', '.join(run.module.loss.views)}; {trainer.max_epochs} epochs on "
        f"{trainer.world_size} x {trainer.strategy.root_device.type}"
    )
    dropped = facts["train_pictures"] % run.config["data"]["batch_size"]
    if 0 < dropped < trainer.world_size:
        log.info(f"note: the last {dropped} pictures of each epoch's order are dropped, fewer than {trainer.world_size} devices")


def static_facts(run: Run) -> dict[str, Any]:
    """What the configuration decides, for scores.json. The cost is counted in one forward pass of one picture."""
    image = run.module.augment.plain(run.splits.test.images[:1], next(run.net.parameters()).dtype)
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


def measured_facts(trainer: pl.Trainer, run_folder: RunFolder) -> dict[str, Any]:
    """What only the run itself knows, for scores.json."""
    device = trainer.strategy.root_device
    speeds = [float(row["images_per_second"]) for row in read_rows(run_folder.folder)]
    memory = {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)}
    if device.type == "cuda":
        memory["peak_device_memory_mib"] = torch.cuda.max_memory_allocated(device) // 2**20
    packages = {package.__name__: package.__version__ for package in (mdcs, torch, pl, np)}
    return {
        "epochs": trainer.current_epoch,
        "world_size": trainer.world_size,
        "threads": torch.get_num_threads(),
        "wall_seconds": round(run_folder.wall_seconds, 2),
        "images_per_second": round(float(np.median(speeds)), 1),
        **memory,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": trainer.precision,
        "versions": {"python": platform.python_version()} | {name: str(version) for name, version in packages.items()},
    }
