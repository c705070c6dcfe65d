"""When a row counts as reproduced: by hand, and against SciPy's own tests."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from scipy.stats import norm, ttest_1samp, ttest_ind, ttest_ind_from_stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_ind

from ffrepro import record
from ffrepro.config import VerdictRule
from ffrepro.targets import read_paper, spread
from ffrepro.verdict import (
    EXIT_CODES,
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    WANTED_POWER,
    bootstrap,
    planning,
    power,
    sampling_error,
    standard_error,
    verdict,
)


def rule(margin, alpha=0.05):
    return VerdictRule(reference_seeds=(3, 4), margin=margin, alpha=alpha)


def published(mean, std=0.5):
    return {"kind": "published", "mean": mean, "std": std, "n": None, "values": None, "source": "a paper"}


def reference(*values):
    known = spread(list(values))
    return {"kind": "reference", **known, "source": "here"}


def judged(values, target, margin=1.5, alpha=0.05):
    return verdict({"accuracy": spread(list(values)), "test_images": 10_000, "target": target}, rule(margin, alpha))


# By hand. Student's t at 0.95: 6.3138 (1 degree of freedom), 2.9200 (2), 2.3534 (3), 2.1318 (4).


@pytest.mark.parametrize(
    ("margin", "outcome"), [(2.2, REPRODUCED), (2.1, INCONCLUSIVE), (1.5, INCONCLUSIVE), (0.1, INCONCLUSIVE)]
)
def test_published_value_and_three_seeds(margin, outcome):
    # mean 84, standard deviation 1, standard error 1 / sqrt(3) = 0.57735; times 2.9200: 1.6859 around 84 - 83.5
    result = judged([83, 84, 85], published(83.5), margin)
    assert result["difference"] == 0.5
    assert result["interval"] == pytest.approx([-1.1859, 2.1859], abs=1e-4)
    assert result["verdict"] == outcome
    assert result["why"] == "the interval is [-1.19, +2.19]"
    assert result["rule"].startswith("the 90 % interval of (measured - target) lies within ±")


@pytest.mark.parametrize(
    ("target", "outcome"),
    [(80, NOT_REPRODUCED), (82, INCONCLUSIVE), (84, REPRODUCED), (86, INCONCLUSIVE), (88, NOT_REPRODUCED)],
)
def test_interval_outside_across_and_inside_the_margin(target, outcome):
    assert judged([83, 84, 85], published(target), margin=2)["verdict"] == outcome


def test_published_value_and_two_seeds():
    # standard deviation 1 / sqrt(2), standard error 0.5; times 6.3138: 3.1569
    result = judged([83.5, 84.5], published(84), margin=3.2)
    assert result["interval"] == pytest.approx([-3.1569, 3.1569], abs=1e-4)
    assert result["verdict"] == REPRODUCED


def test_the_printed_spread_of_a_published_value_does_not_count():
    one, other = judged([83, 84, 85], published(84, std=0)), judged([83, 84, 85], published(84, std=9))
    assert one["interval"] == other["interval"]


def test_published_value_and_one_seed_is_inconclusive_and_says_why():
    result = judged([84], published(84), margin=100)
    assert result["verdict"] == INCONCLUSIVE
    assert result["interval"] is None
    assert result["difference"] == 0
    assert result["why"] == "1 seed does not tell the spread: at least 2 are needed"


def test_reference_and_one_seed():
    # the reference's standard deviation 1 stands in: sqrt(1 + 1/3) = 1.1547; times 2.9200: 3.3717 around 66 - 65
    result = judged([66], reference(64, 65, 66), margin=4.4)
    assert result["interval"] == pytest.approx([-2.3717, 4.3717], abs=1e-4)
    assert result["verdict"] == REPRODUCED
    assert judged([66], reference(64, 65, 66), margin=4.3)["verdict"] == INCONCLUSIVE
    assert judged([50], reference(64, 65, 66), margin=4.3)["verdict"] == NOT_REPRODUCED


def test_reference_and_three_seeds():
    # both of standard deviation 1: sqrt(1/3 + 1/3) = 0.81650, 4 degrees of freedom; times 2.1318: 1.7406
    result = judged([83, 84, 85], reference(83.5, 84.5, 85.5), margin=2.3)
    assert result["interval"] == pytest.approx([-2.2406, 1.2406], abs=1e-4)
    assert result["verdict"] == REPRODUCED


@pytest.mark.parametrize("values", [[84], [83, 84, 85]])
def test_a_reference_of_one_seed_is_inconclusive_and_says_why(values):
    result = judged(values, reference(84), margin=100)
    assert (result["verdict"], result["interval"]) == (INCONCLUSIVE, None)
    assert result["why"] == "the reference's 1 seed does not tell the spread: at least 2 are needed"


def test_no_target_is_inconclusive_and_says_why():
    result = judged([83, 84, 85], None)
    assert (result["verdict"], result["difference"], result["interval"]) == (INCONCLUSIVE, None, None)
    assert result["why"] == "no published or reference value to compare with"


@pytest.mark.parametrize(
    ("target", "outcome"),
    [
        (84.0, REPRODUCED),
        (82.75, REPRODUCED),
        (82.5, NOT_REPRODUCED),  # a difference of exactly the margin is not within it
        (85.5, NOT_REPRODUCED),
        (82.0, NOT_REPRODUCED),
    ],
)
@pytest.mark.parametrize("kind", [published, lambda mean: reference(mean, mean, mean)])
def test_without_any_spread_the_difference_alone_decides(kind, target, outcome):
    result = judged([84, 84], kind(target), margin=1.5)
    assert result["interval"] == [84 - target, 84 - target]
    assert result["verdict"] == outcome


def test_one_seed_against_a_reference_without_spread():
    assert judged([84], reference(85, 85), margin=1.5)["interval"] == [-1, -1]


def test_a_spread_that_is_hardly_one_is_no_division_by_zero():
    ours, theirs = {"mean": 84, "std": 1e-100, "n": 3}, {**reference(84, 84), "std": 1e-100}
    error, freedom = standard_error(ours, theirs)
    assert error == pytest.approx(1e-100 * math.sqrt(1 / 3 + 1 / 2))
    assert 1 <= freedom <= 3


def test_an_interval_that_touches_the_margin_is_not_within_it():
    low, high = judged([83, 84, 85], published(83.5))["interval"]
    assert judged([83, 84, 85], published(83.5), margin=high)["verdict"] == INCONCLUSIVE
    assert judged([83, 84, 85], published(83.5), margin=math.nextafter(high, 9))["verdict"] == REPRODUCED
    low, high = judged([83, 84, 85], published(80))["interval"]
    assert judged([83, 84, 85], published(80), margin=low)["verdict"] == NOT_REPRODUCED
    assert judged([83, 84, 85], published(80), margin=math.nextafter(low, 9))["verdict"] == INCONCLUSIVE


@pytest.mark.parametrize(
    ("alpha", "level"), [(0.05, "90"), (0.025, "95"), (0.005, "99"), (0.001, "99.8"), (0.1, "80"), (1 / 3, "33.3333")]
)
def test_the_rule_names_the_level_margin_and_alpha(alpha, level):
    text = judged([83, 84], published(84), margin=1.25, alpha=alpha)["rule"]
    assert text.startswith(
        f"the {level} % interval of (measured - target) lies within ±1.25 points (TOST at {alpha:g})"
    )


def test_the_summary_goes_along_and_the_whole_can_be_written(tmp_path):
    target = reference(84.0, 85.0, 86.0)
    summary = {"experiment": "digits", "accuracy": spread([83.0, 84.0]), "test_images": 360, "target": target}
    result = verdict({**summary, "seconds": 9}, rule(1))
    assert {key: result[key] for key in summary} == summary
    assert result["seconds"] == 9
    record.write_json(result, tmp_path / "verdict.json")
    assert record.read_json(tmp_path / "verdict.json") == result


def test_exit_codes():
    assert EXIT_CODES == {"reproduced": 0, "not reproduced": 3, "inconclusive": 4}


# "Not worse", and p values


def test_not_worse_is_the_lower_bound_alone():
    # the first test's interval, [-1.1859, 2.1859]; t = (0.5 + 1.5) / 0.57735 = 3.4641 and (1.5 - 0.5) / ... = 1.7321,
    # 2 degrees of freedom, where p = 1/2 - t / (2 sqrt(2 + t^2)): 0.037090 and 0.112702
    result = judged([83, 84, 85], published(83.5), margin=1.5)
    assert result["verdict"] == INCONCLUSIVE
    assert result["p"] == pytest.approx(0.112702, abs=1e-6)
    assert result["not_worse"] == {
        "holds": True,
        "bound": result["interval"][0],
        "p": pytest.approx(0.037090, abs=1e-6),
        "words": "not worse: the lower bound at 0.05, -1.19, lies above -1.5",
    }


def test_far_above_is_not_reproduced_and_yet_not_worse():
    result = judged([83, 84, 85], published(70))
    assert (result["verdict"], result["not_worse"]["holds"]) == (NOT_REPRODUCED, True)
    assert result["p"] > 0.95
    assert result["not_worse"]["p"] < 0.01


@pytest.mark.parametrize("target", [84, 90])
def test_not_worse_is_not_shown_by_too_few_or_by_worse_seeds(target):
    reading = judged([83, 84, 85], published(target), margin=1)["not_worse"]
    assert not reading["holds"]
    assert reading["p"] > 0.05
    low = f"{84 - target - 1.6859:+.2f}"
    assert reading["words"] == f"not shown: the lower bound at 0.05, {low}, does not lie above -1"


@pytest.mark.parametrize(
    ("target", "tost", "not_worse"), [(84, 0, 0), (82.5, 1, 0), (85.5, 1, 1), (80, 1, 0), (90, 1, 1)]
)
def test_without_any_spread_p_is_0_or_1(target, tost, not_worse):
    result = judged([84, 84], published(target), margin=1.5)
    assert (result["p"], result["not_worse"]["p"]) == (tost, not_worse)


@pytest.mark.parametrize(("values", "target"), [([84], published(84)), ([83, 84], reference(84)), ([83, 84], None)])
def test_what_cannot_be_told_is_none(values, target):
    result = judged(values, target)
    assert [result[key] for key in ("interval", "p", "not_worse", "bootstrap")] == [None] * 4
    assert result["sampling_error"] > 0


def test_a_lower_bound_that_touches_the_margin_is_not_above_it():
    assert judged([82.0, 82.0], published(83.5))["not_worse"]["holds"] is False
    assert judged([82.1, 82.1], published(83.5))["not_worse"]["holds"] is True


# The bootstrap interval


def test_bootstrap_by_hand():
    # 27 equally likely resamples of three values 0, 1, 2: their sum is 0 in 1, 1 in 3, ... 6 in 1 of 27. Up to 0 lie
    # 3.7 %, up to 1/3 14.8 %: 5 % and 95 % are 1/3 and 5/3, 2.5 % and 97.5 % the ends.
    assert bootstrap([0, 1, 2], None, 0.9) == pytest.approx([1 / 3, 5 / 3])
    assert bootstrap([0, 1, 2], None, 0.95) == [0, 2]
    # both sides are resampled: of 16 differences of two means of two values each, 1 is -1 and 1 is 1
    assert bootstrap([0, 1], [0, 1], 0.9) == [-1, 1]
    assert bootstrap([0, 1], [0, 1], 0.7) == [-0.5, 0.5]  # 1/16 < 15 % < 5/16


def test_bootstrap_needs_two_seeds_on_each_side_that_is_resampled():
    assert bootstrap([84], None, 0.9) is None
    assert bootstrap([84], [83, 84], 0.9) is None
    assert bootstrap([83, 84], [84], 0.9) is None
    assert bootstrap([84, 84], [83, 83], 0.9) == [1, 1]


@pytest.mark.parametrize("target", [published(83.5), reference(83, 83.5, 84.5, 85)])
def test_bootstrap_is_scipys_and_the_same_each_time(target):
    ours = [83.0, 84.2, 85.5, 84.9]
    found = judged(ours, target)["bootstrap"]
    assert judged(ours, target)["bootstrap"] == found
    theirs = [target["values"]] if target["values"] else []
    expected = scipy.stats.bootstrap(
        [ours, *theirs],
        lambda *sides, axis: sides[0].mean(axis) - (sides[1].mean(axis) if theirs else target["mean"]),
        n_resamples=100_000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert found == pytest.approx([*expected], abs=0.04)


def test_bootstrap_draws_the_same_resamples_each_time():
    """Of many values, where other resamples would give another interval."""
    many = [math.sin(i * i) for i in range(12)]
    assert bootstrap(many, None, 0.9) == bootstrap(many, None, 0.9)


# The sampling error


def test_sampling_error_is_the_binomials():
    assert sampling_error(80, 10_000) == pytest.approx(0.4)  # 100 sqrt(0.8 * 0.2 / 10000)
    assert sampling_error(95, 360) == pytest.approx(100 * scipy.stats.binom(360, 0.95).std() / 360)
    assert sampling_error(100, 360) == 0
    assert judged([79, 80, 81], published(80))["sampling_error"] == pytest.approx(0.4)


# Power


@pytest.mark.parametrize("std", [0.5, 1.5, 4])
def test_power_of_two_seeds_in_closed_form(std):
    # at alpha 1/4 Student's t with 1 degree of freedom is 1: reproduced iff |x| + |y| < margin sqrt(2) / std for
    # independent standard normal x, y, a square: (2 Phi(margin / std) - 1)^2
    expected = (2 * norm.cdf(1.5 / std) - 1) ** 2
    assert power(2, None, std, rule(1.5, 0.25)) == pytest.approx(expected, abs=1e-5)


def test_power_of_one_seed_against_a_reference():
    # the interval is 2.9200 * sqrt(1 + 1/3) * std wide to either side: 3.3717 for 1; 5 - 3.3717 = 1.6283 is left, of a
    # normal difference whose deviation is 1.1547: 2 Phi(1.4101) - 1
    assert power(1, 3, 1, rule(5)) == pytest.approx(2 * norm.cdf(1.4101) - 1, abs=1e-4)
    assert power(1, 3, 1, rule(3.37)) == 0  # nothing that one seed gives lies within
    assert power(1, 3, 2.3256, rule(5)) == 0  # the row cifar10-quick


@pytest.mark.parametrize(("n", "m", "std"), [(2, None, 0.3), (2, 2, 0.1), (3, 2, 0.3), (3, 5, 0.9), (7, None, 1.1)])
def test_power_is_an_integral_over_the_spread_that_may_be_found(n, m, std):
    """As its docstring defines it, without bounds or nodes of its own: by SciPy's quadrature over 0 to infinity."""
    chosen = rule(1.5)

    def fits(found):  # the chance that means differ by so little, where our spread is `found`
        theirs = std**2 / m if m else 0
        error = math.sqrt(found**2 / n + theirs)
        degrees = error**4 / (found**4 / n**2 / (n - 1) + (theirs**2 / (m - 1) if m else 0))
        left = max(chosen.margin - scipy.stats.t.ppf(1 - chosen.alpha, degrees) * error, 0)
        return 2 * norm.cdf(left / (std * math.sqrt(1 / n + (1 / m if m else 0)))) - 1

    def weighted(x):
        return scipy.stats.chi.pdf(x, n - 1) * fits(x * std / math.sqrt(n - 1))

    parts = [scipy.integrate.quad(weighted, a / 4, (a + 1) / 4, epsabs=1e-10)[0] for a in range(60)]
    assert power(n, m, std, chosen) == pytest.approx(sum(parts), abs=2e-5)


@pytest.mark.parametrize(("n", "m"), [(1, None), (1, 1), (5, 1)])
def test_power_is_0_where_the_rule_never_says_reproduced(n, m):
    assert power(n, m, 0.1, rule(50)) == 0


def test_power_without_spread_is_certain_and_grows_with_margin_and_seeds():
    assert power(2, None, 0, rule(1)) == 1
    for m in (None, 5):
        assert sorted(powers := [power(3, m, 0.8, rule(margin)) for margin in (0.5, 1, 1.5, 2, 4)]) == powers
        assert sorted(powers := [power(n, m, 0.8, rule(1.5)) for n in range(2, 9)]) == powers
        assert 0 < powers[0] < powers[-1] < 1


POWERS = [
    (2, None, 0.5),
    (3, None, 0.78),
    (5, None, 1.2),
    (3, 5, 0.5),
    (2, 3, 0.4),
    (4, 2, 0.5),
    (8, 4, 0.9),
    (1, 5, 0.4),
]


@pytest.mark.parametrize(("n", "m", "std"), POWERS)
def test_power_is_how_often_the_rule_says_reproduced(n, m, std):
    # the truth is 80; a reference is off by its mean's error, and its spread is `std`
    count, margin, alpha = 20_000, 1.5, 0.05
    generator = np.random.default_rng(n)
    ours = generator.normal(80, std, (count, n))
    mean, deviation = ours.mean(1), ours.std(1, ddof=1) if n > 1 else np.zeros(count)
    target = 80 + (generator.normal(0, std / math.sqrt(m), count) if m else np.zeros(count))

    def p(shift):
        if m is None:
            return ttest_1samp(ours.T, target + shift, alternative="greater" if shift < 0 else "less").pvalue
        sides = (mean - shift, deviation, n, target, np.full(count, std), m)
        if n == 1:  # the reference's spread stands in: a pooled test, where a sample of 1 has no degree of freedom
            return ttest_ind_from_stats(*sides, alternative="greater" if shift < 0 else "less").pvalue
        return ttest_ind_from_stats(*sides, equal_var=False, alternative="greater" if shift < 0 else "less").pvalue

    says = (p(-margin) < alpha) & (p(margin) < alpha)
    found = power(n, m, std, rule(margin, alpha))
    assert 0.02 < found < 0.999  # else nothing is tested
    assert abs(says.mean() - found) < 4 * math.sqrt(found * (1 - found) / count)
    for one in range(25):  # and these draws are judged by the rule itself
        known = {"kind": "reference" if m else "published", "mean": target[one], "std": std, "n": m}
        known["values"] = [target[one]] * m if m else None  # of the bootstrap alone
        assert (judged(ours[one].tolist(), known, margin, alpha)["verdict"] == REPRODUCED) == says[one]


def test_planning_names_the_spread_and_the_fewest_seeds():
    ours = spread([83.0, 84.0, 85.0])
    plan = planning(ours, published(84, std=0.78), rule(1.5))
    assert (plan["std"], plan["std_of"]) == (0.78, "published")
    assert plan["probability"] == power(3, None, 0.78, rule(1.5))
    enough = plan["seeds_for_80_percent"]
    assert power(enough, None, 0.78, rule(1.5)) >= 0.8 > power(enough - 1, None, 0.78, rule(1.5))
    assert planning(ours, reference(83, 84), rule(1.5))["std_of"] == "reference"
    single = planning(ours, reference(84), rule(1.5))  # a reference of one seed: only ours tell a spread
    assert single == {"probability": 0, "std": 1, "std_of": "measured", "seeds_for_80_percent": None}
    assert planning(spread([84.0]), reference(84), rule(1.5)) is None
    assert planning(ours, reference(82, 84, 86), rule(1.5))["seeds_for_80_percent"] is None  # ours cannot mend theirs


def test_planning_looks_at_1_to_100_seeds():
    ours = spread([83.0, 84.0, 85.0])

    def fewest(std):
        return planning(ours, published(83.5, std), rule(0.1))["seeds_for_80_percent"]

    assert (fewest(0.3385), fewest(0.3393), fewest(0.3402)) == (100, 100, None)  # 101 would do for the last
    assert power(101, None, 0.3402, rule(0.1)) >= 0.8
    assert planning(ours, reference(83.7, 84, 84.3), rule(5))["seeds_for_80_percent"] == 1


def test_a_verdict_tells_the_power_of_its_rule():
    target = published(83.5, 0.78)
    assert judged([83, 84, 85], target)["power"] == planning(spread([83, 84, 85]), target, rule(1.5))
    assert judged([83, 84, 85], None)["power"] is None


def test_the_rows_rules_find_what_is_there_and_take_no_method_for_another(root, params):
    """Of the published values: seeds enough for the published spread, and margins below the methods' distances."""
    targets = read_paper(root / "paper.yaml")
    for name, target in targets.items():
        row = params.experiments[name]
        if target.std:
            assert power(len(row.seeds), None, target.std, row.verdict) >= WANTED_POWER, name
        alike = [other for other in targets if params.experiments[other].data == row.data]
        apart = [other for other in alike if targets[other].mean != target.mean]
        for other in apart:
            std = targets[other].std or target.std or 0.5
            values = targets[other].mean + std * scipy.stats.zscore(np.arange(len(row.seeds)), ddof=1)
            summary = {"accuracy": spread(values.tolist()), "test_images": 10_000, "target": target.model_dump()}
            assert verdict(summary, row.verdict)["verdict"] == NOT_REPRODUCED, f"{other} by the rule of {name}"


# Random cases: 1 to 6 seeds, near and far, against published values and references


def cases(count=250):
    generator = np.random.default_rng(20231130)
    for _ in range(count):
        theirs = generator.normal(80, generator.uniform(0.1, 1), generator.integers(2, 7))
        ours = generator.normal(80 + generator.uniform(-4, 4), generator.uniform(0.1, 1), generator.integers(2, 7))
        margin, alpha = generator.uniform(0.3, 4), generator.choice([0.01, 0.025, 0.05, 0.1, 0.3])
        yield ours.tolist(), theirs.tolist(), float(margin), float(alpha)


def one_sided(ours, theirs, shift, alternative):
    """p of Student's or Welch's test that (measured - target) is `alternative` than `shift`."""
    if isinstance(theirs, list):
        return ttest_ind(np.subtract(ours, shift), theirs, equal_var=False, alternative=alternative).pvalue
    return ttest_1samp(ours, theirs + shift, alternative=alternative).pvalue


@pytest.mark.parametrize("kind", ["published", "reference"])
def test_verdicts_are_those_of_two_one_sided_tests(kind):
    seen = {REPRODUCED: 0, NOT_REPRODUCED: 0, INCONCLUSIVE: 0}
    for ours, theirs, margin, alpha in cases():
        target = reference(*theirs) if kind == "reference" else published(theirs[0])
        against = theirs if kind == "reference" else theirs[0]
        above, below = one_sided(ours, against, -margin, "greater"), one_sided(ours, against, margin, "less")
        too_low, too_high = one_sided(ours, against, -margin, "less"), one_sided(ours, against, margin, "greater")
        expected = INCONCLUSIVE
        if above < alpha and below < alpha:
            expected = REPRODUCED
        elif too_low < alpha or too_high < alpha:
            expected = NOT_REPRODUCED
        assert judged(ours, target, margin, alpha)["verdict"] == expected, (ours, theirs, margin, alpha)
        seen[expected] += 1
    assert min(seen.values()) > 30  # the cases tell the three apart


def test_intervals_against_a_reference_are_welchs():
    for ours, theirs, margin, alpha in cases(100):
        expected = ttest_ind(ours, theirs, equal_var=False).confidence_interval(1 - 2 * alpha)
        assert judged(ours, reference(*theirs), margin, alpha)["interval"] == pytest.approx([*expected], rel=1e-9)


def test_intervals_around_a_published_value_are_students():
    for ours, theirs, margin, alpha in cases(100):
        expected = ttest_1samp(ours, theirs[0]).confidence_interval(1 - 2 * alpha)
        found = judged(ours, published(theirs[0]), margin, alpha)["interval"]
        assert np.add(found, theirs[0]) == pytest.approx([*expected], rel=1e-9)


def test_better_by_as_much_is_judged_like_worse():
    for ours, theirs, margin, alpha in cases(100):
        for n in (1, len(ours)):
            better = judged(ours[:n], reference(*theirs), margin, alpha)
            mirrored = judged([160 - x for x in ours[:n]], reference(*(160 - x for x in theirs)), margin, alpha)
            assert better["verdict"] == mirrored["verdict"]
            assert mirrored["difference"] == pytest.approx(-better["difference"], abs=1e-12)
            assert mirrored["interval"] == pytest.approx([-end for end in better["interval"][::-1]], abs=1e-11)


def test_a_wider_margin_never_takes_reproduced_back():
    for ours, theirs, margin, alpha in cases(100):
        outcomes = [judged(ours, reference(*theirs), margin * k, alpha)["verdict"] for k in (0.25, 0.5, 1, 2, 4)]
        order = [NOT_REPRODUCED, INCONCLUSIVE, REPRODUCED]
        assert outcomes == sorted(outcomes, key=order.index)


def test_p_values_and_intervals_are_those_of_statsmodels():
    for ours, theirs, margin, alpha in cases(100):
        result = judged(ours, reference(*theirs), margin, alpha)
        p, lower, _ = ttost_ind(ours, theirs, -margin, margin, usevar="unequal")
        assert (result["p"], result["not_worse"]["p"]) == (pytest.approx(p), pytest.approx(lower[1]))
        both = CompareMeans(DescrStatsW(ours), DescrStatsW(theirs))
        assert result["interval"] == pytest.approx([*both.tconfint_diff(2 * alpha, usevar="unequal")])
        result, mine = judged(ours, published(theirs[0]), margin, alpha), DescrStatsW(ours)
        p, lower, _ = mine.ttost_mean(theirs[0] - margin, theirs[0] + margin)
        assert (result["p"], result["not_worse"]["p"]) == (pytest.approx(p), pytest.approx(lower[1]))
        assert np.add(result["interval"], theirs[0]) == pytest.approx([*mine.tconfint_mean(2 * alpha)])


def test_p_values_agree_with_the_words():
    for ours, theirs, margin, alpha in cases():
        for n in (1, len(ours)):
            result = judged(ours[:n], reference(*theirs), margin, alpha)
            assert (result["verdict"] == REPRODUCED) == (result["p"] < alpha)
            assert result["not_worse"]["holds"] == (result["not_worse"]["p"] < alpha)
            assert result["not_worse"]["holds"] or result["verdict"] != REPRODUCED
