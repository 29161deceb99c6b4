"""Scores against what the published test.py logged and against independent libraries; combination, diversity, stored form."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, log_loss
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from conftest import ROOT, golden
from mdcs.analysis.diversity import DiversitySums
from mdcs.errors import UserError
from mdcs.evaluation import predictions as predictions_module
from mdcs.evaluation.calibration import CalibrationSums, adaptive_ece, fit_temperature
from mdcs.evaluation.combine import combine
from mdcs.evaluation.predictions import Predictions, classes_from_json, classes_to_json, merge_shards, stored, write_shard
from mdcs.evaluation.scores import scores
from mdcs.types import Classes

LOGGED = golden("evaluation.json")
VECTORS = golden("evaluation.npz")


def classes_of(counts, **thresholds: int) -> Classes:
    return Classes(tuple(f"class {c}" for c in range(len(counts))), torch.as_tensor(counts), **thresholds)


def predictions_of(logits_NKC: Tensor, labels_N: Tensor) -> Predictions:
    index = np.arange(len(labels_N))
    return Predictions(logits_NKC.numpy(), labels_N.numpy(), index, [f"{i}.png" for i in index])


def example(num_pictures: int = 400, num_experts: int = 3, num_classes: int = 7) -> tuple[Tensor, Tensor]:
    """Answers that are often right, of experts who often agree."""
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.randint(0, num_classes, (num_pictures,), generator=generator)
    shared_NC = torch.randn(num_pictures, num_classes, generator=generator) + F.one_hot(labels_N, num_classes)
    return shared_NC[:, None] + torch.randn(num_pictures, num_experts, num_classes, generator=generator), labels_N


# ---------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("name", LOGGED)
def test_golden(name: str) -> None:
    logged, counts = LOGGED[name], VECTORS[f"{name}/train_counts"]
    ours = scores(Predictions(VECTORS[f"{name}/logits"], VECTORS[f"{name}/target"], np.arange(0), []), classes_of(counts))
    assert ours["accuracy"] == pytest.approx(logged["accuracy"], abs=1e-6)
    for group in ("many", "medium", "few"):
        expected = logged[f"{group}_shot_acc"]
        assert ours[f"accuracy_{group}"] == (None if expected is None else pytest.approx(expected, abs=1e-6))
    recall = [row["accuracy"] for row in ours["per_class"]]
    assert recall == pytest.approx(VECTORS[f"{name}/class_recall"].tolist(), abs=1e-6)


def test_a_golden_case_has_no_few_shot_class() -> None:
    assert LOGGED["c10_if100"]["few_shot_acc"] is None


def test_independent_libraries() -> None:
    logits_NKC, labels_N = example()
    ours = scores(predictions_of(logits_NKC, labels_N), classes_of([90, 50, 30, 20, 9, 4, 1]))
    recall_C = multiclass_accuracy(logits_NKC.mean(1), labels_N, 7, average=None)
    assert [row["accuracy"] for row in ours["per_class"]] == pytest.approx(recall_C.tolist(), abs=1e-6)
    for answer, logits_NC in zip([ours, *ours["experts"]], [logits_NKC.mean(1), *logits_NKC.unbind(1)], strict=True):
        accuracy = multiclass_accuracy(logits_NC, labels_N, 7, average="micro")
        ece = multiclass_calibration_error(logits_NC.softmax(-1), labels_N, 7, n_bins=15, norm="l1")
        assert answer["accuracy"] == pytest.approx(accuracy.item(), abs=1e-6)
        assert answer["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels_N, logits_NC.argmax(-1)), abs=1e-6)
        assert answer["ece"] == pytest.approx(ece.item(), abs=1e-6)
    assert len(ours["experts"]) == ours["num_experts"] == 3 and ours["n"] == 400
    assert ours["per_class"][2] | {"accuracy": 0} == {"name": "class 2", "train_count": 30, "n": int((labels_N == 2).sum()), "accuracy": 0}


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = scores(predictions_of(*example()), classes_of([150, 120, 30, 20, 9, 4, 1]))
    monkeypatch.setattr(predictions_module, "CHUNK", 3 * 7 * 150)  # 150 + 150 + 100 pictures
    in_chunks = scores(predictions_of(*example()), classes_of([150, 120, 30, 20, 9, 4, 1]))
    one, other = in_chunks.pop("diversity"), at_once.pop("diversity")
    assert one.keys() == other.keys() and all(one[key] == pytest.approx(other[key], rel=1e-6) for key in ("disagreement", "kl"))
    for one, other in zip([at_once, *at_once.pop("experts")], [in_chunks, *in_chunks.pop("experts")], strict=True):
        assert one.pop("ece") == pytest.approx(other.pop("ece"), rel=1e-6)
        assert one == other


def test_one_expert_has_no_diversity() -> None:
    ours = scores(predictions_of(*example(num_experts=1)), classes_of([9] * 7))
    assert ours["diversity"]["disagreement"] is None and ours["diversity"]["kl"] is None
    assert ours["experts"][0] == {key: ours[key] for key in ours["experts"][0]}


def test_classes_without_test_pictures_do_not_count() -> None:
    logits_NKC, labels_N = example()
    keep_N = ~torch.isin(labels_N, torch.tensor([1, 6]))
    ours = scores(predictions_of(logits_NKC[keep_N], labels_N[keep_N]), classes_of([150, 120, 30, 20, 19, 9, 1], few_below=5))
    recall = [row["accuracy"] for row in ours["per_class"]]
    assert recall[1] is None and recall[6] is None and ours["per_class"][6]["n"] == 0
    assert ours["accuracy_few"] is None  # class 6 is the only one
    assert ours["accuracy_many"] == pytest.approx(recall[0])
    assert ours["balanced_accuracy"] == pytest.approx(np.mean([recall[c] for c in (0, 2, 3, 4, 5)]))


def test_more_scores_against_independent_libraries() -> None:
    logits_NKC, labels_N = example()
    ours = scores(predictions_of(logits_NKC, labels_N), classes_of([90, 50, 30, 20, 9, 4, 1]))
    probs, answers = logits_NKC.mean(1).double().softmax(-1), logits_NKC.mean(1).argmax(-1)
    assert ours["macro_f1"] == pytest.approx(f1_score(labels_N, answers, average="macro"), abs=1e-9)
    assert ours["nll"] == pytest.approx(log_loss(labels_N, probs, labels=range(7)), rel=1e-6)
    assert ours["brier"] == pytest.approx(brier_score_loss(labels_N, probs.numpy(), scale_by_half=False), rel=1e-6)
    mce = multiclass_calibration_error(probs, labels_N, 7, n_bins=15, norm="max")
    assert ours["mce"] == pytest.approx(mce.item(), abs=1e-6) and ours["mce"] > ours["ece"]
    assert ours["oracle_accuracy"] == pytest.approx((logits_NKC.argmax(-1) == labels_N[:, None]).any(1).double().mean().item())
    assert ours["oracle_accuracy"] > max(expert["accuracy"] for expert in ours["experts"])


def test_macro_f1_of_a_class_without_pictures_is_that_of_scikit_learn() -> None:
    logits_NKC, labels_N = example()
    for absent in (0, 6):  # answered though absent: it counts as 0; never answered either: it does not count
        keep_N = labels_N != absent
        changed_NKC = logits_NKC[keep_N].clone()
        changed_NKC[..., absent] -= 1e4 if absent == 6 else 0
        ours = scores(predictions_of(changed_NKC, labels_N[keep_N]), classes_of([9] * 7))
        expected = f1_score(labels_N[keep_N], changed_NKC.mean(1).argmax(-1), average="macro")
        assert ours["macro_f1"] == pytest.approx(expected, abs=1e-9)


def test_worst_pairs_are_those_of_the_confusion_matrix() -> None:
    logits_NKC, labels_N = example(2000)
    pairs = scores(predictions_of(logits_NKC, labels_N), classes_of([9] * 7))["confused"]
    matrix = np.zeros((7, 7), dtype=int)
    np.add.at(matrix, (labels_N.numpy(), logits_NKC.mean(1).argmax(-1).numpy()), 1)
    np.fill_diagonal(matrix, 0)
    assert [pair["count"] for pair in pairs] == np.sort(matrix.ravel())[::-1][:20].tolist()
    for pair in pairs:
        assert matrix[int(pair["true"][-1]), int(pair["predicted"][-1])] == pair["count"]


def test_reliability_is_the_ece() -> None:
    ours = scores(predictions_of(*example()), classes_of([9] * 7))
    rows = [row for row in ours["reliability"] if row["count"]]
    assert len(ours["reliability"]) == 15 and sum(row["count"] for row in rows) == 400
    assert ours["ece"] == pytest.approx(sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / 400)
    assert ours["reliability"][0] == {"count": 0, "confidence": None, "accuracy": None}  # 7 classes: no confidence below 1/7
    for number, row in enumerate(ours["reliability"]):
        assert not row["count"] or number / 15 < row["confidence"] <= (number + 1) / 15


def test_adaptive_ece_by_hand() -> None:
    random = np.random.RandomState(0)
    confidence, hit = random.permutation(np.linspace(0.2, 0.9, 30)).astype(np.float32), random.rand(30) < 0.5
    order = np.argsort(confidence)
    expected = np.mean([abs(confidence[order[i : i + 2]].mean() - hit[order[i : i + 2]].mean()) for i in range(0, 30, 2)])
    assert adaptive_ece(torch.from_numpy(confidence), torch.from_numpy(hit)) == pytest.approx(expected, rel=1e-6)
    assert adaptive_ece(torch.full((45,), 0.5), torch.arange(45) % 3 == 0) == pytest.approx(1 / 6)
    assert adaptive_ece(torch.tensor([]), torch.tensor([], dtype=torch.bool)) is None


def test_temperature_is_the_minimum_that_scipy_finds() -> None:
    logits_NKC, labels_N = example(1000)
    validation = predictions_of(4 * logits_NKC, labels_N)
    found = fit_temperature(validation, classes_of([9] * 7))
    mean_NC = (4 * logits_NKC).mean(1).double()
    best = minimize_scalar(lambda t: F.cross_entropy(mean_NC / t, labels_N).item(), bounds=(0.05, 20), options={"xatol": 1e-8})
    assert found == pytest.approx(best.x, rel=1e-4) and found > 2

    test_NKC, test_labels_N = example(300)
    ours = scores(predictions_of(4 * test_NKC, test_labels_N), classes_of([9] * 7), validation)
    log_probs_NC = (4 * test_NKC.mean(1) / found).log_softmax(-1)
    sums = CalibrationSums()
    sums.update(log_probs_NC.amax(-1).exp(), log_probs_NC.argmax(-1) == test_labels_N)
    expected = {"value": found, "n": 1000, "ece": sums.ece(), "nll": F.nll_loss(log_probs_NC, test_labels_N).item()}
    assert ours["temperature"] == pytest.approx(expected, rel=1e-5)
    assert ours["temperature"]["nll"] < ours["nll"] and ours["temperature"]["ece"] < ours["ece"]
    assert scores(predictions_of(*example(20)), classes_of([9] * 7))["temperature"] is None


@pytest.mark.parametrize(("sign", "end"), [(1, 0.05), (-1, 20)])
def test_temperature_of_a_perfect_and_of_a_hopeless_classifier_ends_at_a_bound(sign: int, end: float) -> None:
    labels_N = torch.arange(40) % 7
    validation = predictions_of(sign * F.one_hot(labels_N, 7)[:, None].float(), labels_N)
    assert fit_temperature(validation, classes_of([9] * 7)) == pytest.approx(end, rel=0.1)


def test_no_pictures_are_no_scores() -> None:
    logits_NKC, labels_N = example(5)
    ours = scores(predictions_of(logits_NKC[:0], labels_N[:0]), classes_of([9] * 7))
    for name in ("accuracy", "macro_f1", "oracle_accuracy", "ece", "mce", "adaptive_ece", "nll", "brier", "temperature"):
        assert ours[name] is None, name
    assert ours["ci"]["accuracy"] is None and ours["confused"] == []


# ---------------------------------------------------------------------------------------------------------------- experts


def test_combine_is_the_mean_of_the_logits_or_a_weighted_one() -> None:
    logits_NKC, _ = example()
    torch.testing.assert_close(combine(logits_NKC), logits_NKC.sum(1) / 3)
    weighted = combine(logits_NKC, torch.tensor([1.0, 0.0, 3.0]))
    torch.testing.assert_close(weighted, 0.25 * logits_NKC[:, 0] + 0.75 * logits_NKC[:, 2])
    torch.testing.assert_close(combine(logits_NKC, torch.full((3,), 5.0)), combine(logits_NKC))


def test_diversity_is_a_mean_over_pictures_and_pairs() -> None:
    logits_NKC, _ = example(20)
    probs = logits_NKC.double().softmax(-1)
    disagreements, divergences = [], []
    for n in range(20):
        for j in range(3):
            for k in range(3):
                if j != k:
                    disagreements.append(bool(probs[n, j].argmax() != probs[n, k].argmax()))
                    divergences.append(sum(p * math.log(p / q) for p, q in zip(probs[n, j].tolist(), probs[n, k].tolist(), strict=True)))
    sums = DiversitySums()
    for chunk_NKC in logits_NKC.split(8):
        sums.update(chunk_NKC.log_softmax(-1))
    assert sums.means() == pytest.approx({"disagreement": np.mean(disagreements), "kl": np.mean(divergences)}, rel=1e-5)
    assert 0 < np.mean(disagreements) < 1


# ---------------------------------------------------------------------------------------------------------------- stored form


def cosine_logits(rows: int = 500, features: int = 64, num_classes: int = 8142) -> Tensor:
    """(rows, 1, C) logits 30·cos, pictures lying close to the middle of two classes."""
    generator = torch.Generator().manual_seed(0)
    weight_CD = F.normalize(torch.randn(num_classes, features, generator=generator), dim=1)
    middle_ND = weight_CD[:rows] + weight_CD[rows : 2 * rows] * torch.linspace(0.99, 1.01, rows)[:, None]
    return 30 * (F.normalize(middle_ND, dim=1) @ weight_CD.T)[:, None]


def test_stored_logits_keep_the_answer_where_plain_float16_loses_it() -> None:
    logits_NKC = cosine_logits()
    kept = torch.from_numpy(stored(logits_NKC))
    answer = logits_NKC.argmax(-1)
    assert torch.equal(kept.argmax(-1), answer)
    assert ((kept == kept.amax(-1, keepdim=True)).sum(-1) == 1).all()
    plain = logits_NKC.half()
    assert ((plain == plain.amax(-1, keepdim=True)).sum(-1) > 1).sum() > 10  # ties
    assert (plain.argmax(-1) != answer).any()


def test_stored_logits_keep_the_probabilities() -> None:
    logits_NKC = 30 + 5 * example()[0]
    kept = stored(logits_NKC)
    assert kept.dtype == np.float16 and kept.max() == 0
    torch.testing.assert_close(torch.from_numpy(kept).float().softmax(-1), logits_NKC.softmax(-1), rtol=0.01, atol=1e-3)
    assert np.isfinite(stored(torch.tensor([[[1e5, 0.0, 9e4]]])).max())  # float16 ends at 65504


def write(folder: Path, logits: np.ndarray, labels: np.ndarray, order: np.ndarray) -> None:
    """Three ranks write the pictures that `order` gives them."""
    for rank, index in enumerate(np.array_split(order, 3)):
        write_shard(folder, rank, logits[index], index)
    merge_shards(folder, 3, labels, [f"bücher, 图片/{i}.png" for i in range(len(labels))])


def test_shards_of_three_ranks_come_back_in_order(tmp_path: Path) -> None:
    logits, labels = stored(example(40)[0]), np.arange(40) % 7
    write(tmp_path / "predictions" / "test", logits, labels, np.random.RandomState(0).permutation(40))
    read = Predictions.read(tmp_path / "predictions" / "test")
    assert np.array_equal(read.logits, logits) and isinstance(read.logits, np.memmap)
    assert np.array_equal(read.labels, labels) and np.array_equal(read.index, np.arange(40))
    assert read.paths[7] == "bücher, 图片/7.png" and len(read.paths) == 40
    files = sorted(file.name for file in (tmp_path / "predictions").rglob("*") if file.is_file())
    assert files == ["index.npy", "labels.npy", "logits.npy", "paths.txt"]


@pytest.mark.parametrize("where", ["shard", "merge", "deletion"])
def test_an_interrupted_write_leaves_whole_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    def interrupted_deletion(old: Path, **named: object) -> None:
        if old.exists():
            (old / "logits.npy").unlink()
            raise KeyboardInterrupt

    folder, logits, labels = tmp_path / "test", stored(example(40)[0]), np.arange(40) % 7
    newer, order = logits + np.float16(1), np.arange(40)
    write(folder, logits, labels, order)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if where == "deletion":
            patched.setattr(predictions_module.shutil, "rmtree", interrupted_deletion)
        else:
            patched.setattr(*{"shard": (np, "save"), "merge": (np.lib.format, "open_memmap")}[where], interrupted)
        write(folder, newer, labels, order)
    assert np.array_equal(Predictions.read(folder).logits, newer if where == "deletion" else logits)
    write(folder, newer, labels, order)
    assert np.array_equal(Predictions.read(folder).logits, newer)
    assert [file.name for file in tmp_path.iterdir()] == ["test"]


def test_a_picture_that_nobody_predicted_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="predicted once"):
        write(tmp_path / "test", stored(example(40)[0]), np.zeros(40, dtype=np.int64), np.r_[np.arange(39), 0])
    with pytest.raises(UserError, match="no stored predictions there"):
        Predictions.read(tmp_path / "test")


def test_sha256_names_the_test_set() -> None:
    base = predictions_of(*example(10))
    assert base._replace(logits=base.logits[::-1], index=base.index[::-1]).sha256() == base.sha256()
    others = [base._replace(labels=base.labels[::-1].copy()), base._replace(paths=[*base.paths[1:], "x.png"])]
    assert len({of.sha256() for of in (base, *others)}) == 3


def test_classes_survive_their_file(tmp_path: Path) -> None:
    classes = Classes(("蜂", 'a "b"'), torch.tensor([30, 2]), many_above=20, few_below=3)
    (tmp_path / "classes.json").write_text(classes_to_json(classes, (33, 2)), encoding="utf-8")
    read = classes_from_json(tmp_path / "classes.json")
    assert read.names == classes.names and torch.equal(read.counts, classes.counts)
    assert (read.many_above, read.few_below) == (20, 3)


@pytest.mark.slow
def test_benchmark_runs() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "evaluation_speed.py", "--quick"], capture_output=True, text=True, check=True
    )
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if line.startswith(("| 600", "| 8,000"))]
    assert [row[4] for row in rows] == ["scores", "test-agnostic"] * 2
    # The larger one's logits take 92 MiB in float32, once; evaluation keeps chunks of 8 MiB, and for EM 16 MiB of probabilities.
    assert all(float(row[7]) < 85 for row in rows)
