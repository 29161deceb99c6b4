"""Accuracy of the ensemble and of each expert, by class and shot group, from stored predictions."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdcs.analysis.diversity import DiversitySums
from mdcs.evaluation.calibration import CalibrationSums
from mdcs.evaluation.combine import combine
from mdcs.evaluation.predictions import Predictions
from mdcs.types import Classes

UNTRAINED = -1e4  # logit of a class that had no training picture (loss.mask_empty): it cannot be the answer
CHUNK = 2**24  # logits looked at at once: 64 MiB of float32


def scores(predictions: Predictions, classes: Classes) -> dict[str, Any]:
    """Everything in scores.json that follows from predictions (`logits` (N, K, C)) and training counts.

    accuracy            share of pictures that argmax mean_k z_k gets right
    accuracy_many ...   mean recall of the group's classes that have pictures; None for a group without
    balanced_accuracy   mean recall over all classes that have pictures
    ece                 expected calibration error of softmax(mean_k z_k), 15 bins
    """
    num_pictures, num_experts, num_classes = predictions.logits.shape
    hits_JC = torch.zeros(num_experts + 1, num_classes, dtype=torch.int64)
    support_C = torch.bincount(torch.from_numpy(predictions.labels), minlength=num_classes)
    calibrations = [CalibrationSums() for _ in range(num_experts + 1)]
    diversity = DiversitySums()
    step = max(1, CHUNK // (num_experts * num_classes))
    for start in range(0, num_pictures, step):
        logits_NKC = torch.from_numpy(np.asarray(predictions.logits[start : start + step], dtype=np.float32))
        logits_NKC[..., classes.counts == 0] = UNTRAINED
        labels_N = torch.from_numpy(predictions.labels[start : start + step])
        log_probs_NKC = logits_NKC.log_softmax(-1)
        answers = [combine(logits_NKC).log_softmax(-1), *log_probs_NKC.unbind(1)]
        for j, log_probs_NC in enumerate(answers):
            log_confidence_N, answer_N = log_probs_NC.max(-1)
            hit_N = answer_N == labels_N
            hits_JC[j] += torch.bincount(labels_N[hit_N], minlength=num_classes)
            calibrations[j].update(log_confidence_N.exp(), hit_N)
        diversity.update(log_probs_NKC)

    of_J = [summary(hits_JC[j], support_C, classes) | {"ece": calibrations[j].ece()} for j in range(num_experts + 1)]
    recall_C = [hits / n if n else None for hits, n in zip(hits_JC[0].tolist(), support_C.tolist(), strict=True)]
    table = zip(classes.names, classes.counts.tolist(), support_C.tolist(), recall_C, strict=True)
    return {
        "n": num_pictures,
        "test_set_sha256": predictions.sha256(),
        **of_J[0],
        "per_class": [{"name": name, "train_count": count, "n": n, "accuracy": recall} for name, count, n, recall in table],
        "experts": of_J[1:],
        "diversity": diversity.means(),
        "num_experts": num_experts,
    }


def summary(hits_C: Tensor, support_C: Tensor, classes: Classes) -> dict[str, float | None]:
    """Overall, group and balanced accuracy from right answers and pictures per class."""
    seen = support_C > 0
    recall_C = hits_C / support_C.clamp(min=1)

    def mean_recall(group_C: Tensor) -> float | None:
        return recall_C[group_C & seen].mean(dtype=torch.float64).item() if (group_C & seen).any() else None

    overall = hits_C.sum().item() / support_C.sum().item() if seen.any() else None
    groups = {f"accuracy_{name}": mean_recall(group_C) for name, group_C in classes.groups.items()}
    return {"accuracy": overall, **groups, "balanced_accuracy": mean_recall(seen)}
