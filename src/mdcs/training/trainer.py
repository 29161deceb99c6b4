"""Lightning's Trainer, with every argument of the user's and what the run folder and the loaders rely on."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from mdcs.errors import UserError
from mdcs.instantiate import call, check_arguments
from mdcs.training.checkpoint import DurableCheckpointIO, RunFolder
from mdcs.training.progress import RunProgress

for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)  # greetings and advertisements

REFUSED = {
    "overfit_batches": "it would replace the order of the pictures; use trainer.limit_train_batches",
    "limit_test_batches": "the test split is always scored whole",
    "limit_predict_batches": "the test split is always scored whole",
}
TIMES = ("weeks", "days", "hours", "minutes", "seconds")


def resolved_trainer_arguments(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """`trainer.*` with what depends on the machine decided: `precision: auto`, and the devices that torchrun has started processes for."""
    arguments = dict(cfg["trainer"])
    if arguments.get("precision") == "auto":
        arguments["precision"] = "bf16-mixed" if fast_bfloat16(arguments.get("accelerator")) else "32-true"
    local, world = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("WORLD_SIZE", 1))
    if local > 1 and arguments["devices"] == 1:
        arguments |= {"devices": local, "num_nodes": world // local}
    return arguments


def make_trainer(cfg: Mapping[str, Any], run_folder: RunFolder, has_validation: bool) -> pl.Trainer:
    """The Trainer of a run; UserError for an argument that it does not take, that does not fit, or that the run cannot work with."""
    arguments = resolved_trainer_arguments(cfg)
    for name, reason in REFUSED.items():
        if arguments.get(name):
            raise UserError(f"trainer.{name} cannot be set: {reason}")
    limit = arguments.get("max_time")
    if isinstance(limit, Mapping) and (wrong := set(limit) - set(TIMES)):
        raise UserError(f"trainer.max_time={dict(limit)}: {wrong.pop()} is not one of {', '.join(TIMES)}")
    if isinstance(limit, Mapping) and any(isinstance(value, int | float) and value < 0 for value in limit.values()):
        raise UserError(f"trainer.max_time={dict(limit)}: expected no negative times")
    precision = arguments["precision"]
    if str(cfg["optim"].get("_target_")).endswith(".SAM") and (
        arguments.get("accumulate_grad_batches", 1) != 1 or precision in ("16-mixed", "16")
    ):
        raise UserError(
            "optim: SAM takes both gradients of a step on the same pictures: trainer.accumulate_grad_batches must be 1, and "
            "trainer.precision not 16-mixed (bf16-mixed or 32-true)"
        )
    compiled = cfg["model"].get("compile")
    if compiled not in (None, "default") and arguments.get("accumulate_grad_batches", 1) != 1:
        raise UserError(
            f"model.compile={compiled} with trainer.accumulate_grad_batches: on a GPU its graph writes the gradients of each micro-batch "
            "to the same place; set model.compile=default"
        )
    if arguments.get("sync_batchnorm") and str(cfg["model"].get("_target_")).endswith(".Timm"):
        raise UserError(
            "trainer.sync_batchnorm=true with model=timm: Lightning would leave out the activations that are part of timm's batch norms"
        )
    if cfg["optim"].get("ema_decay") is not None and precision in ("16-true", "bf16-true"):
        raise UserError(f"optim.ema_decay with trainer.precision={precision}: averages need full precision, use bf16-mixed")
    validates = has_validation and arguments.get("limit_val_batches", 1.0) != 0
    every = arguments.get("check_val_every_n_epoch", 1) or 1
    if cfg["checkpoint"] == "best" and (not validates or every > arguments["max_epochs"]):
        raise UserError(
            "checkpoint=best, but no epoch would be validated: see trainer.limit_val_batches and trainer.check_val_every_n_epoch"
        )
    ours: dict[str, Any] = {
        "callbacks": [RunProgress(), run_folder] if arguments.get("enable_progress_bar", True) else [run_folder],
        "plugins": [DurableCheckpointIO()],
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_model_summary": False,
    }
    if taken := [name for name in ours if name in arguments]:
        raise UserError(f"trainer.{taken[0]} cannot be set: mdcs sets it itself")
    if not validates:
        arguments["limit_val_batches"] = 0
    check_arguments(pl.Trainer, arguments, "trainer", ours)
    started = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if started != "1" and str(arguments["devices"]) not in (started, "auto"):
        raise UserError(f"torchrun has started {started} processes here for trainer.devices={arguments['devices']}: leave it out")
    trainer: pl.Trainer = call(pl.Trainer, "trainer", also=MisconfigurationException, **arguments, **ours)
    return trainer


def fast_bfloat16(accelerator: str | None) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return accelerator in ("auto", "cpu") and torch.cpu._is_avx512_bf16_supported()
