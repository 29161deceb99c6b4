"""Configuration to parts: the only place where data, augmentation, network, loss and optimiser meet."""

import copy
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mdcs import config
from mdcs.augment.views import Augment
from mdcs.data.cache import cached
from mdcs.data.module import LongTailData, require_even_share
from mdcs.data.splits import DataSource, Splits
from mdcs.data.squares import Images, batches
from mdcs.errors import UserError
from mdcs.evaluation.combine import combine
from mdcs.evaluation.predictions import classes_from_json
from mdcs.instantiate import as_written, call, check_arguments, instantiate, resolve, suggestion
from mdcs.models.expert_net import ExpertNet, parameter_groups
from mdcs.models.pretrained import load_pretrained
from mdcs.randomness import keyed_globals
from mdcs.training.checkpoint import read_checkpoint
from mdcs.training.module import LongTailModule
from mdcs.training.schedule import Schedule
from mdcs.types import Backbone, Classes, Loss

# What of a group is not the constructor's of its _target_.
LOADER_KEYS = ("batch_size", "num_workers", "sampler", "repeats", "crop_scale", "crop_ratio")
DATA_KEYS = (*LOADER_KEYS, "cache")
SCHEDULE_KEYS = ("schedule", "warmup_epochs", "milestones", "gamma")
OTHER_OPTIM_KEYS = ("backbone_lr", "ema_decay", "ema_evaluate")
OTHER_MODEL_KEYS = ("head", "pretrained", "compile")


@dataclass(repr=False)
class Run:
    """The parts of one run. `folder` is where it is, once it is on disk."""

    config: dict[str, Any]
    source: DataSource
    classes: Classes
    net: ExpertNet
    module: LongTailModule
    folder: Path | None = None
    epoch: int | None = None  # the weights' epoch, once they are loaded
    notes: tuple[str, ...] = ()  # sentences for the user, beside those about the data

    def __repr__(self) -> str:
        return f"Run({type(self.module.loss).__name__}, K = {self.net.num_experts}, {len(self.classes)} classes, folder={self.folder})"

    @cached_property
    def splits(self) -> Splits:
        """The pictures, read when they are first asked for: a loaded run predicts without its dataset."""
        return cached(self.source.splits(), self.config["data"].get("cache"))

    def data(self) -> LongTailData:
        """Loaders over the splits."""
        loader = {key: self.config["data"][key] for key in LOADER_KEYS if key in self.config["data"]}
        ours = {"splits": self.splits, "seed": self.config["seed"], "num_views": len(self.module.loss.views)}
        check_arguments(LongTailData, loader, "data", ours)
        return LongTailData(**loader, **ours)

    def load_weights(self, path: Path) -> "Run":
        """Put the network's weights of a checkpoint in place; UserError if there is none."""
        if not path.exists():
            reason = "needs a validation split (data.val_fraction)" if path.stem == "best" else "is written at the end of the first epoch"
            raise UserError(f"{path}: there is no such checkpoint; it {reason}")
        checkpoint = read_checkpoint(path)
        state, self.epoch = checkpoint["state_dict"], checkpoint["epoch"] + 1
        own = "ema.net." if self.module.ema_evaluate else "net."
        self.net.load_state_dict({name.removeprefix(own): value for name, value in state.items() if name.startswith(own)})
        return self

    @torch.no_grad()
    def predict(self, images: Images, batch_size: int = 128) -> Tensor:
        """Raw logits (N, K, C); `combine(logits)` of mdcs.evaluation.combine is the ensemble's answer (N, C).

        `images` is a uint8 tensor or array (N, 3, H, W), taken as it is; or a list of paths, Pillow pictures and arrays (H, W, 3) uint8 of
        any size (or anything that yields them), which are resized and cropped as the run's evaluation does; or one of these. UserError
        names a file that cannot be read.

        >>> mdcs.load("runs/mine").predict(["cat.jpg", "dog.png"]).shape  # doctest: +SKIP
        torch.Size([2, 3, 10])
        """
        self.net.eval()
        device, dtype = (lambda weight: (weight.device, weight.dtype))(next(self.net.parameters()))
        parts = batches(images, self.source, batch_size)
        logits = [self.net(self.module.augment.plain(part_B3HW.to(device), dtype)).logits.cpu() for part_B3HW in parts]
        return torch.cat(logits) if logits else torch.empty(0, self.net.num_experts, len(self.classes))

    def classify(self, images: Images, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """For each picture the `top_k` most probable classes and their probabilities, the softmax of the mean over the experts' logits.

        >>> mdcs.load("runs/mine").classify("cat.jpg", top_k=2)  # doctest: +SKIP
        [[('cat', 0.9), ('lynx', 0.1)]]
        """
        if top_k < 1:
            raise UserError(f"top_k={top_k}: expected at least 1")
        best = combine(self.predict(images).float()).softmax(-1).topk(min(top_k, len(self.classes)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [[(self.classes.names[label], value) for label, value in zip(*pair, strict=True)] for pair in pairs]


def build(cfg: Mapping[str, Any], classes: Classes | None = None, resumed: bool = False) -> Run:
    """Make all parts from the plain, resolved configuration. Reads the dataset, unless `classes` (of a stored run) are given.

    `resumed`: a checkpoint will bring the weights, so those that the run once started from are not looked for.
    """
    own = copy.deepcopy(dict(cfg))
    check_scalars(own)
    source = make_source(cfg["data"])
    schedule = make_schedule(cfg)
    optimiser = make_optimiser(cfg["optim"])
    num_experts = cfg["model"]["num_experts"]
    backbone_keys = {k: v for k, v in cfg["model"].items() if k not in OTHER_MODEL_KEYS}
    if backbone_keys.get("image_size", 0) is None and isinstance(source.image_size, int):
        backbone_keys["image_size"] = source.image_size  # for networks made for one size
    with keyed_globals(cfg["seed"], "backbone"):
        backbone = instantiate(backbone_keys, Backbone, "model")
    splits = source.splits() if classes is None else None
    if splits is not None:
        classes = splits.classes
        if source.image_size is None:  # so that the loaded run knows it without its dataset
            own["data"]["image_size"] = splits.train.images.shape[-1]
            source = make_source(own["data"])
    assert classes is not None
    if len(classes) < 2:
        raise UserError(f"there is one class only, {classes.names[0]!r}: a classifier needs at least two")

    head = cfg["model"]["head"]
    check_arguments(ExpertNet, {"head": head}, "model", {"backbone": backbone, "num_classes": len(classes)})
    with keyed_globals(cfg["seed"], "heads"):
        net = ExpertNet(backbone, len(classes), head).to(memory_format=torch.channels_last)
    pretrained = cfg["model"].get("pretrained") if splits is not None and not resumed else None
    notes = start_from(net, pretrained, classes) if pretrained else []
    loss = instantiate(cfg["loss"], Loss, "loss", classes=classes, num_experts=num_experts)
    num_pictures = int(classes.counts.sum())
    augment = instantiate(cfg["augment"], Augment, "augment", mean=source.mean, std=source.std, num_pictures=num_pictures, seed=cfg["seed"])
    augment.check(loss.views)
    averaging = {key: cfg["optim"][key] for key in ("ema_decay", "ema_evaluate") if key in cfg["optim"]}
    check_arguments(LongTailModule, averaging, "optim", {"net": net})
    module = LongTailModule(net, loss, augment, classes, optimiser, schedule, cfg["seed"], **averaging, compile=cfg["model"].get("compile"))
    run = Run(own, source, classes, net, module, notes=tuple(notes))
    if splits is not None:
        if cfg["checkpoint"] == "best" and splits.val is None:
            raise UserError("checkpoint=best needs a validation split: set data.val_fraction, for example 0.1 (it is never chosen on test)")
        run.splits = cached(splits, cfg["data"].get("cache"))
        run.data()  # refuses bad loader settings before anything is written
    return run


def load(folder: str | Path) -> Run:
    """A finished or unfinished run with the weights it predicts with; its dataset is not read. UserError if `folder` is no run.

    >>> mdcs.load("runs/digits-resnet8-mdcs/2026-01-01_12-00-00").predict(images)  # doctest: +SKIP
    """
    folder = Path(folder)
    if not (folder / "config.yaml").exists() or not (folder / "classes.json").exists():
        raise UserError(f"{folder}: not a run folder, it has no config.yaml with classes.json beside it")
    cfg = config.read_yaml(folder / "config.yaml")
    run = build(cfg, classes_from_json(folder / "classes.json"))
    run.folder = folder
    return run.load_weights(folder / "checkpoints" / f"{cfg['checkpoint']}.ckpt")


def make_source(node: Mapping[str, Any]) -> DataSource:
    """The dataset that the `data` node describes, without what is the loaders' in it; nothing is read."""
    source: DataSource = instantiate({key: value for key, value in node.items() if key not in DATA_KEYS}, DataSource, "data")
    return source


def check_scalars(cfg: Mapping[str, Any]) -> None:
    """The settings that no constructor checks, and that none is missing (`~optim.gamma` on the command line takes one away)."""
    needed = {
        "model": ("num_experts", "head"),
        "data": ("batch_size", "num_workers"),
        "optim": SCHEDULE_KEYS,
        "trainer": ("max_epochs",),
        "loss": (),
        "augment": (),
    }
    for name in [*("seed", "checkpoint"), *needed]:
        if name not in cfg:
            raise UserError(f"{name} is missing from the configuration")
    for name in cfg:
        if name not in (*needed, "seed", "checkpoint", "logger"):
            raise UserError(f"{name}: there is no such setting{suggestion(name, [*needed, 'seed', 'checkpoint', 'logger'])}")
    for group, keys in needed.items():
        missing = [key for key in keys if key not in (cfg[group] or {})]
        if missing or not cfg[group]:
            raise UserError(f"{'.'.join([group, *missing[:1]])} is missing from the configuration")
    seed, checkpoint = cfg["seed"], cfg["checkpoint"]
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"seed={as_written(seed)}: expected a whole number from 0 to {2**32 - 1}")
    if checkpoint not in ("last", "best"):
        raise UserError(f"checkpoint={as_written(checkpoint)}: expected last, or best (on validation)")
    for key in ("batch_size", "num_workers"):
        if type(cfg["data"][key]) is not int:
            raise UserError(f"data.{key}={as_written(cfg['data'][key])}: expected a whole number")
    require_even_share(cfg["data"]["batch_size"], 1)
    if type(cfg["model"]["num_experts"]) is not int or cfg["model"]["num_experts"] < 1:
        raise UserError(f"model.num_experts={as_written(cfg['model']['num_experts'])}: expected a whole number from 1")


def make_schedule(cfg: Mapping[str, Any]) -> Schedule:
    """The learning-rate schedule from the `optim` keys that are not the optimiser's."""
    max_epochs = cfg["trainer"]["max_epochs"]
    if not isinstance(max_epochs, int) or isinstance(max_epochs, bool) or max_epochs < 1:
        raise UserError(f"trainer.max_epochs={as_written(max_epochs)}: expected a whole number from 1")
    arguments = {key: cfg["optim"][key] for key in SCHEDULE_KEYS}
    check_arguments(Schedule, arguments, "optim", {"max_epochs": max_epochs})
    return Schedule(max_epochs, **arguments)


def start_from(net: ExpertNet, pretrained: str | bool, classes: Classes) -> list[str]:
    """Give `net` trained weights (`model.pretrained`); says in sentences what it took. A run on the same classes gives its heads, too."""
    notes = load_pretrained(net.backbone, pretrained)
    folder = Path(str(pretrained)).expanduser()
    if (folder / "classes.json").exists() and classes_from_json(folder / "classes.json").names == classes.names:
        before = load(folder).net.heads
        if before.weight.shape == net.heads.weight.shape and (before.bias is None) == (net.heads.bias is None):
            net.heads.load_state_dict(before.state_dict())
            notes[0] = notes[0].removesuffix(", the classifiers anew")
            notes.append("its classes are the same, so its classifiers are taken, too")
    return notes


def make_optimiser(node: Mapping[str, Any]) -> Any:
    """A function from a network to an optimiser of its trainable weights; tried on one weight, so that bad settings are refused now."""
    cls = resolve(node.get("_target_"), Optimizer, "optim")
    arguments = {key: value for key, value in node.items() if key not in (*SCHEDULE_KEYS, *OTHER_OPTIM_KEYS, "_target_")}
    check_arguments(cls, arguments, "optim", {"params": None})
    backbone_lr = node.get("backbone_lr")
    if backbone_lr is not None and (type(backbone_lr) not in (int, float) or backbone_lr < 0 or "lr" not in arguments):
        raise UserError(
            f"optim.backbone_lr={as_written(backbone_lr)}: expected a number from 0, beside optim.lr, which is then that of the classifiers"
        )

    def optimiser(net: ExpertNet) -> Optimizer:
        weights: Any = [weight for weight in net.parameters() if weight.requires_grad]
        if backbone_lr is not None:
            weights = parameter_groups(net, arguments["lr"], backbone_lr)
        made: Optimizer = call(cls, "optim", weights, **arguments)
        return made

    call(cls, "optim", [torch.nn.Parameter(torch.zeros(1))], **arguments)
    return optimiser


def git_commit() -> str | None:
    """Commit of the checkout that mdcs runs from, "-dirty" if it has changes; None outside one."""
    command = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True)
    try:
        tracked = command(["git", "ls-files", "--error-unmatch", Path(__file__).name])
        described = command(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
    except OSError:
        return None
    return described.stdout.strip() or None if tracked.returncode == 0 else None
