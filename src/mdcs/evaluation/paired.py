"""Is a method better than the reference, is it luck, and was it fair?"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mdcs.errors import UserError
from mdcs.evaluation.comparison import FinishedRun, Method
from mdcs.evaluation.significance import holm, mcnemar, paired_bootstrap, paired_t

TESTED = ("accuracy", "accuracy_few", "ece")
SIZE_TOLERANCE = 0.10  # parameters further apart than this are another width class
BUDGET_TOLERANCE = 0.01


def require_one_test_set(methods: Sequence[Method]) -> None:
    """UserError unless all runs were scored on the same pictures in the same order."""
    runs = [run for method in methods for run in method.runs]
    first = runs[0]
    for run in runs[1:]:
        if run.scores.get("test_set_sha256") != first.scores.get("test_set_sha256"):
            raise UserError(
                f"{run.folder} and {first.folder} were not scored on the same test set ({run.scores.get('n')} and {first.scores.get('n')} "
                "pictures; or others, or with other labels, or in another order), so they cannot be compared"
            )


def fairness(methods: Sequence[Method], reference: Method) -> list[str]:
    """What a reader must know before believing the table: one sentence for each thing that is not the same as in the reference."""
    notes = []
    for method in methods:
        if method is reference:
            continue
        if other_subsets(method, reference):
            notes.append(f"{method.name}: trained on other pictures than {reference.name} (data.subset_seed, counts or dataset)")
        sizes = [of.fact("parameters") for of in (method, reference)]
        if None not in sizes and abs(sizes[0] / sizes[1] - 1) > SIZE_TOLERANCE:
            notes.append(f"{method.name}: another size, {sizes[0]:,} parameters against {sizes[1]:,}")
        if method.budget and reference.budget and abs(method.budget / reference.budget - 1) > BUDGET_TOLERANCE:
            notes.append(f"{method.name}: another budget (epochs × views × pictures), {method.budget:,} against {reference.budget:,}")
        if method.fact("checkpoint") != reference.fact("checkpoint"):
            notes.append(f"{method.name}: another selection rule, {method.fact('checkpoint')} against {reference.fact('checkpoint')}")
        if method.augmentation != reference.augmentation:
            notes.append(f"{method.name}: another augmentation, {method.augmentation} against {reference.augmentation}")
    if any(method.repeated == "seed and subset" for method in methods):
        notes.append(
            "seed and data.subset_seed change from run to run: s.d. and tests over seeds are over weights, order and training pictures"
        )
    commits = {run.scores.get("git_commit") for method in methods for run in method.runs}
    if len(commits) > 1:
        notes.append(f"the runs were made by {len(commits)} versions of the code")
    return notes


def other_subsets(method: Method, reference: Method) -> bool:
    """Whether runs with the same seeds, or else the first ones, had other training pictures."""
    pairs = common(method, reference) or [(method.runs[0], reference.runs[0])]
    return any(one.subset_sha256 != other.subset_sha256 for one, other in pairs)


def common(method: Method, reference: Method) -> list[tuple[FinishedRun, FinishedRun]]:
    """Pairs of runs with equal seeds."""
    of_reference = {run.seeds: run for run in reference.runs}
    return [(run, of_reference[run.seeds]) for run in method.runs if run.seeds in of_reference]


def tests(methods: Sequence[Method], reference: Method) -> list[dict[str, Any]]:
    """One dict for each method but the reference: its `method`, the number of `pairs`, and

    accuracy, accuracy_few, ece   paired t test over the seeds that both have, see `paired_t`, with `p_holm`; None without such seeds
    pictures                      over the test pictures, hits averaged over the seeds: `mean`, `interval` (paired bootstrap), `p_holm` and
                                  `p` (bootstrap; for one pair of runs McNemar's exact test, which adds `only_here` and `only_there`)

    The first asks whether other seeds would agree, the second whether other test pictures would. Holm's correction is over the methods,
    in each column by itself.
    """
    others = [method for method in methods if method is not reference]
    rows = []
    for method in others:
        pairs = common(method, reference)
        row: dict[str, Any] = {"method": method.name, "pairs": len(pairs)}
        for key in TESTED:
            known = [(a.scores[key], b.scores[key]) for a, b in pairs if a.scores.get(key) is not None and b.scores.get(key) is not None]
            row[key] = paired_t([a - b for a, b in known]) if known else None
        row["pictures"] = over_pictures(pairs) if pairs else None
        rows.append(row)
    for column in (*TESTED, "pictures"):
        for row, p in zip(rows, holm([row[column] and row[column]["p"] for row in rows]), strict=True):
            if row[column]:
                row[column]["p_holm"] = p
    return rows


def over_pictures(pairs: Sequence[tuple[FinishedRun, FinishedRun]]) -> dict[str, Any] | None:
    """Difference of accuracy over pictures; None where predictions are not stored."""
    try:
        hits = [(one.hits(), other.hits()) for one, other in pairs]
    except UserError:
        return None
    differences_N = np.mean([one.astype(float) - other for one, other in hits], axis=0)
    interval, p = paired_bootstrap(differences_N)
    result: dict[str, Any] = {"mean": float(differences_N.mean()), "interval": interval, "p": p}
    if len(hits) == 1:
        only_here, only_there, exact = mcnemar(*hits[0])
        result |= {"p": exact, "only_here": only_here, "only_there": only_there}
    return result


def chosen(methods: Sequence[Method], reference: str | None, same_folder: Callable[[FinishedRun, str], bool]) -> Method:
    """The method that `reference` names by one of its runs or by its name in the table; the first if it is None."""
    if reference is None:
        return methods[0]
    for method in methods:
        if method.name == reference or any(same_folder(run, reference) for run in method.runs):
            return method
    raise UserError(
        f"reference={reference}: expected one of the compared runs, or a name in the table: {' | '.join(m.name for m in methods)}"
    )
