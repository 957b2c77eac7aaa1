"""The study of the third axis: the held-out bound and its split, the best scale, the search for the pair, and its checks."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

from nbvae import analytic, estimators, models
from studies import third_axis as study
from studies.third_axis import HEAVY, LIGHT, MANY, PLAIN, WEIGHTS, Plan, Rescaled, marginal_kl_lower

COV = np.diag([4.0, 1.0, 0.5])
ENCODER = np.array([[0.9, 0.3, 0.0], [0.5, -1.2, 0.4]])
BIAS = np.array([0.7, -1.5])


def linear(variance: float) -> tuple[models.VAE, analytic.GaussianTerms]:
    """A linear model of Gaussian data, far from an optimum, and the exact terms of its rate."""
    v = np.full(2, variance)
    maps: Any = {"encoder": ENCODER, "encoder_bias": BIAS, "variance": v, "decoder": 0.4 * ENCODER.T}
    return models.VAE.from_linear(**maps, sigma=0.5), analytic.linear_four_terms(COV, ENCODER, v, encoder_bias=BIAS)


def examples(n: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).multivariate_normal(np.zeros(3), COV, n))


def scale(terms: analytic.GaussianTerms) -> float:
    """The KL of the latents' means and variances, which for Gaussians is all but their dependence."""
    return terms.marginal_kl - terms.total_correlation


@pytest.mark.parametrize("variance", [0.3, 1e-6])
def test_the_held_out_bound_is_exact_for_gaussians_at_any_rate_and_splits_into_scale_and_the_rest(variance):
    model, exact = linear(variance)
    fit_on, x = examples(3000, 0), examples(3000, 1)
    found = marginal_kl_lower(model, fit_on, x, components=1, draws=2)
    whole, of_scale, rest = (found[f"marginal_kl_held_out{name}"] for name in ("", "_scale", "_rest"))
    for estimate, value in ((whole, exact.marginal_kl), (of_scale, scale(exact)), (rest, exact.total_correlation)):
        assert abs(estimate.value - value) < 4 * estimate.stderr + 0.01
        assert estimate.n == len(x)
    np.testing.assert_allclose(whole.values, (of_scale.values + rest.values), atol=1e-9)


def test_where_the_rate_is_beyond_log_n_the_held_out_bound_holds_and_that_of_the_sample_says_nothing():
    model, exact = linear(1e-6)
    few, x = examples(100, 0), examples(2000, 1)
    terms: Any = estimators.decompose(model, few, n_samples=20)
    assert terms.rate > 2 * terms.log_n
    assert terms.marginal_kl_lower < -10
    bound = marginal_kl_lower(model, few, x, components=1)["marginal_kl_held_out"]
    assert exact.marginal_kl - 0.2 < bound.value < exact.marginal_kl + 4 * bound.stderr


@pytest.mark.parametrize("n", [10, 30, 100, 300, 1000])
@pytest.mark.parametrize("variance", [0.3, 1e-3, 1e-6])
def test_the_held_out_bound_is_below_the_truth_at_every_n_and_above_that_of_the_sample_beyond_log_n(variance, n):
    model, exact = linear(variance)
    few, x = examples(n, 2), examples(2000, 1)
    terms: Any = estimators.decompose(model, few, n_samples=20)
    for components in (1, 3):
        bound = marginal_kl_lower(model, few, x, components=components)["marginal_kl_held_out"]
        assert bound.value < exact.marginal_kl + 4 * bound.stderr
        # A mixture of three has more than one Gaussian to fit to ten or thirty codes, of a law that is Gaussian.
        if terms.rate > terms.log_n and (components == 1 or n >= 100):
            assert bound.value > terms.marginal_kl_lower
    assert (terms.rate > terms.log_n) == (variance < 0.01 or n <= 100)


def test_a_mixture_fitted_to_few_codes_bounds_from_below_too():
    model, exact = linear(0.3)
    bound = marginal_kl_lower(model, examples(30, 0), examples(3000, 1), components=8, draws=1)["marginal_kl_held_out"]
    assert bound.value < exact.marginal_kl - 4 * bound.stderr


def test_at_the_best_scale_moments_are_the_priors_and_only_the_scale_is_gone_from_the_rate():
    model, exact = linear(0.3)
    x = examples(5000, 0)
    view = Rescaled(model, x)
    moments = estimators.moments(view, x)
    np.testing.assert_allclose(moments.second_moment, 1.0, atol=1e-12)
    np.testing.assert_allclose(moments.mean, 0.0, atol=1e-12)
    before, after = (estimators.decompose(each, x[:500], n_samples=4) for each in (model, view))
    for name in ("distortion", "mutual_information", "mutual_information_upper", "total_correlation"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-6)
    before, after = (estimators.evaluate(each, x, n_samples=1) for each in (model, view))
    second, variance = (getattr(estimators.moments(model, x), name) for name in ("second_moment", "covariance"))
    saved = 0.5 * (second - 1 - variance.diagonal().log()).sum().item()
    assert before.rate - after.rate == pytest.approx(saved, abs=1e-9)
    assert saved == pytest.approx(scale(exact), abs=0.1)


def test_a_model_of_many_betas_is_rescaled_at_each_and_left_as_it_was():
    torch.manual_seed(0)
    many, x = models.MultiBetaVAE((4,), 2, beta_range=(0.1, 10.0)), torch.rand(50, 4).round()
    means = many.posterior(x, beta=1.0).mean
    moments = estimators.moments(Rescaled(many.at(0.1), x), x)
    assert (moments.second_moment - 1).abs().max() < 1e-5
    assert torch.equal(many.posterior(x, beta=1.0).mean, means)


WANTED = np.array([1.2, 0.4])


def place(curved: float):
    """A map from weights to rate and distortion, linear in the logarithms but for `curved`; the heavy ones are at `WANTED`."""

    def at(weightings):
        logs = np.log([WANTED if list(each) == [1.0, 3.0] else each for each in weightings])
        points = logs @ np.array([[-2.0, 3.0], [-1.0, -0.5]]) + curved * np.square(logs)
        return points + np.array([5.0, 12.0])

    return at


GRID = [[1.0, 0.3], [1.0, 0.5], [1.3, 0.3], [1.3, 0.5]]


def test_the_search_ends_at_once_where_its_model_is_right_and_goes_on_where_it_is_not():
    weights, tried = study.search(place(0.0), [1.0, 3.0], GRID, 10, 1e-9)
    np.testing.assert_allclose(weights, WANTED, rtol=1e-6)
    assert len(tried) == 1
    weights, tried = study.search(place(0.4), [1.0, 3.0], GRID, 10, 1e-6)
    np.testing.assert_allclose(place(0.4)([weights]), place(0.4)([WANTED]), atol=1e-6)
    assert 2 < len(tried) < 10
    np.testing.assert_allclose(tried[-1, :2], weights)


def test_a_search_that_does_not_arrive_gives_the_nearest_that_it_tried():
    def flat(weightings):  # the rate cannot be reached
        points = place(0.0)(weightings)
        return np.array(
            [[9.0 if list(each) == [1.0, 3.0] else 5.0, point[1]] for each, point in zip(weightings, points, strict=True)]
        )

    weights, tried = study.search(flat, [1.0, 3.0], GRID, 4, 0.01)
    assert len(tried) == 4
    assert list(weights) in tried[:, :2].tolist()
    np.testing.assert_allclose(tried[:, 2], -4.0)


def pair(heavy: dict[str, float], light: dict[str, float], noise: float = 0.0, passes: int = 8) -> pd.DataFrame:
    """Rows of the pair, three seeds whose differences cancel; the light ones in another order."""
    names = {"frechet_prior": 3.0, "frechet_prior_rescaled": 3.0, "frechet_aggregate": 1.0, "scale": 0.5}
    rows = [
        {"objective": kind, "passes": passes, "seed": seed, "split": "train", "quantity": name}
        | {"value": value + 10 * seed + (kind == LIGHT) * noise * (seed - 1)}
        for kind, values, seeds in ((HEAVY, heavy, (0, 1, 2)), (LIGHT, light, (2, 0, 1)))
        for seed in seeds
        for name, value in (names | values).items()
    ]
    return study.wide(pd.DataFrame(rows))


TERMS = {"rate": 5.0, "distortion": 12.0, "marginal_kl": 1.0, "marginal_kl_held_out_rest": 0.3}


def test_the_pair_is_compared_seed_by_seed_at_the_best_scale():
    apart = study.between(pair(TERMS, TERMS | {"rate": 5.5, "marginal_kl": 1.75, "scale": 1.0}))
    values = {name: (apart[name].value, apart[name].stderr) for name in ("rate_rescaled", "distortion", "shape", "cost")}
    assert values == {"rate_rescaled": (0.0, 0.0), "distortion": (0.0, 0.0), "shape": (0.25, 0.0), "cost": (0.0, 0.0)}


@pytest.mark.parametrize(
    ("changes", "noise", "price", "passed"),
    [
        ({"marginal_kl": 2.0}, 0.0, 1.0, True),
        ({"marginal_kl": 2.0, "rate": 5.3}, 0.0, 1.0, False),
        ({"marginal_kl": 2.0, "rate": 5.3}, 0.0, 4.0, False),
        ({"marginal_kl": 2.0, "distortion": 11.7}, 0.0, 1.0, False),
        ({"marginal_kl": 2.0, "distortion": 11.7}, 0.0, 4.0, True),  # worth less than a tenth of a nat of rate
        ({"marginal_kl": 2.0, "distortion": 10.9}, 0.0, 4.0, False),
        ({"marginal_kl": 2.0, "distortion": 11.3, "rate": 4.8}, 0.0, 4.0, False),  # both to one side
        ({"marginal_kl": 2.0, "distortion": 12.7, "rate": 4.8}, 0.0, 4.0, True),
        ({"marginal_kl": 2.0, "rate": 5.3, "scale": 0.8}, 0.0, 1.0, True),  # at the best scale one rate
        ({"marginal_kl": 2.0}, 1.0, 1.0, False),  # nothing could be seen
        ({"marginal_kl": 2.0}, 2.0, 4.0, False),
        ({}, 0.0, 1.0, True),  # nothing is claimed, and nothing apart
    ],
)
def test_the_pair_is_one_point_within_a_quarter_of_what_is_claimed(changes, noise, price, passed):
    table = pair(TERMS, TERMS | changes, noise).assign(on_information=price)
    assert study._one_point(table, 8).passed == passed


def test_twice_the_passes_compare_differences_of_the_pair_each_with_its_own_weights():
    plan = Plan(pair_passes=8, seeds=(0, 1, 2), few=2, pair_again=2)
    light = TERMS | {"marginal_kl": 2.0, "marginal_kl_held_out_rest": 1.1}
    every = [pair(TERMS, light), pair(TERMS | {"rate": 7.0}, light | {"rate": 7.0, "marginal_kl": 2.2}, passes=16)]
    claims = study._claims_of_pair(pd.concat(every), plan)
    changes = claims.pivot_table(index="quantity", columns="passes", values="value")
    np.testing.assert_allclose(changes.loc["shape"], [1.0, 1.2])
    assert claims.groupby("quantity")["allowed"].first().to_dict() == pytest.approx(
        {"shape": 0.25, "marginal_kl_held_out_rest": 0.2, "cost_rescaled": 0.0}
    )
    assert set(claims["seed"]) == {0, 1}


def test_losses_of_beta_vaes_are_those_of_every_beta_at_the_best_scale():
    table = pd.DataFrame({"beta": [0.5, 2.0], "seed": 0, "distortion": [3.0, 6.0], "rate_rescaled": [4.0, 1.0]})
    losses = study._beta_losses(table).pivot(index="objective", columns="under", values="value")
    np.testing.assert_allclose(losses, [[5.0, 11.0], [6.5, 8.0]])


def test_a_rank_correlation_resamples_settings_with_their_seeds_and_networks_with_their_views():
    def rows(objective, seeds, values):
        return [{"objective": objective, "beta": beta, "seed": seed, "x": x, "y": y} for seed in seeds for beta, x, y in values]

    rising = [(beta, beta, beta**2) for beta in (0.1, 0.5, 1.0, 2.0)]
    value, low, high = study.rank_correlation(pd.DataFrame(rows(PLAIN, (0, 1), rising)), "x", "y")
    assert (value, low, high) == pytest.approx((1.0, 1.0, 1.0))
    # One network is one unit, whatever the number of its views: no resampling is another one.
    mixed = [(beta, x, y) for beta, x, y in zip((1.0, 2.0, 3.0, 4.0), (1, 2, 3, 4), (2, 1, 4, 3), strict=True)]
    one = study.rank_correlation(pd.DataFrame(rows(MANY, (0,), mixed)), "x", "y")
    assert one == pytest.approx((0.6, 0.6, 0.6))
    value, low, high = study.rank_correlation(pd.DataFrame(rows(PLAIN, (0,), mixed)), "x", "y")
    assert value == pytest.approx(0.6)
    assert low < 0.6 < high
    assert math.isnan(study._spearman(np.ones(3), np.arange(3)))


def test_a_rank_correlation_is_of_every_model_whatever_its_setting_lacks():
    """β-VAEs have no two weights, weightings have no β, published objectives have neither."""
    kinds = [{"objective": PLAIN, "beta": beta} for beta in (0.1, 1.0)] + [{"objective": "FactorVAE"}]
    kinds += [{"objective": WEIGHTS, "on_information": a, "on_marginal": w} for a, w in ((1.0, 3.0), (1.0, 0.3))]
    kinds += [{"objective": MANY, "beta": beta} for beta in (0.1, 1.0)]
    table = pd.DataFrame([kind | {"seed": seed} for seed in (0, 1) for kind in kinds])
    table["x"] = np.random.default_rng(0).permutation(len(table))
    rises = table["objective"] == MANY
    table["y"] = table["x"].where(rises, -table["x"])
    value, low, high = study.rank_correlation(table, "x", "y")
    assert value == pytest.approx(study._spearman(table["x"], table["y"]))
    assert -1 <= low < value < high < 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": ("nosuch",)}, "a row must be one of"),
        ({"on_marginal": (1.0,)}, "as many numbers"),
        ({"heavy": (1.0,)}, "heavy must be two"),
        ({"few": 1}, "few, pair_again and search_seeds"),
        ({"seeds": (0, 1), "pair_again": 3}, "few, pair_again and search_seeds"),
        ({"latent_dim": 1}, "latent_dim must be at least 2"),
    ],
)
def test_a_plan_refuses_in_one_line(changes, said):
    one_line(lambda: Plan(**changes), said)


def test_a_readers_file_is_run_in_fewer_passes_than_the_books_data_and_as_many_steps_where_it_is_small(tmp_path):
    rng = np.random.default_rng(0)
    for rows, passes in ((1200, 20), (500, 45)):  # a tenth of them is held out
        np.savez(file := tmp_path / f"{rows}.npz", train=rng.random((rows, 3)), test=rng.random((40, 3)))
        own, book = (study.plan(name, "quick") for name in (str(file), "digits"))
        assert (own.passes, own.search_steps) == (passes, 1)
        assert own.passes < book.passes
        assert own.search_steps < book.search_steps
