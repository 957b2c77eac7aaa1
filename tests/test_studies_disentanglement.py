"""The study of disentanglement: what axes cost, posteriors without axes, and what is claimed from its rows."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line
from torch import distributions

from nbvae import analytic, data, models, objectives, training
from studies import axes
from studies import disentanglement as study
from studies.disentanglement import Plan

RNG = np.random.default_rng(0)
SPECTRUM = np.array([4.0, 2.5, 1.5, 0.8, 0.3, 0.2])
SIGMA2 = 0.3


def linear(beta: float, spectrum: np.ndarray = SPECTRUM, turn: np.ndarray | None = None) -> tuple[models.VAE, float]:
    """The optimal linear VAE with four latents or, with its codes turned, the best that independent latents can; and D + βR."""
    solution = analytic.LinearGaussian(spectrum, 4).solve(beta=beta, sigma2=SIGMA2)
    turn = np.eye(4) if turn is None else turn
    decoder = np.asarray(solution.decoder) @ turn
    variance = 1 / (1 + (decoder**2).sum(0) / (beta * SIGMA2))
    encoder = turn.T @ np.asarray(solution.encoder)
    rate, mse = analytic.linear_elbo_terms(spectrum, encoder, decoder, variance)
    model = models.VAE.from_linear(encoder=encoder, variance=variance, decoder=decoder, sigma=SIGMA2**0.5)
    return model, mse / (2 * SIGMA2) + beta * rate


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_what_turned_axes_cost_is_what_a_linear_model_loses(beta):
    """D is quadratic there, and the cost exact: nothing on principal axes, on others what the best variances lose."""
    best, least = linear(beta)
    at = torch.randn(3, 4, dtype=torch.float64)
    information = axes.curvature(best, at)
    assert axes.cost_of_axes(information, beta) == pytest.approx(0, abs=1e-9)
    for turn in axes.rotations(4, 3):
        model, loss = linear(beta, turn=turn)
        cost = axes.cost_of_axes(information, beta, turn)
        assert cost == pytest.approx(loss - least, abs=1e-9)
        assert axes.cost_of_axes(axes.curvature(model, at), beta) == pytest.approx(cost, abs=1e-9)  # its own axes
        assert cost > 0.01


def test_no_axes_are_better_than_others_where_all_directions_weigh_the_same():
    model, _ = linear(1.0, np.array([2.0, 2.0, 2.0, 2.0, 0.1, 0.1]))
    information = axes.curvature(model, torch.zeros(1, 4))
    assert all(axes.cost_of_axes(information, 1.0, turn) == pytest.approx(0, abs=1e-9) for turn in axes.rotations(4, 3))


def test_what_axes_cost_is_the_least_over_variances_less_the_least_over_covariances():
    root = RNG.standard_normal((5, 4))
    information, beta = torch.tensor(root.T @ root)[None], 1.7

    def loss(covariance: torch.Tensor) -> torch.Tensor:
        """½ tr(FS) and βR but for what no covariance changes."""
        rate = 0.5 * (covariance.trace() - torch.logdet(covariance) - 4)
        return 0.5 * (information[0] @ covariance).trace() + beta * rate

    least = []
    for size, made in ((4, lambda p: p.exp().diag()), (16, lambda p: torch.matrix_exp(p.view(4, 4) + p.view(4, 4).T))):
        parameters = torch.zeros(size, dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS([parameters], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def closure(parameters=parameters, made=made, search=search):
            search.zero_grad()
            value = loss(made(parameters))
            value.backward()
            return value

        search.step(closure)
        least.append(loss(made(parameters)).item())
    assert axes.cost_of_axes(information, beta) == pytest.approx(least[0] - least[1], abs=1e-7)


def test_curvature_is_the_fisher_information():
    """E ∇ log p(x|z) ∇ log p(x|z)ᵀ over all images of four pixels; of a Gaussian JᵀJ/σ²."""
    model = models.VAE((4,), 3, hidden=(6,)).double()
    z = torch.randn(2, 3, dtype=torch.float64)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    for one, found in zip(z, axes.curvature(model, z), strict=True):
        gradients = torch.func.jacrev(lambda z: model.likelihood(z.expand(16, 3)).log_prob(every))(one)
        chance = model.likelihood(one.expand(16, 3)).log_prob(every).exp()
        torch.testing.assert_close(found, torch.einsum("n,ni,nj->ij", chance, gradients, gradients))
    decoder = RNG.standard_normal((5, 3))
    gaussian = models.VAE.from_linear(encoder=np.zeros((3, 5)), variance=np.ones(3), decoder=decoder, sigma=0.4)
    np.testing.assert_allclose(axes.curvature(gaussian, z)[0], decoder.T @ decoder / 0.16, rtol=1e-10)


def test_the_rate_of_a_posterior_of_any_covariance_is_torchs_and_turning_it_changes_nothing():
    torch.manual_seed(0)
    model = axes.FullCovariance((1, 4, 4), 3, (8,)).double()
    q, prior = model.posterior(torch.rand(5, 1, 4, 4)), model.prior()
    standard = distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    rate = distributions.kl_divergence(q, prior)
    torch.testing.assert_close(
        rate, distributions.kl_divergence(distributions.MultivariateNormal(q.mean, q.covariance_matrix), standard)
    )
    assert (q.covariance_matrix - torch.diag_embed(q.variance)).abs().max() > 1e-3
    turn = torch.tensor(axes.rotations(3, 1)[0])
    turned = axes.Correlated(q.mean @ turn, turn.T @ q.covariance_matrix @ turn)
    torch.testing.assert_close(distributions.kl_divergence(turned, prior), rate)
    other = distributions.Independent(distributions.Normal(torch.ones(3), torch.ones(3)), 1)
    with pytest.raises(NotImplementedError):
        distributions.kl_divergence(q, other)


def test_posteriors_without_axes_are_trained_as_any_and_one_variance_is_one():
    ds = data.load("digits").first(200)
    config = training.TrainConfig(3, 50, 1e-2, device="cpu")
    for make in (
        lambda: axes.FullCovariance(ds.shape, 3, (16,)),
        lambda: models.VAE(ds.shape, 3, hidden=(16,), encoder=axes.OneVariance(ds.shape, 3, (16,))),
    ):
        (run,) = training.sweep(make, ds, objectives=[objectives.BetaVAE(1.0)], config=config)
        loss = run.history["loss"]
        assert loss[-1] < loss[0]
        q = run.model.posterior(ds.test)
        assert math.isfinite(q.log_prob(q.sample()).sum().item())
    std = q.base_dist.stddev
    assert (std == std[:, :1]).all()
    assert std[:, 0].std() > 0


def test_axes_that_are_drawn_or_labelled_are_orthogonal_and_the_labelled_ones_tell_the_factors():
    factors = np.array(list(itertools.product((0, 1), (0, 1), (0, 1, 2))) * 50)
    hidden = axes.rotations(5, 1, seed=3)[0]
    codes = np.concatenate([3.0 * factors, np.zeros((len(factors), 2))], axis=1) + RNG.standard_normal((len(factors), 5))
    found = axes.labelled_axes(codes @ hidden, factors)
    for each in (found, *axes.rotations(5, 4)):
        np.testing.assert_allclose(each.T @ each, np.eye(5), atol=1e-10)
    assert np.abs(found[:, :3].T @ hidden.T).diagonal().min() > 0.98
    assert axes.labelled_axes(codes[:, :2], factors).shape == (2, 2)
    assert axes.labelled_axes(codes[:, :1], factors).tolist() == [[1.0]]
    assert axes.labelled_axes(codes[:, :0], factors).shape == (0, 0)
    drawn = np.array(axes.rotations(3, 4000))
    assert np.abs(drawn.mean(0)).max() < 0.04  # uniform: no entry prefers a sign
    assert (drawn**2).mean(0) == pytest.approx(np.full((3, 3), 1 / 3), abs=0.02)


def test_labels_find_the_axes_of_a_code_that_was_turned_and_inactive_latents_stay_where_they_are():
    factors = np.array(list(itertools.product((0, 1), (0, 1), (0, 1, 2))) * 200)
    factors = factors[RNG.permutation(len(factors))]
    means = np.concatenate([factors - factors.mean(0), np.zeros((len(factors), 2))], axis=1)
    turn = np.eye(5)
    turn[:3, :3] = axes.rotations(3, 1, seed=1)[0]
    noise = 0.1 * RNG.standard_normal(means.shape)
    noise[:, 3:] *= 10
    split = (slice(0, 1200), slice(1200, None))
    codes = [(means @ turn + noise)[part] for part in split]
    found = study.scores(codes, [factors[part] for part in split], (means @ turn)[split[1]], turns=4, trees=5)
    assert found["active"].tolist() == [True, True, True, False, False]
    assert found["active latents"] == 3
    assert found["labelled"].shape == (3, 3)
    assert found["MIG, labelled axes"] > 0.85
    assert found["importances, labelled axes"] > 0.85
    assert max(found["MIG"], found["MIG, random axes"]) < 0.6
    assert found["informativeness"] > 0.95
    assert np.mean([found[f"MIG of {name}"] for name in study.FACTORS]) == pytest.approx(found["MIG"])


def test_the_variances_of_a_linear_optimum_are_those_that_follow_and_its_axes_cost_nothing():
    model, _ = linear(2.0)
    active = np.array([True] * 4)
    found = study.costs(model, torch.randn(5, 6, dtype=torch.float64), active, axes.rotations(4, 1)[0], 2.0, turns=3)
    assert found["misfit of variances"] == pytest.approx(0, abs=1e-9)
    assert found["cost of axes"] == pytest.approx(0, abs=1e-9)
    assert min(found["cost of random axes"], found["cost of labelled axes"]) > 0.05
    assert study.costs(model, torch.zeros(1, 6), active, np.eye(4), None, 1) == {}


def test_families_of_fonts_are_one_factor_and_other_data_are_refused_in_one_line():
    ds = data.load("glyphs")
    found, known = study.factors(ds, "test"), ds.factors.by_name("test")
    assert (known["serif"] * known["mono"]).sum() == 0  # they exclude each other
    assert ((found[:, 2] == 1) == (known["serif"] == 1).numpy()).all()
    assert ((found[:, 2] == 2) == (known["mono"] == 1).numpy()).all()
    one_line(lambda: study.factors(data.load("digits"), "test"), "known factors, and digits has not those of glyphs")


def frame_of(values: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    """A frame of these quantities, with a value for each seed, of each objective."""
    train = ("loss", "distortion", "rate")
    return pd.DataFrame(
        {"objective": objective, "split": "train" if name in train else "test", "quantity": name, "seed": seed, "value": value}
        for objective, each in values.items()
        for name, numbers in each.items()
        for seed, value in enumerate(numbers)
    )


def model(mig: list[float], distortion: float, own: float | None, random: float = 0.0, loss: tuple[float, ...] = (1, 2, 3)):
    n = len(mig)
    found = {"MIG": mig, "importances": mig, "MIG, random axes": [0.0] * n, "MIG, labelled axes": [0.5] * n}
    found |= {"distortion": [distortion] * n, "loss": list(loss)}
    if own is None:
        return found
    return found | {"cost of axes": [own] * n, "cost of random axes": [random] * n, "cost of labelled axes": [own + 0.25] * n}


def test_sides_are_differences_on_the_same_seed():
    frame = frame_of(
        {
            "VAE": model([0.1, 0.2, 0.3], 100.0, 1.0, 1.5),
            "β = 4": model([0.2, 0.3, 0.4], 140.0, 2.0, 5.0, (3, 2, 1)),
            "weight 6 on TC": model([0.15, 0.3, 0.35], 120.0, None),
            "weight 9 on TC": model([0.1, 0.2, 0.3], 150.0, None),
            "β = 4, one variance": model([0.0, 0.0, 0.0], 145.0, 2.0, 2.5),
            "β = 4, full covariance": model([0.0, 0.0, 0.0], 145.0, 7.0, 7.0),
        }
    )
    # In an order of their own: pairs are found by seed.
    found = study.sides(frame.sample(frac=1, random_state=1)).set_index(["quantity", "objective", "seed"])["value"].sort_index()
    mean = found.groupby(["quantity", "objective"]).mean()
    assert mean["random axes cost more"].to_dict() == {
        "VAE": 0.5,
        "β = 4": 3.0,
        "β = 4, one variance": 0.5,
        "β = 4, full covariance": 0.0,
    }
    assert mean["random axes cost more, than of one variance"].to_dict() == {"β = 4": 2.5}
    assert "random axes cost more, than of full covariance" not in mean
    assert mean["labelled axes cost more"].to_dict() == {"VAE": 0.25, "β = 4": 0.25}
    assert found["MIG, labelled axes", "weight 6 on TC"].tolist() == pytest.approx([0.35, 0.2, 0.15])
    assert found["MIG, random axes", "VAE"].tolist() == pytest.approx([-0.1, -0.2, -0.3])
    assert found["MIG, at equal distortion", "weight 6 on TC"].tolist() == pytest.approx([0.0, 0.05, 0.0])
    assert "weight 9 on TC" not in mean["MIG, at equal distortion"]  # no β-VAE is there
    # Of the four losses one falls with the score.
    assert mean["loss and MIG", "all"] == pytest.approx((3 - 1) / 4)
    table = np.array([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4], [0.15, 0.3, 0.35], [0.1, 0.2, 0.3]])
    assert found["MIG by seeds", "all"].to_numpy() == pytest.approx(0.5 - study.pseudovalues(study.share, table))


def test_the_share_of_objectives_is_that_of_the_variances_that_made_the_scores():
    for between in (0.0, 1.0, 3.0):
        drawn = [between * RNG.standard_normal((6, 1)) + RNG.standard_normal((6, 12)) for _ in range(600)]
        within = np.mean([each.var(1, ddof=1).mean() for each in drawn])
        found = np.mean([each.mean(1).var(ddof=1) for each in drawn]) - within / 12
        assert found == pytest.approx(between**2, abs=0.3)
        assert np.median([study.share(each) for each in drawn]) == pytest.approx(between**2 / (1 + between**2), abs=0.06)
    assert study.share(np.ones((3, 4))) == 0
    assert study.share(np.array([[1.0, 1.0], [2.0, 2.0]])) == 1


def test_the_jackknife_has_the_error_of_repeated_draws():
    """Of the share of objectives, over 300 sets of scores of twelve seeds."""
    drawn = [np.arange(5)[:, None] / 2 + RNG.standard_normal((5, 12)) for _ in range(300)]
    found = [study.pseudovalues(study.share, each) for each in drawn]
    errors = [each.std(ddof=1) / 12**0.5 for each in found]
    assert np.median(errors) == pytest.approx(np.std([study.share(each) for each in drawn]), rel=0.25)


def test_every_row_has_the_beta_or_the_weight_of_its_name():
    rows = study.rows_of(study.plan("glyphs", "full"))
    assert rows["VAE"] == {"family": "diagonal", "beta": 1.0, "weight": None}
    assert rows["β = 2"]["beta"] == 2.0
    assert rows["weight 6 on TC"] == {"family": "diagonal", "beta": 1.0, "weight": 6.0}
    assert rows["β = 4, full covariance"] == {"family": "full covariance", "beta": 4.0, "weight": None}
    assert len(rows) == 7


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"betas": (2.0, 4.0)}, "betas must have 1"),
        ({"betas": (4.0, 1.0)}, "from the smallest to the largest"),
        ({"correlation": (1.0, 6.0)}, "correlation must not have 1"),
        ({"correlation": ()}, "correlation must be numbers"),
        ({"free": 3.0}, "free must be one of betas"),
        ({"estimator": "exact"}, "estimator must be one of"),
        ({"again": 2}, "at least three"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan(**values), said)
