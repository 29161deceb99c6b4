"""`mdcs import`: a checkpoint of the published code into a run folder, which evaluates, predicts and can be fine-tuned from."""

import logging
from pathlib import Path
from typing import Any, Literal

from mdcs.build import build
from mdcs.durable import write_durably
from mdcs.errors import UserError
from mdcs.models.pretrained import published_mdcs, published_model, read_published
from mdcs.train import first_files
from mdcs.training.checkpoint import DurableCheckpointIO

log = logging.getLogger("mdcs")


def import_published(file: str, format: Literal["mdcs"] = "mdcs", output: str | None = None, **settings: Any) -> Path:
    """Make the run folder `output` from the published checkpoint `file`; `settings` are the configuration of the run that it stands for.

    Class names and counts come from the dataset, which must be the one that the checkpoint was trained on: its number of classes is
    checked. The epoch is the file's, if it says so. Its objects are not executed, and its optimiser is left behind: published checkpoints
    hold no schedule, so training goes on from such a run with `model.pretrained=`, not with `resume=`.
    """
    folder = Path(output or Path("runs") / "imported" / Path(file).stem)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output={folder} exists already: choose another folder")
    state, epoch = read_published(file)
    net = published_mdcs(state)
    settings = {key: value for key, value in settings.items() if key != "experiment"} | {"model": published_model(state)}
    if epoch is not None:
        settings["trainer"] = settings["trainer"] | {"max_epochs": epoch}
    if "auto" in (settings["data"].get("image_size"), settings["augment"]["_target_"]):
        raise UserError(
            "import: this dataset leaves open how its pictures are prepared; say it as the checkpoint was trained, for example "
            "data.image_size=32 augment=cifar, or data.image_size=224 augment=imagenet"
        )
    run = build(settings)
    num_classes = net.heads.weight.shape[-1]
    if num_classes != len(run.classes):
        raise UserError(
            f"{file} is a network for {num_classes} classes, but this dataset has {len(run.classes)}: choose the right data=..."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in first_files(run).items():
        write_durably(folder / name, text)
    weights = {f"net.{name}": value for name, value in net.float().state_dict().items()}
    checkpoint = {"state_dict": weights, "epoch": settings["trainer"]["max_epochs"] - 1, "global_step": 0}
    DurableCheckpointIO().save_checkpoint(checkpoint, folder / "checkpoints" / "last.ckpt")
    log.info(f"{type(net.backbone).__name__} with K = {net.num_experts} for {num_classes} classes is in {folder}")
    log.info(f"`mdcs evaluate run={folder}` scores it; `mdcs train ... model.pretrained={folder}` trains on from it")
    return folder
