"""The study of σ and β: what is read from its rows, against closed forms; codes of grey values; linear models."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

from nbvae import analytic, data, models
from studies import sigma as study
from studies.sigma import EACH, FIXED, LEARNED, LEVELS, OF_Z, OPTIMAL, PAIR, Plan

SPECTRUM = np.array([5, 3, 1.5, 0.8, 0.4, 0.2, 0.1, 0.05])
N = len(SPECTRUM)
ORACLE = analytic.LinearGaussian(SPECTRUM, 4)


def rows(part, seed, beta, level, train, test=None, **more):
    """The rows of one model: rate and MSE on both splits, and further quantities on test images."""
    place = {"objective": part, "beta": beta, "level": level, "seed": seed, "stderr": math.nan, "n": None}
    both = {"train": train, "test": train if test is None else test}
    found = [
        place | {"split": split, "quantity": name, "value": value}
        for split, values in both.items()
        for name, value in zip(("rate", "mse"), values, strict=True)
    ]
    return found + [place | {"split": "test", "quantity": name, "value": value} for name, value in more.items()]


def frontier(levels, seeds=(0, 1)) -> pd.DataFrame:
    """Linear optima at some levels, as models of fixed σ and as models with the closed form of σ."""
    found = []
    for seed in seeds:
        for level in levels:
            point = ORACLE.at_water_level(level)
            found += rows(LEVELS, seed, 1.0, level, point)
            found += rows(OPTIMAL, seed, ORACLE.learned_beta(level), math.nan, point)
    return pd.DataFrame(found)


def test_a_calibrated_level_stands_for_the_beta_of_a_learned_sigma_and_one_is_the_best():
    levels = np.geomspace(0.05, 3.0, 60)
    frame = frontier(levels)
    table = study.calibrated(frame, LEVELS, N)
    np.testing.assert_allclose(table["calibrated_beta"], [ORACLE.learned_beta(level) for level in table["level"]])
    expected = [point.distortion + point.rate for point in (ORACLE.solve(each, None) for each in table["calibrated_beta"])]
    np.testing.assert_allclose(table["train"], expected, rtol=1e-9)
    best = study.best_betas(frame, N)
    assert set(best["quantity"]) == {"training", "test"}
    np.testing.assert_allclose(best["value"], 0.0, atol=0.01)
    # Of a grid whose middle is far from 1 too.
    np.testing.assert_allclose(study.best_betas(frontier(np.geomspace(0.11, 4.0, 9)), N)["value"], 0.0, atol=0.1)


def test_the_best_beta_on_new_images_is_larger_where_rate_buys_less_there():
    found = []
    for level in np.geomspace(0.05, 3.0, 40):
        rate, mse = ORACLE.at_water_level(level)
        found += rows(LEVELS, 0, 1.0, level, (rate, mse), (rate, mse + 0.05 * rate))
        found += rows(OPTIMAL, 0, ORACLE.learned_beta(level), math.nan, (rate, mse), (rate, mse + 0.05 * rate))
    best = study.best_betas(pd.DataFrame(found), N).set_index(["objective", "quantity"])["value"]
    assert (best[:, "test"] > best[:, "training"] + 0.1).all()


def test_a_score_at_the_best_sigma_is_the_calibrated_distortion():
    rate, mse = 3.0, np.array([0.5, 2.0])
    np.testing.assert_allclose(study.scored(rate, mse, mse / N, N), rate + analytic.calibrated_distortion(mse, N))
    for factor in (0.8, 1.25):
        assert (study.scored(rate, mse, factor * mse / N, N) > study.scored(rate, mse, mse / N, N)).all()


def modes(seeds=(0, 1, 2)) -> pd.DataFrame:
    rng, found = np.random.default_rng(0), []
    for seed in seeds:
        for part, level, (rate, mse), distortion in (
            (FIXED, 1.0, (2.0, 4.0), 12.0),
            (OPTIMAL, math.nan, (5.0, 1.5), 6.0),
            (LEARNED, math.nan, (5.0, 1.6), 6.5),
            (OF_Z, math.nan, (5.0, 1.6), 5.0),
            (EACH, math.nan, (5.0, 1.4), 6.0),
        ):
            noise = 0.1 * rng.standard_normal(2)
            found += rows(part, seed, 1.0, level, (rate + noise[0], mse + noise[1]), (rate, mse + 0.2), distortion=distortion)
    return pd.DataFrame(found)


def test_both_orders_of_attribution_have_one_total_and_other_shares():
    steps = study.waterfall(modes(), N).pivot_table(index="seed", columns=["objective", "quantity"], values="value")
    for first, second in (("calibration", "adaptation"), ("adaptation", "calibration")):
        np.testing.assert_allclose(steps[first, "first"] + steps[second, "second"], steps["both", "in all"])
    assert (abs(steps["calibration", "first"] - steps["calibration", "second"]) > 0.1).all()
    # By hand, for one seed: the networks of the fixed σ = 1, judged at 1 and at their own best on training images.
    frame = modes((0,))
    own = frame.query("objective == @FIXED and split == 'train' and quantity == 'mse'")["value"].item() / N
    rate, mse = 2.0, 4.2
    by_hand = mse / 2 - (mse / (2 * own) + N / 2 * math.log(own))
    found = study.waterfall(frame, N).set_index(["objective", "quantity"])["value"]
    assert found["calibration", "first"] == pytest.approx(by_hand)
    other = frame.query("objective == @OPTIMAL and split == 'test'").set_index("quantity")["value"]
    assert found["adaptation", "first"] == pytest.approx(rate + mse / 2 - other["rate"] - other["mse"] / 2)


def test_gains_are_over_the_closed_form_at_each_models_own_sigma():
    found = study.gains(modes()).groupby("objective")["value"].agg(["mean", "std"])
    assert found["mean"].to_dict() == pytest.approx({FIXED: 11 - 14, LEARNED: -0.5, OF_Z: 1.0, EACH: 0.0})
    assert (found["std"] < 1e-9).all()


def test_one_level_is_one_model_whatever_beta_and_linear_ones_are_the_optimum():
    """Trained, not assumed: β = .1 and 10 at one level, on Gaussian data; both are where water-filling puts them."""
    cell = {"dataset": "gaussian", "binarize": None, "images": 2000, "levels": [0.05, 0.2, 0.5], "betas": [1.0]}
    how = {"network": "linear", "hidden": [], "latent_dim": 4, "batch": 500, "lr": 0.05, "passes": 60, "draws": 20}
    rest = {"mode_betas": [1.0], "measured": None, "drawn": 10, "pictured": 2, "seeds": [0], "store": None, "device": "cpu"}
    found = [row for part in (LEVELS, PAIR) for row in study.train(**cell, **how, **rest, part=part)["rows"]]
    frame = pd.DataFrame(found)
    whole = data.load("gaussian").train[:2000].double()
    oracle = analytic.LinearGaussian(np.cov(whole.T, bias=True), 4)
    levels = study.wide(frame, LEVELS)
    np.testing.assert_allclose(levels["level"], np.array([0.05, 0.2, 0.5]) * oracle.eigenvalues[0], rtol=1e-5)
    expected = np.array([oracle.at_water_level(level) for level in levels["level"]])
    np.testing.assert_allclose(levels[["train_rate", "train_mse"]], expected, rtol=0.02, atol=0.02)
    differences = study.identity(frame, 8)
    assert sorted(differences["beta"].unique()) == [0.1, 10.0]
    assert differences["value"].abs().max() < 1e-3
    assert study.wide(frame, PAIR)["level"].to_numpy() == pytest.approx([levels["level"][1]] * 2, rel=1e-5)


def test_noise_of_the_width_of_a_bin_keeps_the_grey_value():
    ds = data.load("digits", None).first(20)
    found = study.noisy(ds, 17)
    assert len(found.train) == 4 * 20
    assert found.train.min() >= 0
    assert found.train.max() <= 1
    assert (torch.floor(found.train * 17) == torch.cat([ds.train] * 4) * 16).all()
    assert (found.train[:20] != found.train[20:40]).any()


def test_a_uniform_density_of_noisy_pixels_costs_what_its_grey_values_do():
    ds = data.load("digits", None).first(20)
    model = models.VAE(ds.shape, 2, hidden=(4,), likelihood="continuous_bernoulli")
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert study.bits(model, study.noisy(ds, 17), 17, 1, True) == pytest.approx(math.log2(17))


def test_a_sigma_far_below_the_bins_is_widened_for_masses():
    ds = data.load("digits", None).first(100)
    model = models.VAE(ds.shape, 2, hidden=(4,), likelihood="gaussian", sigma=0.05)
    before = study.bits(models.Discretized(model, 17), ds, 17, 1)
    study.set_for_masses(model, ds.train, 17)
    assert model.observation.scale.item() == pytest.approx(2.5 * 0.05)
    assert study.bits(models.Discretized(model, 17), ds, 17, 1) < before


@pytest.mark.parametrize("against", [2.0, 0.5])
def test_what_is_told_is_of_the_plans_passes_and_all_seeds(against):
    """Whichever is longer, the plan's passes or those of the comparison: rows, pictures and kept trainings."""
    plan = study.plan("digits", "smoke").changed(passes=2, against=against, seeds=(0, 1, 2))
    found, lab = [], study.Lab()
    for seeds, again in (((0, 1, 2), 2), ((0, 1, 2), 3)):
        found.append(study.run(plan.changed(seeds=seeds, again=again), lab))
    asked = {(note["cell"]["passes"], tuple(note["cell"]["seeds"])) for note in lab.notes}
    other = round(2 * against)
    assert asked == {(other, (0, 1)), (2, (0, 1)), (2, (2,)), (other, (0, 1, 2)), (2, (0, 1, 2))}
    assert not any("against" in note["cell"] for note in lab.notes)
    for each in found:
        assert set(each.frame["seed"]) == {0, 1, 2}
        assert "passes" not in each.frame
    # A model is the same in whichever call it was trained.
    keys = ["objective", "quantity", "split", "beta", "seed", "sigma"]
    keys = [key for key in keys if key in found[0].frame]
    tables = [each.frame.set_index(keys)["value"].sort_index() for each in found]
    pd.testing.assert_series_equal(*tables, rtol=1e-3)
    for name in ("rebuilt", "drawn"):
        np.testing.assert_allclose(found[0].arrays[name], found[1].arrays[name], atol=2e-3)


def test_one_dimension_is_refused(tmp_path):
    path = tmp_path / "one.npz"
    np.savez(path, train=np.random.default_rng(0).random((50, 1)), test=np.zeros((5, 1)))
    one_line(lambda: study.run(study.plan(str(path), "smoke"), study.Lab()), "two dimensions or more")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"levels": (0.1, 0.2)}, "levels must be at least 3 numbers"),
        ({"levels": (0.1, 0.2, 1.0)}, "levels must be below 1"),
        ({"betas": (1.0, 0.5, 2.0)}, "betas must be at least 3 numbers > 0, from the smallest"),
        ({"mode_betas": (0.6,)}, "mode_betas must have 1"),
        ({"mode_betas": (1.0, 99.0)}, "be among betas"),
        ({"again": 1}, "at least two seeds"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan(**values), said)


@pytest.mark.parametrize(("test", "kinds", "told"), [(33, 2, True), (32, 2, False), (33, 1, False)])
def test_pictures_are_compared_where_there_are_more_of_them_than_features(test, kinds, told):
    x = torch.rand(40, 1, 3, 3)
    labels = torch.arange(40) % kinds
    ds = data.Dataset(name="few", train=x, test=x[:test], validation=x[:4], train_labels=labels, test_labels=labels[:test])
    assert study.has_features(ds) == told
