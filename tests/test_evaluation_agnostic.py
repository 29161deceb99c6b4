"""Other test distributions: the published sets, corrections against their theory, estimates against known truth."""

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import golden
from mdcs.evaluation import agnostic as agnostic_module
from mdcs.evaluation.agnostic import KeptPosteriors, agnostic, corrected_hits, draw, listed, ratio_counts, target_priors
from mdcs.evaluation.combine import agreement_weights, combine
from mdcs.evaluation.predictions import Predictions
from mdcs.evaluation.scores import scores
from mdcs.evaluation.shift import bbse_prior, correction, em_prior, log_prior
from mdcs.types import Classes

SETS = golden("test_agnostic.json")


def classes_of(counts: list[int]) -> Classes:
    return Classes(tuple(f"class {c}" for c in range(len(counts))), torch.tensor(counts))


def predictions_of(logits_NKC: Tensor, labels_N: Tensor) -> Predictions:
    return Predictions(logits_NKC.numpy(), labels_N.numpy(), np.arange(len(labels_N)), [f"{i}.png" for i in range(len(labels_N))])


def gaussian(labels_N: Tensor, implied_C: Tensor, seed: int = 0) -> Tensor:
    """(N, 1, C) exact log p(x|y) + log q of x ~ N(2 e_y, 1): a calibrated classifier that implies the prior q."""
    num_classes = len(implied_C)
    x_NC = torch.randn(len(labels_N), num_classes, generator=torch.Generator().manual_seed(seed)) + 2 * torch.eye(num_classes)[labels_N]
    return (2 * x_NC + log_prior(implied_C).float())[:, None]


# ---------------------------------------------------------------------------------------------------------------- test sets


@pytest.mark.parametrize("name", SETS)
def test_published_sets(name: str) -> None:
    ratio = int("".join(filter(str.isdigit, name.removeprefix("cifar100_"))))
    counts = ratio_counts(100, 100, ratio)
    counts = counts[::-1] if "backward" in name else counts
    assert counts == SETS[name]["counts"] and sum(counts) == SETS[name]["total"]
    index = draw(np.arange(10_000) % 100, counts)
    assert index[:20].tolist() == SETS[name]["first20"]
    assert hashlib.sha256(index.astype("<i8").tobytes()).hexdigest() == SETS[name]["sha256"]


def test_priors_are_the_published_counts_in_the_order_of_training_frequency() -> None:
    counts = [5, 500, 50, 50]
    priors = target_priors(classes_of(counts), torch.full((4,), 100))
    by_frequency = torch.tensor(ratio_counts(100, 4, 10), dtype=torch.float64)
    assert priors["forward-10"][[1, 2, 3, 0]].tolist() == pytest.approx((by_frequency / by_frequency.sum()).tolist())
    assert priors["backward-10"][[0, 3, 2, 1]].tolist() == pytest.approx((by_frequency / by_frequency.sum()).tolist())
    assert priors["uniform"].tolist() == [0.25] * 4
    names = [name for name in priors if not name.startswith("dirichlet")]
    forward = [f"forward-{r}" for r in (50, 25, 10, 5, 2)]
    assert names == [*forward, "uniform", *(f"backward-{r}" for r in (2, 5, 10, 25, 50))]
    drawn = torch.stack([priors[f"dirichlet-{i}"] for i in range(1, 11)])
    assert drawn.sum(1).tolist() == pytest.approx([1.0] * 10) and drawn.std(0).min() > 0.05
    assert torch.equal(drawn, torch.stack([target_priors(classes_of(counts), torch.full((4,), 9))[f"dirichlet-{i}"] for i in range(1, 11)]))


def test_ratios_that_the_test_set_cannot_have_are_left_out() -> None:
    classes = classes_of(list(range(50, 0, -1)))
    of_three = [name for name in target_priors(classes, torch.full((50,), 3)) if "dirichlet" not in name]
    assert of_three == ["forward-3", "forward-2", "uniform", "backward-2", "backward-3"]  # as for iNaturalist
    of_twenty = [name for name in target_priors(classes, torch.full((50,), 20)) if "forward" in name]
    assert of_twenty == ["forward-10", "forward-5", "forward-2"]
    support_C = torch.full((50,), 20)
    support_C[3] = 0
    assert all(prior_C[3] == 0 and prior_C.sum() == pytest.approx(1) for prior_C in target_priors(classes, support_C).values())


def test_a_row_is_what_drawn_sets_give_on_average() -> None:
    labels_N = torch.arange(1000) % 10
    logits_NKC = gaussian(labels_N, torch.full((10,), 0.1))
    classes = classes_of(list(range(100, 0, -10)))
    row = {row["name"]: row for row in agnostic(predictions_of(logits_NKC, labels_N), classes)}["forward-25"]
    hit_N = (logits_NKC[:, 0].argmax(-1) == labels_N).numpy()
    counts = ratio_counts(100, 10, 25)
    drawn = [hit_N[draw(labels_N.numpy(), counts, seed)].mean() for seed in range(300)]
    assert row["average"] == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 300**0.5)
    exact = sum(n * hit_N[labels_N == c].mean() for c, n in enumerate(counts)) / sum(counts)
    assert row["average"] == pytest.approx(exact)
    assert sum(counts) < row["effective_n"] < 1000


def test_a_list_of_positions_is_scored_as_it_is() -> None:
    labels_N = torch.arange(300) % 3
    predictions = predictions_of(gaussian(labels_N, torch.full((3,), 1 / 3)), labels_N)
    index = np.array([5, 5, 7, 12, 100, 250])
    row = agnostic(predictions, classes_of([30, 20, 10]), lists={"mine": index})[-2]
    hit_N = predictions.logits[:, 0].argmax(-1) == predictions.labels
    assert row["name"] == "mine" and row["average"] == pytest.approx(hit_N[index].mean())
    assert listed(index, 300).sum() == pytest.approx(1)


def test_the_uniform_row_of_a_balanced_test_set_is_the_accuracy() -> None:
    labels_N = torch.arange(500) % 5
    predictions, classes = predictions_of(gaussian(labels_N, torch.full((5,), 0.2)), labels_N), classes_of([50, 40, 30, 20, 10])
    row = {row["name"]: row for row in agnostic(predictions, classes)}["uniform"]
    assert row["average"] == row["known_prior"] == pytest.approx(scores(predictions, classes)["accuracy"])
    assert row["effective_n"] == pytest.approx(500)


# ---------------------------------------------------------------------------------------------------------------- corrections


def test_correction_turns_one_prior_into_another() -> None:
    labels_N = torch.arange(50) % 4
    trained_C, target_C = torch.tensor([0.7, 0.2, 0.05, 0.05]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    moved = gaussian(labels_N, trained_C)[:, 0] + correction(target_C, trained_C).float()
    torch.testing.assert_close(moved.softmax(-1), gaussian(labels_N, target_C)[:, 0].softmax(-1))
    adjusted = correction(torch.full((4,), 0.25), trained_C)
    torch.testing.assert_close(adjusted - adjusted[0], -(trained_C.log() - trained_C.log()[0]).double())  # post-hoc logit adjustment


def test_knowing_the_prior_helps_and_estimating_it_nearly_as_much() -> None:
    implied_C = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04])
    labels_N = torch.arange(3000) % 5
    predictions = predictions_of(gaussian(labels_N, implied_C), labels_N)
    val_labels_N = torch.repeat_interleave(torch.arange(5), (2000 * implied_C).long())
    validation = predictions_of(gaussian(val_labels_N, implied_C, seed=1), val_labels_N)
    rows = {row["name"]: row for row in agnostic(predictions, classes_of([600, 200, 100, 60, 40]), implied_C, validation)}
    for name in ("uniform", "backward-10", "backward-50", "dirichlet"):
        row = rows[name]
        assert row["known_prior"] > row["average"] + 0.02, name
        assert row["em"] > row["average"] + 0.7 * (row["known_prior"] - row["average"]), name
        assert row["bbse"] > row["average"] + 0.5 * (row["known_prior"] - row["average"]), name
    wrongly = {row["name"]: row for row in agnostic(predictions, classes_of([600, 200, 100, 60, 40]))}  # taken for a balanced classifier
    assert wrongly["backward-50"]["known_prior"] < rows["backward-50"]["known_prior"] - 0.01
    assert wrongly["uniform"]["bbse"] is None and wrongly["uniform"]["agreement"] is None


def em_in_float64(probs_NC: np.ndarray, weights_N: np.ndarray, implied_C: np.ndarray) -> np.ndarray:
    prior_C = implied_C.copy()
    for _ in range(2000):
        joint = probs_NC * prior_C / implied_C
        prior_C = (weights_N[:, None] * joint / joint.sum(1, keepdims=True)).sum(0)
    return prior_C


def test_em_finds_the_prior() -> None:
    implied_C, true_C = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.1, 0.1, 0.2, 0.6])
    labels_N = torch.multinomial(true_C, 4000, replacement=True, generator=torch.Generator().manual_seed(0))
    kept = KeptPosteriors(predictions_of(gaussian(labels_N, implied_C), labels_N), classes_of([5, 4, 3, 2]))
    found = em_prior(kept, torch.full((4000, 1), 1 / 4000), implied_C)[0]
    exact = em_in_float64(
        gaussian(labels_N, implied_C)[:, 0].double().softmax(-1).numpy(), np.full(4000, 1 / 4000), implied_C.double().numpy()
    )
    assert found.tolist() == pytest.approx(exact.tolist(), abs=2e-3)
    assert found.tolist() == pytest.approx(true_C.tolist(), abs=0.03)


def unevenly_hard(labels_N: Tensor, num_classes: int) -> Tensor:
    """(N, C) float16 exact log p(x|y) + const of x ~ N(s e_y, 1), with a strength s from 2 to 6 for each picture."""
    random, parts = torch.Generator().manual_seed(0), []
    for labels_B in labels_N.split(500):
        strength_B1 = torch.empty(len(labels_B), 1).uniform_(2, 6, generator=random)
        x_BC = torch.randn(len(labels_B), num_classes, generator=random)
        x_BC[torch.arange(len(labels_B)), labels_B] += strength_B1[:, 0]
        logits_BC = x_BC * strength_B1
        parts.append((logits_BC - logits_BC.amax(1, keepdim=True)).half())
    return torch.cat(parts)


def most_likely(kept: KeptPosteriors, weights_N: Tensor, implied_C: Tensor) -> Tensor:
    """(C,) 20 steps of EM without imagined pictures."""
    prior_C = implied_C
    for _ in range(20):
        ratio_C, next_C = prior_C / implied_C, torch.zeros_like(prior_C)
        for rows, probs_NC in kept():
            next_C += probs_NC.T @ (weights_N[rows] / (probs_NC @ ratio_C).clamp(min=1e-30))
        prior_C = next_C * ratio_C / (next_C * ratio_C).sum()
    return prior_C


@pytest.mark.parametrize("num_classes", [1000, pytest.param(8142, marks=pytest.mark.slow)])
def test_imagined_pictures_steady_the_estimate_where_classes_have_three_pictures(num_classes: int) -> None:
    labels_N, classes = torch.arange(3 * num_classes) % num_classes, classes_of(list(range(2 * num_classes, num_classes, -1)))
    predictions = predictions_of(unevenly_hard(labels_N, num_classes)[:, None], labels_N)
    priors = target_priors(classes, torch.full((num_classes,), 3))
    truth_JC = torch.stack([priors[name] for name in ("uniform", "backward-3", "dirichlet-1")]).float()
    implied_C = torch.full((num_classes,), 1 / num_classes)
    kept, weights_NJ = KeptPosteriors(predictions, classes), truth_JC.T[labels_N] / 3
    found_JC = em_prior(kept, weights_NJ, implied_C)
    noisy_JC = torch.stack([most_likely(kept, weights_N, implied_C) for weights_N in weights_NJ.T])
    assert found_JC.sum(1).tolist() == pytest.approx([1.0] * 3, abs=1e-4)
    distance_J, before_J = (0.5 * (prior_JC - truth_JC).abs().sum(1) for prior_JC in (found_JC, noisy_JC))
    assert (distance_J[:2] < 0.65 * before_J[:2]).all() and distance_J[2] < 1.2 * before_J[2]  # the third is far from even

    offsets = {"steady": found_JC, "noisy": noisy_JC}
    hits = corrected_hits(predictions, classes, {k: torch.stack([correction(p, implied_C) for p in v]) for k, v in offsets.items()})
    steady_J, right_J = ((hits[name] * weights_NJ).sum(0) for name in ("steady", "noisy"))
    assert (steady_J > right_J + 0.01).all()


def test_many_pictures_a_class_outweigh_the_imagined_ones() -> None:
    labels_N, implied_C = torch.arange(4000) % 4, torch.full((4,), 0.25)
    kept = KeptPosteriors(predictions_of(gaussian(labels_N, implied_C), labels_N), classes_of([5, 4, 3, 2]))
    weights_N = torch.tensor([0.1, 0.1, 0.2, 0.6])[labels_N] / 1000
    found_C = em_prior(kept, weights_N[:, None], implied_C)[0]
    assert found_C.tolist() == pytest.approx(most_likely(kept, weights_N, implied_C).tolist(), abs=2e-3)


def test_em_of_fewer_pictures_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    labels_N = torch.arange(3000) % 3
    predictions, classes = predictions_of(gaussian(labels_N, torch.full((3,), 1 / 3)), labels_N), classes_of([30, 20, 10])
    whole = {row["name"]: row for row in agnostic(predictions, classes)}
    monkeypatch.setattr(agnostic_module, "MOST_POSTERIORS", 3 * 1500)
    assert KeptPosteriors(predictions, classes).probs_NC.shape == (1500, 3)
    torch.testing.assert_close(
        KeptPosteriors(predictions, classes).probs_NC.float(),
        torch.from_numpy(predictions.logits[::2, 0]).softmax(-1),
        atol=1e-3,
        rtol=1e-3,
    )
    half = {row["name"]: row for row in agnostic(predictions, classes)}
    assert half["forward-10"]["em"] == pytest.approx(whole["forward-10"]["em"], abs=0.01)
    assert half["forward-10"]["average"] == whole["forward-10"]["average"]


def test_bbse_solves_its_equations() -> None:
    confusion = np.array([[0.8, 0.2, 0.1], [0.1, 0.7, 0.3], [0.1, 0.1, 0.6]])  # answer, class
    labels = np.repeat(np.arange(3), 100)
    answered = np.concatenate([np.repeat(np.arange(3), np.round(100 * confusion[:, c]).astype(int)) for c in range(3)])
    true_JC = torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.1, 0.0]], dtype=torch.float64)
    answers_JC = true_JC @ torch.from_numpy(confusion).T
    found = bbse_prior(torch.from_numpy(labels), torch.from_numpy(answered), answers_JC)
    torch.testing.assert_close(found, true_JC, atol=1e-9, rtol=0)
    present = labels < 2
    assert bbse_prior(torch.from_numpy(labels[present]), torch.from_numpy(answered[present]), answers_JC) is None


def test_classes_that_were_not_trained_or_are_not_tested() -> None:
    labels_N = torch.arange(400) % 4
    keep_N = labels_N != 1
    predictions = predictions_of(gaussian(labels_N, torch.full((4,), 0.25))[keep_N], labels_N[keep_N])
    rows = agnostic(predictions, classes_of([50, 30, 20, 0]))  # class 1 has no test picture, class 3 no training picture
    for row in rows:
        for method in ("average", "known_prior", "em"):
            assert 0 < row[method] < 1
    assert rows[0]["known_prior"] >= rows[0]["average"]
    assert agnostic(predictions._replace(logits=predictions.logits[:0], labels=predictions.labels[:0]), classes_of([1] * 4)) == []


# ---------------------------------------------------------------------------------------------------------------- agreement


def two_views(num_pictures: int = 600) -> tuple[Tensor, Tensor]:
    """Two views; expert 1 answers the same to both, expert 3 at random."""
    random = torch.Generator().manual_seed(0)
    labels_N = torch.randint(0, 5, (num_pictures,), generator=random)
    shared = 4 * torch.nn.functional.one_hot(labels_N, 5)[:, None, None].expand(-1, 2, 3, -1).float()
    noise = torch.randn(num_pictures, 2, 3, 5, generator=random) * torch.tensor([0.1, 2.0, 8.0])[:, None]
    return shared + noise, labels_N


def test_agreement_prefers_the_expert_that_is_consistent() -> None:
    views_N2KC, labels_N = two_views()
    weights_K = agreement_weights(views_N2KC.numpy())
    assert weights_K.sum().item() == pytest.approx(1) and weights_K.argsort(descending=True).tolist() == [0, 1, 2]
    assert torch.equal(weights_K, agreement_weights(views_N2KC.numpy()))

    def alike(weights_K: Tensor) -> float:
        probs = combine(views_N2KC, weights_K).softmax(-1)
        return torch.cosine_similarity(probs[:, 0], probs[:, 1], dim=-1).mean().item()

    assert alike(weights_K) > alike(torch.ones(3)) + 0.05
    flipped = agreement_weights(views_N2KC.flip(2).numpy())
    torch.testing.assert_close(flipped.flip(0), weights_K)

    predictions, classes = predictions_of(views_N2KC[:, 0], labels_N), classes_of([50, 40, 30, 20, 10])
    row = next(row for row in agnostic(predictions, classes, views_N2KC=views_N2KC.numpy()) if row["name"] == "uniform")
    assert row["agreement"] > row["average"] and row["agreement_weights"][0] > 0.5


def test_agreement_counts_pictures_by_their_weight() -> None:
    views_N2KC, _ = two_views()
    views_N2KC[300:] = views_N2KC[300:].flip(2)  # in the second half expert 3 is the consistent one
    first, second = (torch.arange(600) < 300).float(), (torch.arange(600) >= 300).float()
    assert agreement_weights(views_N2KC.numpy(), first).argmax() == 0
    assert agreement_weights(views_N2KC.numpy(), second).argmax() == 2
