"""When the classes are not as frequent in use as the classifier assumes: correcting for a known prior, estimating an unknown one.

A classifier trained by cross-entropy on z + λ log π (π the training prior) has z = log p(x|y) + (1 − λ) log π + const, so the mean of
experts with λ_1 .. λ_K implies the prior q ∝ π^(1 − mean λ): uniform for MDCS (mean λ = 1) and balanced softmax, π for plain cross-entropy.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from mdcs.evaluation.predictions import UNTRAINED

EM_STEPS = 20
EM_TOLERANCE = 1e-3  # total variation between two steps
BBSE_MAX_CLASSES = 2048  # a confusion matrix of 32 MiB

Posteriors = Callable[[], Iterator[tuple[slice, Tensor]]]  # each call walks once over pictures, yielding rows and p (n, C)


def log_prior(prior_C: Tensor) -> Tensor:
    """(C,) float64 log π; UNTRAINED where π is 0, so that such a class is not the answer but differences stay finite."""
    return torch.where(prior_C > 0, prior_C.double().clamp(min=1e-300).log(), UNTRAINED)


def correction(target_C: Tensor, implied_C: Tensor) -> Tensor:
    """(C,) what to add to the logits of a classifier that implies the prior q, for pictures that have the prior π: log π − log q.

    With q = training prior and π uniform this is post-hoc logit adjustment (arXiv:2007.07314, Eq. 9 with τ = 1).
    """
    return log_prior(target_C) - log_prior(implied_C).where(implied_C > 0, 0)


def em_prior(posteriors: Posteriors, weights_NJ: Tensor, implied_C: Tensor) -> Tensor:
    """(J, C) class priors of J unlabelled test sets, by EM (Saerens et al. 2002, Neural Computation 14) with one imagined picture a class.

        π ← (n Σ_i w_i · softmax(log p(c|x_i) + log π_c − log q_c) + 1) / (n + C),   from π = q

    The sets are weightings of the same pictures: `weights` (N, J), each column of sum 1, of n = 1/Σ w² equally weighted pictures.
    `posteriors` p = softmax(z̄) imply the prior q. At most 20 steps, or until no π moves by more than 1e-3 (total variation). The estimate
    is as good as p is calibrated; a temperature and a bias for each class fitted on validation would help (arXiv:1901.06852), but the
    classes that it is about have few pictures there or none, and a temperature alone did harm after a loss that knows the training prior.

    The imagined pictures, one for each of the C classes with q > 0, make it the maximum a posteriori under Dirichlet(2, ..., 2);
    arXiv:2511.18615 learns the strength. Where there are many pictures a class they do not matter. Where there are three, as in
    iNaturalist, the maximum likelihood follows the noise, and they take away about two fifths of its distance from the truth. Even so a
    correction by it loses there to none at all where the test set is nearly as the classifier assumes.
    """
    implied_C = implied_C.float()
    prior_CJ = implied_C[:, None].expand(-1, weights_NJ.shape[1])
    imagined_CJ = (implied_C > 0)[:, None] * weights_NJ.square().sum(0)
    for _ in range(EM_STEPS):
        ratio_CJ = torch.where(implied_C[:, None] > 0, prior_CJ / implied_C[:, None], 0)
        next_CJ = torch.zeros_like(prior_CJ)
        for rows, probs_NC in posteriors():
            evidence_NJ = (probs_NC @ ratio_CJ).clamp(min=1e-30)
            next_CJ += probs_NC.T @ (weights_NJ[rows] / evidence_NJ)
        next_CJ *= ratio_CJ
        next_CJ = next_CJ / next_CJ.sum(0) + imagined_CJ
        next_CJ = next_CJ / next_CJ.sum(0)
        moved = 0.5 * (next_CJ - prior_CJ).abs().sum(0).max().item()
        prior_CJ = next_CJ
        if moved < EM_TOLERANCE:
            break
    return prior_CJ.T


def bbse_prior(val_labels_N: Tensor, val_answers_N: Tensor, answers_JC: Tensor) -> Tensor | None:
    """(J, C) class priors of J unlabelled test sets by black-box shift estimation (arXiv:1802.03916), or None if it cannot be had.

    With M[a, y] the share of validation pictures of class y that are answered a, and `answers` (J, C) the share of each answer in the test
    sets, it solves M π = answers by least squares, cuts what is negative and normalises. (The paper's w = π/p_val, in other unknowns.)
    It needs labelled validation pictures of every class and at most 2,048 classes.
    """
    num_classes = answers_JC.shape[1]
    support_C = torch.bincount(val_labels_N, minlength=num_classes)
    if num_classes > BBSE_MAX_CLASSES or not len(val_labels_N) or (support_C == 0).any():
        return None
    confusion_CC = torch.bincount(val_answers_N * num_classes + val_labels_N, minlength=num_classes**2).view(num_classes, num_classes)
    share_CC = (confusion_CC.double() / support_C).numpy()
    solved_CJ, *_ = np.linalg.lstsq(share_CC, answers_JC.double().numpy().T, rcond=None)
    prior_JC = torch.from_numpy(solved_CJ.T).clamp(min=0)
    total_J = prior_JC.sum(1, keepdim=True)
    return torch.where(total_J > 0, prior_JC / total_J.clamp(min=1e-30), 1 / num_classes)
