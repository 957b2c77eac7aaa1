"""The study of lines and collapse: slopes in closed form, two points by integration, what is read from its rows."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from errors import one_line
from scipy import integrate, stats

from nbvae import analytic
from studies import collapse as study
from studies.collapse import COLD, CONTINUED, EACH, LEVELS, ONE, TWO, Plan


def rows(source, start, beta, level, seed, **values):
    place = {"objective": source, "start": start, "beta": beta, "level": level, "seed": seed}
    return [place | {"split": "test", "quantity": name, "value": value} for name, value in values.items()]


def plane(levels, losses=(LEVELS,)) -> pd.DataFrame:
    oracle = analytic.LinearGaussian([1.6, 0.4], 2)
    found = []
    for loss in losses:
        for seed in (0, 1):
            for level in levels:
                rate, mse = oracle.at_water_level(level)
                active = sum(value > level for value in (1.6, 0.4))
                # Beside their σ, the others have a β: any number.
                found += rows("plane", loss, 1 + level, level, seed, rate=rate, mse=mse, active=active)
    return pd.DataFrame(found)


def test_the_line_of_linear_models_that_fill_their_space_has_slope_minus_n_over_a():
    found = study.slopes(plane([0.001, 0.005, 0.02, 0.1, 0.8])).pivot_table(index="seed", columns="quantity", values="value")
    np.testing.assert_allclose(found["slope"], -2 / 2, rtol=1e-9)
    assert (found["latents in use"] == 2).all()
    # Where only one of two directions is coded the other one is left over, and the slope is not −n/a.
    one = study.slopes(plane([0.5, 0.6, 0.7, 0.8])).query("quantity == 'slope'")["value"]
    assert (one > -2 / 1 + 0.3).all()


def test_straight_points_are_on_their_line_and_on_shannons_bound():
    frame = plane(np.geomspace(0.001, 0.3, 6), (LEVELS, ONE, EACH))
    straight = study.straightness(frame, 0.5)
    assert set(straight["objective"]) == {LEVELS, ONE, EACH}
    assert straight.query("quantity == 'off the line'")["value"].max() < 1e-9
    np.testing.assert_allclose(straight.query("quantity == 'slope'")["value"], -1.0)
    assert study.above(frame)["value"].abs().max() < 0.02  # the bound is that of a sample
    bent = frame.copy()
    bent.loc[(bent["quantity"] == "mse") & (bent["level"] == 0.001), "value"] *= 3
    assert study.straightness(bent, 0.5).query("quantity == 'off the line'")["value"].min() > 0.1


@pytest.mark.parametrize("parameters", [(-0.1, 2.5, 0.0, -0.7), (0.3, -1.0, -0.5, 0.2), (-0.2, 6.0, 0.1, -2.0)])
def test_the_rate_and_error_of_a_code_of_two_points_are_integrals(parameters):
    rare, (*mean, first, second) = 0.05, parameters
    codes: list[Any] = [stats.norm(m, math.exp(s)) for m, s in zip(mean, (first, second), strict=True)]
    prior, share = stats.norm(0, 1), (1 - rare, rare)

    def relative(code):
        return integrate.quad(lambda z: code.pdf(z) * (code.logpdf(z) - prior.logpdf(z)), *code.interval(1 - 1e-12))[0]

    def spread(z):
        weights = [p * code.pdf(z) for p, code in zip(share, codes, strict=True)]
        return weights[0] * weights[1] / (weights[0] + weights[1] + 1e-300)

    rate, mse = study.code_of(parameters, rare)
    assert rate == pytest.approx(share[0] * relative(codes[0]) + share[1] * relative(codes[1]), rel=1e-5)
    assert mse == pytest.approx(integrate.quad(spread, -12, 12, points=[0.0, 2.0], limit=200)[0], rel=1e-4, abs=1e-8)


def test_codes_of_two_unequal_points_are_better_beyond_the_threshold_of_the_linear_theory():
    """β_c is 1: there a collapsed model becomes a local minimum, and it is the global one from about 2 on only."""
    found: Any = study.path(0.05).set_index("ratio")
    at = found.index[np.abs(found.index - 1.5).argmin()]
    assert found["gain"][at] > 0.05
    crossing = np.interp(0.0, -found["gain"], found.index)
    assert 1.9 < crossing < 2.1
    assert found.index[-1] > crossing + 0.1  # a minimum still, and no longer the best
    assert found["gain"].iloc[-1] < 0
    assert (found["gain"].diff().dropna() < 0).all()
    # By the envelope the gain falls by the rate, and no code that was not looked for is better.
    slope = np.gradient(found["gain"], found.index)
    np.testing.assert_allclose(slope[2:-2], -found["rate"].iloc[2:-2], atol=2e-3)
    rng = np.random.default_rng(0)
    for parameters in rng.normal(0, [1, 2, 0.5, 0.5], (500, 4)):
        rate, mse = study.code_of(parameters, 0.05)
        assert 0.5 - (at * rate + mse / (2 * 0.05 * 0.95)) < found["gain"][at] + 1e-6


def test_trained_models_of_two_points_find_the_optimum_where_it_is_easy():
    cell = {"source": TWO, "dataset": "digits", "binarize": None, "images": 10, "ratios": [0.5], "rare": 0.05, "points": 1000}
    how = {"noise": 0.0, "hidden": [32, 32], "latent_dim": 1, "batch": 200, "lr": 5e-3, "passes": 120}
    found = study.threshold(**cell, **how, seeds=[0], store=None, device="cpu")["rows"]
    best = study.path(0.05).iloc[0]
    gain = {row["start"]: row["value"] for row in found if row["quantity"] == "gain"}
    assert gain[CONTINUED] == pytest.approx(best["gain"], abs=0.02)
    assert [row["level"] for row in found] == pytest.approx([0.5] * len(found))


def test_a_collapsed_model_costs_what_the_linear_theory_says():
    for spectrum in ([5.0, 3.0, 1.0, 0.5], [2.0, 1.0]):
        oracle = analytic.LinearGaussian(spectrum, 1)
        for variance in (None, 0.7):
            there = oracle.solve(1.01 * oracle.collapse_beta(variance), variance)
            assert there.active == 0
            assert study.collapsed(oracle.eigenvalues, variance) == pytest.approx(there.distortion)


def test_crossings_are_read_off_over_the_logarithm_of_beta():
    levels, found = [0.5, 1.0, 2.0, 4.0], []
    for seed in (0, 1):
        for level, cold, kept, gain in zip(levels, (1, 0.0, 0.0, 0.0), (1, 1, 1, 0.0), (1, 0.5, -0.5, -1), strict=True):
            found += rows("x", COLD, level, level, seed, rate=cold, gain=0.0)
            found += rows("x", CONTINUED, level, level, seed, rate=kept, gain=gain)
    table = study.crossings(pd.DataFrame(found)).groupby("quantity")["value"].agg(["mean", "nunique"])
    assert table["nunique"].eq(1).all()
    assert table["mean"][COLD] == pytest.approx(0.5 * 2**0.95)  # down to a twentieth of the first rate
    assert table["mean"][CONTINUED] == pytest.approx(2.0 * 2**0.95)
    assert table["mean"]["better"] == pytest.approx(math.sqrt(2))
    np.testing.assert_allclose(study.gaps(pd.DataFrame(found))["value"], math.log(4))
    assert study._falls(pd.Series([3.0, 2.0], index=[1.0, 5.0]), 1.0) == pytest.approx(5.0)


def test_where_codes_end_is_told_as_between_two_places_of_the_grid():
    levels, found = [0.5, 1.0, 2.0, 4.0], []
    cold = {0: (1, 0.01, 1, 0.0), 1: (1, 1, 0.0, 0.0)}  # one seed finds a code again after it found none
    kept = {0: (2, 2, 1, 0.0), 1: (1, 1, 1, 0.04)}  # the mark is a twentieth of the first: .1 and .05
    gain = {0: (1, 1, -1, 0.0), 1: (1, -1, -1, 1.0)}  # a gain without a code is none
    for seed in (0, 1):
        for i, level in enumerate(levels):
            found += rows("x", COLD, level, level, seed, rate=cold[seed][i], gain=0.0)
            found += rows("x", CONTINUED, level, level, seed, rate=kept[seed][i], gain=gain[seed][i])
    table = study.endings(pd.DataFrame(found)).set_index("quantity")
    assert table.loc[COLD, ["every", "none"]].tolist() == [0.5, 4.0]
    assert table.loc[CONTINUED, ["every", "none"]].tolist() == [2.0, 4.0]
    assert table.loc["better", ["every", "none"]].tolist() == [0.5, 2.0]
    never = study.endings(
        pd.DataFrame(found).query("level < 3").assign(value=lambda each: each["value"].where(each["quantity"] != "gain", -1))
    )
    assert never.set_index("quantity").loc[[CONTINUED, "better"], ["every", "none"]].to_numpy().tolist() == [
        [2.0, math.inf],
        [0.0, 0.5],
    ]


def test_linear_models_that_leave_nothing_over_count_their_latents():
    """MSE = a s + T_a: the count is a, and more by T_a/s where something is left over; minus the slope is n over it."""
    found = study.counts(plane([0.01, 0.1, 0.3, 0.8])).groupby("quantity")["value"].agg(["mean", "nunique"])
    assert found.loc["MSE/s, fine", "mean"] == pytest.approx(2.0)
    assert found.loc["MSE/s, coarse", "mean"] == pytest.approx(1 + 0.4 / 0.8)
    levels = np.array([0.5, 0.5001])
    rate, mse = analytic.LinearGaussian([1.6, 0.4], 2).at_water_level(levels)
    slope = np.diff(analytic.calibrated_distortion(mse, 2)) / np.diff(rate)
    assert slope[0] == pytest.approx(-2 / (mse[0] / levels[0]), rel=1e-3)


def test_sources_are_what_they_are_called():
    for name, (n, r, _) in study.LINES.items():
        ds = study.examples(name, 500)
        assert ds.train.shape == (500, n)
        assert not (ds.train == ds.test).all()
        assert r <= n
    sphere = study.examples("sphere", 500).train
    np.testing.assert_allclose(sphere.norm(dim=1), 1.0, rtol=1e-5)
    assert (study.eigenvalues(sphere) > 1e-6).sum() == 3
    two = study.examples(TWO, 1000, rare=0.05).train
    assert two.mean() == pytest.approx(0.05)
    assert study.eigenvalues(two) == pytest.approx([0.05 * 0.95])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lines": ("moon",)}, "a line must be one of"),
        ({"levels": (0.1, 0.2)}, "levels must be at least 3 numbers"),
        ({"levels": (0.1, 0.2, 1.5)}, "levels must be below 1"),
        ({"ratios": (1.2, 1.4, 2.0)}, "the first of ratios too"),
        ({"rare": 0.5}, "rare must be a share"),
        ({"again": 1}, "at least two seeds"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan(**values), said)
