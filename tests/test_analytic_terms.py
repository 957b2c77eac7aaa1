"""The terms and the evidence of any linear model against truths from elsewhere: sampling, torch's divergences, Bayes' rule."""

import math

import numpy as np
import pytest
from errors import one_line
from oracle import SPECTRUM, covariance
from scipy.stats import multivariate_normal

from nbvae import analytic

# ---------------------------------------------------------------- any linear encoder and decoder


@pytest.mark.parametrize("beta", [0.3, 1, 3, 30])
@pytest.mark.parametrize("sigma2", [None, 0.3])
def test_terms_at_the_solution(beta, sigma2):
    cov = covariance(SPECTRUM, 8)
    best = analytic.LinearGaussian(cov, 6).solve(beta, sigma2)
    terms = analytic.linear_elbo_terms(cov, best.encoder, best.decoder, best.posterior_variance)
    np.testing.assert_allclose(terms, (best.rate, best.mse), rtol=1e-12, atol=1e-12)
    m = np.arange(8.0)  # and for data that are not centred
    biases = {"mean": m, "encoder_bias": -best.encoder @ m, "decoder_bias": m}
    terms = analytic.linear_elbo_terms(cov, best.encoder, best.decoder, best.posterior_variance, **biases)
    np.testing.assert_allclose(terms, (best.rate, best.mse), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gaussian", [True, False])
def test_terms_of_any_linear_model_against_sampling(gaussian):
    """Skewed data too: only mean and covariance enter. Averages of 200,000 draws, within 4 standard errors."""
    rng, n, k, draws = np.random.default_rng(9), 5, 3, 200_000
    v, w, a, b, m = (rng.normal(scale=0.6, size=s) for s in ((k, n), (n, k), k, n, n))
    variance, root = rng.uniform(0.2, 2, k), rng.normal(size=(n, n))
    unit = rng.normal(size=(draws, n)) if gaussian else rng.exponential(size=(draws, n)) - 1
    x = m + unit @ root.T
    centre = x @ v.T + a
    z = centre + np.sqrt(variance) * rng.normal(size=(draws, k))
    log_q = -0.5 * ((z - centre) ** 2 / variance + np.log(2 * np.pi * variance)).sum(1)
    log_p = -0.5 * (z**2 + np.log(2 * np.pi)).sum(1)
    samples = np.stack([log_q - log_p, ((x - z @ w.T - b) ** 2).sum(1)])
    exact = np.array(analytic.linear_elbo_terms(root @ root.T, v, w, variance, m, a, b))
    assert (abs(samples.mean(1) - exact) < 4 * samples.std(1) / math.sqrt(draws)).all()


def test_terms_of_the_training_moments_are_the_training_average():
    rng = np.random.default_rng(10)
    x = rng.gamma(2.0, size=(500, 4)) @ rng.normal(size=(4, 4))
    v, w, a, b, variance = (
        rng.normal(size=(2, 4)),
        rng.normal(size=(4, 2)),
        rng.normal(size=2),
        rng.normal(size=4),
        [0.5, 0.1],
    )
    z = x @ v.T + a
    rate = 0.5 * (np.sum(variance) + (z**2).sum(1) - 2 - np.log(variance).sum()).mean()
    mse = ((x - z @ w.T - b) ** 2).sum(1).mean() + (w**2 @ variance).sum()
    terms = analytic.linear_elbo_terms(np.cov(x.T, bias=True), v, w, variance, x.mean(0), a, b)
    np.testing.assert_allclose(terms, (rate, mse), rtol=1e-12)


# ---------------------------------------------------------------- the terms of the rate, and the evidence


def random_encoder(seed, n=5, k=3):
    """A correlated encoder of unequal scales, and data that are not centred: (Σ, V, v, m, a)."""
    rng = np.random.default_rng(seed)
    cov = covariance(rng.uniform(0.2, 3, n), seed)
    return cov, rng.normal(scale=0.5, size=(k, n)), rng.uniform(0.05, 1.5, k), rng.normal(size=n), rng.normal(size=k)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_four_terms_against_divergences_of_torch(seed):
    """Every term as a KL divergence of multivariate Gaussians; ② as that of the joint of (x, z) from the product."""
    torch = pytest.importorskip("torch")
    from torch.distributions import MultivariateNormal, kl_divergence

    cov, encoder, variance, mean, bias = random_encoder(seed)
    terms = analytic.linear_four_terms(cov, encoder, variance, mean, bias)
    n, k = len(cov), len(variance)
    centre = torch.tensor(encoder @ mean + bias)
    z_cov = torch.tensor(encoder @ cov @ encoder.T + np.diag(variance))
    cross = torch.tensor(encoder @ cov)
    joint_cov = torch.cat([torch.cat([torch.tensor(cov), cross.T], 1), torch.cat([cross, z_cov], 1)])
    product_cov = torch.block_diag(torch.tensor(cov), z_cov)
    both = torch.cat([torch.tensor(mean), centre])
    prior = MultivariateNormal(torch.zeros(k).double(), torch.eye(k).double())
    marginal, independent = MultivariateNormal(centre, z_cov), MultivariateNormal(centre, z_cov.diagonal().diag())
    information = kl_divergence(MultivariateNormal(both, joint_cov), MultivariateNormal(both, product_cov))
    for found, expected in (
        (terms.mutual_information, information),
        (terms.marginal_kl, kl_divergence(marginal, prior)),
        (terms.total_correlation, kl_divergence(marginal, independent)),
        (terms.dimension_kl, kl_divergence(independent, prior)),
    ):
        assert found == pytest.approx(expected.item(), abs=1e-10)
        assert found > 0.01
    for d in range(k):
        alone = torch.distributions.Normal(centre[d], z_cov[d, d].sqrt())
        expected = kl_divergence(alone, torch.distributions.Normal(torch.zeros(()).double(), 1.0))
        assert terms.dimension_kl_per_latent[d] == pytest.approx(expected.item(), abs=1e-10)
    # The rate, from the moments of z without these formulas: E‖z‖²/2 less the entropy of the posterior.
    decoder = np.zeros((n, k))
    rate, _ = analytic.linear_elbo_terms(cov, encoder, decoder, variance, mean, bias)
    assert terms.rate == pytest.approx(rate, abs=1e-10)
    assert terms.mutual_information + terms.marginal_kl == pytest.approx(rate, abs=1e-10)
    spectrum = np.diag(cov)
    diagonal = (
        analytic.linear_four_terms(spectrum, encoder, variance),
        analytic.linear_four_terms(np.diag(spectrum), encoder, variance),
    )
    assert diagonal[0].mutual_information == pytest.approx(diagonal[1].mutual_information, abs=1e-12)


def test_four_terms_at_the_optimum_and_of_a_collapsed_encoder():
    """At an optimum q(z) is the prior: ② is all of R. A collapsed encoder has ② = 0, whatever its mismatch to the prior."""
    for beta in (0.5, 2, 30):
        best = analytic.LinearGaussian(SPECTRUM, 4).solve(beta)
        terms = analytic.linear_four_terms(SPECTRUM, best.encoder, best.posterior_variance)
        assert terms.mutual_information == pytest.approx(best.rate, abs=1e-12)
        for name in ("marginal_kl", "total_correlation", "dimension_kl"):
            assert getattr(terms, name) == pytest.approx(0, abs=1e-12)
    collapsed = analytic.linear_four_terms(SPECTRUM, np.zeros((2, 8)), [0.5, 2.0], encoder_bias=[1.0, 0.0])
    assert collapsed.mutual_information == pytest.approx(0, abs=1e-12)
    assert collapsed.total_correlation == pytest.approx(0, abs=1e-12)
    assert collapsed.marginal_kl == pytest.approx(0.5 * ((0.5 + 1 - 1 - math.log(0.5)) + (2 - 1 - math.log(2))), abs=1e-12)


def test_evidence_against_the_joint_gaussian():
    """log p(x) by scipy, the posterior by conditioning in the joint covariance of (z, x), for n above and below k."""
    rng = np.random.default_rng(4)
    for n, k in ((5, 2), (2, 4), (1, 1)):
        w, bias, sigma2, x = rng.normal(size=(n, k)), rng.normal(size=n), 0.3, rng.normal(size=(7, n))
        log_p, means, posterior = analytic.linear_evidence(x, w, sigma2, bias)
        marginal = w @ w.T + sigma2 * np.eye(n)
        np.testing.assert_allclose(log_p, np.atleast_1d(multivariate_normal(bias, marginal).logpdf(x)), atol=1e-10)
        gain = w.T @ np.linalg.inv(marginal)
        np.testing.assert_allclose(means, (x - bias) @ gain.T, atol=1e-10)
        np.testing.assert_allclose(posterior, np.eye(k) - gain @ w, atol=1e-10)
        # Bayes' rule at any z: p(x) = p(z) p(x|z) / p(z|x).
        z = rng.normal(size=k)
        prior, truth = multivariate_normal(np.zeros(k)), multivariate_normal(means[0], posterior)
        likelihood = multivariate_normal(w @ z + bias, sigma2 * np.eye(n))
        assert log_p[0] == pytest.approx(prior.logpdf(z) + likelihood.logpdf(x[0]) - truth.logpdf(z), abs=1e-9)
        centred = analytic.linear_evidence(x - bias, w, sigma2)
        np.testing.assert_allclose(centred[0], log_p, atol=1e-10)


@pytest.mark.parametrize(
    "call",
    [
        lambda: analytic.linear_four_terms([1, 2], [[1, 0]], [0.0]),
        lambda: analytic.linear_four_terms([1, 2], [[1], [0]], [1.0]),
        lambda: analytic.linear_four_terms([[1, 0.5], [0.4, 1]], [[1, 0]], [1.0]),
        lambda: analytic.linear_four_terms([1, 2], [[1, 0]], [1.0], mean=[1]),
        lambda: analytic.linear_four_terms([1, 2], [[1, 0]], [1.0], encoder_bias=[1, 2]),
        lambda: analytic.linear_four_terms([-5, 2], [[1, 0]], [1.0]),  # else the logarithm of a negative determinant's size
        lambda: analytic.linear_four_terms([[1, 2], [2, 1]], [[1, -1]], [1.0]),
        lambda: analytic.linear_elbo_terms([1, -1e-3], [[1, 0]], [[1], [0]], [1.0]),
        lambda: analytic.linear_elbo_terms([], np.zeros((1, 0)), np.zeros((0, 1)), [1.0]),
        lambda: analytic.linear_evidence([1.0, 2.0], [[1.0], [1.0]], 1.0),
        lambda: analytic.linear_evidence([[1.0, 2.0]], [[1.0, 1.0]], 1.0),
        lambda: analytic.linear_evidence([[1.0, 2.0]], [[1.0], [1.0]], 0.0),
        lambda: analytic.linear_evidence([[1.0, 2.0]], [[1.0], [1.0]], 1.0, [1.0]),
    ],
)
def test_bad_arguments_of_the_terms_and_the_evidence(call):
    one_line(call, "must")
