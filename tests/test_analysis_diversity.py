"""Diversity against its formulas written out and against independent libraries; by group, in chunks, at the edges."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import cohen_kappa_score
from torch import Tensor
from torch.nn import functional as F

from mdcs.analysis import diversity as diversity_module
from mdcs.analysis.diversity import COLUMNS, DiversitySums, diversity_of, linear_cka
from mdcs.evaluation.predictions import Predictions
from mdcs.types import Classes

CLASSES = Classes(tuple("abcdefg"), torch.tensor([150, 120, 60, 40, 25, 9, 4]))
PAIRS = [(0, 1), (0, 2), (1, 2)]


def example(num_pictures: int = 500, num_experts: int = 3) -> tuple[Tensor, Tensor]:
    """Logits of experts who are right in half of the pictures or more, and agree more often than that."""
    generator = torch.Generator().manual_seed(1)
    labels_N = torch.randint(0, 7, (num_pictures,), generator=generator)
    shared_NC = torch.randn(num_pictures, 7, generator=generator) + 2 * F.one_hot(labels_N, 7)
    return shared_NC[:, None] + torch.randn(num_pictures, num_experts, 7, generator=generator), labels_N


def sums_of(logits_NKC: Tensor, labels_N: Tensor, chunk: int = 1000) -> DiversitySums:
    sums = DiversitySums(CLASSES)
    for logits, labels in zip(logits_NKC.split(chunk), labels_N.split(chunk), strict=True):
        sums.update(logits.log_softmax(-1), labels)
    return sums


@pytest.mark.parametrize("group", ["all", "many", "medium", "few"])
def test_each_column_is_its_definition(group: str) -> None:
    logits_NKC, labels_N = example()
    table = sums_of(logits_NKC, labels_N).table()
    ours = table if group == "all" else table["groups"][group]
    kept_C = torch.ones(7, dtype=torch.bool) if group == "all" else CLASSES.groups[group]
    probs_NKC, labels = logits_NKC.double().softmax(-1)[kept_C[labels_N]].numpy(), labels_N[kept_C[labels_N]].numpy()
    answers_NK = probs_NKC.argmax(-1)
    ensemble_N = logits_NKC.mean(1).argmax(-1)[kept_C[labels_N]].numpy()

    def mean(value) -> float:
        return float(np.mean([value(j, k) for j, k in PAIRS]))

    def kl(p, q) -> float:
        return float((p * np.log(p / q)).sum(-1).mean())

    def js(j: int, k: int) -> float:
        return float(np.mean([jensenshannon(p, q) ** 2 for p, q in zip(probs_NKC[:, j], probs_NKC[:, k], strict=True)]))

    assert ours["disagreement"] == pytest.approx(mean(lambda j, k: (answers_NK[:, j] != answers_NK[:, k]).mean()))
    both = mean(lambda j, k: (kl(probs_NKC[:, j], probs_NKC[:, k]) + kl(probs_NKC[:, k], probs_NKC[:, j])) / 2)
    assert ours["kl"] == pytest.approx(both, rel=1e-5)
    assert ours["js"] == pytest.approx(mean(js), rel=1e-5)
    assert ours["kappa"] == pytest.approx(mean(lambda j, k: cohen_kappa_score(answers_NK[:, j], answers_NK[:, k])))
    agreement = [[(answers_NK[:, j] == answers_NK[:, k]).mean() for k in range(3)] for j in range(3)]
    assert np.allclose(ours["agreement"], agreement)

    hits_NJ = np.column_stack([ensemble_N == labels, answers_NK == labels[:, None], (answers_NK == labels[:, None]).any(1)])
    recall_CJ = np.stack([hits_NJ[labels == c].mean(0) for c in np.unique(labels)])
    assert ours["recall_sd"] == pytest.approx(recall_CJ[:, 1:4].std(1).mean())
    accuracy_J = hits_NJ.mean(0) if group == "all" else recall_CJ.mean(0)
    assert ours["oracle_gap"] == pytest.approx(accuracy_J[4] - accuracy_J[0])
    best = [np.flatnonzero(row == row.max()).tolist() for row in recall_CJ[:, 1:4]]
    assert ours["sole_best"] == [best.count([k]) for k in range(3)]
    assert set(ours) == {*COLUMNS} | ({"groups"} if group == "all" else set())
    assert 0 < ours["disagreement"] < 1 and ours["oracle_gap"] > 0


def test_neither_chunks_nor_the_order_of_experts_matter() -> None:
    logits_NKC, labels_N = example()
    at_once, in_chunks = (sums_of(logits_NKC, labels_N, chunk).table() for chunk in (1000, 7))
    turned = sums_of(logits_NKC[:, [2, 0, 1]], labels_N).table()
    for name in ("disagreement", "kl", "js", "kappa", "recall_sd", "oracle_gap"):
        assert in_chunks[name] == pytest.approx(at_once[name], rel=1e-6)
        assert turned["groups"]["few"][name] == pytest.approx(at_once["groups"]["few"][name], rel=1e-6)
    assert in_chunks["agreement"] == at_once["agreement"]
    assert turned["sole_best"] == [at_once["sole_best"][k] for k in (2, 0, 1)]


def test_equal_experts_and_experts_who_never_agree() -> None:
    logits_NKC, labels_N = example()
    same = sums_of(logits_NKC[:, :1].expand(-1, 3, -1), labels_N).table()
    assert same["disagreement"] == 0 and same["kl"] == 0 and same["js"] == pytest.approx(0, abs=1e-7)
    assert same["kappa"] == 1 and same["recall_sd"] == 0 and same["sole_best"] == [0, 0, 0] and same["oracle_gap"] == 0
    shifted = torch.stack([40.0 * F.one_hot((labels_N + k) % 7, 7) for k in range(3)], 1)
    apart = sums_of(shifted, labels_N).table()
    assert apart["disagreement"] == 1 and apart["js"] == pytest.approx(np.log(2), rel=1e-4) and apart["kappa"] < 0
    assert apart["sole_best"] == [7, 0, 0]


def test_edges() -> None:
    logits_NKC, labels_N = example()
    alone = sums_of(logits_NKC[:, :1], labels_N).table()
    assert {name: alone[name] for name in ("disagreement", "kl", "js", "kappa", "recall_sd", "sole_best")} == dict.fromkeys(
        ("disagreement", "kl", "js", "kappa", "recall_sd", "sole_best")
    )
    keep_N = labels_N < 5  # no few-shot picture
    sums = sums_of(logits_NKC[keep_N], labels_N[keep_N])
    assert sums.table()["groups"]["few"] is None and sums.best_experts()[5:] == [[], []]
    assert DiversitySums(CLASSES).table()["disagreement"] is None
    one_answer = torch.full((20, 2, 7), -30.0)
    one_answer[..., 3] = 0
    assert sums_of(one_answer, torch.full((20,), 3)).table()["kappa"] is None  # agreement by chance is 1


def test_best_experts_names_ties() -> None:
    labels_N = torch.tensor([0, 0, 1, 1, 2])
    answers_NK = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 0], [0, 1]])
    best = sums_of(9.0 * F.one_hot(answers_NK, 7), labels_N).best_experts()
    assert best[:4] == [[2], [1, 2], [], []]  # of class 2 none is right, of class 3 there is no picture


def test_stored_predictions_are_walked_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from mdcs.evaluation import predictions as predictions_module

    logits_NKC, labels_N = example()
    monkeypatch.setattr(predictions_module, "CHUNK", 3 * 7 * 60)
    predictions = Predictions(logits_NKC.numpy(), labels_N.numpy(), np.arange(500), [])
    ours, expected = diversity_of(predictions, CLASSES).table(), sums_of(logits_NKC, labels_N).table()
    assert ours["groups"]["medium"]["js"] == pytest.approx(expected["groups"]["medium"]["js"], rel=1e-6)


def test_linear_cka(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.RandomState(0)
    features = random.randn(300, 2, 5) + 3
    x, y = (features[:, k] - features[:, k].mean(0) for k in range(2))
    gram = [centred @ centred.T for centred in (x, y)]  # the definition by kernels, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))
    expected = (gram[0] * gram[1]).sum() / np.sqrt((gram[0] ** 2).sum() * (gram[1] ** 2).sum())
    monkeypatch.setattr(diversity_module, "CHUNK", 2 * 5 * 70)
    ours = np.array(linear_cka(features))
    assert ours[0, 1] == ours[1, 0] == pytest.approx(expected) and np.allclose(np.diag(ours), 1)
    rotation = np.linalg.qr(random.randn(5, 5))[0]
    alike = np.stack([features[:, 0], 7 * features[:, 0] @ rotation + 1], 1)
    assert linear_cka(alike)[0][1] == pytest.approx(1)
    assert linear_cka(np.ones((9, 2, 3)))[0][1] is None
