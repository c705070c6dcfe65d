"""The statistics that decide "reproduced".

Equivalence, not the absence of a difference: the confidence interval of (measured - target) at level 1 - 2 alpha must
lie inside (-margin, margin); that is the pair of one-sided tests (TOST, Schuirmann 1987), each at level alpha. An
interval that lies outside altogether is "not reproduced"; one that straddles a margin is "inconclusive": more seeds are
needed.
"""

import math
from typing import Any

from scipy.stats import t as students_t

from ffrepro.config import VerdictRule

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
EXIT_CODES = {REPRODUCED: 0, NOT_REPRODUCED: 3, INCONCLUSIVE: 4}


def standard_error(accuracy: dict[str, Any], target: dict[str, Any]) -> tuple[float, float] | None:
    """(standard error of the difference of means, degrees of freedom), or None where nothing tells the spread.

    accuracy: mean, std, n of our seeds. target: of a published value, whose own n is unknown, the mean counts as
    exact; of a reference with n seeds the error counts too (Welch), and its spread stands in for that of a single seed
    of ours.
    """
    n, std = accuracy["n"], accuracy["std"]
    if target["kind"] == "published":
        return None if n < 2 else (std / math.sqrt(n), n - 1)
    m = target["n"]
    if m < 2:
        return None
    if n < 2:
        return target["std"] * math.sqrt(1 + 1 / m), m - 1
    ours, theirs = std**2 / n, target["std"] ** 2 / m
    if ours + theirs == 0:
        return 0.0, n + m - 2
    share = ours / (ours + theirs)
    return math.sqrt(ours + theirs), 1 / (share**2 / (n - 1) + (1 - share) ** 2 / (m - 1))


def verdict(summary: dict[str, Any], rule: VerdictRule) -> dict[str, Any]:
    """The row's summary with its verdict: difference and interval in points, the rule and the outcome in words."""
    accuracy, target = summary["accuracy"], summary["target"]
    level = 100 * (1 - 2 * rule.alpha)
    within = f"lies within ±{rule.margin:g} points (TOST at {rule.alpha:g})"
    text = f"the {level:.6g} % interval of (measured - target) {within}"
    result = {**summary, "rule": text, "difference": None, "interval": None, "verdict": INCONCLUSIVE}
    if target is None:
        return {**result, "why": "no published or reference value to compare with"}
    difference = accuracy["mean"] - target["mean"]
    error = standard_error(accuracy, target)
    if error is None:
        seeds = "1 seed" if target["kind"] == "published" else "the reference's 1 seed"
        return {**result, "difference": difference, "why": f"{seeds} does not tell the spread: at least 2 are needed"}
    half = float(students_t.ppf(1 - rule.alpha, error[1])) * error[0] if error[0] else 0.0
    low, high = difference - half, difference + half
    if -rule.margin < low and high < rule.margin:
        word = REPRODUCED
    elif high <= -rule.margin or low >= rule.margin:
        word = NOT_REPRODUCED
    else:
        word = INCONCLUSIVE
    why = f"the interval is [{low:+.2f}, {high:+.2f}]"
    return {**result, "difference": difference, "interval": [low, high], "verdict": word, "why": why}
