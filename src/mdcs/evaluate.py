"""Predictions to scores.json and to a table on the screen."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mdcs.analysis.diversity import linear_cka
from mdcs.build import LOADER_KEYS, Run, build, load
from mdcs.config import absolute, read_yaml, require_run
from mdcs.data.splits import listed
from mdcs.durable import write_durably
from mdcs.errors import UserError
from mdcs.evaluation.agnostic import agnostic
from mdcs.evaluation.predictions import Predictions, classes_from_json, judged_by, known_scores, read_features, read_views
from mdcs.evaluation.scores import scores
from mdcs.evaluation.shift import log_prior
from mdcs.instantiate import instantiate, resolve
from mdcs.predict import chosen_device, predict_features, predict_split, predict_views
from mdcs.types import Classes, Loss

# What scores.json says of the trained model rather than of the training or the test.
OF_THE_MODEL = ("parameters", "macs_per_picture", "views", "train_pictures", "seed", "git_commit")

METHODS = {
    "average": "mean of experts",
    "known_prior": "prior known",
    "em": "prior by EM",
    "bbse": "prior by BBSE",
    "agreement": "SADE weights",
}

COST_IN_HOURS = {"CPU hours": "cpu_hours", "GPU hours": "gpu_hours"}
COST_IN_MEMORY = {"peak memory": "peak_memory_mib", "on the device": "peak_device_memory_mib"}

log = logging.getLogger("mdcs")


def evaluate(
    run: str,
    split: str | None = None,
    checkpoint: str | None = None,
    data: Mapping[str, Any] | None = None,
    logit_adjustment: float = 0.0,
    views: bool = False,
    features: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Scores of the run folder `run`, written there and printed.

    `split` is train, val or test; None is the one that the run is judged by: test, or val where the dataset has no test split.
    From the stored predictions of `split` if there are any; from a checkpoint if one is named (last, or best on validation), if there are
    none, or if `data` names settings of the dataset to replace (for example its root). The run's own scores.json and predictions are
    replaced only by its own split and checkpoint; others are written beside them, under names that say what they are.
    `logit_adjustment` = τ scores z − τ log π instead (arXiv:2007.07314, Eq. 9), π the training prior: for a network trained by plain
    cross-entropy, which has not seen π in its loss. `views` predicts two augmented views of each picture from the checkpoint, too, and
    keeps them beside the predictions: with them the experts are weighted as SADE does at test time. `features` keeps what the classifiers
    read, too, N·K·D float32 numbers: with them the scores say how similar the experts' features are. `device` is for what is predicted.
    """
    folder, data = Path(run), {key: value for key, value in (data or {}).items() if key not in LOADER_KEYS}
    require_run("run", folder)
    cfg = read_yaml(folder / "config.yaml")
    split = split or judged_by(folder)
    if split not in ("train", "val", "test"):
        raise UserError(f"split={split}: expected train, val or test")
    if checkpoint not in (None, "last", "best"):
        raise UserError(f"checkpoint={checkpoint}: expected last or best")
    used = checkpoint or cfg["checkpoint"]
    name = split + ("" if used == cfg["checkpoint"] else f"_{used}") + ("_other_data" if data else "")
    place = folder / "predictions" / name
    facts: dict[str, Any] = {"data": data} if data else {}
    if logit_adjustment < 0:
        raise UserError(f"logit_adjustment={logit_adjustment}: expected a number above 0, such as 1, or 0 for none")
    for word, value in {"views": views, "features": features}.items():
        if value not in (True, False):
            raise UserError(f"{word}={value}: expected true or false")
    anew = bool(checkpoint or data or not place.exists())
    if anew or views or features:
        trained, chosen = with_weights(folder, cfg, used, data), chosen_device(device)
        if views and trained.net.num_experts == 1:
            raise UserError("views=true weights the experts, and this run has only one")
        if anew:
            predict_split(trained, split, place, chosen)
            facts["checkpoint_epoch"] = trained.epoch
        elif (epoch := epoch_of(folder, name)) not in (None, trained.epoch):
            raise UserError(f"{place} is of epoch {epoch} and the checkpoint of epoch {trained.epoch}: name checkpoint={used}, too")
        if views:
            predict_views(trained, split, place, chosen)
        if features:
            predict_features(trained, split, place, chosen)
    content = write_scores(folder, classes_from_json(folder / "classes.json"), name, used, facts, logit_adjustment)
    if "agnostic" in content:
        screen().print(agnostic_table(content["agnostic"]))
    lines = []
    if (cka_KK := content["diversity"].get("cka")) is not None:
        rows = " | ".join(" ".join(f"{100 * value:.1f}" for value in row) for row in cka_KK)
        lines.append(f"similarity of the experts' features (linear CKA) in %: {rows}")
    if (views or features) and name == judged_by(folder) and (folder / "report.html").exists():
        lines.append(f"`mdcs report run={folder}` brings report.html up to date")
    for line in lines:
        screen().print(line, highlight=False, soft_wrap=True, markup=False)
    return content


def epoch_of(folder: Path, name: str) -> int | None:
    """The epoch of the weights that made the predictions `name`; None if no scores say it."""
    file = folder / ("scores.json" if name == judged_by(folder) else f"scores_{name}.json")
    epoch: int | None = known_scores(file).get("checkpoint_epoch")
    return epoch


def with_weights(folder: Path, cfg: Mapping[str, Any], checkpoint: str, data: Mapping[str, Any]) -> Run:
    """The run with the weights of `checkpoint`, and a dataset with the same class names.

    Other pictures are seen once, so the cache that the run was trained from is not built for them, too.
    """
    if not data:
        return load(folder).load_weights(folder / "checkpoints" / f"{checkpoint}.ckpt")
    changed = {key: absolute(value) if key == "root" else value for key, value in data.items()}
    run = build({**cfg, "data": {**cfg["data"], "cache": None, **changed}}, classes_from_json(folder / "classes.json"))
    if run.splits.classes.names != run.classes.names:
        own, other = (set(names) for names in (run.classes.names, run.splits.classes.names))
        only = {"lacks": sorted(own - other), "has besides": sorted(other - own)}
        words = " and ".join(f"{what} {listed(names, 5)}" for what, names in only.items() if names) or "has them in another order"
        raise UserError(f"data: the classes differ from those that {folder} was trained on: what is given {words}")
    return run.load_weights(folder / "checkpoints" / f"{checkpoint}.ckpt")


def write_scores(
    folder: Path, classes: Classes, name: str, checkpoint: str, facts: Mapping[str, Any], logit_adjustment: float = 0.0
) -> dict[str, Any]:
    """Evaluate the stored predictions `name` and write scores.json (scores_<name>.json for others than those the run is judged by).

    `facts` are figures that predictions do not hold (cost, seed, versions); what is not given is kept from the run's scores.json.
    The temperature is fitted on the run's validation predictions, if there are any and they are not what is scored.
    """
    place, epoch = folder / "predictions" / name, epoch_of(folder, name)
    predictions, val_place = Predictions.read(place), place.with_name("val" + name.removeprefix("test").removesuffix("_other_data"))
    validation = Predictions.read(val_place) if name.startswith("test") and val_place.exists() else None
    if logit_adjustment:
        values = scores(predictions, classes, validation, -logit_adjustment * log_prior(classes.prior).where(classes.counts > 0, 0))
        values["logit_adjustment"] = logit_adjustment
        name = f"{name}_adjusted_{logit_adjustment:g}"
    else:
        values = scores(predictions, classes, validation)
        implied, implied_C = implied_prior(read_yaml(folder / "config.yaml")["loss"], classes, values["num_experts"])
        sets = agnostic(predictions, classes, implied_C, validation, read_views(place))
        if (features_NKD := read_features(place)) is not None:
            values["diversity"]["cka"] = linear_cka(features_NKD)
        values["agnostic"] = {"implied_prior": implied, "class_order": "training pictures", "sets": sets}
    main, own_name = folder / "scores.json", judged_by(folder)
    place = main if name == own_name else folder / f"scores_{name}.json"
    known, own = known_scores(main), known_scores(place)
    if place.exists() and not own:
        log.info(f"{place} was damaged: what it said of training is lost")
    measured = own | (known if name == own_name else {key: known[key] for key in OF_THE_MODEL if key in known})
    kept = {key: value for key, value in measured.items() if key not in values and key not in ("split", "checkpoint")}
    known_epoch = {} if epoch is None else {"checkpoint_epoch": epoch}
    content = {"split": name.split("_")[0], "checkpoint": checkpoint, **values, **known_epoch, **kept, **facts}
    write_durably(place, json.dumps(content, indent=1, ensure_ascii=False))
    show(content, place)
    return content


def implied_prior(node: Mapping[str, Any], classes: Classes, num_experts: int) -> tuple[str, Tensor]:
    """In words and as (C,): the class prior q that the mean of the raw logits implies after training with the loss `node`.

    A loss that adds b_k to the logits of expert k leaves z̄ = log p(x|y) + log π − mean_k b_k + const, so q ∝ exp(log π − mean_k b_k):
    uniform for MDCS, balanced softmax and BalPoE, π for plain cross-entropy. Of losses that add nothing it is taken to be π, whatever
    their weights and margins.
    """
    cls = resolve(node.get("_target_"), Loss, "loss")
    log_prior_C = log_prior(classes.prior)
    if hasattr(cls, "bias"):
        loss: Any = instantiate(node, Loss, "loss", classes=classes, num_experts=num_experts)
        log_prior_C = log_prior_C - loss.bias(torch.float64).mean(0)
    trained_C = classes.counts > 0
    implied_C = log_prior_C.masked_fill(~trained_C, -torch.inf).softmax(0)
    for words, prior_C in {"uniform": trained_C / trained_C.sum(), "training": classes.prior}.items():
        if torch.allclose(implied_C, prior_C.double(), atol=1e-6):
            return words if hasattr(cls, "bias") else f"{words} (assumed)", implied_C
    return "between uniform and training, or beyond", implied_C


def show(content: Mapping[str, Any], place: Path) -> None:
    """Print the scores as a table, with what one needs to know to believe them, and where they are: `place`, in the run folder."""
    chosen = "last epoch" if content["checkpoint"] == "last" else "best epoch on validation"
    epoch = f" ({content['checkpoint_epoch']})" if content.get("checkpoint_epoch") else ""
    shifted = f", logits less {content['logit_adjustment']:g} log prior" if content.get("logit_adjustment") else ""
    title = f"{content['split']} split{shifted}, n = {content['n']}, {chosen}{epoch}"
    table = Table(title=title, title_justify="left", caption_justify="left", title_style="bold")
    for column in ("accuracy in %", "overall", "many", "medium", "few", "balanced", "ECE"):
        table.add_column(column, justify="left" if column.startswith("accuracy") else "right")
    keys = ("accuracy", "accuracy_many", "accuracy_medium", "accuracy_few", "balanced_accuracy", "ece")
    rows = {"ensemble": content} | {f"expert {k}": expert for k, expert in enumerate(content["experts"], 1)}
    for name, row in rows.items():
        table.add_row(name, *("n/a" if row[key] is None else f"{100 * row[key]:.1f}" for key in keys))
    console = screen(record=True)
    console.print(table)
    if "seed" in content:
        words = {
            "K": content["num_experts"],
            "views": content["views"],
            "parameters": f"{content['parameters']:,}",
            "multiply-adds a picture": f"{content['macs_per_picture'] / 1e6:.4g} M",
            "seed": content["seed"],
        }
        if "wall_seconds" in content:
            words |= {
                "epochs": content["epochs"],
                "training": f"{content['wall_seconds']:.1f} s",
                "pictures/s": content["images_per_second"],
            }
            words |= {name: f"{content[key]:.3g}" for name, key in COST_IN_HOURS.items() if key in content}
            words |= {name: f"{content[key]:,} MiB" for name, key in COST_IN_MEMORY.items() if key in content}
        console.print(", ".join(f"{name} {value}" for name, value in words.items()), highlight=False, soft_wrap=True)
    own = place.name == "scores.json"
    console.print(f"run folder: {place.parent}" if own else f"scores: {place}", highlight=False, soft_wrap=True, markup=False)
    log.debug(f"scores\n{console.export_text()}")  # to run.log, while a run is on


def screen(record: bool = False) -> Console:
    """As wide as the terminal; a fixed width in files. `record` keeps what is printed."""
    return Console(width=None if Console().is_terminal else 120, record=record)


def agnostic_table(content: Mapping[str, Any]) -> Table:
    """Accuracy by test distribution, one column for each way to answer that there is."""
    caption = (
        "forward-r: the class most frequent in training is r times as frequent as the rarest; backward-r: the reverse. Class order: "
        f"number of {content['class_order']}. Prior that the mean of the logits implies: {content['implied_prior']}."
    )
    if any(row["em"] is not None for row in content["sets"]):
        caption += (
            " EM estimates the prior from the unlabelled pictures, as well as the confidences are right; of a few pictures a class, badly."
        )
    if any(row["agreement"] is not None for row in content["sets"]):
        caption += " SADE weights: experts weighted so that they answer alike to two strongly augmented views \\[weights in %]."
    title = "accuracy in % on other test distributions"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", title_style="bold")
    methods = [method for method in METHODS if any(row[method] is not None for row in content["sets"])]
    table.add_column("test distribution")
    for method in methods:
        table.add_column(METHODS[method], justify="right")
    for row in content["sets"]:
        spread = row.get("sd", {})
        cells = [f"{100 * row[method]:.1f}" + (f" ± {100 * spread[method]:.1f}" if spread else "") for method in methods]
        if "agreement_weights" in row:
            cells[methods.index("agreement")] += rf" \[{' '.join(f'{100 * weight:.0f}' for weight in row['agreement_weights'])}]"
        table.add_row(row["name"] + (", mean ± s.d. of 10" if spread else ""), *cells)
    return table
