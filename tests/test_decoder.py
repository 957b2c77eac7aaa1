"""The curve of a decoder with the best encoder, against linear-Gaussian decoders and sums over a grid, where it is known."""

import math

import numpy as np
import pytest
import torch
from errors import one_line
from scipy import stats

from nbvae import _tensors, estimators, models
from nbvae.estimators import _annealing

DECODER = torch.tensor([[1.6, 0.9], [0.2, 1.0], [-0.7, 0.5]], dtype=torch.float64)
BIAS = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
SIGMA = 0.7
BETAS = (0.2, 0.5, 1.0, 4.0)


def truth(x, beta):
    """log Z_t, rate and distortion of each example under q ∝ p(z) N(x; Wz + b, σ²I)^t, t = 1/β, by Gaussian integrals.

    The power is N(x; Wz + b, σ²/t I) and a factor without z, so that the integral is N(x; b, WWᵀ + σ²/t I) and that factor.
    """
    w, centred, variance = DECODER.numpy(), x.numpy() - BIAS.numpy(), SIGMA**2
    n, k = w.shape
    factor = 0.5 * n * (math.log(2 * math.pi * variance * beta) - math.log(2 * math.pi * variance) / beta)
    log_z = stats.multivariate_normal(np.zeros(n), w @ w.T + variance * beta * np.eye(n)).logpdf(centred) + factor
    covariance = np.linalg.inv(np.eye(k) + w.T @ w / (variance * beta))
    mean = centred @ w @ covariance / (variance * beta)
    rate = 0.5 * (np.trace(covariance) + (mean**2).sum(1) - k - np.linalg.slogdet(covariance)[1])
    squared = ((centred - mean @ w.T) ** 2).sum(1) + np.trace(w @ covariance @ w.T)
    return log_z, rate, 0.5 * squared / variance + 0.5 * n * math.log(2 * math.pi * variance)


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(5)
    maps = {"encoder": np.zeros((2, 3)), "variance": np.ones(2), "decoder": DECODER.numpy(), "decoder_bias": BIAS.numpy()}
    model = models.VAE.from_linear(**maps, sigma=SIGMA)
    return model, torch.randn(400, 2).double() @ DECODER.T + BIAS + SIGMA * torch.randn(400, 3).double()


def z_score(values, expected=0.0):
    """Distance of a mean of independent values from `expected` in standard errors."""
    values = np.asarray(values, dtype=np.float64)
    return (values.mean() - expected) / (values.std(ddof=1) / math.sqrt(len(values)))


def in_groups(model, x, betas=BETAS, **settings):
    """Curves of groups of forty examples, with the truth of each group: losses, rates and distortions (groups, betas)."""
    found, exact = [], []
    for number, part in enumerate(x.split(40)):
        curve = estimators.decoder_curve(model, part, betas, seed=number, **settings)
        found.append([curve.loss(), curve.rates, curve.distortions])
        exact.append([[-beta * z.mean(), r.mean(), d.mean()] for beta in betas for z, r, d in [truth(part, beta)]])
    return np.array(found).swapaxes(0, 1), np.array(exact).transpose(2, 0, 1)


def test_the_truth_used_here_is_the_optimum():
    """R = −D/β − log Z for the best q, and no other q has a lower D + βR."""
    x = torch.randn(7, 3).double()
    for beta in BETAS:
        log_z, rate, distortion = truth(x, beta)
        np.testing.assert_allclose(distortion + beta * rate, -beta * log_z, atol=1e-10)
        for other in (0.8 * beta, 1.3 * beta):
            _, rate, distortion = truth(x, other)
            assert (distortion + beta * rate > -beta * log_z).all()


def test_the_curve_of_a_linear_decoder_is_its_closed_form(linear):
    (loss, rate, distortion), exact = in_groups(*linear, n_chains=8, n_steps=40, n_leapfrog=4)
    allowed = np.maximum(1, BETAS)  # the loss is β times a logarithm
    for found, true, most in zip((loss, rate, distortion), exact, (0.06 * allowed, 0.15, 0.15 * allowed), strict=True):
        assert (abs((found - true).mean(0)) < most).all()
        for each, its in zip(found.T, true.T, strict=True):
            assert abs(z_score(each - its)) < 4
    assert (np.diff(rate.mean(0)) < -0.5).all()  # the points are far from each other beside these errors


def test_with_few_steps_the_loss_is_too_high_and_every_point_can_be_reached(linear):
    """Nothing has a lower D + βR than the best encoder for β, whichever β: so no point may be below any of these lines."""
    model, x = linear
    few, exact = in_groups(model, x, n_chains=4, n_steps=2, n_leapfrog=2)
    many, _ = in_groups(model, x, n_chains=12, n_steps=20, n_leapfrog=2)
    assert all(z_score(one - true) > 4 for one, true in zip(few[0].T, exact[0].T, strict=True))
    assert ((few[0] - many[0]).mean(0) > 0.1).all()
    for beta in (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 10.0):
        lowest = np.array([-beta * truth(part, beta)[0].mean() for part in x.split(40)])
        for _, rate, distortion in (few, many):
            for r, d in zip(rate.T, distortion.T, strict=True):
                assert z_score(d + beta * r - lowest) > -3


def test_weights_are_unbiased_at_each_temperature_of_one_run(linear):
    """E w = Z_t and E w f(z) = Z_t E f, for f = −log p(x|z), on the way and beyond t = 1."""
    model, x = linear
    times = [0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.5, 5.0]
    path = _annealing.Path(model, x, 4)
    with torch.no_grad():
        sizes = path.pilot(times, 16)
        for t, weight, likely in path.forward(times, 16, sizes):
            log_z, _, distortion = truth(x, 1 / t)
            ratio = (weight - torch.tensor(log_z)).exp()
            assert abs(z_score(ratio.mean(0))) > 20  # a mean of one that says something
            assert abs(z_score(ratio.mean(0), 1)) < 3.5
            assert abs(z_score((ratio * (-likely - torch.tensor(distortion))).mean(0))) < 3.5


def test_what_an_encoder_lacks_is_beta_times_its_divergence_from_the_best_one(linear):
    """Here the encoder's q is the prior, whose divergence from the best q is known for two Gaussians."""
    model, x = linear
    for beta in BETAS:
        log_z, _, _ = truth(x, beta)
        precision = np.eye(2) + DECODER.numpy().T @ DECODER.numpy() / (SIGMA**2 * beta)
        mean = (x - BIAS).numpy() @ DECODER.numpy() @ np.linalg.inv(precision) / (SIGMA**2 * beta)
        squares = np.einsum("ni,ij,nj->n", mean, precision, mean)
        kl = 0.5 * (np.trace(precision) + squares - 2 - np.linalg.slogdet(precision)[1])
        own = estimators.evaluate(model, x, beta, n_samples=400)
        assert own.loss() + beta * log_z.mean() == pytest.approx(beta * kl.mean(), rel=0.01)
        curve = estimators.decoder_curve(model, x, [beta], n_chains=4, n_steps=40, n_leapfrog=4)
        assert own.loss() - curve[beta].loss() == pytest.approx(beta * kl.mean(), rel=0.01)


@pytest.mark.parametrize("n_steps", [1, 2, 30])
def test_a_decoder_that_ignores_its_code_needs_no_rate(n_steps):
    torch.manual_seed(1)
    model, x = models.VAE((6,), 2, hidden=(8,)), (torch.rand(30, 6) < 0.4).float()
    with torch.no_grad():
        model.decoder[0].weight.zero_()
    distortion = -model.likelihood(torch.zeros(1, 2)).log_prob(x).double().detach()
    for point in estimators.decoder_curve(model, x, BETAS, 3, n_steps, 2):
        assert point.rate == pytest.approx(0, abs=1e-5)
        assert point.distortion == pytest.approx(distortion.mean().item(), rel=1e-6)
        error = distortion.std().item() / math.sqrt(30)
        assert point.distortion_stderr == pytest.approx(error, rel=1e-5)
        assert point.loss_stderr == pytest.approx(error, rel=1e-5)


def test_at_beta_one_the_loss_is_that_of_ais(linear):
    model, x = linear
    for settings in ((16, 10, 3, 0), (1, 4, 1, 7)):
        n_chains, n_steps, n_leapfrog, seed = settings
        expected = estimators.ais(model, x[:50], n_chains, n_steps, n_leapfrog, seed=seed)
        point = estimators.decoder_curve(model, x[:50], [1.0], *settings)[1.0]
        assert point.loss() == pytest.approx(-expected.value, rel=1e-13)
        assert point.loss_error() == pytest.approx(expected.stderr, rel=1e-12)
        assert point.n_examples == 50


def test_a_network_with_binary_pixels_in_float32_against_a_sum_over_a_grid():
    torch.manual_seed(3)
    model = models.VAE((6,), 2, hidden=(8,))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter *= 4
    x = torch.tensor([[i >> bit & 1 for bit in range(6)] for i in range(64)]).float()
    line = torch.linspace(-7, 7, 281, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    log_cell = -0.5 * z.square().sum(1) - math.log(2 * math.pi) + 2 * math.log(line[1] - line[0])
    with torch.no_grad():
        logits = model.decoder(z.float()).double()
    log_mass = logits @ x.double().T - torch.nn.functional.softplus(logits).sum(1, keepdim=True)
    curve = estimators.decoder_curve(model, x, (0.3, 1.0, 3.0), n_chains=16, n_steps=40, n_leapfrog=4)
    for point in curve:
        log_joint = log_cell.unsqueeze(1) + log_mass / point.beta
        log_z = log_joint.logsumexp(0)
        distortion = -((log_joint - log_z).exp() * log_mass).sum(0)
        rate = -distortion / point.beta - log_z
        assert rate.mean() > 0.3
        assert point.loss() == pytest.approx(-point.beta * log_z.mean().item(), abs=0.04 * max(1, point.beta))
        assert point.distortion == pytest.approx(distortion.mean().item(), abs=0.12)
        assert point.rate == pytest.approx(rate.mean().item(), abs=0.12)


def test_temperatures_are_those_of_ais_up_to_one_then_equal_factors_and_every_beta_is_met():
    ramp = _annealing.temperatures(8)
    assert ramp[0] == 0
    assert ramp[-1] == 1
    assert len(ramp) == 9
    np.testing.assert_allclose(np.diff(ramp), np.diff(ramp)[::-1], atol=1e-12)  # as fine at both ends
    assert _annealing.temperatures(8, [0.1, 1.0]) == sorted([*ramp, 0.1])
    assert _annealing.temperatures(8, [0.1, 0.3]) == sorted([*(t for t in ramp if t < 0.3), 0.1, 0.3])
    long = _annealing.temperatures(8, [1.0, 100.0])
    assert long[:9] == ramp
    assert long[-1] == 100
    np.testing.assert_allclose(np.array(long[9:]) / long[8:-1], 10 ** (1 / 8))
    assert _annealing.temperatures(1, [0.2]) == [0.0, 0.2]


def test_order_of_betas_stream_and_model_leave_the_numbers_as_they_are(linear):
    model, x = linear
    state = torch.random.get_rng_state()
    run = lambda betas, seed=4: estimators.decoder_curve(model, x[:20], betas, 2, 3, 2, seed)  # noqa: E731
    assert [*run([0.5, 2.0])] == [*run([2.0, 0.5])] == [*run(np.array([2, 0.5]))]
    assert run([0.5]).loss() != run([0.5], 5).loss()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_in_chunks_each_example_keeps_its_place(linear, monkeypatch):
    model, x = linear
    settings = {"betas": (0.5, 1.0), "n_chains": 6, "n_steps": 12, "n_leapfrog": 3}
    whole = in_groups(model, x[:80], **settings)[0]
    monkeypatch.setattr(_tensors, "AT_ONCE", 3 * 6 * 11)
    chunks, exact = in_groups(model, x[:80], **settings)
    assert not np.array_equal(whole, chunks)
    assert (np.ptp(exact[0], 0) > 0.05).all()
    for found, true in zip(chunks, exact, strict=True):
        assert (abs((found - true).mean(0)) < 0.3).all()


def test_bad_arguments_in_one_line(linear):
    model, x = linear
    call = lambda *arguments, **settings: estimators.decoder_curve(model, x[:5], *arguments, **settings)  # noqa: E731
    for wrong, message in (
        (lambda: call([]), "betas must be a list with at least one value"),
        (lambda: call(0.5), "betas must be a list"),
        (lambda: call("1"), "betas must be a list"),
        (lambda: call([1.0, 0.0]), "beta must be a finite number > 0, got 0"),
        (lambda: call([math.nan]), "beta must be a finite number > 0"),
        (lambda: call([0.5, 1.0, 0.5]), "one point for each beta, got two at 0.5"),
        (lambda: call([1.0], n_chains=0), "n_chains must be"),
        (lambda: call([1.0], n_steps=2.5), "n_steps must be"),
        (lambda: call([1.0], n_leapfrog=0), "n_leapfrog must be"),
        (lambda: call([1.0], seed=-1), "seed must be"),
        (lambda: estimators.decoder_curve(model, x[:, :2], [1.0]), r"examples of shape \(3,\)"),
        (lambda: estimators.decoder_curve(model, x[:0], [1.0]), "at least 1 example, got 0"),
    ):
        one_line(wrong, match=message)
