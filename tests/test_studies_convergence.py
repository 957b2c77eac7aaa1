"""The checks of convergence, on frames whose answer is known."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nbvae import results
from studies import convergence

ROOT = Path(__file__).resolve().parents[1]


def losses(noise: float = 0.0, excess: float = 1.0, seeds: int = 4) -> pd.DataFrame:
    """Three models: each worse by `excess` under another objective, which two seeds shift by as much as `noise`."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "objective": model,
            "under": under,
            "seed": seed,
            "value": 10.0 + 3 * seed + excess * (model != under) + noise * rng.standard_normal(),
        }
        for seed in range(seeds)
        for model in "abc"
        for under in "abc"
    ]
    return pd.DataFrame(rows)


def test_the_cross_table_passes_where_each_model_is_best_and_fails_where_one_is_not_or_errors_hide_it():
    table, check = convergence.cross_table(losses())
    assert check.passed
    assert len(table) == 6
    np.testing.assert_allclose(table["value"], 1.0)
    assert not convergence.cross_table(losses(excess=-0.5))[1].passed
    assert not convergence.cross_table(losses(noise=1.0, excess=1.0))[1].passed  # errors of more than .1 that hide it
    assert convergence.cross_table(losses(noise=1.0, excess=1.0), largest_error=2.0)[1].passed
    assert convergence.cross_table(losses(noise=1.0, excess=50.0))[1].passed  # a quarter of the difference is little enough
    # Within error of as good is good enough: no order is claimed.
    assert convergence.cross_table(losses(noise=0.05, excess=0.0))[1].passed
    behind = losses(excess=-0.05)
    table, strict = convergence.cross_table(behind)
    assert not strict.passed
    allowed = convergence.cross_table(behind, margin=0.1)[1]
    assert allowed.passed
    assert "0.1 nats" in allowed.name
    assert allowed.found.startswith(f"{(table['value'] < 0).sum()} of 6 are behind")
    assert not convergence.cross_table(losses(excess=-0.2), margin=0.1)[1].passed
    assert convergence.cross_table(losses(), margin=0.1)[1].found.startswith("0 of 6")
    with pytest.raises(ValueError, match="with each seed"):
        convergence.cross_table(losses().iloc[1:])


def passes(change: float, noise: float, seeds: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "objective": "a",
            "quantity": "rate",
            "seed": seed,
            "passes": count,
            "value": seed + (count == 8) * (change + noise * rng.standard_normal()),
        }
        for seed in range(seeds)
        for count in (4, 8)
    )


def test_twice_the_passes_may_move_nothing_by_more_than_is_allowed_and_errors_must_be_small_enough_to_see_it():
    def check(change, noise, allowed=0.1):
        return convergence.twice(passes(change, noise).assign(allowed=allowed), ["objective"]).passed

    assert check(0.05, 0.0)
    assert not check(0.2, 0.0)
    assert not check(0.2, 0.05)
    assert check(0.0, 0.05)
    assert not check(0.0, 2.0)  # nothing could be seen
    assert not check(0.5, 2.0)
    assert not convergence.twice(
        passes(0.0, 0.0).assign(allowed=1.0).iloc[:0], ["objective"]
    ).passed  # no claim is no agreement
    both = pd.concat([passes(0.09, 0.0).assign(objective="near"), passes(0.1, 0.045).assign(objective="far")])
    one = convergence.twice(both.assign(allowed=both["objective"].map({"near": 0.1, "far": 0.04})), ["objective"])
    assert not one.passed
    assert "far" in one.found  # what fails is named, not what changes most


def test_a_claim_without_any_spread_is_on_its_side_and_nothing_is_on_none():
    rows = [{"objective": "a", "quantity": "gap", "seed": seed, "passes": count} for seed in (0, 1) for count in (4, 8)]
    frame = pd.DataFrame(rows)
    assert convergence.same_side(frame.assign(value=0.5), ["objective"]).passed
    assert not convergence.same_side(frame.assign(value=0.0), ["objective"]).passed
    assert not convergence.same_side(frame.assign(value=0.5).iloc[:0], ["objective"]).passed  # no claim is no agreement
    assert not convergence.same_side(frame.assign(value=frame["passes"].map({4: 0.5, 8: -0.5})), ["objective"]).passed


def test_second_moments_are_compared_with_one():
    assert convergence.second_moments({"a": 0.01, "b": 0.04}, 0.05).passed
    failed = convergence.second_moments({"a": 0.01, "b": 0.06}, 0.05)
    assert not failed.passed
    assert "b" in failed.found


@pytest.mark.parametrize(
    ("few", "many", "passed"),
    [
        ([1.0, 1.2, 1.1], [5.0, 5.2, 5.3], True),  # grown on its side
        ([1.0, 1.2, 1.1], [0.1, 0.12, 0.11], True),
        ([1.0, 1.2, 1.1], [-1.0, -1.2, -1.1], False),
        ([-1.0, -1.2, -1.1], [1.0, 1.2, 1.1], False),
        ([1.0, 1.2, 1.1], [0.3, -0.3, 0.1], False),  # two errors from zero no longer
        ([1.0, 1.2, 1.1], [1.0, 0.2, 0.6], False),  # 2.6 errors, which three seeds do not tell from none
        ([1.0, 1.2, 1.1], [1.0, 0.4, 0.7], False),  # 4.0, just less than Student's 4.3
        ([1.0, 1.2, 1.1], [1.0, 0.46, 0.73], True),  # 4.7
        ([0.3, -0.3, 0.1], [1.0, 1.2, 1.1], False),
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], True),  # no spread, and not at zero
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], False),
    ],
)
def test_a_claim_of_a_side_holds_after_both_numbers_of_passes_or_fails(few, many, passed):
    rows = [(passes, seed, value) for passes, each in ((4, few), (8, many)) for seed, value in enumerate(each)]
    one = pd.DataFrame(rows, columns=["passes", "seed", "value"]).assign(quantity="gap", objective="a")
    sure = one.assign(objective="b", value=one["passes"] + one["seed"] / 10)
    assert convergence.same_side(pd.concat([one, sure]), ["objective"]).passed == passed
    assert convergence.same_side(sure, ["objective"]).passed


def test_clear_is_what_is_twice_as_far_from_zero_as_its_interval():
    def claims(values: list[float]) -> pd.DataFrame:
        return pd.DataFrame({"objective": "a", "quantity": "b", "seed": range(len(values)), "value": values})

    half = 4.303 * 0.1 / 3**0.5  # of three values with a deviation of .1
    for mean, kept in ((1.9, False), (2.1, True), (-2.1, True)):
        found = convergence.clear(claims([mean * half + each for each in (-0.1, 0.0, 0.1)]), ["objective", "quantity"])
        assert len(found) == (3 if kept else 0)
    assert not len(convergence.clear(claims([0.0, 0.0, 0.0]), ["objective"]))
    assert len(convergence.clear(claims([0.1, 0.1, 0.1]), ["objective"]))
    both = pd.concat([claims([0.1, 0.11, 0.12]).assign(objective="sure"), claims([0.1, -0.1, 0.2])])
    assert set(convergence.clear(both, ["objective"])["objective"]) == {"sure"}


def test_only_effects_that_are_large_enough_are_claimed_and_of_the_seeds_that_have_both():
    rows = [(4, seed, "large", 2.0) for seed in range(4)] + [(8, seed, "large", 9.0) for seed in range(2)]
    rows += [(passes, seed, "small", 0.3) for passes in (4, 8) for seed in range(2)]
    effects = pd.DataFrame(rows, columns=["passes", "seed", "quantity", "value"]).assign(objective="a")
    found = convergence.claimed(effects, 4, (0, 1), 0.4)
    assert set(found["quantity"]) == {"large"}
    assert set(found["seed"]) == {0, 1}
    assert (found["claim"] == 2.0).all()  # by the plan's passes


def test_errors_may_be_as_large_as_allowed_or_a_quarter_of_what_is_claimed_and_must_be_known():
    def passed(*pairs, largest=0.1):
        return convergence.errors({str(i): results.Estimate(*pair) for i, pair in enumerate(pairs)}, largest).passed

    assert not passed()  # nothing is claimed
    assert passed((0.0, 0.1), (-4.0, 1.0))
    assert not passed((0.0, 0.11), (-4.0, 1.0))
    assert not passed((0.0, 0.1), (-4.0, 1.01))
    assert not passed((4.0, math.nan), (0.0, 0.0))
    assert passed((0.0, 0.2), largest=0.2)
    worst = {"a": results.Estimate(0.0, 0.1), "b": results.Estimate(4.0, 2.0), "c": results.Estimate(9.0, 2.0)}
    assert "largest error is of b" in convergence.errors(worst, 0.1).found
