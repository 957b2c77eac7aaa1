"""log p(x) from below and above, against linear-Gaussian models and sums over a grid, where it is known exactly."""

import itertools
import math

import numpy as np
import pytest
import torch
from errors import one_line
from scipy import stats

from nbvae import _tensors, analytic, estimators, models
from nbvae.estimators import _annealing

# Orthogonal decoder columns: the true posterior is then diagonal, so that an encoder can equal it.
DECODER = torch.tensor([[1.5, 0.0], [0.0, 0.8], [1.0, 0.0], [0.0, -0.6]], dtype=torch.float64)
BIAS = torch.tensor([0.3, -1.0, 0.0, 2.0], dtype=torch.float64)
SIGMA = 0.5


def truth(x, decoder=DECODER, bias=BIAS, sigma=SIGMA):
    """log p(x), posterior means and covariance, by conditioning in the joint Gaussian of (z, x)."""
    w, k = decoder.numpy(), decoder.shape[1]
    marginal = w @ w.T + sigma**2 * np.eye(len(w))
    gain = w.T @ np.linalg.inv(marginal)
    centred = x.numpy() - bias.numpy()
    log_p = stats.multivariate_normal(bias.numpy(), marginal).logpdf(x.numpy())
    return log_p, centred @ gain.T, np.eye(k) - gain @ w


def linear_model(widening=1.0, shift=0.0, decoder=DECODER):
    """A linear VAE whose posterior is the true one (its diagonal), `widening` times the variance, moved by `shift`."""
    n, k = decoder.shape
    model = models.VAE((n,), k, network="linear", likelihood="gaussian", sigma=SIGMA).double()
    _, _, covariance = truth(BIAS[None], decoder)
    gain = decoder.numpy().T @ np.linalg.inv(decoder.numpy() @ decoder.numpy().T + SIGMA**2 * np.eye(n))
    with torch.no_grad():
        model.decoder[0].weight.copy_(decoder)
        model.decoder[0].bias.copy_(BIAS)
        model.encoder.mean.weight.copy_(torch.tensor(gain))
        model.encoder.mean.bias.copy_(torch.tensor(-gain @ BIAS.numpy()) + shift)
        model.encoder.log_variance.copy_(torch.tensor(widening * covariance.diagonal()).log())
    return model


def examples(n, decoder=DECODER):
    return torch.randn(n, decoder.shape[1]).double() @ decoder.T + BIAS + SIGMA * torch.randn(n, len(decoder)).double()


def z_score(values, expected=0.0):
    """Distance of a mean of independent values from `expected` in standard errors."""
    values = np.asarray(values, dtype=np.float64)
    return (values.mean() - expected) / (values.std(ddof=1) / math.sqrt(len(values)))


# ---------------------------------------------------------------- importance sampling


@pytest.mark.parametrize("n_samples", [1, 2, 7, 100])
def test_iwae_with_the_true_posterior_is_exact_for_every_number_of_draws(n_samples, monkeypatch):
    """Every weight is then p(x): no variance, no bias. In chunks of any size, so that no draw is lost or counted twice."""
    x, model = examples(9), linear_model()
    for chunk in (_tensors.AT_ONCE, 4 * 9 * 3, 4 * 4, 1):
        monkeypatch.setattr(_tensors, "AT_ONCE", chunk)
        found = estimators.iwae(model, x, n_samples)
        np.testing.assert_allclose(found.per_example, truth(x)[0], atol=1e-9)


def test_iwae_with_one_draw_is_the_elbo():
    """The ELBO is log p(x) − KL(q ‖ p(z|x)), here with both posteriors known."""
    x, model = examples(4000), linear_model(widening=1.7, shift=0.2)
    variance = truth(x)[2].diagonal()
    kl = 0.5 * (1.7 + 0.2**2 / variance - 1 - math.log(1.7)).sum()
    elbo = truth(x)[0] - kl
    found = estimators.iwae(model, x, n_samples=1)
    assert abs(z_score(found.per_example.numpy() - elbo)) < 3
    assert kl > 0.3  # far from log p(x) itself: 30 standard errors
    assert found.value == pytest.approx(found.per_example.mean().item(), abs=1e-12)
    assert found.stderr == pytest.approx(found.per_example.numpy().std(ddof=1) / math.sqrt(4000), rel=1e-9)


def test_bias_of_iwae_falls_like_the_variance_of_a_weight_over_2k():
    """For q = N(m, cv) and p(z|x) = N(m, v): E (w/p)² = c/√(2c − 1) for each latent, so the bias is known for large K.

    The average weight of each example is unbiased, E exp(log ŵ − log p) = 1. With that as control variate the bias,
    E[e^r − 1 − r], has little noise. Averaging log weights would leave it at KL(q ‖ p(z|x)) for every K.
    """
    c, x = 1.5, examples(4000)
    model, exact = linear_model(widening=c), truth(x)[0]
    variance = (c / math.sqrt(2 * c - 1)) ** 2 - 1
    biases, previous = {}, -math.inf
    for n_samples in (1, 4, 16, 64):
        found = estimators.iwae(model, x, n_samples)
        r = found.per_example.numpy() - exact
        assert abs(z_score(np.exp(r), 1)) < 3
        loss = np.exp(r) - 1 - r
        biases[n_samples] = (loss.mean(), loss.std() / math.sqrt(len(r)))
        assert abs(z_score(-r, loss.mean())) < 3.5
        assert previous < found.value < exact.mean() + 3 * r.std() / math.sqrt(len(r))
        previous = found.value
    assert biases[1][0] == pytest.approx(c - 1 - math.log(c), abs=3 * biases[1][1])  # the KL of two latents
    for n_samples in (16, 64):
        bias, error = biases[n_samples]
        # The next term of the expansion is of relative size 1/K.
        assert n_samples * bias == pytest.approx(variance / 2, abs=3 * n_samples * error + variance / 2 / n_samples)
        assert n_samples * error < 0.1 * variance  # so a slope of 1/√K or another constant would show


def test_iwae_in_chunks_has_the_same_distribution(monkeypatch):
    x, model = examples(600), linear_model(widening=2.0)
    whole = estimators.iwae(model, x, 11).per_example
    monkeypatch.setattr(_tensors, "AT_ONCE", 4 * 50 * 4)
    parts = estimators.iwae(model, x, 11).per_example
    assert not torch.equal(whole, parts)
    assert abs(z_score(whole - parts)) < 3


# ---------------------------------------------------------------- annealed importance sampling

# A true posterior with correlation and unequal scales: the moves have something to do. The noise is large, since reverse
# weights have a finite variance only where the likelihood adds little precision to the prior, or the moves mix well.
NOISE = 1.2
MIXED = torch.tensor([[1.6, 0.9], [0.2, 1.0], [-0.7, 0.5]], dtype=torch.float64)


def posterior_draws(x, chains):
    _, means, covariance = truth(x, MIXED, BIAS[:3], NOISE)
    noise = torch.randn(chains, len(x), 2).double()
    return torch.tensor(means) + noise @ torch.linalg.cholesky(torch.tensor(covariance)).T


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(2)
    model = models.VAE((3,), 2, network="linear", likelihood="gaussian", sigma=NOISE).double()
    with torch.no_grad():
        model.decoder[0].weight.copy_(MIXED)
        model.decoder[0].bias.copy_(BIAS[:3])
    x = torch.randn(400, 2).double() @ MIXED.T + BIAS[:3] + NOISE * torch.randn(400, 3).double()
    return model, x, truth(x, MIXED, BIAS[:3], NOISE)[0]


def test_forward_and_reverse_chains_bracket_the_evidence(mixed):
    """Below and above log p(x) in expectation for any number of steps, and closer the more there are.

    Stronger: the average forward weight is p(x) itself in expectation, and the average of the inverse reverse weights is
    1/p(x), even with few steps, where the logarithms are far off.
    """
    model, x, exact = mixed
    widths = []
    for n_steps, chains in ((2, 4), (8, 4), (50, 4)):
        forward = estimators.ais(model, x, n_chains=chains, n_steps=n_steps, n_leapfrog=5)
        above = posterior_draws(x, chains)
        reverse = estimators.ais(model, x, n_steps=n_steps, n_leapfrog=5, posterior_samples=above)
        below, over = forward.per_example.numpy() - exact, reverse.per_example.numpy() - exact
        assert z_score(below) < 3
        assert z_score(over) > -3
        assert abs(z_score(np.exp(below), 1)) < 3
        if n_steps > 2:  # with two, the reverse weights have no finite variance
            assert abs(z_score(np.exp(-over), 1)) < 3
        widths.append((over.mean() - below.mean(), math.hypot(below.std(), over.std()) / math.sqrt(len(x))))
    (wide, a), (middle, _), (narrow, b) = widths
    assert wide > middle > narrow
    assert wide - narrow > 4 * math.hypot(a, b)
    assert -3 * b < narrow < 0.15


def test_reverse_chains_in_chunks_start_from_the_draws_of_their_own_example(mixed, monkeypatch):
    """Chains that start from another example's draws are many nats off: the whole and the parts agree on the mean."""
    model, x, exact = mixed
    draws = posterior_draws(x, 5)
    whole = estimators.ais(model, x, n_steps=8, n_leapfrog=3, posterior_samples=draws).per_example
    monkeypatch.setattr(_tensors, "AT_ONCE", 3 * 5 * 60)
    reverse = estimators.ais(model, x, n_steps=8, n_leapfrog=3, posterior_samples=draws).per_example
    assert abs(z_score(np.exp(exact - reverse.numpy()), 1)) < 3
    assert abs(z_score((reverse - whole).numpy())) < 3
    forward = estimators.ais(model, x, n_chains=5, n_steps=8, n_leapfrog=3).per_example
    assert abs(z_score(np.exp(forward.numpy() - exact), 1)) < 3


def test_step_sizes_of_the_run_that_counts_do_not_follow_it(mixed, monkeypatch):
    """What the counting run accepts must not change its moves: else the bounds are none. Here it accepts nothing, or all.

    Forwards and backwards it moves at each temperature with the size that the pilot left for it.
    """
    model, x, _ = mixed
    move, n_steps = _annealing.Path.move, 6
    for posterior_samples in (None, posterior_draws(x, 2)):
        for answer in (0.0, 1.0):
            moves = []

            def watched(self, z, t, size, answer=answer, moves=moves):
                new, accepted = move(self, z, t, size)
                moves.append((t, size.clone()))
                return new, torch.full_like(accepted, answer) if len(moves) > n_steps else accepted

            monkeypatch.setattr(_annealing.Path, "move", watched)
            estimators.ais(model, x, n_chains=2, n_steps=n_steps, n_leapfrog=2, posterior_samples=posterior_samples)
            pilot, counted = moves[:n_steps], moves[n_steps:]
            times = [t for t, _ in pilot]
            assert times == sorted(times)
            assert [t for t, _ in counted] == (times if posterior_samples is None else times[::-1])
            sizes = dict(counted)
            for (t, first), (_, adapted) in itertools.pairwise(pilot):
                assert (adapted != first).any()
                assert torch.equal(sizes[t], adapted)
            assert (sizes[1.0] != pilot[-1][1]).any()  # adapted after the last move too


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_a_move_leaves_its_density_in_place(mixed, t):
    """z from f_t, moved, has the moments of f_t: N(m_t, C_t) with precision I + t WᵀW/σ², for a step that rejects a fifth."""
    model, x, _ = mixed
    precision = torch.eye(2) + t * MIXED.T @ MIXED / NOISE**2
    covariance = torch.linalg.inv(precision)
    mean = t * (x[:1] - BIAS[:3]) @ MIXED / NOISE**2 @ covariance
    root = torch.linalg.cholesky(covariance)
    unit = torch.randn(40_000, 1, 2).double()
    path = _annealing.Path(model, x[:1], 3)
    z = mean + unit @ root.T
    size = torch.full((1, 1), 1.3 * torch.linalg.eigvalsh(covariance).min().sqrt().item(), dtype=torch.float64)
    new, accepted = path.move(z, t, size)
    assert 0.5 < accepted.mean().item() < 0.97
    assert (new != z).any(-1).double().mean().item() == pytest.approx(accepted.mean().item(), abs=0.01)
    back = torch.linalg.solve_triangular(root, (new - mean).squeeze(1).T, upper=False)
    for values, expected in ((back[0], 0), (back[1], 0), (back[0] ** 2, 1), (back[1] ** 2, 1), (back[0] * back[1], 0)):
        assert abs(z_score(values, expected)) < 4


@pytest.fixture(scope="module")
def bernoulli():
    """A small network on all 64 binary vectors of six pixels, and log p(x) of each by a sum over a grid of z."""
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
    exact = (log_mass + log_cell.unsqueeze(1)).logsumexp(0).numpy()
    assert np.exp(exact).sum() == pytest.approx(1, abs=1e-4)
    assert np.ptp(exact) > 3
    return model, x, exact


def test_both_estimates_for_a_network_with_binary_pixels_in_float32(bernoulli):
    model, x, exact = bernoulli
    assert next(model.parameters()).dtype == torch.float32
    importance = estimators.iwae(model, x, n_samples=3000)
    annealed = estimators.ais(model, x, n_chains=16, n_steps=30, n_leapfrog=4)
    for found in (importance, annealed):
        r = found.per_example.numpy() - exact
        assert abs(z_score(np.exp(r), 1)) < 3
        assert abs(r.mean()) < 0.02 + 3 * r.std() / 8
        assert r.std() < 0.3
    paired = importance.per_example - annealed.per_example
    assert abs(paired.mean()) < 0.02 + 3 * paired.std() / 8


# ---------------------------------------------------------------- the gap, and manners


def test_gap_is_the_divergence_from_the_true_posterior():
    x = examples(300)
    model = linear_model(widening=0.4, shift=0.3)
    model.encoder.mean.weight.data *= 0.9  # so that the gap differs between the examples
    log_p, means, covariance = truth(x)
    posterior = model.posterior(x)
    true = torch.distributions.MultivariateNormal(torch.tensor(means), torch.tensor(covariance))
    mine = torch.distributions.MultivariateNormal(posterior.mean, torch.diag_embed(posterior.variance))
    kl = torch.distributions.kl_divergence(mine, true).detach().numpy()
    found = estimators.gap(model, x, estimators.Estimate.of(torch.tensor(log_p)), n_samples=100)
    r = found.per_example.numpy() - kl
    assert abs(z_score(r)) < 3
    assert abs(r).max() < 1
    assert found.stderr == pytest.approx(found.per_example.numpy().std(ddof=1) / math.sqrt(300), rel=1e-9)  # paired
    assert found.stderr < 0.5 * log_p.std() / math.sqrt(300)
    assert kl.mean() > 20 * r.std() / math.sqrt(300)
    low = estimators.gap(model, x, estimators.Estimate.of(torch.tensor(log_p - 0.25)), n_samples=100)
    assert found.value - low.value == pytest.approx(0.25, abs=1e-9)
    from_sampling = estimators.gap(model, x, estimators.ais(model, x, n_chains=4, n_steps=40, n_leapfrog=4), n_samples=100)
    assert from_sampling.value == pytest.approx(kl.mean(), abs=0.1)


def test_gap_in_chunks(monkeypatch):
    x, model = examples(30), linear_model()
    monkeypatch.setattr(_tensors, "AT_ONCE", 4 * 7)
    found = estimators.gap(model, x, estimators.Estimate.of(torch.tensor(truth(x)[0])), n_samples=3)
    assert abs(found.per_example).max() < 3
    assert abs(z_score(found.per_example)) < 3  # of the true posterior: zero on average


@pytest.mark.parametrize("call", ["iwae", "ais", "reverse", "gap"])
def test_stream_gradients_and_model_stay_as_they_were(mixed, call):
    model, x, exact = mixed
    x = x[:20]
    run = {
        "iwae": lambda seed: estimators.iwae(model, x, 5, seed=seed),
        "ais": lambda seed: estimators.ais(model, x, 2, 3, 2, seed=seed),
        "reverse": lambda seed: estimators.ais(
            model, x, 2, 3, 2, torch.tensor(truth(x, MIXED, BIAS[:3], NOISE)[1])[None], seed=seed
        ),
        "gap": lambda seed: estimators.gap(model, x, estimators.Estimate.of(torch.tensor(exact[:20])), 5, seed=seed),
    }[call]
    weights = [parameter.clone() for parameter in model.parameters()]
    state = torch.random.get_rng_state()
    a, b, other = run(4), run(4), run(5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(a.per_example, b.per_example)
    assert not torch.equal(a.per_example, other.per_example)
    assert not a.per_example.requires_grad
    for parameter, before in zip(model.parameters(), weights, strict=True):
        assert parameter.grad is None
        assert parameter.requires_grad
        assert torch.equal(parameter, before)


def test_bad_arguments_in_one_line(mixed):
    model, x, exact = mixed
    x = x[:5]
    known = estimators.Estimate.of(torch.tensor(exact[:5]))
    for call, message in (
        (lambda: estimators.iwae(model, x, 0), "n_samples must be"),
        (lambda: estimators.iwae(model, x, 2.5), "n_samples must be"),
        (lambda: estimators.ais(model, x, n_chains=0), "n_chains must be"),
        (lambda: estimators.ais(model, x, n_steps=0), "n_steps must be"),
        (lambda: estimators.ais(model, x, n_leapfrog=0), "n_leapfrog must be"),
        (lambda: estimators.ais(model, x, posterior_samples=torch.zeros(5, 2)), r"\(chains, 5, 2\), got \(5, 2\)"),
        (lambda: estimators.ais(model, x, posterior_samples=torch.zeros(3, 4, 2)), r"got \(3, 4, 2\)"),
        (lambda: estimators.ais(model, x, posterior_samples=torch.zeros(3, 5, 1)), r"got \(3, 5, 1\)"),
        (lambda: estimators.ais(model, x, posterior_samples=torch.zeros(0, 5, 2)), r"got \(0, 5, 2\)"),
        (lambda: estimators.iwae(model, x[:0]), "at least 1 example, got 0"),
        (lambda: estimators.ais(model, x[:0]), "at least 1 example, got 0"),
        (lambda: estimators.moments(model, x[:1]), "at least 2 examples, got 1"),
        (lambda: estimators.ais(model, x, posterior_samples=np.zeros((3, 5, 2))), "got ndarray"),
        (lambda: estimators.gap(model, x[:3], known), "each of 3 examples; it is for 5 examples"),
        (lambda: estimators.gap(model, x, estimators.Estimate(-3.0, 0.1)), "each of 5 examples; it has none"),
        (lambda: estimators.gap(model, x, -3.0), "each of 5 examples; it has none: -3.0"),
        (lambda: estimators.gap(model, x, known, 0), "n_samples must be"),
        (lambda: estimators.iwae(model, x[:, :2]), r"examples of shape \(3,\)"),
    ):
        one_line(call, match=message)


def test_the_closed_form_of_the_library_is_the_truth_used_here():
    x = examples(10)
    for found, expected in zip(analytic.linear_evidence(x, DECODER, SIGMA**2, BIAS), truth(x), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-10)
