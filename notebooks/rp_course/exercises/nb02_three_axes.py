"""Exercises of notebook 02, three axes of judging a model."""

from __future__ import annotations

import numpy as np

from rp_course.exercise import Case, Exercise, Mistake

CASE_A = (np.array([0.9, 0.8, 0.7, 0.6, 0.3]), np.array([0.5, 0.4, 0.2, 0.1]))


def rates_at(id_scores: np.ndarray, ood_scores: np.ndarray, threshold: float) -> tuple[float, float]:
    """(TPR, FPR) of the rule: accept as ID what scores at least the threshold."""
    tpr = np.mean(id_scores >= threshold)  # of the ID pictures, the share that is accepted
    fpr = np.mean(ood_scores >= threshold)  # of the OOD pictures, the share that is accepted
    return float(tpr), float(fpr)


def _turned_round(id_scores, ood_scores, threshold):
    return rates_at(id_scores, ood_scores, threshold)[::-1]


def _strictly_above(id_scores, ood_scores, threshold):
    return float(np.mean(id_scores > threshold)), float(np.mean(ood_scores > threshold))


def _rejected_shares(id_scores, ood_scores, threshold):
    return float(np.mean(ood_scores < threshold)), float(np.mean(id_scores < threshold))


def _of_all_pictures(id_scores, ood_scores, threshold):
    n = len(id_scores) + len(ood_scores)
    return float(np.sum(id_scores >= threshold) / n), float(np.sum(ood_scores >= threshold) / n)


def _counts(id_scores, ood_scores, threshold):
    return float(np.sum(id_scores >= threshold)), float(np.sum(ood_scores >= threshold))


def _ood_rejected(id_scores, ood_scores, threshold):
    return float(np.mean(id_scores >= threshold)), float(np.mean(ood_scores < threshold))


def _normal(n: int, m: int, seed: int, decimals: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(1, 1, n).round(decimals), rng.normal(0, 1, m).round(decimals)


def _rate_cases() -> tuple[Case, ...]:
    return (
        Case("a threshold between scores", (*CASE_A, 0.45)),
        Case("a threshold that equals scores of both", (np.array([1.0, 2, 2, 3]), np.array([0.0, 1, 2]), 2.0)),
        Case("forty and thirty scores", (*_normal(40, 30, 0), 0.5)),
    )


def auroc_by_pairs(id_scores: np.ndarray, ood_scores: np.ndarray) -> float:
    """Share of all (ID, OOD) pairs in which the ID score is higher; a tie counts half."""
    difference = id_scores[:, None] - ood_scores[None, :]  # (n, m): every ID picture against every OOD picture
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def _ties_lost(id_scores, ood_scores):
    return float(np.mean(id_scores[:, None] > ood_scores))


def _ties_won(id_scores, ood_scores):
    return float(np.mean(id_scores[:, None] >= ood_scores))


def _ood_wins(id_scores, ood_scores):
    return 1 - auroc_by_pairs(id_scores, ood_scores)


def _pair_by_pair(id_scores, ood_scores):
    n = min(len(id_scores), len(ood_scores))
    difference = id_scores[:n] - ood_scores[:n]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def _pair_cases() -> tuple[Case, ...]:
    return (
        Case("five ID and four OOD scores", CASE_A),
        Case("ties between ID and OOD", _normal(30, 20, 1, decimals=0)),
        Case("all scores alike", (np.ones(4), np.ones(3))),
        Case("two hundred scores without ties", _normal(120, 80, 2)),
    )


def fpr_at_tpr(id_scores: np.ndarray, ood_scores: np.ndarray, tpr: float) -> float:
    """FPR at the largest threshold that accepts at least a share ``tpr`` of the ID scores (``>=`` accepts)."""
    for threshold in np.sort(id_scores)[::-1]:  # from strict to lax; only ID scores can be the largest threshold
        if np.mean(id_scores >= threshold) >= tpr:
            return float(np.mean(ood_scores >= threshold))
    raise ValueError("tpr must be in (0, 1]")


def _ood_positive(id_scores, ood_scores, tpr):
    return fpr_at_tpr(-ood_scores, -id_scores, tpr)


def _quantile(id_scores, ood_scores, tpr):
    return float(np.mean(ood_scores >= np.quantile(id_scores, 1 - tpr)))


def _strict(id_scores, ood_scores, tpr):
    descending = np.sort(id_scores)[::-1]
    threshold = next(t for t in descending if np.mean(id_scores >= t) >= tpr)
    return float(np.mean(ood_scores > threshold))


def _share_rejected(id_scores, ood_scores, tpr):
    return 1 - fpr_at_tpr(id_scores, ood_scores, tpr)


def _fpr_cases() -> tuple[Case, ...]:
    a = (np.array([0.9, 0.8, 0.7, 0.6, 0.3]), np.array([0.5, 0.4, 0.2, 0.1]))
    return (
        Case("five ID and four OOD scores", (*a, 0.95)),
        Case("all scores alike", (np.ones(4), np.ones(4), 0.95)),
        Case("an OOD score between the two lowest ID scores", (np.array([1.0, 2, 3, 4]), np.array([0.5, 1.05]), 0.95)),
        Case("a hundred scores, TPR 0.8", (*_normal(60, 40, 3), 0.8)),
    )


EXERCISES = (
    Exercise(
        reference=rates_at,
        minutes=4,
        cases=_rate_cases,
        hints=(
            "Both rates are shares of accepted pictures: one of the ID pictures, one of the OOD pictures.",
            "`id_scores >= threshold` is an array of booleans; its mean is a share.",
            "return np.mean(id_scores >= threshold), np.mean(ood_scores >= threshold)",
        ),
        mistakes=(
            Mistake(_turned_round, "the two are swapped: ID pictures are the positive ones, so their rate is the TPR"),
            Mistake(_strictly_above, "a score that equals the threshold is accepted: use >= instead of >"),
            Mistake(
                _rejected_shares,
                "this takes OOD as the positive class and counts rejected pictures; here ID is positive, and TPR and "
                "FPR are shares of accepted pictures",
            ),
            Mistake(
                _of_all_pictures,
                "divide by the number of ID pictures for the TPR and of OOD pictures for the FPR, not by all together",
            ),
            Mistake(_counts, "these are numbers of pictures; rates are shares: take the mean instead of the sum"),
            Mistake(
                _ood_rejected,
                "the TPR is right; the FPR is the share of OOD pictures that is wrongly accepted, not that is rejected",
            ),
        ),
    ),
    Exercise(
        reference=auroc_by_pairs,
        minutes=7,
        cases=_pair_cases,
        hints=(
            "Compare every ID score with every OOD score: n times m duels, and the answer is the share that ID wins.",
            "id_scores[:, None] > ood_scores[None, :] holds all duels in an (n, m) array of booleans.",
            "Add half of the ties: mean of (a > b) + 0.5 * (a == b).",
        ),
        mistakes=(
            Mistake(_ties_lost, "ties count half, not nothing: two equal scores are a coin toss"),
            Mistake(_ties_won, "ties count half, not whole: a detector that gives every picture 1 must get 0.5"),
            Mistake(_ood_wins, "this is the share of pairs that OOD wins; a good detector has an AUROC near 1"),
            Mistake(
                _pair_by_pair, "compare every ID score with every OOD score, not only those that stand at one index"
            ),
        ),
    ),
    Exercise(
        reference=fpr_at_tpr,
        minutes=8,
        cases=_fpr_cases,
        hints=(
            "Two steps: find the threshold from the ID scores alone, then see what share of OOD scores passes it.",
            "Walk down the sorted ID scores until the share of ID scores at or above the threshold is at least tpr.",
            "For threshold in np.sort(id_scores)[::-1]: if np.mean(id_scores >= threshold) >= tpr, return "
            "np.mean(ood_scores >= threshold).",
        ),
        mistakes=(
            Mistake(
                _ood_positive,
                "this takes OOD as the positive class, as OpenOOD and pytorch-ood do: it is the share of ID pictures "
                "rejected while 95 % of the OOD pictures are. Here ID is positive",
            ),
            Mistake(
                _quantile,
                "np.quantile interpolates between two ID scores, so fewer ID scores than asked for pass: the threshold "
                "must be an ID score",
            ),
            Mistake(_strict, "accept a score that equals the threshold (>=), or a detector that says 1 of all gets 0"),
            Mistake(_share_rejected, "this is the share of OOD pictures rejected; FPR is the share accepted"),
        ),
    ),
)
