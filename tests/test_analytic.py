"""The optimal linear VAE against truths from elsewhere: written-out losses, numerical minima, known limits."""

import math

import numpy as np
import pytest
from errors import one_line
from oracle import ORACLE, SPECTRUM, covariance
from scipy.optimize import minimize
from sklearn.datasets import load_digits

from nbvae import analytic


def expected_terms(cov, encoder, decoder, variance):
    """(rate, mse) from the joint covariance of (x, z), without a formula of the module: z = Vx + noise, x̂ = Wz."""
    n, k = decoder.shape
    joint = np.block([[cov, cov @ encoder.T], [encoder @ cov, encoder @ cov @ encoder.T + np.diag(variance)]])
    error = np.hstack([np.eye(n), -decoder])
    mse = np.trace(error @ joint @ error.T)
    # KL to N(0, I) is E|z|²/2 less the entropies, Gaussian here.
    rate = 0.5 * (np.trace(joint[n:, n:]) - k - np.linalg.slogdet(np.diag(variance))[1])
    return rate, mse


def loss(terms, beta, sigma2, n):
    rate, mse = terms
    return n / 2 * math.log(2 * math.pi * sigma2) + mse / (2 * sigma2) + beta * rate


def numerical_minimum(cov, k, beta, sigma2=None, restarts=4):
    """Least D + βR over V, W, log v (and log σ²) by BFGS from random starts: (loss, rate, mse, σ²)."""
    n = len(cov)
    rng = np.random.default_rng(0)

    def unpack(theta):
        s2 = math.exp(theta[-1]) if sigma2 is None else sigma2
        return theta[: n * k].reshape(k, n), theta[n * k : 2 * n * k].reshape(n, k), np.exp(theta[2 * n * k : -1]), s2

    def value_and_gradient(theta):
        encoder, decoder, v, s2 = unpack(theta)
        rate, mse = expected_terms(cov, encoder, decoder, v)
        second = encoder @ cov @ encoder.T + np.diag(v)  # E zzᵀ
        d_encoder = decoder.T @ (decoder @ encoder - np.eye(n)) @ cov / s2 + beta * encoder @ cov
        d_decoder = (decoder @ second - cov @ encoder.T) / s2
        d_log_v = 0.5 * ((decoder**2).sum(0) * v / s2 + beta * (v - 1))
        d_log_s2 = n / 2 - mse / (2 * s2) if sigma2 is None else 0.0
        return loss((rate, mse), beta, s2, n), np.r_[d_encoder.ravel(), d_decoder.ravel(), d_log_v, d_log_s2]

    starts = (np.r_[rng.normal(scale=0.7, size=2 * n * k), np.full(k, -1.0), 0.0] for _ in range(restarts))
    best = min((minimize(value_and_gradient, x, jac=True, options={"gtol": 1e-8}) for x in starts), key=lambda r: r.fun)
    encoder, decoder, v, s2 = unpack(best.x)
    return best.fun, *expected_terms(cov, encoder, decoder, v), s2


# ---------------------------------------------------------------- the optimum, fixed and learned σ


@pytest.mark.parametrize(
    ("beta", "sigma2", "mse", "rate", "active"),
    [(0.5, 0.5, 1.75, 4.21777, 4), (1, 0.3, 1.95, 3.85313, 4), (4, 0.2, 3.95, 1.89147, 3), (10, 0.3, 9.05, 0.25541, 1)],
)
@pytest.mark.parametrize("rotated", [False, True])
def test_worked_values_for_a_fixed_sigma(beta, sigma2, mse, rate, active, rotated):
    oracle = analytic.LinearGaussian(covariance(SPECTRUM, 1), 4) if rotated else ORACLE
    best = oracle.solve(beta, sigma2)
    assert (best.mse, best.rate, best.active) == (pytest.approx(mse, abs=1e-5), pytest.approx(rate, abs=1e-5), active)
    assert best.water_level == beta * sigma2
    assert best.rates.sum() == pytest.approx(best.rate, abs=1e-12)
    assert best.distortion == pytest.approx(4 * math.log(2 * math.pi * sigma2) + mse / (2 * sigma2), abs=1e-9)


@pytest.mark.parametrize(
    ("beta", "sigma2", "rate"),
    [(0.3, 0.110294, 8.262341), (1, 0.1875, 4.793139), (2, 0.7625, 0.932031), (3.7, 1.38125, 0)],
)
def test_worked_values_for_a_learned_sigma(beta, sigma2, rate):
    best = ORACLE.solve(beta)
    assert (best.sigma2, best.rate) == (pytest.approx(sigma2, abs=1e-6), pytest.approx(rate, abs=1e-6))
    assert best.mse == pytest.approx(8 * best.sigma2, rel=1e-12)


def test_solution_by_hand_in_one_dimension():
    """One latent, λ = 4, s = 1: half of log 4 nats, the posterior variance ¼, the error 1."""
    best = analytic.LinearGaussian([[4.0]], 1).solve(beta=2.0, sigma2=0.5)
    assert (best.rate, best.mse, best.active) == (pytest.approx(math.log(2)), 1, 1)
    np.testing.assert_allclose(best.posterior_variance, [0.25])
    np.testing.assert_allclose(abs(best.encoder), [[math.sqrt(3) / 4]])
    np.testing.assert_allclose(abs(best.decoder), [[math.sqrt(3)]])


SMALL = covariance([2.5, 1.2, 0.5, 0.1], 2)


@pytest.mark.parametrize(("beta", "sigma2"), [(0.5, 0.3), (1, 0.05), (2, 0.4), (1, 2.0), (4, 1.0)])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_agrees_with_a_numerical_minimum_for_a_fixed_sigma(beta, sigma2, k):
    best = analytic.LinearGaussian(SMALL, k).solve(beta, sigma2)
    value, rate, mse, _ = numerical_minimum(SMALL, k, beta, sigma2)
    assert best.distortion + beta * best.rate == pytest.approx(value, abs=1e-7)
    assert (best.rate, best.mse) == (pytest.approx(rate, abs=1e-4), pytest.approx(mse, abs=1e-4))


@pytest.mark.parametrize(
    ("spectrum", "k", "beta"),
    [([2.5, 1.2, 0.5, 0.1], 2, b) for b in (0.3, 1, 1.7, 2.2, 3)] + [([2.5, 1.2, 0.5, 0.1], 4, 1.2), ([2, 1, 0, 0], 3, 2.2)],
)
def test_agrees_with_a_numerical_minimum_for_a_learned_sigma(spectrum, k, beta):
    cov = covariance(spectrum, 3)
    best = analytic.LinearGaussian(cov, k).solve(beta)
    value, rate, mse, sigma2 = numerical_minimum(cov, k, beta)
    assert best.distortion + beta * best.rate == pytest.approx(value, abs=1e-7)
    assert (best.rate, best.mse) == (pytest.approx(rate, abs=1e-4), pytest.approx(mse, abs=1e-4))
    assert best.sigma2 == pytest.approx(sigma2, rel=1e-4)


@pytest.mark.parametrize("beta", [0.2, 0.7, 1, 1.6, 2.5, 3.5, 6])
def test_learned_sigma_is_the_best_fixed_sigma(beta):
    def value(sigma2):
        best = ORACLE.solve(beta, sigma2)
        return best.distortion + beta * best.rate

    learned = ORACLE.solve(beta)
    others = [value(s) for s in learned.sigma2 * np.geomspace(1e-4, 1e4, 801)]
    assert learned.distortion + beta * learned.rate <= min(others) + 1e-12
    assert learned.distortion == pytest.approx(4 * (math.log(2 * math.pi * learned.mse / 8) + 1), abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_beta_one_is_probabilistic_pca(k):
    """Tipping & Bishop (1999): σ² = mean of the left-over eigenvalues, −ELBO = −log N(x; 0, WWᵀ + σ²I)."""
    cov = covariance(SPECTRUM, 4)
    best = analytic.LinearGaussian(cov, k).solve(beta=1)
    assert best.sigma2 == pytest.approx(SPECTRUM[k:].mean(), rel=1e-12)
    model = best.decoder @ best.decoder.T + best.sigma2 * np.eye(8)
    nll = 0.5 * (8 * math.log(2 * math.pi) + np.linalg.slogdet(model)[1] + np.trace(np.linalg.solve(model, cov)))
    assert best.distortion + best.rate == pytest.approx(nll, abs=1e-10)


@pytest.mark.parametrize("beta", [0.4, 1, 3, 9])
def test_no_perturbation_lowers_the_loss(beta):
    cov, rng = covariance(SPECTRUM, 5), np.random.default_rng(0)
    best = analytic.LinearGaussian(cov, 5).solve(beta, sigma2=0.3)
    parts = best.encoder, best.decoder, np.log(best.posterior_variance)
    start = loss(expected_terms(cov, parts[0], parts[1], np.exp(parts[2])), beta, 0.3, 8)
    for size in (1e-4, 1e-2, 1):
        for _ in range(100):
            v, w, log_v = (p + size * rng.normal(size=p.shape) for p in parts)
            assert loss(expected_terms(cov, v, w, np.exp(log_v)), beta, 0.3, 8) >= start - 1e-12
    # First order: central differences vanish in every coordinate.
    flat = np.concatenate([p.ravel() for p in parts])
    for i in range(flat.size):
        values = []
        for step in (1e-5, -1e-5):
            moved = flat.copy()
            moved[i] += step
            v, w, log_v = moved[:40].reshape(5, 8), moved[40:80].reshape(8, 5), moved[80:]
            values.append(loss(expected_terms(cov, v, w, np.exp(log_v)), beta, 0.3, 8))
        assert abs(values[0] - values[1]) / 2e-5 < 1e-6


def test_more_latents_than_dimensions():
    best = analytic.LinearGaussian(SPECTRUM, 11).solve(beta=1, sigma2=0.07)
    same = analytic.LinearGaussian(SPECTRUM, 8).solve(beta=1, sigma2=0.07)
    assert (best.rate, best.mse, best.active) == (same.rate, same.mse, 7)
    assert best.encoder.shape == (11, 8)
    assert best.decoder.shape == (8, 11)
    np.testing.assert_array_equal(best.posterior_variance[7:], 1)
    np.testing.assert_array_equal(best.encoder[7:], 0)
    np.testing.assert_array_equal(best.decoder[:, 7:], 0)


def test_aggregate_posterior_is_the_prior():
    cov = covariance(SPECTRUM, 6)
    best = analytic.LinearGaussian(cov, 6).solve(beta=2, sigma2=0.2)
    np.testing.assert_allclose(best.encoder @ cov @ best.encoder.T + np.diag(best.posterior_variance), np.eye(6), atol=1e-12)


@pytest.mark.parametrize("k", [3, 8])
def test_only_the_water_level_sets_rate_and_mse(k):
    oracle = analytic.LinearGaussian(SPECTRUM, k)
    for level in (0.01, 0.35, 2.2, 7):
        solutions = [oracle.solve(beta, level / beta) for beta in (0.1, 1, 30)]
        for best in solutions:
            np.testing.assert_allclose([best.rate, best.mse], oracle.at_water_level(level), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(best.encoder, solutions[0].encoder, atol=1e-12)
    many = oracle.at_water_level(np.array([[0.01, 0.35], [2.2, 7]]))
    assert many[0].shape == many[1].shape == (2, 2)
    assert (many[0][0, 1], many[1][0, 1]) == oracle.at_water_level(0.35)


def test_collapse_thresholds():
    assert ORACLE.collapse_beta() == pytest.approx(3.61991, abs=1e-5)
    assert ORACLE.collapse_beta(sigma2=0.25) == pytest.approx(20)
    for sigma2 in (None, 0.25, *np.linspace(0.1, 3, 40)):
        threshold = ORACLE.collapse_beta(sigma2)
        for beta in (threshold, 1.001 * threshold, 100 * threshold):
            best = ORACLE.solve(beta, sigma2)
            assert (best.active, best.mse) == (0, pytest.approx(SPECTRUM.sum()))
            assert abs(best.rate) < 1e-12
            assert not best.encoder.any()
        assert ORACLE.solve(0.999 * threshold, sigma2).active == 1


# ---------------------------------------------------------------- where no optimum exists, and next to it


@pytest.mark.parametrize(
    ("spectrum", "k", "edge"),
    [
        ([3, 2, 1], 3, 1),
        ([3, 2, 1], 5, 1),
        ([3, 2, 1, 0, 0, 0, 0, 0], 3, 8 / 3),
        ([3, 2, 1, 0, 0, 0, 0], 6, 7 / 3),
        ([2, 2], 2, 1),
    ],
)
def test_no_optimum_without_a_residual(spectrum, k, edge):
    """β < n/rank: unbounded below; β = n/rank: every small σ is equally good; above: one optimum, near λ_rank."""
    oracle = analytic.LinearGaussian(covariance(spectrum, 7), k)
    n, rank, least = len(spectrum), np.count_nonzero(spectrum), min(s for s in spectrum if s)
    assert oracle.rank == rank

    def value(beta, sigma2):
        best = oracle.solve(beta, sigma2)
        return best.distortion + beta * best.rate

    for beta in (0.1 * edge, 0.999 * edge):
        one_line(lambda beta=beta: oracle.solve(beta), "without bound")
        falls = np.diff([value(beta, s) for s in least / edge * np.geomspace(1, 1e-9, 10)])
        np.testing.assert_allclose(falls, (n - beta * rank) / 2 * math.log(0.1), rtol=1e-6)
    with pytest.raises(ValueError, match="equal for all small sigma2"):
        oracle.solve(edge)
    np.testing.assert_allclose(
        [value(edge, s) for s in least / edge * np.geomspace(0.999, 1e-6, 9)], value(edge, 0.999 * least / edge)
    )
    best = oracle.solve(edge * (1 + 1e-6))
    assert best.water_level == pytest.approx(least, rel=1e-4)
    assert best.mse == pytest.approx(n * best.sigma2)
    assert np.isfinite(oracle.solve(0.5 * edge, sigma2=0.1).rate)  # a fixed σ always has an optimum


def test_water_level_rises_continuously_with_beta_where_a_residual_remains():
    betas = np.geomspace(1e-3, 5, 4001)
    levels = np.array([ORACLE.solve(b).water_level for b in betas])
    steps = np.diff(np.log(levels))
    assert (steps > 0).all()
    assert steps.max() < 0.1
    np.testing.assert_allclose(8 * levels / ORACLE.at_water_level(levels)[1], betas, rtol=1e-10)
    # Not all k latents can be active from β = n/k on, whatever the data; slightly below they can.
    easy = analytic.LinearGaussian([1e6, 1e6, 1e-3, 1e-3], 2)
    assert easy.solve(1.999).active == 2
    assert easy.solve(2).active == 0


# ---------------------------------------------------------------- slopes


def slope(x, y):
    return (y[2:] - y[:-2]) / (x[2:] - x[:-2])


def test_envelope_with_a_fixed_sigma():
    """dD/dR = −β for the distortion that is trained, −2s in MSE."""
    betas, sigma2 = np.exp(np.linspace(-4, math.log(0.99 * ORACLE.collapse_beta(0.3)), 4001)), 0.3
    found = [ORACLE.solve(b, sigma2) for b in betas]
    rate, mse, distortion = (np.array([getattr(f, name) for f in found]) for name in ("rate", "mse", "distortion"))
    np.testing.assert_allclose(slope(rate, distortion), -betas[1:-1], rtol=2e-3)
    np.testing.assert_allclose(slope(rate, mse), -2 * sigma2 * betas[1:-1], rtol=2e-3)
    # Without derivatives: the chord lies between the two βs.
    chord = -np.diff(distortion) / np.diff(rate)
    assert (chord >= betas[:-1] - 1e-9).all()
    assert (chord <= betas[1:] + 1e-9).all()


def test_envelope_with_a_learned_sigma():
    betas = np.exp(np.linspace(-4, math.log(0.99 * ORACLE.collapse_beta()), 4001))
    found = [ORACLE.solve(b) for b in betas]
    rate, distortion = (np.array([getattr(f, name) for f in found]) for name in ("rate", "distortion"))
    np.testing.assert_allclose(slope(rate, distortion), -betas[1:-1], rtol=2e-3)
    chord = -np.diff(distortion) / np.diff(rate)
    assert (chord >= betas[:-1] - 1e-9).all()
    assert (chord <= betas[1:] + 1e-9).all()


def test_optimal_sigma_likelihood_is_linear_in_the_rate_while_the_residual_is_small():
    """With a latents active the slope of n/2 log MSE is −n s/(as + T_a): −n/a for a small residual T_a."""
    oracle = analytic.LinearGaussian([9, 8, 7, 1e-7, 1e-7, 1e-7], 3)
    levels = np.geomspace(1e-4, 6.9, 200)
    rate, mse = oracle.at_water_level(levels)
    np.testing.assert_allclose(slope(rate, 3 * np.log(mse)), -2, rtol=2e-3)
    levels = np.geomspace(0.85, 1.45, 2001)  # the example: three active, T_3 = 1.55
    rate, mse = ORACLE.at_water_level(levels)
    np.testing.assert_allclose(slope(rate, 4 * np.log(mse)), -(8 * levels / (3 * levels + 1.55))[1:-1], rtol=1e-5)


def test_learned_beta_is_the_beta_whose_learned_sigma_has_this_level():
    for beta in (0.2, 0.7, 1.0, 2.0, 3.5):
        assert ORACLE.learned_beta(ORACLE.solve(beta).water_level) == pytest.approx(beta, rel=1e-12)
    levels = np.geomspace(1e-3, 20, 500)
    assert (np.diff(ORACLE.learned_beta(levels)) >= 0).all()
    assert ORACLE.learned_beta(SPECTRUM[0]) == pytest.approx(ORACLE.collapse_beta())
    # Nothing left over: a stretch of levels for one β, n/a with a latents active.
    flat = analytic.LinearGaussian([4.0, 2.0, 0.0], 2).learned_beta(np.array([0.1, 1.0, 1.9]))
    np.testing.assert_allclose(flat, 3 / 2, rtol=1e-12)


def test_calibrated_distortion_is_that_of_the_best_sigma_and_has_the_slope_of_the_learned_beta():
    for beta in (0.2, 1.0, 2.5):
        best = ORACLE.solve(beta)
        assert analytic.calibrated_distortion(best.mse, 8) == pytest.approx(best.distortion, rel=1e-12)
        for factor in (0.9, 1.1):
            sigma2 = factor * best.sigma2
            worse = 4 * math.log(2 * math.pi * sigma2) + best.mse / (2 * sigma2)
            assert worse > analytic.calibrated_distortion(best.mse, 8)
    levels = np.geomspace(0.01, 4.9, 4001)
    rate, mse = ORACLE.at_water_level(levels)
    inside = np.abs(levels[1:-1, None] / SPECTRUM - 1).min(1) > 0.01  # the slope jumps nowhere, its slope does
    measured = slope(rate, analytic.calibrated_distortion(mse, 8))
    np.testing.assert_allclose(measured[inside], -ORACLE.learned_beta(levels)[1:-1][inside], rtol=1e-3)


# ---------------------------------------------------------------- real data, input


def test_covariance_of_the_digits():
    """61 of the 64 pixels vary: with k ≥ 61 and a learned σ there is no optimum up to β = 64/61."""
    x = load_digits().data / 16
    cov = np.cov(x.T, bias=True)
    oracle = analytic.LinearGaussian(cov, 64)
    assert oracle.rank == 61
    assert oracle.eigenvalues.sum() == pytest.approx(((x - x.mean(0)) ** 2).sum(1).mean(), rel=1e-12)
    np.testing.assert_allclose((oracle.eigenvectors * oracle.eigenvalues) @ oracle.eigenvectors.T, cov, atol=1e-14)
    for k, beta in ((64, 1), (61, 1), (61, 64 / 61)):
        with pytest.raises(ValueError, match="rank 61"):
            analytic.LinearGaussian(cov, k).solve(beta)
    assert analytic.LinearGaussian(cov, 64).solve(1.05).active <= 61
    best = analytic.LinearGaussian(cov, 16).solve(1)
    assert best.sigma2 == pytest.approx(np.linalg.eigvalsh(cov)[:48].sum() / 48, rel=1e-10)
    terms = analytic.linear_elbo_terms(cov, best.encoder, best.decoder, best.posterior_variance)
    np.testing.assert_allclose(terms, (best.rate, best.mse), rtol=1e-12)


def test_matrix_spectrum_list_and_tensor_agree():
    torch = pytest.importorskip("torch")
    shuffled = [0.4, 5, 0.05, 3, 0.1, 0.8, 1.5, 0.2]
    reference = ORACLE.solve(0.7)
    for cov in (shuffled, np.diag(shuffled), np.diag(shuffled).tolist(), torch.diag(torch.tensor(shuffled).double())):
        best = analytic.LinearGaussian(cov, 4).solve(0.7)
        assert (best.rate, best.mse) == (pytest.approx(reference.rate), pytest.approx(reference.mse))
        terms = analytic.linear_elbo_terms(cov, best.encoder, best.decoder, best.posterior_variance)
        assert terms == (pytest.approx(best.rate), pytest.approx(best.mse))
    single = analytic.LinearGaussian(torch.tensor(covariance([3, 1, 0, 0], 12)).float(), 2)
    assert single.rank == 2  # the round-off of a float32 covariance counts as zero


@pytest.mark.parametrize(
    ("cov", "message"),
    [
        (np.ones((2, 3)), "square"),
        (np.ones((2, 2, 2)), "square"),
        (3.0, "square"),
        (np.zeros((0, 0)), "square"),
        ([], "spectrum"),
        ([[1, 0.5], [0.4, 1]], "symmetric"),
        ([[1, 2], [2, 1]], "no negative eigenvalue"),
        ([1, -1e-6], "no negative eigenvalue"),
        ([[1, math.nan], [math.nan, 1]], "finite"),
        ([1, math.inf], "finite"),
        (np.zeros((3, 3)), "not be zero"),
        ([0, 0], "not be zero"),
        (["a", "b"], "real numbers"),
        ([1j, 1], "real numbers"),
        ([[1, 2], [3]], "real numbers"),
    ],
)
def test_bad_covariance_is_named_in_one_line(cov, message):
    assert str(one_line(lambda: analytic.LinearGaussian(cov, 1), message)).startswith("cov must")


def test_a_singular_covariance_may_round_below_zero_and_a_negative_one_may_not():
    """Columns that add up to one have a direction without variance, whose eigenvalue is what rounding leaves."""
    rng = np.random.default_rng(0)
    for columns in (3, 4, 7, 30):
        x = np.eye(columns)[rng.integers(columns, size=200)]
        found = analytic.LinearGaussian(np.cov(x.T, bias=True), 2).eigenvalues
        assert found[-1] == 0
        assert found[-2] > 0
    turn, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    with pytest.raises(ValueError, match="cov must have no negative eigenvalue"):
        analytic.LinearGaussian(turn @ np.diag([1.0, 0.5, 0.2, -1e-12]) @ turn.T, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: analytic.LinearGaussian([1, 2], 0),
        lambda: analytic.LinearGaussian([1, 2], 1.5),
        lambda: analytic.LinearGaussian([1, 2], True),
        lambda: ORACLE.solve(0),
        lambda: ORACLE.solve(-1, 0.1),
        lambda: ORACLE.solve(math.nan),
        lambda: ORACLE.solve(1, 0),
        lambda: ORACLE.solve(1, math.inf),
        lambda: ORACLE.collapse_beta(0),
        lambda: ORACLE.at_water_level(0),
        lambda: ORACLE.learned_beta(-1),
        lambda: analytic.calibrated_distortion(0, 8),
        lambda: analytic.calibrated_distortion(1.0, 0),
        lambda: analytic.gaussian_rd([1, 2], np.array([1, -1])),
        lambda: analytic.gaussian_rd([1, -2], 1),
        lambda: analytic.gaussian_rd(np.eye(2), 1),
        lambda: analytic.gaussian_rate_distortion([1, 2], 0),
        lambda: analytic.gaussian_distortion_rate([1, 2], -0.1),
        lambda: analytic.linear_elbo_terms([1, 2], [[1, 0]], [[1], [0]], [0.0]),
        lambda: analytic.linear_elbo_terms([1, 2], [[1, 0]], [[1, 0]], [1.0]),
        lambda: analytic.linear_elbo_terms([1, 2], [[1, 0]], [[1], [0]], [1.0], mean=[1]),
        lambda: analytic.linear_elbo_terms([1, 2], [[1, 0]], [[1], [0]], [1.0], encoder_bias=[1, 2]),
    ],
)
def test_bad_arguments_raise_one_line(call):
    one_line(call, "must")
