"""Sources against truths from elsewhere: Shannon's R(D) of Gaussian and discrete ones, and models of a finite sample."""

import math

import numpy as np
import pytest
from errors import one_line
from oracle import ORACLE, SPECTRUM

from nbvae import analytic
from nbvae.analytic import finite

# ---------------------------------------------------------------- Shannon's R(D)


def test_equals_shannon_down_to_the_first_lost_eigenvalue_and_lies_above_it_below():
    for k in (1, 3, 4, 7):
        oracle, lost = analytic.LinearGaussian(SPECTRUM, k), SPECTRUM[k]
        above = np.geomspace(lost, 6, 50)
        np.testing.assert_allclose(oracle.at_water_level(above), analytic.gaussian_rd(SPECTRUM, above), rtol=1e-12, atol=1e-12)
        below = lost * np.geomspace(0.99, 1e-3, 50)
        (rate, mse), (best_rate, best_mse) = oracle.at_water_level(below), analytic.gaussian_rd(SPECTRUM, below)
        assert (rate + mse / (2 * below) > best_rate + best_mse / (2 * below) + 1e-6).all()
        assert (rate > analytic.gaussian_rate_distortion(SPECTRUM, mse) + 1e-6).all()
    full = analytic.LinearGaussian([3, 1, 0.5, 0, 0], 3)  # k = rank: equal at every level
    levels = np.geomspace(1e-6, 5, 50)
    np.testing.assert_allclose(
        full.at_water_level(levels), analytic.gaussian_rd(full.eigenvalues, levels), rtol=1e-12, atol=1e-12
    )


def test_excess_over_shannon_by_hand():
    """s = ¼, k = 4, MSE 1.75. Shannon's level for it is .28: five components at .28 and .35 left over."""
    best = ORACLE.solve(0.5, 0.5)
    assert analytic.gaussian_rate_distortion(SPECTRUM, best.mse) == pytest.approx(0.5 * math.log(7.2 / 0.28**5), abs=1e-12)
    assert best.rate == pytest.approx(0.5 * math.log(18 / 0.25**4), abs=1e-12)
    assert best.rate - analytic.gaussian_rate_distortion(SPECTRUM, best.mse) == pytest.approx(0.04832, abs=1e-5)


def test_water_filling_is_optimal():
    """min Σ ½ log(λ_i/D_i), ΣD_i = D, 0 < D_i ≤ λ_i, is convex: KKT conditions hold, no feasible point is better."""
    rng = np.random.default_rng(11)
    for level in (0.03, 0.25, 0.8, 2, 4.9):
        rate, mse = analytic.gaussian_rd(SPECTRUM, level)
        share = np.minimum(SPECTRUM, level)
        multiplier = 1 / (2 * share) - 1 / (2 * level)  # of D_i ≤ λ_i, with 1/2s that of the sum
        assert (multiplier >= 0).all()
        np.testing.assert_allclose(multiplier * (SPECTRUM - share), 0, atol=1e-12)
        assert mse == pytest.approx(share.sum())
        moves = rng.normal(size=(2000, 8)) * share
        others = share + 0.3 * (moves - moves.mean(1, keepdims=True))
        others = others[((others > 0) & (others <= SPECTRUM)).all(1)]
        np.testing.assert_allclose(others.sum(1), mse)
        assert (0.5 * np.log(SPECTRUM / others).sum(1) >= rate - 1e-12).all()


@pytest.mark.parametrize("spectrum", [SPECTRUM, [2, 2, 2], [4, 1, 1, 0, 0], [1.0]])
def test_rate_distortion_functions_invert_each_other(spectrum):
    levels = np.r_[np.geomspace(1e-8, 10, 200), np.unique(spectrum)]
    levels = levels[levels > 0]
    rate, mse = analytic.gaussian_rd(spectrum, levels)
    np.testing.assert_allclose(analytic.gaussian_rate_distortion(spectrum, mse), rate, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(analytic.gaussian_distortion_rate(spectrum, rate), mse, rtol=1e-10)
    assert analytic.gaussian_rate_distortion(spectrum, 2.0 * sum(spectrum)) == 0
    assert analytic.gaussian_distortion_rate(spectrum, 0) == pytest.approx(sum(spectrum))
    grid = np.linspace(0.01, 0.99 * sum(spectrum), 99)
    assert (np.diff(analytic.gaussian_rate_distortion(spectrum, grid), 2) > -1e-12).all()  # convex


def test_single_gaussian_closed_form():
    assert analytic.gaussian_rate_distortion([4.0], 1.0) == pytest.approx(0.5 * math.log(4))
    assert analytic.gaussian_distortion_rate([4.0], 1.0) == pytest.approx(4 * math.exp(-2))


# ---------------------------------------------------------------- discrete sources


def binary_entropy(x):
    return -x * math.log(x) - (1 - x) * math.log(1 - x)


@pytest.mark.parametrize("p", [0.5, 0.3])
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_a_binary_source_with_errors_counted_has_the_rate_of_the_textbook(p, beta):
    """R = h(p) − h(D), D = 1/(1 + e^(1/β)) at this slope while it is below min(p, 1 − p) (Cover & Thomas, theorem 10.3.1)."""
    found = analytic.blahut_arimoto([p, 1 - p], [[0, 1], [1, 0]], beta)
    distortion = 1 / (1 + math.exp(1 / beta))
    if distortion < min(p, 1 - p):
        assert found.distortion == pytest.approx(distortion, abs=1e-5)
        assert found.rate == pytest.approx(binary_entropy(p) - binary_entropy(distortion), abs=1e-5)


def test_a_fine_grid_has_the_rate_of_the_gaussian_and_no_code_is_better():
    x = np.linspace(-6, 6, 241)
    p = np.exp(-(x**2) / 2)
    p /= p.sum()
    for level in (0.5, 0.1):
        found = analytic.blahut_arimoto(p, (x[:, None] - x) ** 2, beta=2 * level, tolerance=1e-5)
        assert found.distortion == pytest.approx(level, rel=2e-3)
        assert found.rate == pytest.approx(-0.5 * math.log(level), abs=2e-3)
        np.testing.assert_allclose(found.channel.sum(1), 1)
        np.testing.assert_allclose(p @ found.channel, found.marginal)


def test_a_codebook_of_n_examples_needs_log_n_nats_for_no_error_and_none_for_the_worst():
    points = np.random.default_rng(0).standard_normal((50, 3))
    distances = ((points[:, None] - points) ** 2).sum(-1)
    near, far = (analytic.blahut_arimoto(np.full(50, 0.02), distances, beta) for beta in (1e-3, 1e3))
    assert near.rate == pytest.approx(math.log(50), abs=1e-3)
    assert near.distortion == pytest.approx(0.0, abs=1e-3)
    assert far.rate == pytest.approx(0.0, abs=1e-6)
    assert far.distortion == pytest.approx(distances.mean(0).min(), rel=1e-3)


def test_a_source_that_is_none_is_refused_and_too_few_iterations_are_said():
    for source, distortion in (([0.5, 0.6], np.eye(2)), ([0.5, 0.5], np.eye(3)), ([1.0, 0.0], np.eye(2)), ([1.0], [[]])):
        with pytest.raises(ValueError, match="source must be"):
            analytic.blahut_arimoto(source, distortion, 1.0)
    with pytest.raises(RuntimeError, match="not within 1e-09 nats after 2 iterations"):
        analytic.blahut_arimoto([0.3, 0.7], [[0, 1], [1, 0]], 0.5, iterations=2)


# ---------------------------------------------------------------- finite samples


def drawn(spikes, n, n_examples, k, levels, seed, draws):
    """Optimal linear models of drawn samples, on these and, exactly, on the population: means (4, levels) and their errors."""
    rng, deviation = np.random.default_rng(seed), np.sqrt([*spikes, *np.ones(n - len(spikes))])
    found = []
    for _ in range(draws):
        x = rng.standard_normal((n_examples, n)) * deviation
        sample = analytic.LinearGaussian(x.T @ x / n_examples, k)
        rows = []
        for level in levels:
            best = sample.solve(beta=level, sigma2=1.0)
            maps = {"encoder": best.encoder, "variance": best.posterior_variance, "decoder": best.decoder}
            rows.append((best.rate, best.mse, *analytic.linear_elbo_terms(np.diag(deviation**2), **maps)))
        found.append(np.transpose(rows))
    return np.mean(found, 0), np.std(found, 0, ddof=1) / math.sqrt(draws)


@pytest.mark.parametrize(
    ("spikes", "n", "n_examples", "k"),
    [
        ([9.0, 5.0, 3.0], 400, 200, 3),  # more dimensions than examples
        ([9.0, 5.0, 3.0], 400, 800, 3),
        ([9.0, 5.0, 3.0], 400, 800, 2),  # fewer latents than directions
        ([9.0, 1.3], 300, 300, 4),  # one is lost, and latents are left for the noise
    ],
)
def test_models_of_a_sample_part_on_training_and_other_examples_as_theory_says(spikes, n, n_examples, k):
    levels = np.array([0.5, 2.0, 3.5])
    theory = analytic.sampled_rd(spikes, 1.0, n, n_examples, k, levels)
    mean, error = drawn(spikes, n, n_examples, k, levels, seed=n_examples + k, draws=48)
    for name, exact, value, spread in zip(theory._fields, theory, mean, error, strict=True):
        slack = 0.02 if "rate" in name else 0.15  # corrections of the order n^(−2/3) are left out
        assert (np.abs(exact - value) <= 4 * spread + slack).all(), name
        if "rate" in name and spikes[-1] > 2 and k == len(spikes):  # directions that stand out, and a latent for each
            assert (np.abs(exact - value) <= 0.03).all(), name
    assert (theory.train_rate >= theory.test_rate).all()
    assert (theory.train_mse < theory.test_mse).all()


def test_with_many_examples_the_sample_is_the_population():
    spikes, levels = [4.0, 2.5], np.array([0.3, 1.0, 3.0, 5.0])
    population = analytic.LinearGaussian([*spikes, *[0.5] * 8], 2)
    exact = [population.at_water_level(level) for level in levels]
    found = analytic.sampled_rd(spikes, 0.5, 10, 10**10, 2, levels)
    for rate, mse in ((found.train_rate, found.train_mse), (found.test_rate, found.test_mse)):
        np.testing.assert_allclose(np.transpose([rate, mse]), exact, atol=2e-4)


@pytest.mark.parametrize("gamma", [0.2, 1.0, 3.0])
def test_quantiles_of_the_marchenko_pastur_law_are_sample_eigenvalues(gamma):
    n = 300
    x = np.random.default_rng(0).standard_normal((int(n / gamma), n))
    values = np.linalg.eigvalsh(x.T @ x / len(x))[::-1]
    edge = (1 + math.sqrt(gamma)) ** 2  # where single eigenvalues vary most
    np.testing.assert_allclose(finite._marchenko_pastur(gamma, n, n), values, atol=0.03 * edge)
    assert finite._marchenko_pastur(gamma, n, n).mean() == pytest.approx(1.0, abs=2e-3)  # the trace


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eigenvalues": [0.5]}, "eigenvalues must be different numbers above noise"),
        ({"eigenvalues": [2.0, 2.0]}, "eigenvalues must be different"),
        ({"eigenvalues": [-1.0]}, "eigenvalues must be > 0"),
        ({"n": 1}, "n must be"),
        ({"water_level": 0.0}, "water_level must be > 0"),
        ({"n_examples": 1}, "n_examples must be"),
    ],
)
def test_a_sample_that_is_none_is_refused_in_one_line(change, said):
    given = {"eigenvalues": [2.0], "noise": 1.0, "n": 5, "n_examples": 10, "latent_dim": 1, "water_level": 0.5}
    one_line(lambda: analytic.sampled_rd(**(given | change)), said)
