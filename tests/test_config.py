"""Words to configuration, and the contract of every YAML file: it composes, is built, and trains for two steps."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from conftest import golden
from mdcs.build import Run, build, make_schedule
from mdcs.config import compose, conf_dir, plain
from mdcs.errors import UserError
from mdcs.types import Output, Views

CHOICES = sorted(file.relative_to(conf_dir()).with_suffix("") for file in conf_dir().rglob("*.yaml"))
VERBS = [choice.name for choice in CHOICES if len(choice.parts) == 1]


def of_group(group: str) -> list[str]:
    """The choices of a configuration group, from the files there are. "auto" stands for one of the others (see recipe.py)."""
    return [choice.name for choice in CHOICES if choice.parent == Path(group) and choice.name != "auto"]


def config(*words: str) -> dict[str, Any]:
    return plain(compose("train", words))


# ---------------------------------------------------------------------------------------------------------------- words

PATHS = ["a b", "a (1)", "x=y", "it's", 'say "hi"', 'it\'s "so"', "a,b", "a~b", "grün", "图片", "back\\", "two\\\\", "[x]", "{y}"]
PATHS += ["a\\b", "a\\'b", 'a\\"b', "C:\\ü", "a#b", "a: b", "a;b|c", "null", "1", "true", "*", "@x", " lead", "trail ", "$HOME", "'"]


@pytest.mark.parametrize("path", PATHS)
def test_paths_arrive_as_they_were_given(path: str) -> None:
    cfg = compose("train", ["data=cifar100", f"data.root={path}", f"hydra.run.dir={path}"])
    assert cfg.data.root == path
    assert cfg.hydra.run.dir == path
    assert compose("evaluate", [f"run={path}", f"++data.root={path}"]).run == path


def test_a_path_quoted_by_the_caller_is_not_quoted_again() -> None:
    for quoted in ("'a b'", '"a b"'):
        assert config("data=cifar100", f"data.root={quoted}")["data"]["root"] == "a b"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.alhpa=1", r"loss.alhpa: there is no such setting: did you mean loss.alpha\?"),
        ("alpha=1", r"alpha: there is no such setting: did you mean loss.alpha\?"),
        ("zzz=1", r"zzz: there is no such setting: .*--cfg job.*"),
        ("modle=resnet8", r"modle: there is no such setting: did you mean model\?"),
        ("loss=mdsc", r"loss=mdsc: there is no such choice: did you mean mdcs\?"),
        ("data.rot=photos", r"data.rot: there is no such setting: did you mean data.root\?"),
        ("trainer=null", r"trainer=null: expected one of default"),
        ("photos", r"cannot read 'photos': expected key=value"),
        ("experiment=nope", r"experiment=nope: there is no such choice; there is .*cifar100_if100.*"),
        ("seed", r"cannot read 'seed': expected key=value.*"),
        ("loss.lambdas=[1,2", r"cannot read 'loss.lambdas=\[1,2': expected key=value.*"),
        ("~nothing", r".*'nothing' does not exist.*"),
        ("seed=1,2", r"seed=1,2 has several values: -m trains a run for each.*"),
        ("loss.alpha=${nowhere}", r".*nowhere.*"),
    ],
)
def test_mistakes_are_told_in_one_line(word: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^{message}$") as refusal:
        config(word)
    assert "\n" not in str(refusal.value)


def test_a_verb_says_what_it_needs() -> None:
    with pytest.raises(UserError, match=r"^run=\.\.\. is missing: this verb needs it$"):
        plain(compose("evaluate", []))
    with pytest.raises(UserError, match=r"^splt: there is no such setting: did you mean split\?$"):
        compose("evaluate", ["run=x", "splt=val"])


def test_any_argument_of_the_trainer_is_taken() -> None:
    trainer = config("trainer.gradient_clip_val=0.5", "trainer.max_epochs=2", "+trainer.fast_dev_run=true")["trainer"]
    assert (trainer["gradient_clip_val"], trainer["max_epochs"], trainer["fast_dev_run"]) == (0.5, 2, True)


def test_experiment_wins_over_dataset_and_command_line_over_both() -> None:
    assert config("data=cifar100")["model"]["depth"] == 32 and config("data=cifar100")["augment"]["downscale"] == 1
    card = config("experiment=cifar100_ten")
    assert (card["data"]["num_classes"], card["model"]["depth"]) == (100, 8)
    assert (card["data"]["batch_size"], card["augment"]["downscale"]) == (32, 2)
    ours = config("experiment=cifar100_ten", "model=resnet14", "data.batch_size=16", "loss=ce", "augment.downscale=1")
    assert (ours["model"]["depth"], ours["data"]["batch_size"], ours["augment"]["downscale"]) == (14, 16, 1)
    assert ours["loss"]["_target_"].endswith("PriorAdjusted") and ours["data"]["few_below"] == 30
    assert config("model=resnet14", "data=cifar10")["model"]["depth"] == 14


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "digits-resnet8-mdcs"),
        (["loss=ce", "data=cifar100"], "cifar100-resnet32-ce"),
        (["experiment=cifar100_ten", "loss=ce"], "cifar100_ten"),
    ],
)
def test_runs_are_named_after_the_experiment_or_their_parts(words: list[str], name: str) -> None:
    folder = Path(compose("train", words).hydra.run.dir)
    assert folder.parent == Path("runs") / name and len(folder.name) == len("2026-01-01_12-00-00")


# ---------------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if len(choice.parts) > 1], ids=str)
def test_every_choice_composes(choice: Path) -> None:
    group = choice.parent.as_posix()
    assert compose("train", [f"{group}={choice.name}"]).hydra.runtime.choices[group] == choice.name


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_composes(verb: str) -> None:
    assert len(compose("train" if verb == "config" else verb, [])) > 1


class Watch(pl.Callback):
    """Keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item())


def two_steps(run: Run) -> None:
    """Train for two steps: the losses are finite and every weight that receives a gradient has moved."""
    before = {name: weight.detach().clone() for name, weight in run.net.named_parameters()}
    watch, silent = Watch(), dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    precision = run.config["trainer"]["precision"].replace("auto", "32-true")
    ours = {"use_distributed_sampler": False, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", devices=1, precision=precision, callbacks=[watch], **ours, **silent)
    trainer.fit(run.module, datamodule=run.data())
    assert len(watch.losses) == 2 and np.isfinite(watch.losses).all()
    still = [name for name, weight in run.net.named_parameters() if torch.equal(weight, before[name])]
    assert not still and all(weight.isfinite().all() for weight in run.net.parameters())


@pytest.mark.parametrize("key", ["data.batch_size", "data.num_workers", "model.num_experts", "trainer.max_epochs", "seed"])
def test_true_is_no_number(key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}=true: expected a whole number"):
        build(config(f"{key}=true"))


FEW_WORKERS = "ignore:.*does not have many workers:UserWarning"
PARTS = [(group, name) for group in ("loss", "optim", "augment") for name in of_group(group)]


@pytest.mark.filterwarnings(FEW_WORKERS)
@pytest.mark.parametrize(("group", "name"), PARTS)
def test_every_part_is_built_and_trains(group: str, name: str) -> None:
    two_steps(build(config("data=digits", "model=resnet8", "data.batch_size=16", f"{group}={name}")))


@pytest.mark.parametrize("name", of_group("model"))
def test_every_model_is_built_and_differentiable(name: str) -> None:
    net = build(config("data=digits", f"model={name}", "model.num_experts=2")).net
    out = net(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert out.logits.shape == (2, 2, 10) and out.features.shape[:2] == (2, 2)
    out.logits.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())


@pytest.mark.parametrize("name", of_group("loss"))
def test_every_loss_yields_a_gradient_and_detached_parts(name: str) -> None:
    run = build(config("data=digits", f"loss={name}"))
    generator = torch.Generator().manual_seed(0)
    shape = (len(run.module.loss.views), 8, run.net.num_experts)
    logits = torch.randn(*shape, 10, generator=generator).requires_grad_()
    labels = torch.arange(8)
    views = Views(torch.zeros(*shape[:2], 3, 8, 8), torch.eye(10)[labels], labels)

    def parts() -> dict[str, Tensor]:
        return run.module.loss(Output(logits, torch.randn(*shape, 48, generator=generator)), views, 5.0)

    once, again = parts(), parts()
    assert once["loss"].ndim == 0 and once["loss"].isfinite() and once["loss"].requires_grad
    assert not any(value.requires_grad for key, value in once.items() if key != "loss")
    assert all(torch.equal(once[key], again[key]) for key in once)
    once["loss"].backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


NEEDED = {"places_lt_resnet152": ["model.pretrained=null"]}  # a file that the user fetches


@pytest.mark.filterwarnings(FEW_WORKERS)
@pytest.mark.parametrize("name", of_group("experiment"))
def test_every_experiment_trains(name: str, tmp_path: Path) -> None:
    words = [f"experiment={name}", *NEEDED.get(name, ()), "data.batch_size=8", "data.num_workers=0"]
    data = config(*words)["data"]
    root = tmp_path / "pictures (图片)"
    if data["_target_"].endswith("Cifar"):
        names = data["classes"] or [f"class {number:03}" for number in range(data["num_classes"])]
        for split, number in (("train", 2), ("test", 1)):
            for label, of_class in enumerate(names):
                for row in range(number):
                    fake_picture(root / split / of_class / f"{row}.bmp", label)
        words += [f"data.root={root}", "data.imbalance_factor=2"]
    elif "root" in data:  # lists, and pictures from which crops are cut; the network as deep as it is, but narrow
        stem = {"imagenet_lt": "ImageNet_LT", "places_lt": "Places_LT"}.get(data.get("dataset", ""), "iNaturalist18")
        for split, number in (("train", 4), ("val", 1), ("test", 1)):
            paths = [(f"{split}/class {label}/{row}.png", label) for label in range(3) for row in range(number)]
            for path, label in paths:
                fake_picture(root / path, label)
            (root / f"{stem}_{split}.txt").write_text("".join(f"{path} {label}\n" for path, label in paths))
        words += [f"data.root={root}", "data.num_classes=3", "data.image_size=32", "model.width=[16,16,16,16]"]
    two_steps(build(config(*words)))


def fake_picture(place: Path, seed: int) -> None:
    """Noise, 32 x 32."""
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (32, 32, 3)).astype(np.uint8)).save(place)


PUBLISHED = {
    "cifar10_if50": "cifar10_ir50_mdcs",
    "cifar10_if100": "cifar10_ir100_mdcs",
    "cifar100_if50": "cifar100_ir50_mdcs",
    "cifar100_if100": "cifar100_ir100_mdcs",
    "imagenet_lt_resnet50_180": "imagenet_lt_resnet50_mdcs_e180",
    "imagenet_lt_resnet50_400": "imagenet_lt_resnet50_mdcs_e400",
    "imagenet_lt_resnext50_180": "imagenet_lt_resnext50_mdcs_e180",
    "imagenet_lt_resnext50_400": "imagenet_lt_resnext50_mdcs_e400",
    "inat18_resnet50": "iNaturalist_resnet50_mdcs",
    "places_lt_resnet152": "places_lt_resnet152_mdcs",
}


@pytest.mark.parametrize("name", [name for name in of_group("experiment") if name != "cifar100_ten"])
def test_cards_say_for_what_they_are_written(name: str) -> None:
    """GPUs, batch and learning rate as configured, on other numbers of GPUs, too; the published number, and what was measured."""
    comment = " ".join(line[2:] for line in (conf_dir() / "experiment" / f"{name}.yaml").read_text().splitlines() if line[:2] == "# ")
    gpus, batch, lr = re.search(r"Written for (\d) GPUs?\b.*?: ([\d,]+) pictures .*?a step at lr ([\d.]+\d)", comment).groups()
    card = config(f"experiment={name}", *NEEDED.get(name, ()))
    assert (int(batch.replace(",", "")), float(lr)) == (card["data"]["batch_size"], card["optim"]["lr"])
    assert "published: " in comment and "measured here" in comment and f"experiment={name}" in comment
    if name in PUBLISHED:
        assert int(gpus) == golden("lr_schedules.json")[f"config_{PUBLISHED[name]}.json"]["n_gpu"]
        others, shares = re.search(r"on ([\d, or]+) it is the same recipe, with ([\d, or]+) pictures on each", comment).groups()
        for number, share in zip(re.findall(r"\d+", others), re.findall(r"\d+", shares), strict=True):
            assert int(number) * int(share) == card["data"]["batch_size"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_cards_of_mdcs_are_the_published_configurations(name: str) -> None:
    card, expected = config(f"experiment={name}", *NEEDED.get(name, ())), golden("lr_schedules.json")[f"config_{PUBLISHED[name]}.json"]
    optim, arguments = card["optim"], expected["optimizer"]["args"]
    assert optim["_target_"] == "torch.optim.SGD"
    assert [optim[key] for key in ("lr", "weight_decay", "momentum", "nesterov")] == [
        arguments[key] for key in ("lr", "weight_decay", "momentum", "nesterov")
    ]
    assert optim["backbone_lr"] == arguments.get("share_lr")
    assert (card["data"]["batch_size"], card["trainer"]["max_epochs"]) == (expected["batch_size_images"], expected["epochs"])
    schedule, epochs = make_schedule(card), range(1, expected["epochs"] + 1)
    np.testing.assert_allclose([schedule.factor(epoch) for epoch in epochs], expected["factor"], atol=1e-12)
    weights = [card["loss"]["alpha"] * min(epoch / card["loss"]["warmup_epochs"], 1) for epoch in epochs]
    np.testing.assert_allclose(weights, expected["distill_weight"], atol=1e-12)
    model = card["model"]
    assert (model["num_experts"], model["head"], card["loss"]["lambdas"]) == (3, "cosine", None)
    if name.startswith("cifar"):
        assert (model["depth"], model["width"]) == (32, [16, 24, 48])
        factor = int(name.rpartition("if")[2])
        assert (card["data"]["imbalance_factor"], card["data"]["profile"], card["data"]["subset_seed"]) == (factor, "exp", 0)
    else:
        assert model["depth"] == (152 if "152" in name else 50) and not model["share_layer3"]
        assert model["width"] == [64, 128, *([256, 512] if "places" in name else [192, 384])]
        assert (model.get("groups", 1), model.get("width_per_group", 64)) == ((32, 4) if "resnext" in name else (1, 64))
        assert card["data"]["image_size"] == 224 and card["augment"]["strong"]["_target_"].endswith("ImageNetStrong")
