"""When a row counts as reproduced: by hand, and against SciPy's own tests."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from ffrepro import record
from ffrepro.config import VerdictRule
from ffrepro.targets import spread
from ffrepro.verdict import EXIT_CODES, INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, standard_error, verdict


def rule(margin, alpha=0.05):
    return VerdictRule(reference_seeds=(3, 4), margin=margin, alpha=alpha)


def published(mean, std=0.5):
    return {"kind": "published", "mean": mean, "std": std, "n": None, "source": "a paper"}


def reference(*values):
    known = spread(list(values))
    return {"kind": "reference", "mean": known["mean"], "std": known["std"], "n": known["n"], "source": "here"}


def judged(values, target, margin=1.5, alpha=0.05):
    return verdict({"accuracy": spread(list(values)), "target": target}, rule(margin, alpha))


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
    summary = {"experiment": "digits", "accuracy": spread([83.0, 84.0]), "target": reference(84.0, 85.0, 86.0)}
    result = verdict({**summary, "seconds": 9}, rule(1))
    assert {key: result[key] for key in summary} == summary
    assert result["seconds"] == 9
    record.write_json(result, tmp_path / "verdict.json")
    assert record.read_json(tmp_path / "verdict.json") == result


def test_exit_codes():
    assert EXIT_CODES == {"reproduced": 0, "not reproduced": 3, "inconclusive": 4}


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
            mirrored = judged([-x for x in ours[:n]], reference(*(-x for x in theirs)), margin, alpha)
            assert better["verdict"] == mirrored["verdict"]
            assert mirrored["difference"] == -better["difference"]
            assert mirrored["interval"] == [-better["interval"][1], -better["interval"][0]]


def test_a_wider_margin_never_takes_reproduced_back():
    for ours, theirs, margin, alpha in cases(100):
        outcomes = [judged(ours, reference(*theirs), margin * k, alpha)["verdict"] for k in (0.25, 0.5, 1, 2, 4)]
        order = [NOT_REPRODUCED, INCONCLUSIVE, REPRODUCED]
        assert outcomes == sorted(outcomes, key=order.index)
