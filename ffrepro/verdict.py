"""The statistics that decide "reproduced", and what is said beside them.

Equivalence, not the absence of a difference: the confidence interval of (measured - target) at level 1 - 2 alpha must
lie inside (-margin, margin); that is the pair of one-sided tests (TOST, Schuirmann 1987), each at level alpha. An
interval that lies outside altogether is "not reproduced"; one that straddles a margin is "inconclusive": more seeds are
needed. Beside this word, and without a say in it, stand the one-sided reading "not worse" (non-inferiority), a
bootstrap interval, the sampling error of the test set, and the rule's power.
"""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from scipy.special import gammainccinv, gammaln, ndtr, stdtr, stdtrit  # scipy.stats takes a second to import

from ffrepro.config import VerdictRule

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
EXIT_CODES = {REPRODUCED: 0, NOT_REPRODUCED: 3, INCONCLUSIVE: 4}
RESAMPLES, RESAMPLING_SEED = 10_000, 20231130
WANTED_POWER, MOST_SEEDS = 0.8, 100
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(200)
"""Gauss and Legendre's, for a power's integral: to 1e-12 for a published value and 3e-4 for a reference, whose
integrand has a kink; measured against 3,000 nodes."""


def worst(codes: Collection[int]) -> int:
    """The one exit code of several: one "not reproduced" makes the whole so, else one "inconclusive"."""
    return next(code for code in (EXIT_CODES[NOT_REPRODUCED], EXIT_CODES[INCONCLUSIVE], 0) if code in codes)


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
    return welch([(1, accuracy), (-1, target)])


def welch(terms: list[tuple[float, dict[str, Any]]]) -> tuple[float, float]:
    """(standard error, degrees of freedom) of the sum of weight * mean, by Welch and Satterthwaite.

    terms: (weight, {"std", "n"}) of independent samples of at least 2 values; without any spread the degrees are those
    of a pooled test.
    """
    variances = [weight**2 * sample["std"] ** 2 / sample["n"] for weight, sample in terms]
    whole, degrees = sum(variances), [sample["n"] - 1 for _, sample in terms]
    if whole == 0:
        return 0.0, sum(degrees)
    return math.sqrt(whole), 1 / sum((v / whole) ** 2 / d for v, d in zip(variances, degrees, strict=True))


def p_above(difference: float, error: tuple[float, float]) -> float:
    """p of Student's one-sided test that a difference is above 0; without any spread 0 or 1, the difference decides."""
    if error[0] == 0:
        return 0.0 if difference > 0 else 1.0
    return float(stdtr(error[1], -difference / error[0]))


def bootstrap(ours: list[float], theirs: list[float] | None, level: float) -> list[float] | None:
    """Percentile bootstrap interval of the difference of means (of our mean, where `theirs` is None) over seeds.

    10,000 resamples of each side by itself, from one fixed PCG64 stream: the same values give the same interval.
    Assumes no distribution, but with few seeds it is too narrow (a mean of n values spreads over sqrt((n - 1) / n) of
    what it should, and with 3 seeds there are 10 different resamples), so it is shown beside and decides nothing.
    None for fewer than 2 seeds on a side.
    """
    generator = np.random.Generator(np.random.PCG64(RESAMPLING_SEED))
    means = np.zeros(RESAMPLES)
    for sign, values in ((1, ours), (-1, theirs)):
        if values is not None:
            if len(values) < 2:
                return None
            means += sign * np.array(values)[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def sampling_error(accuracy: float, images: int) -> float:
    """Binomial standard error in points of an accuracy (percent) on so many test images: 100 sqrt(p (1 - p) / N).

    What a new test set of the same size would add to one run. It is no part of the interval: all runs, and a target's
    too, share the one test set, so it does not tell them apart.
    """
    share = accuracy / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def chi_density(x: np.ndarray, degrees: int) -> np.ndarray:
    """Of the chi distribution, that of the length of a vector of so many standard normal values: x > 0."""
    logarithm = (degrees - 1) * np.log(x) - x**2 / 2 - (degrees / 2 - 1) * math.log(2) - gammaln(degrees / 2)
    density: np.ndarray = np.exp(logarithm)
    return density


def power(n: int, m: int | None, std: float, rule: VerdictRule) -> float:
    """The probability that the rule says "reproduced" of n seeds whose true mean is the target's.

    std: the spread in points of a single seed, ours and the reference's; m: the seeds of a reference, None for a
    published value, which is exact. Mean and spread of normal values are independent, so the probability is that the
    difference of means lies within margin - t * (standard error), averaged over our spread's chi distribution:
    numerically exact. The one approximation is in a reference: its spread is taken as it is, since it is measured and
    will not be drawn again, and as the true one, while its mean is off by its own error, N(0, std^2 / m). So a single
    seed of ours, whose interval has the reference's spread, needs no average.
    """
    if (n < 2 and m is None) or (m is not None and m < 2):
        return 0.0
    if std == 0:
        return 1.0
    spread = std * math.sqrt(1 / n + (1 / m if m else 0))  # of the difference of means
    if n < 2 and m is not None:
        half = stdtrit(m - 1, 1 - rule.alpha) * spread
        return float(2 * ndtr(max(rule.margin - half, 0) / spread) - 1)
    # our spread is x std / sqrt(n - 1) with x of chi(n - 1), below `end` but for 1e-12; t is at least that of the most
    # degrees there can be, so from `within` on nothing fits into the margin
    end, t = math.sqrt(2 * gammainccinv((n - 1) / 2, 1e-12)), stdtrit(n - 1 + (m - 1 if m else 0), 1 - rule.alpha)
    within = rule.margin * math.sqrt(n * (n - 1)) / (t * std)
    x = min(end, within) * (NODES + 1) / 2
    ours, theirs = (std * x) ** 2 / (n - 1) / n, std**2 / m if m else 0.0
    share = ours / (ours + theirs)
    degrees = 1 / (share**2 / (n - 1) + (1 - share) ** 2 / (m - 1)) if m else n - 1
    half = stdtrit(degrees, 1 - rule.alpha) * np.sqrt(ours + theirs)
    fits = 2 * ndtr(np.maximum(rule.margin - half, 0) / spread) - 1
    return float(min(end, within) / 2 * (NODE_WEIGHTS * chi_density(x, n - 1) * fits).sum())


def planning(accuracy: dict[str, Any], target: dict[str, Any], rule: VerdictRule) -> dict[str, Any] | None:
    """The rule's power and the fewest seeds of ours (up to 100) that give 80 %, None for more.

    By the target's spread, which stands before any run; by ours where the target tells none; None where neither does.
    """
    m = target["n"]
    std, of = (accuracy["std"], "measured") if target["std"] is None else (target["std"], target["kind"])
    if std is None:
        return None
    enough = (n for n in range(1, MOST_SEEDS + 1) if power(n, m, std, rule) >= WANTED_POWER)
    probability = power(accuracy["n"], m, std, rule)
    return {"probability": probability, "std": std, "std_of": of, "seeds_for_80_percent": next(enough, None)}


def verdict(summary: dict[str, Any], rule: VerdictRule) -> dict[str, Any]:
    """The row's summary with its verdict: difference and interval in points, the rule and the outcome in words.

    Beside: `p` (TOST's, the larger of its two), `not_worse` (whether the lower one-sided bound at alpha lies above
    -margin, its p, in words), `bootstrap`, `sampling_error` in points, `power` (as `planning` says). What cannot be
    told is None.
    """
    accuracy, target = summary["accuracy"], summary["target"]
    level = 100 * (1 - 2 * rule.alpha)
    within = f"lies within ±{rule.margin:g} points (TOST at {rule.alpha:g})"
    result = {
        **summary,
        "rule": f"the {level:.6g} % interval of (measured - target) {within}",
        "difference": None,
        "interval": None,
        "p": None,
        "verdict": INCONCLUSIVE,
        "not_worse": None,
        "bootstrap": None,
        "sampling_error": sampling_error(accuracy["mean"], summary["test_images"]),
        "power": None,
    }
    if target is None:
        return {**result, "why": "no published or reference value to compare with"}
    difference = accuracy["mean"] - target["mean"]
    result |= {"difference": difference, "power": planning(accuracy, target, rule)}
    error = standard_error(accuracy, target)
    if error is None:
        seeds = "1 seed" if target["kind"] == "published" else "the reference's 1 seed"
        return {**result, "why": f"{seeds} does not tell the spread: at least 2 are needed"}
    half = float(stdtrit(error[1], 1 - rule.alpha)) * error[0] if error[0] else 0.0
    low, high = difference - half, difference + half
    if -rule.margin < low and high < rule.margin:
        word = REPRODUCED
    elif high <= -rule.margin or low >= rule.margin:
        word = NOT_REPRODUCED
    else:
        word = INCONCLUSIVE
    not_below, not_above = p_above(rule.margin + difference, error), p_above(rule.margin - difference, error)
    holds = low > -rule.margin
    bound = f"the lower bound at {rule.alpha:g}, {low:+.2f}, {'lies' if holds else 'does not lie'} above"
    resampled = bootstrap(accuracy["values"], target["values"], 1 - 2 * rule.alpha)
    if resampled:
        offset = target["mean"] if target["values"] is None else 0
        resampled = [end - offset for end in resampled]
    return {
        **result,
        "interval": [low, high],
        "p": max(not_below, not_above),
        "verdict": word,
        "why": f"the interval is [{low:+.2f}, {high:+.2f}]",
        "not_worse": {
            "holds": holds,
            "bound": low,
            "p": not_below,
            "words": f"{'not worse' if holds else 'not shown'}: {bound} {-rule.margin:+g}",
        },
        "bootstrap": resampled,
    }
