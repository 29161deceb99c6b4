"""Accuracy of the ensemble and of each expert, by class and shot group, and its calibration, from stored predictions."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdcs.analysis.diversity import DiversitySums
from mdcs.evaluation.calibration import CalibrationSums, adaptive_ece, fit_temperature
from mdcs.evaluation.combine import combine
from mdcs.evaluation.predictions import Predictions
from mdcs.evaluation.significance import bootstrap_intervals
from mdcs.types import Classes

WORST_PAIRS = 20


def scores(
    predictions: Predictions, classes: Classes, validation: Predictions | None = None, offset_C: Tensor | None = None
) -> dict[str, Any]:
    """Everything in scores.json that follows from predictions (`logits` (N, K, C)) and training counts.

    p = softmax(z̄) with z̄ = mean_k z_k is the ensemble; `offset` (C,) is added to all logits before. Nothing here is larger than a chunk of
    logits or a few numbers a picture.

    accuracy            share of pictures that argmax z̄ gets right
    accuracy_many ...   mean recall of the group's classes that have pictures; None for a group without
    balanced_accuracy   mean recall over all classes that have pictures
    macro_f1            mean of 2 hits / (pictures + answers) over classes that have pictures or answers
    oracle_accuracy     share of pictures that at least one expert gets right
    ece, mce            calibration error, 15 equal-width bins: mean over pictures, and of the worst bin; `reliability` has the bins
    adaptive_ece        with 15 bins of equally many pictures
    nll, brier          means of −log p_y (nats) and of Σ_c (p_c − 1[c = y])², from 0 to 2
    temperature         `value` T fitted on `validation` (n pictures), with ECE and NLL of softmax(z̄/T); None without validation pictures
    confused            the 20 most frequent wrong (true class, answer) pairs
    ci                  95 % bootstrap intervals over pictures, see `bootstrap_intervals`
    """
    num_pictures, num_experts, num_classes = predictions.logits.shape
    temperature = fit_temperature(validation, classes, offset_C) if validation is not None and len(validation.labels) else None
    labels_N = torch.from_numpy(predictions.labels)
    answers_NJ = torch.empty(num_pictures, num_experts + 1, dtype=torch.int64)  # J = 0 is the ensemble, then the experts
    confidence_N = torch.empty(num_pictures)
    calibrations = [CalibrationSums() for _ in range(num_experts + 1)]
    diversity, tempered, nll, brier, tempered_nll = DiversitySums(classes), CalibrationSums(), 0.0, 0.0, 0.0
    for rows, logits_NKC in predictions.chunks(classes, offset_C):
        of_label = labels_N[rows, None]
        mean_NC = combine(logits_NKC)
        log_probs_NKC = logits_NKC.log_softmax(-1)
        for j, log_probs_NC in enumerate([mean_NC.log_softmax(-1), *log_probs_NKC.unbind(1)]):
            answers_NJ[rows, j] = torch.from_numpy(log_probs_NC.numpy().argmax(-1))  # NumPy's argmax is several times as fast
            confidences_N = log_probs_NC.gather(1, answers_NJ[rows, j, None])[:, 0].exp()
            calibrations[j].update(confidences_N, answers_NJ[rows, j] == labels_N[rows])
            if j == 0:
                confidence_N[rows] = confidences_N
                log_prob_N = log_probs_NC.gather(1, of_label)[:, 0].double()
                nll -= log_prob_N.sum().item()
                brier += (log_probs_NC.exp().square().sum(-1) - 2 * log_prob_N.exp() + 1).sum().item()
        if temperature is not None:
            log_probs_NC = (mean_NC / temperature).log_softmax(-1)
            tempered.update(log_probs_NC.gather(1, answers_NJ[rows, :1])[:, 0].exp(), answers_NJ[rows, 0] == labels_N[rows])
            tempered_nll -= log_probs_NC.gather(1, of_label).sum(dtype=torch.float64).item()
        diversity.update(log_probs_NKC, labels_N[rows])

    hit_NJ = answers_NJ == labels_N[:, None]
    support_C = torch.bincount(labels_N, minlength=num_classes)
    hits_JC = [torch.bincount(labels_N[hit_N], minlength=num_classes) for hit_N in hit_NJ.T]
    of_J = [summary(hits_C, support_C, classes) | {"ece": sums.ece()} for hits_C, sums in zip(hits_JC, calibrations, strict=True)]
    recall_C = [hits / n if n else None for hits, n in zip(hits_JC[0].tolist(), support_C.tolist(), strict=True)]
    table = zip(classes.names, classes.counts.tolist(), support_C.tolist(), recall_C, strict=True)
    per_picture = max(num_pictures, 1)
    after = {"value": temperature, "ece": tempered.ece(), "nll": tempered_nll / per_picture}
    return {
        "n": num_pictures,
        "test_set_sha256": predictions.sha256(),
        **of_J[0],
        "macro_f1": macro_f1(hits_JC[0], support_C, torch.bincount(answers_NJ[:, 0], minlength=num_classes)),
        "oracle_accuracy": hit_NJ[:, 1:].any(1).double().mean().item() if num_pictures else None,
        "mce": calibrations[0].mce(),
        "adaptive_ece": adaptive_ece(confidence_N, hit_NJ[:, 0]),
        "nll": nll / per_picture if num_pictures else None,
        "brier": brier / per_picture if num_pictures else None,
        "temperature": after | {"n": len(validation.labels)} if validation is not None and temperature is not None else None,
        "ci": bootstrap_intervals(labels_N, hit_NJ[:, 0], confidence_N, classes),
        "per_class": [{"name": name, "train_count": count, "n": n, "accuracy": recall} for name, count, n, recall in table],
        "experts": of_J[1:],
        "diversity": diversity.table(),
        "reliability": calibrations[0].reliability(),
        "confused": worst_pairs(labels_N, answers_NJ[:, 0], classes),
        "num_experts": num_experts,
    }


def summary(hits_C: Tensor, support_C: Tensor, classes: Classes) -> dict[str, float | None]:
    """Overall, group and balanced accuracy from right answers and pictures per class."""
    seen = support_C > 0
    recall_C = hits_C.double() / support_C.clamp(min=1)

    def mean_recall(group_C: Tensor) -> float | None:
        return recall_C[group_C & seen].mean().item() if (group_C & seen).any() else None

    overall = hits_C.sum().item() / support_C.sum().item() if seen.any() else None
    groups = {f"accuracy_{name}": mean_recall(group_C) for name, group_C in classes.groups.items()}
    return {"accuracy": overall, **groups, "balanced_accuracy": mean_recall(seen)}


def macro_f1(hits_C: Tensor, support_C: Tensor, answers_C: Tensor) -> float | None:
    """Mean over classes of 2 hits / (pictures + answers); a class with neither does not count, as in scikit-learn."""
    both_C = support_C + answers_C
    return (2 * hits_C.double() / both_C)[both_C > 0].mean().item() if both_C.any() else None


def worst_pairs(labels_N: Tensor, answers_N: Tensor, classes: Classes) -> list[dict[str, Any]]:
    """The 20 most frequent wrong (true, predicted) pairs, ties in the order of the classes; counted sparsely, without a (C, C) matrix."""
    wrong_N = labels_N != answers_N
    codes, counts = np.unique((labels_N[wrong_N] * len(classes) + answers_N[wrong_N]).numpy(), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:WORST_PAIRS]
    pairs = [(*divmod(int(codes[i]), len(classes)), int(counts[i])) for i in order]
    return [{"true": classes.names[true], "predicted": classes.names[answer], "count": count} for true, answer, count in pairs]
