"""Learned priors: the identity of the rate on closed forms, bounds on oracles, what they learn, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from errors import one_line

from nbvae import models, samplers, training

K = 3


def gaussian_model(scale=1.0, rotate=False):
    """A linear encoder of data N(0, I) that is scaled and turned on purpose: q(z) = N(0, Σ), the prior N(0, I)."""
    turn = torch.linalg.qr(torch.randn(K, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    weight = scale * torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
    if rotate:
        weight = turn.T @ weight @ turn
    variance = torch.full((K,), 0.1, dtype=torch.float64)
    model = models.VAE.from_linear(encoder=weight.numpy(), variance=variance.numpy(), decoder=np.eye(K), sigma=1.0)
    return model, (weight @ weight.T + torch.diag(variance)).numpy()


def white(n, seed=0):
    x = torch.randn(n, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T, correction=0))).T


def gaussian_kl(own, other):
    """KL(N(0, own) ‖ N(0, other)), nats."""
    ratio = np.linalg.solve(other, own)
    return 0.5 * (np.trace(ratio) - len(own) - np.linalg.slogdet(ratio)[1])


def test_the_rate_under_a_density_is_the_rate_less_what_the_density_knows_and_the_prior_does_not():
    """R − R_r = KL(q(z) ‖ p(z)) − KL(q(z) ‖ r): R from encoder and data, both divergences from covariances, R_r from draws."""
    model, sigma = gaussian_model(rotate=True)
    x = white(2000)
    code = torch.distributions.kl_divergence(model.posterior(x), model.prior())
    fitted = samplers.Mixture(model, x[:200], n_components=1, draws=1)  # few draws: KL(q(z) ‖ r) is large, too
    mean, cov = fitted.fitted.mean[0].numpy(), (fitted.fitted.root[0] @ fitted.fitted.root[0].T).numpy()
    marginal = gaussian_kl(sigma, np.eye(K))
    misfit = gaussian_kl(sigma, cov) + 0.5 * mean @ np.linalg.solve(cov, mean)
    assert marginal > 1
    assert misfit > 0.005
    found = np.mean([fitted.rate(x, draws=500, seed=seed) for seed in range(8)])  # eight million draws
    assert code.mean().item() - found == pytest.approx(marginal - misfit, abs=1e-3)


MADE = {
    "vamp": lambda model, x, **how: samplers.VampPrior(model, x, **{"n_components": 200, "steps": 300} | how),
    "flow": lambda model, x, **how: samplers.Flow(model, x, **{"hidden": (32,), "steps": 400} | how),
    "diffusion": lambda model, x, **how: samplers.Diffusion(model, x, **{"hidden": (64, 64), "steps": 1500} | how),
}


@pytest.mark.parametrize("name", ["flow", "diffusion", "second stage"])
def test_no_density_prices_codes_below_the_information_and_a_good_one_comes_near(name):
    """On fresh examples R_r >= I(x; z) = R − KL(q(z) ‖ p(z)), which is known; the prior pays 1.5 nats more."""
    model, sigma = gaussian_model()
    x, new = white(3000), white(4000, seed=5)
    config = training.TrainConfig(30, 256, 3e-3, "one_cycle", device="cpu")
    density = samplers.SecondStage(model, x, config, hidden=(32,)) if name == "second stage" else MADE[name](model, x)
    known = 0.5 * (np.linalg.slogdet(sigma)[1] - K * math.log(0.1))
    prior = torch.distributions.kl_divergence(model.posterior(new), model.prior()).mean().item()
    assert prior == pytest.approx(known + gaussian_kl(sigma, np.eye(K)), abs=1e-6)
    found = density.rate(new, draws=10)
    assert known - 0.02 < found < known + 0.15


def test_before_training_a_diffusion_prices_a_standard_normal_at_its_own_entropy():
    """Its denoiser is exact there, and what the first and the last level cost is small."""
    model, _ = gaussian_model()
    x = white(4000)
    with torch.no_grad():
        density = samplers.Diffusion(model, x, hidden=(8,), steps=1, lr=1e-12)
        with training.seeded(0):
            u = torch.randn(200_000, K, dtype=torch.float64)
            found = -density._bound(u, 10)
    own = 0.5 * K * (math.log(2 * math.pi) + 1)
    error = found.std().item() / len(u) ** 0.5
    assert own - 4 * error < found.mean().item() < own + 0.02 + 4 * error


def plain_bound(density, u, draws):
    """The ELBO as Kingma et al. (2021) write it, with each level and noise drawn alone."""
    (first, last), k = density.gamma[[0, -1]], u.shape[1]
    signal, noise = (-last).sigmoid(), last.sigmoid()
    total = -0.5 * (signal * u.square() + noise - 1 - noise.log()).sum(1) - 0.5 * k * (math.log(2 * math.pi) + 1 + first)
    for _ in range(draws):
        gamma, epsilon = first + (last - first) * torch.rand(len(u)).to(u), torch.randn_like(u)
        noisy = (-gamma).sigmoid().sqrt().unsqueeze(1) * u + gamma.sigmoid().sqrt().unsqueeze(1) * epsilon
        total = total - 0.5 * (last - first) * (epsilon - density._noise(noisy, gamma)).square().sum(1) / draws
    return total


def test_the_bound_of_a_diffusion_is_the_plain_one_with_less_noise():
    model, x = two_clusters()
    density = samplers.Diffusion(model, x, hidden=(64, 64), steps=300)
    u = density.scaled(x[:500])
    with torch.no_grad(), training.seeded(3):
        plain = np.array([plain_bound(density, u, 1).mean().item() for _ in range(400)])
        ours = np.array([density._bound(u, 1).mean().item() for _ in range(100)])
    error = math.hypot(plain.std() / 20, ours.std() / 10)
    assert ours.mean() == pytest.approx(plain.mean(), abs=4 * error)
    assert error < 0.05
    assert ours.std() < plain.std() / 2  # as four times the draws would do


def two_clusters(n=2000):
    """Codes near (±1, …, ±1) all together: no Gaussian, and a prior that does not know."""
    generator = torch.Generator().manual_seed(0)
    side = torch.where(torch.rand(n, 1, generator=generator) < 0.5, 1.0, -1.0)
    x = (side + 0.1 * torch.randn(n, K, generator=generator)).double()
    model = models.VAE.from_linear(encoder=np.eye(K), variance=np.full(K, 0.01), decoder=np.eye(K), sigma=1.0)
    return model, x


@pytest.mark.parametrize("name", MADE)
def test_each_learns_what_no_gaussian_can(name):
    model, x = two_clusters()
    density = MADE[name](model, x)
    single = samplers.Mixture(model, x, n_components=1).rate(x)
    double = samplers.Mixture(model, x, n_components=2).rate(x)
    found = density.rate(x)
    assert single > double + 1
    assert found < single - 0.6 * (single - double)
    assert found > double - 0.05
    z = density.codes(4000, torch.Generator().manual_seed(0))
    near = ((z.abs() - 1).abs().amax(1) < 0.6) & (z.sign().sum(1).abs() == K)
    assert near.double().mean() > 0.9
    assert abs(z.sign()[:, 0].double().mean().item()) < 0.1


@pytest.mark.parametrize("name", MADE)
def test_training_leaves_the_model_its_gradients_and_the_stream_as_they_were(name):
    model, x = two_clusters(100)
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    with torch.no_grad():
        first, again = (MADE[name](model, x, steps=5, **({"n_components": 10} if name == "vamp" else {})) for _ in range(2))
    assert torch.equal(torch.randn(2), expected)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all((parameter.grad == 1).all() for parameter in model.parameters())
    assert first.rate(x) == again.rate(x)
    # The package of the flows turns off the checks of torch's distributions when it is imported.
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


def test_what_is_refused():
    model, x = two_clusters(100)
    for call, words in [
        (lambda: samplers.Flow(model, x[:10]), "at least 20 examples"),
        (lambda: samplers.VampPrior(model, x, n_components=101), "at most the number of examples, 100"),
        (lambda: samplers.Flow(model, x, transforms=0), "transforms"),
        (lambda: samplers.Diffusion(model, x, levels=1), "levels"),
        (lambda: samplers.Diffusion(model, x, lr=0.0), "lr"),
        (lambda: samplers.Flow(model, x, steps=5).rate(x, draws=0), "draws"),
    ]:
        one_line(call, words)
