"""Samplers: exact on the linear-Gaussian oracle, conditionals of mixtures against scipy, streams, and what they refuse."""

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from errors import one_line
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from nbvae import _tensors, analytic, data, models, samplers, training
from nbvae.samplers import _mixtures

LADDER = (4.0, 2.0, 1.0)
SIGMA2 = 0.3
ORACLE = analytic.LinearGaussian([5.0, 3.0, 1.5, 0.8, 0.2], 4)


def optimum(beta):
    """The linear VAE with the weights of the closed form."""
    exact = ORACLE.solve(beta, SIGMA2)
    model = models.VAE((5,), 4, "linear", "gaussian", sigma=SIGMA2**0.5).double()
    with torch.no_grad():
        model.encoder.mean.weight.copy_(torch.from_numpy(exact.encoder.copy()))
        model.encoder.mean.bias.zero_()
        model.encoder.log_variance.copy_(torch.from_numpy(exact.posterior_variance).log())
        model.decoder[0].weight.copy_(torch.from_numpy(exact.decoder.copy()))
        model.decoder[0].bias.zero_()
    return model, exact


@pytest.fixture(scope="module")
def x():
    """Data of the oracle's covariance, exactly."""
    x = torch.randn(5000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T, correction=0))).T
    return x * torch.from_numpy(ORACLE.eigenvalues.copy()).sqrt()


def close_in_moments(found, cov, n_fit=math.inf):
    """Mean zero and this covariance, within 4.5 standard errors of sampling and of fitting to n_fit draws."""
    effective = 1 / (1 / len(found) + 1 / n_fit)
    scale = np.sqrt(np.diag(cov))
    np.testing.assert_array_less(np.abs(found.mean(0).numpy()), 4.5 * scale / effective**0.5 + 1e-12)
    error = np.sqrt((np.outer(scale, scale) ** 2 + cov**2) / effective)
    np.testing.assert_array_less(np.abs(torch.cov(found.T).numpy() - cov), 4.5 * error + 1e-12)


@pytest.mark.parametrize("name", ["prior", "aggregate", "chain", "mixture"])
def test_on_the_oracle_every_honest_sampler_is_exact(name, x):
    """④ = 0 there: decoded means have covariance WWᵀ, and x the model's N(0, WWᵀ + σ²I), which is p_d at β = 1."""
    ladder = [optimum(beta)[0] for beta in LADDER]
    fine, exact = optimum(LADDER[-1])
    made = {
        "prior": lambda: samplers.Prior(fine),
        "aggregate": lambda: samplers.Aggregate(fine, x),
        "chain": lambda: samplers.Chain(ladder, x, n_components=1, draws=8),
        "mixture": lambda: samplers.Mixture(fine, x, n_components=1, draws=8),
    }[name]()
    images = made.sample(40_000, torch.Generator().manual_seed(1)).double()
    cov = exact.decoder @ exact.decoder.T
    close_in_moments(images, cov, 40_000 if name in ("chain", "mixture") else math.inf)
    np.testing.assert_allclose(cov + SIGMA2 * np.eye(5), np.diag([5.0, 3.0, 1.5, 0.8, SIGMA2]), atol=1e-9)
    noisy = images + SIGMA2**0.5 * torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    close_in_moments(noisy, cov + SIGMA2 * np.eye(5), 40_000 if name in ("chain", "mixture") else math.inf)


def test_steps_of_the_chain_are_the_oracles_conditionals(x):
    """E z' given z is ρρ′z for each latent: independent noise, so the correlations multiply."""
    (coarse, first), (fine, second) = optimum(2.0), optimum(1.0)
    (step,) = samplers.Chain([coarse, fine], x, n_components=1, draws=40).steps
    correlation = np.sqrt((1 - first.posterior_variance) * (1 - second.posterior_variance))
    np.testing.assert_allclose(step.gain[0].numpy(), np.diag(correlation), atol=0.015)
    cov = (step.root[0] @ step.root[0].T).numpy()
    np.testing.assert_allclose(cov, np.diag(1 - correlation**2), atol=0.015)


def test_coding_in_steps_costs_what_the_oracle_says(x):
    """Codes with independent noise: I(x; z' | z) = ½ log(1/v + 1/v' − 1) + ½ log v for each latent, so a step loses nats."""
    solved = [optimum(beta) for beta in LADDER]
    chain = samplers.Chain([model for model, _ in solved], x, n_components=1, draws=20)
    expected = [solved[0][1].rate]
    for (_, coarse), (_, fine) in itertools.pairwise(solved):
        v, w = coarse.posterior_variance, fine.posterior_variance
        expected.append(0.5 * (np.log(1 / v + 1 / w - 1) + np.log(v)).sum())
    found = chain.rates(x, draws=40)
    np.testing.assert_allclose(found.numpy(), expected, atol=0.01)
    assert sum(expected) > solved[-1][1].rate + 0.3
    # At once, by a mixture that is the prior: the rate.
    assert samplers.Mixture(solved[-1][0], x, 1, draws=20).rate(x, draws=20) == pytest.approx(solved[-1][1].rate, abs=0.01)


@pytest.mark.parametrize("draw_x", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
def test_the_recursive_heuristic_shrinks_by_the_exact_amount(draw_x, rounds):
    """Var z' = (v·w)² Var z + σ²‖v‖² [if x is drawn] + posterior variance, latent by latent: below 1."""
    ladder = [optimum(beta) for beta in LADDER]
    sampler = samplers.Recursive([model for model, _ in ladder], rounds=rounds, draw_x=draw_x)
    variance = np.ones(4)
    for (_, coarse), (_, fine) in itertools.pairwise(ladder):
        for decoder in (coarse, *[fine] * (rounds - 1)):
            passed = np.einsum("ki,ik->k", fine.encoder, decoder.decoder)
            noise = SIGMA2 * (fine.encoder**2).sum(1) if draw_x else 0
            variance = passed**2 * variance + noise + fine.posterior_variance
    z = sampler.codes(40_000, torch.Generator().manual_seed(0))
    close_in_moments(z.double(), np.diag(variance))
    assert variance[:3].max() < 0.97  # far outside the sampling error: the heuristic does not sample q(z)


def test_a_conditional_mixture_is_bayes_rule():
    """Against densities of scipy: the mean and covariance of z' given one z, for three components in 2 + 2 dimensions."""
    rng = np.random.default_rng(0)
    mixture = GaussianMixture(3)
    mixture.weights_, mixture.means_ = np.array([0.2, 0.5, 0.3]), rng.normal(size=(3, 4))
    roots = rng.normal(size=(3, 4, 4))
    mixture.covariances_ = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(4)
    given = np.array([0.4, -0.3])
    weights, means, covs = [], [], []
    for weight, mean, cov in zip(mixture.weights_, mixture.means_, mixture.covariances_, strict=True):
        weights.append(weight * multivariate_normal(mean[:2], cov[:2, :2]).pdf(given))
        gain = cov[2:, :2] @ np.linalg.inv(cov[:2, :2])
        means.append(mean[2:] + gain @ (given - mean[:2]))
        covs.append(cov[2:, 2:] - gain @ cov[:2, 2:])
    weights = np.array(weights) / np.sum(weights)
    mean = weights @ means
    cov = sum(w * (c + np.outer(m - mean, m - mean)) for w, m, c in zip(weights, means, covs, strict=True))
    with training.seeded(0):
        found = _mixtures.Conditional(mixture, 2).sample(torch.from_numpy(given).expand(200_000, 2)).double()
    np.testing.assert_allclose(found.mean(0), mean, atol=5 * np.sqrt(cov.max() / 2e5))
    np.testing.assert_allclose(torch.cov(found.T), cov, atol=0.03 * cov.max())
    point = np.array([0.2, 0.1])
    density = sum(w * multivariate_normal(m, c).pdf(point) for w, m, c in zip(weights, means, covs, strict=True))
    log_prob = _mixtures.Conditional(mixture, 2).log_prob(torch.from_numpy(point)[None], torch.from_numpy(given)[None])
    assert log_prob.item() == pytest.approx(np.log(density))


def test_a_mixture_fitted_on_its_own_device_is_that_of_an_array():
    """scikit-learn takes tensors only where SciPy was imported under its flag: another process has it."""
    script = """
import numpy as np, torch
from nbvae.samplers import _mixtures
z = torch.randn(600, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
z[:200] += 2.0
array, tensor = _mixtures.mixture(z, 4, 1), _mixtures.fitted_where_it_is(z, 4, 1)
assert isinstance(tensor.means_, torch.Tensor)
for name in ("weights_", "means_", "covariances_"):
    np.testing.assert_allclose(getattr(tensor, name).numpy(), getattr(array, name), atol=1e-9)
given = _mixtures.Conditional(tensor, 1), _mixtures.Conditional(array, 1)
np.testing.assert_allclose(*(each.log_prob(z[:, 1:], z[:, :1]) for each in given), atol=1e-8)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"SCIPY_ARRAY_API": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_more_components_follow_an_aggregate_that_is_no_gaussian():
    """Four clusters, an identity-like encoder: one Gaussian puts a third of its draws between them, four put none there."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])
    x = corners[torch.randint(4, (2000,), generator=generator)] + 0.1 * torch.randn(2000, 2, generator=generator)
    model = models.VAE((2,), 2, "linear", "gaussian", sigma=0.1)
    with torch.no_grad():
        model.encoder.mean.weight.copy_(0.5 * torch.eye(2))
        model.encoder.mean.bias.zero_()
        model.encoder.log_variance.fill_(-6.0)
        model.decoder[0].weight.copy_(2 * torch.eye(2))
        model.decoder[0].bias.zero_()
    coarse = models.VAE((2,), 2, "linear", "gaussian", sigma=0.1)  # collapsed: its aggregate is the prior
    with torch.no_grad():
        for parameter in coarse.parameters():
            parameter.zero_()
    for components, most in ((1, 1.0), (4, 0.01)):
        for sampler in (
            samplers.Mixture(model, x, n_components=components),
            samplers.Chain([coarse, model], x, n_components=components),
        ):
            between = (sampler.sample(2000).abs().amin(1) < 1).double().mean().item()
            assert between < most
            assert (between > 0.2) == (components == 1)
    # The aggregate is white: a second stage that starts at σ = 1 collapses, and puts as many between as one Gaussian.
    assert (samplers.SecondStage(model, x).sample(2000).abs().amin(1) < 1).double().mean() < 0.25


@pytest.fixture(scope="module")
def trained():
    digits = data.load("digits")
    with training.seeded(0):
        model = models.VAE(digits.shape, 4, hidden=(32,))
        many = models.MultiBetaVAE(digits.shape, 4, hidden=(32,))
    return digits, model, many


def every(digits, model, many):
    betas = (0.1, 1.0)
    return {
        "prior": samplers.Prior(model),
        "aggregate": samplers.Aggregate(model, digits.train),
        "recursive": samplers.Recursive(many, betas),
        "chain": samplers.Chain(many, digits.train, betas, n_components=2),
        "mixture": samplers.Mixture(model, digits.train, 2),
        "second": samplers.SecondStage(model, digits.train[:100], training.TrainConfig(epochs=1)),
    }


def test_draws_follow_the_generator_and_leave_the_global_stream(trained):
    for name, sampler in every(*trained).items():
        state = torch.get_rng_state()
        a, b, c = (sampler.sample(7, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), state), name
        assert a.shape == (7, 1, 8, 8), name
        assert torch.equal(a, b), name
        assert not torch.equal(a, c), name
        assert not a.requires_grad, name
        assert ((a >= 0) & (a <= 1)).all(), name
        assert not torch.equal(sampler.sample(7), sampler.sample(7)), name  # without one: the global stream moves on


def test_fitting_leaves_the_global_stream(trained):
    state = torch.get_rng_state()
    every(*trained)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_do_not_depend_on_how_many_are_decoded_at_once(trained, monkeypatch):
    _, model, many = trained
    for sampler in (samplers.Prior(model), samplers.Recursive(many, (0.1, 1.0, 3.0))):
        monkeypatch.setattr(_tensors, "AT_ONCE", 1 << 24)
        whole = sampler.sample(20, torch.Generator().manual_seed(0))
        monkeypatch.setattr(_tensors, "AT_ONCE", 1000)
        if isinstance(sampler, samplers.Prior):
            torch.testing.assert_close(sampler.sample(20, torch.Generator().manual_seed(0)), whole)
        else:
            assert sampler.sample(20, torch.Generator().manual_seed(0)).shape == whole.shape


def test_the_ladder_is_put_in_order(trained):
    _, _, many = trained
    assert [view.beta for view in samplers.Recursive(many, (0.1, 3.0, 1.0)).views] == [3.0, 1.0, 0.1]


def test_bad_input_is_answered_in_one_line(trained):
    digits, model, many = trained
    one_line(lambda: samplers.Prior(many), "model.at(beta)")
    one_line(lambda: samplers.Prior(model).sample(0), "n must be")
    one_line(lambda: samplers.Prior(None), "posterior(x), likelihood(z) and prior()", "None")
    for generator in (5, np.random.default_rng(0), 0):
        one_line(lambda: samplers.Prior(model).sample(2, generator), "generator must be a torch.Generator")  # noqa: B023
    for seed in ("a", -1, 2**32):
        one_line(lambda: samplers.Mixture(model, digits.train, seed=seed), "seed must be", repr(seed))  # noqa: B023
        one_line(lambda: samplers.Chain(many, digits.train, (1.0, 2.0), seed=seed), "seed must be")  # noqa: B023
        one_line(lambda: samplers.SecondStage(model, digits.train, seed=seed), "seed must be")  # noqa: B023
    one_line(lambda: samplers.SecondStage(model, digits.train, {"epochs": 1}), "config must be a training.TrainConfig")
    one_line(lambda: samplers.Recursive([model, None]), "posterior(x), likelihood(z) and prior()", "None")
    one_line(lambda: samplers.Recursive(many, (1.0, 1.0)), "betas must differ, got 1, 1")
    one_line(lambda: samplers.Recursive(many), "at least two")
    one_line(lambda: samplers.Recursive(many, (1.0,)), "at least two")
    one_line(lambda: samplers.Recursive(many, (1.0, 1e6)), "range")
    one_line(lambda: samplers.Recursive(many, (1.0, -1.0)), "betas must be")
    one_line(lambda: samplers.Recursive(model, (1.0, 2.0)), "at(beta)")
    one_line(lambda: samplers.Recursive(many, (1.0, 2.0), rounds=0), "rounds must be")
    one_line(
        lambda: samplers.Chain(many, digits.train[:3], (1.0, 2.0)),
        "10 components of 8 dimensions need at least 90 draws, got 15",
    )
    one_line(lambda: samplers.Mixture(model, digits.train, 0), "n_components must be")
    one_line(lambda: samplers.Mixture(model, digits.train, draws=0), "draws must be")
    one_line(lambda: samplers.Aggregate(model, torch.rand(4, 3)), "shape")
    one_line(lambda: samplers.Aggregate(model, torch.rand(4, 1, 8, 8)), "0 or 1")
