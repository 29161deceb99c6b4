"""What a report says about one run, read from its folder: numbers for each picture, and tables that figures are drawn from."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mdcs.analysis.diversity import DiversitySums
from mdcs.config import read_yaml
from mdcs.errors import UserError
from mdcs.evaluation.calibration import CalibrationSums
from mdcs.evaluation.combine import combine
from mdcs.evaluation.comparison import choice_of
from mdcs.evaluation.predictions import Predictions, classes_from_json, read_scores
from mdcs.evaluation.scores import worst_pairs
from mdcs.types import Classes

GROUPS = ("many", "medium", "few")
MEASURES = ("accuracy", *(f"accuracy_{group}" for group in GROUPS), "balanced_accuracy", "ece")
SPLITS = {"train": "training", "val": "validation", "test": "test"}  # in words
Row = dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """One run. J = K + 1 answerers: the ensemble, then the experts."""

    folder: Path
    config: dict[str, Any]
    classes: Classes
    scores: dict[str, Any]
    metrics: list[Row]
    predictions: Predictions
    answers_NJ: NDArray[np.int64]
    confidence_NJ: NDArray[np.float32]  # softmax of each answerer, at its answer
    diversity: DiversitySums
    reliability_sums: CalibrationSums

    @property
    def num_experts(self) -> int:
        return self.answers_NJ.shape[1] - 1

    @property
    def answerers(self) -> list[str]:
        """Their names."""
        return ["ensemble", *(f"expert {k}" for k in range(1, self.num_experts + 1))]

    @property
    def provenance(self) -> str:
        """What one needs to know to believe a number: pictures, seed, and how the weights were chosen."""
        chosen = "last epoch" if self.scores["checkpoint"] == "last" else "best epoch on validation"
        epoch = f" ({self.scores['checkpoint_epoch']})" if self.scores.get("checkpoint_epoch") else ""
        return f"n = {len(self.predictions.labels):,} {self.split} pictures, seed {self.config['seed']}, {chosen}{epoch}"

    @property
    def split(self) -> str:
        """What the run is judged on, in a word: test, or validation."""
        return SPLITS[self.scores["split"]]

    @cached_property
    def support_C(self) -> NDArray[np.int64]:
        """Pictures of each class."""
        return np.bincount(self.predictions.labels, minlength=len(self.classes))

    @cached_property
    def hits_JC(self) -> NDArray[np.int64]:
        """Right answers of each answerer by class."""
        labels = self.predictions.labels
        return np.stack([np.bincount(labels[answers_N == labels], minlength=len(self.classes)) for answers_N in self.answers_NJ.T])

    @cached_property
    def groups(self) -> list[str]:
        """(C) the shot group of each class."""
        masks = {name: mask_C.tolist() for name, mask_C in self.classes.groups.items()}
        return [next(name for name in GROUPS if masks[name][c]) for c in range(len(self.classes))]

    def class_rows(self) -> list[Row]:
        """For each class: name, group, train_count, n, accuracy of the ensemble (None without pictures), experts (K)."""
        recall_CJ = [
            [int(hits) / n if n else None for hits in hits_J] for hits_J, n in zip(self.hits_JC.T, self.support_C.tolist(), strict=True)
        ]
        columns = zip(self.classes.names, self.groups, self.classes.counts.tolist(), self.support_C.tolist(), recall_CJ, strict=True)
        names = ("name", "group", "train_count", "n")
        return [dict(zip(names, known, strict=True)) | {"accuracy": recall_J[0], "experts": recall_J[1:]} for *known, recall_J in columns]

    def measure_rows(self) -> list[Row]:
        """For the ensemble and each expert: MEASURES, and under "ci" the intervals where there are any."""
        rows = [{"of": name} | {key: of.get(key) for key in MEASURES} for name, of in zip(self.answerers, self._of_answerers, strict=True)]
        rows[0]["ci"] = self.scores.get("ci") or {}
        return rows

    @property
    def _of_answerers(self) -> list[Mapping[str, Any]]:
        return [self.scores, *self.scores["experts"]]

    @property
    def cka(self) -> list[list[float]] | None:
        """(K, K) similarity of the experts' features; None where they are not stored, for one expert, and for features that do not vary."""
        stored: list[list[float]] | None = self.scores["diversity"].get("cka") if self.num_experts > 1 else None
        return None if stored is None or any(value is None for row in stored for value in row) else stored

    def group_sizes(self) -> dict[str, int]:
        """Classes of each shot group that have pictures."""
        return {name: sum(g == name and n > 0 for g, n in zip(self.groups, self.support_C.tolist(), strict=True)) for name in GROUPS}

    def reliability(self) -> list[Row]:
        """The bins of the ensemble's confidence: count, confidence, accuracy."""
        stored: list[Row] | None = self.scores.get("reliability")
        return stored or self.reliability_sums.reliability()

    def agnostic(self) -> list[Row]:
        """Accuracy where classes are otherwise frequent; none where scores.json has none."""
        sets: list[Row] = (self.scores.get("agnostic") or {}).get("sets", [])
        return sets

    def confused(self) -> list[Row]:
        """The most frequent wrong pairs: true, predicted, count."""
        stored: list[Row] | None = self.scores.get("confused")
        answers, labels = torch.from_numpy(self.answers_NJ[:, 0]), torch.from_numpy(self.predictions.labels)
        return stored if stored is not None else worst_pairs(labels, answers, self.classes)

    def curves(self) -> dict[str, dict[str, list[tuple[float, float]]]]:
        """Training curves by panel and name: (epoch, value); columns of metrics.csv without values are left out."""
        panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for panel, columns in curve_columns(self.num_experts).items():
            scale = 100 if "%" in panel else 1
            for name, column in columns.items():
                points = [(row["epoch"], scale * row[column]) for row in self.metrics if None not in (row.get(column), row.get("epoch"))]
                if points:
                    panels.setdefault(panel, {})[name] = points
        return panels

    def confident_mistakes(self, most: int) -> list[int]:
        """Pictures that the ensemble gets wrong, the most confident first."""
        wrong_N = np.flatnonzero(self.answers_NJ[:, 0] != self.predictions.labels)
        order = np.argsort(-self.confidence_NJ[wrong_N, 0], kind="stable")
        return [int(n) for n in wrong_N[order[:most]]]

    def only_one_right(self, most: int) -> list[tuple[int, int]]:
        """(picture, expert from 1): pictures that no other expert gets right, the most confident first, as many of each expert."""
        hits_NK = self.answers_NJ[:, 1:] == self.predictions.labels[:, None]
        found = []
        for k in range(self.num_experts if self.num_experts > 1 else 0):
            alone_N = np.flatnonzero(hits_NK[:, k] & (hits_NK.sum(1) == 1))
            order = np.argsort(-self.confidence_NJ[alone_N, k + 1], kind="stable")
            found += [(int(n), k + 1) for n in alone_N[order[: max(1, most // self.num_experts)]]]
        return found[:most]


def curve_columns(num_experts: int) -> dict[str, dict[str, str]]:
    """Panels of the training curves, named "quantity in unit, of what": columns of metrics.csv by their names in words."""
    experts = {f"expert {k}": str(k) for k in range(1, num_experts + 1)}
    groups = {f"{group}-shot classes": group for group in GROUPS}
    differences = {"pairs disagree": "disagreement", "s.d. of class recall": "recall_sd", "any expert right − ensemble": "oracle_gap"}
    return {
        "loss": {"total": "train/loss", "diversity": "train/diversity", "consistency": "train/consistency"},
        "accuracy in %": {"training": "train/acc", "validation": "val/acc"},
        "confident pictures in %, by shot group": {name: f"train/confident_{group}" for name, group in groups.items()},
        "confident pictures in %, by expert": {name: f"train/confident_{k}" for name, k in experts.items()},
        "validation accuracy in %, by shot group": {name: f"val/acc_{group}" for name, group in groups.items()},
        "validation accuracy in %, by expert": {name: f"val/acc_expert_{k}" for name, k in experts.items() if num_experts > 1},
        "difference of the experts in %, on validation": {name: f"val/{column}" for name, column in differences.items()},
        "pairs that disagree in %, by shot group, on validation": {name: f"val/disagreement_{group}" for name, group in groups.items()},
    }


def read_contents(folder: Path) -> Contents:
    """The run in `folder`, in one walk over its stored predictions; UserError says what is missing."""
    for name, remedy in {"config.yaml": "it is not a run folder", "scores.json": f"`mdcs evaluate run={folder}` writes it"}.items():
        if not (folder / name).exists():
            raise UserError(f"{folder} has no {name}: {remedy}")
    classes = classes_from_json(folder / "classes.json")
    scores = read_scores(folder)
    predictions = Predictions.read(folder / "predictions" / scores["split"])
    num_pictures, num_experts, _ = predictions.logits.shape
    answers_NJ = np.empty((num_pictures, num_experts + 1), dtype=np.int64)
    confidence_NJ = np.empty((num_pictures, num_experts + 1), dtype=np.float32)
    diversity, calibration, labels_N = DiversitySums(classes), CalibrationSums(), torch.from_numpy(predictions.labels)
    for rows, logits_NKC in predictions.chunks(classes):
        log_probs_NKC = logits_NKC.log_softmax(-1)
        for j, log_probs_NC in enumerate([combine(logits_NKC).log_softmax(-1), *log_probs_NKC.unbind(1)]):
            answers_NJ[rows, j] = log_probs_NC.numpy().argmax(-1)
            confidence_NJ[rows, j] = log_probs_NC.amax(-1).exp().numpy()
        calibration.update(torch.from_numpy(confidence_NJ[rows, 0]), torch.from_numpy(answers_NJ[rows, 0]) == labels_N[rows])
        diversity.update(log_probs_NKC, labels_N[rows])
    config, metrics = read_yaml(folder / "config.yaml"), read_metrics(folder / "metrics.csv")
    return Contents(folder, config, classes, scores, metrics, predictions, answers_NJ, confidence_NJ, diversity, calibration)


def read_metrics(path: Path) -> list[Row]:
    """The rows of metrics.csv as numbers, None where a cell is empty or not finite; none without the file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: number(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def number(cell: str | None) -> float | None:
    """A cell as a finite number, or None."""
    try:
        value = float(cell or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_all(folders: Sequence[Path]) -> dict[str, Contents]:
    """Runs by name: that of the folder and, where their losses differ, that of the loss."""
    contents = [read_contents(folder) for folder in folders]
    losses = [choice_of(run.config, "loss") for run in contents]
    names = run_names(folders)
    if len(set(losses)) > 1:
        names = [name if loss in name else f"{loss}, {name}" for loss, name in zip(losses, names, strict=True)]
    return dict(zip(names, contents, strict=True))


def run_names(folders: Sequence[Path]) -> list[str]:
    """As few of the last parts of each path as tell the folders apart, but at least two where the last one is a date."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names) and not (depth == 1 and any(name[:2].isdigit() for name in names)):
            return names
    return [str(folder) for folder in folders]
