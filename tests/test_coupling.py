"""Codes of two β drawn together: marginals, the conditional against Schur's complement, and no loss on the linear oracle."""

import itertools
import math

import numpy as np
import pytest
import torch
from errors import one_line
from scipy.stats import multivariate_normal

from nbvae import analytic, models, posterior, samplers, training
from nbvae.posterior import coupling as module

ORACLE = analytic.LinearGaussian([5.0, 3.0, 1.5, 0.8, 0.2], 4)
SIGMA2, LADDER = 0.3, (4.0, 2.0, 1.0)


def code(n, k, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    mean, noise = torch.randn(2, n, k, generator=generator, dtype=torch.float64)
    return spread * mean, (0.5 * noise).exp()


def gain(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def joint(coupled, coarse, fine):
    """Mean (k + k',) and covariance of z and z' of one example, from `sample` alone: it is affine in z' and in its noise."""
    (mean, _), (fine_mean, fine_std) = coarse, fine
    k, fine_k = mean.shape[1], fine_mean.shape[1]

    def of(new, noise):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.torch, "randn", lambda *_, **__: noise)
            return coupled.sample(coarse, fine, new)[0]

    silent = torch.zeros(1, k, dtype=torch.float64)
    base = of(fine_mean, silent)
    through = torch.stack([of(fine_mean + fine_std * unit, silent) - base for unit in torch.eye(fine_k).double()], 1)
    noise = torch.stack([of(fine_mean, unit[None]) - base for unit in torch.eye(k).double()], 1)
    fine_root = torch.diag(fine_std[0])
    own, between = through @ through.T + noise @ noise.T, through @ fine_root
    cov = torch.cat([torch.cat([own, between], 1), torch.cat([between.T, fine_root @ fine_root], 1)])
    return torch.cat([base, fine_mean[0]]), cov


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 4), (4, 2)])
@pytest.mark.parametrize("scale", [0.0, 0.3, 30.0])
def test_each_code_keeps_its_own_posterior_and_the_conditional_is_schurs(shape, scale):
    k, fine_k = shape[0], shape[-1]
    coarse, fine, coupled = code(1, k), code(1, fine_k, 1), posterior.Coupling(gain(*shape, scale=scale))
    mean, cov = joint(coupled, coarse, fine)
    torch.testing.assert_close(mean[:k], coarse[0][0])
    torch.testing.assert_close(cov[:k, :k], torch.diag(coarse[1][0] ** 2), atol=1e-10, rtol=1e-9)
    if scale == 0:
        assert cov[:k, k:].abs().max() == 0
    z, new = coarse[0] + gain(1, k, seed=2), fine[0] + 0.1 * gain(1, fine_k, seed=3)
    regress = torch.linalg.solve(cov[:k, :k], cov[:k, k:]).T
    law = multivariate_normal(mean[k:] + regress @ (z[0] - mean[:k]), cov[k:, k:] - regress @ cov[:k, k:])
    found = coupled.log_prob(coarse, fine, z, new)
    assert found.item() == pytest.approx(law.logpdf(new[0]), rel=1e-7, abs=1e-7)
    given = coupled.given(coarse, fine, z)
    np.testing.assert_allclose(given.mean[0], law.mean, atol=1e-8)
    np.testing.assert_allclose(given.covariance_matrix[0], law.cov, atol=1e-8)


def test_draws_have_the_law_of_the_posterior_for_several_draws_of_each_example():
    coarse, fine = code(3, 2), code(3, 2, 1)
    with training.seeded(0):
        new = torch.normal(fine[0].expand(100_000, 3, 2), fine[1].expand(100_000, 3, 2))
        z = posterior.Coupling(gain(2, 2)).sample(coarse, fine, new)
    u = (z - coarse[0]) / coarse[1]
    assert u.mean(0).abs().max() < 4.5 / 100_000**0.5
    for i in range(3):
        np.testing.assert_allclose(torch.cov(u[:, i].T), np.eye(2), atol=4.5 * (2 / 100_000) ** 0.5)


def test_without_a_coupling_the_conditional_is_the_posterior_itself():
    coarse, fine = code(5, 3), code(5, 3, 1)
    coupled = posterior.Coupling.fit(coarse, fine, "independent")
    z, new = coarse[0], fine[0] + 0.3
    own = torch.distributions.Normal(*fine).log_prob(new).sum(-1)
    torch.testing.assert_close(coupled.log_prob(coarse, fine, z, new), own)


def test_the_gradient_of_the_inverse_root_is_finite_where_eigenvalues_coincide():
    spread = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices = torch.eye(3).double() + spread @ spread.mT
    root = module._InverseRoot.apply(matrices)
    torch.testing.assert_close(root @ matrices @ root, torch.eye(3).double().expand(4, 3, 3))

    def symmetric(each):
        return module._InverseRoot.apply(0.5 * (each + each.mT))

    torch.autograd.gradcheck(symmetric, matrices.clone().requires_grad_())
    same = torch.eye(3).double().requires_grad_()
    symmetric(same).sum().backward()
    torch.testing.assert_close(same.grad, torch.full((3, 3), -0.5).double())


# The linear oracle: degraded copies, and no loss.


def optimum(beta):
    exact = ORACLE.solve(beta, SIGMA2)
    return exact, models.VAE.from_linear(
        encoder=exact.encoder, variance=exact.posterior_variance, decoder=exact.decoder, sigma=SIGMA2**0.5
    )


@pytest.fixture(scope="module")
def x():
    """Data whose covariance is the oracle's, exactly."""
    x = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T, correction=0))).T
    return x * torch.from_numpy(ORACLE.eigenvalues.copy()).sqrt()


def exact_codes(x):
    """Means and standard deviations at each β, in float64 from the closed forms."""
    solved = [ORACLE.solve(beta, SIGMA2) for beta in LADDER]
    means = [x @ torch.from_numpy(each.encoder.copy()).double().T for each in solved]
    stds = [torch.from_numpy(each.posterior_variance.copy()).sqrt().expand_as(m) for each, m in zip(solved, means, strict=True)]
    return list(zip(means, stds, strict=True))


@pytest.mark.parametrize("kind", ["channel", "matrix"])
def test_on_the_oracle_the_fit_finds_the_degraded_copy(kind, x):
    for coarse, fine in itertools.pairwise(exact_codes(x)):
        found = posterior.Coupling.fit(coarse, fine, kind)
        v, fine_v = coarse[1][0].square(), fine[1][0].square()
        slope = ((1 - v) / (1 - fine_v)).sqrt()
        expected = torch.where(v < 1, slope / (v - slope**2 * fine_v).sqrt(), 0.0)  # a collapsed latent copies nothing
        expected = expected if kind == "channel" else torch.diag(expected)
        torch.testing.assert_close(found.gain, expected, atol=2e-3, rtol=1e-3)
        gained = 0.5 * torch.log(v / fine_v).sum().item()  # the rate that the finer code adds
        assert found.cost(coarse, fine) == pytest.approx(gained, abs=1e-6)


@pytest.mark.parametrize("kind", ["channel", "matrix"])
def test_on_the_oracle_a_ladder_of_copies_costs_what_the_last_code_costs(kind, x):
    """The excess is E log q(z|z', x)/p(z|z') over the steps: zero to 1e-6 in each draw, where the densities are exact."""
    codes = exact_codes(x)
    couplings = [posterior.Coupling.fit(*pair, kind) for pair in itertools.pairwise(codes)]
    with training.seeded(1):
        every = [torch.normal(*codes[-1])]
        for coupled, (coarse, fine) in zip(couplings[::-1], [*itertools.pairwise(codes)][::-1], strict=True):
            every.insert(0, coupled.sample(coarse, fine, every[0]))
    densities = [torch.distributions.Normal(*each) for each in codes]
    log_q = sum(densities[0].log_prob(every[0]).unbind(-1))
    log_p = -0.5 * (every[0] ** 2 + math.log(2 * math.pi)).sum(-1)
    pairs = zip(itertools.pairwise(codes), itertools.pairwise(every), couplings, strict=True)
    for (coarse, fine), (z, new), coupled in pairs:
        log_q = log_q + coupled.log_prob(coarse, fine, z, new)
        # p(z'|z) of the population: each latent of variance one, of the covariance that the copy's slope gives.
        slope = ((1 - coarse[1][0] ** 2) / (1 - fine[1][0] ** 2)).sqrt().nan_to_num(0.0)
        law = torch.distributions.Normal(slope * z, (1 - slope**2).sqrt())
        log_p = log_p + law.log_prob(new).sum(-1)
    last = densities[-1].log_prob(every[-1]).sum(-1) + 0.5 * (every[-1] ** 2 + math.log(2 * math.pi)).sum(-1)
    excess = log_q - log_p - last
    assert excess.abs().max() < 1e-3  # in single draws, of gains found to six digits
    assert abs(excess.mean().item()) < 1e-6


def test_a_chain_of_copies_on_the_oracle_costs_the_rate_and_independent_draws_more(x):
    exact, _ = optimum(LADDER[-1])
    ladder = [optimum(beta)[1] for beta in LADDER]
    how = {"n_components": 1, "draws": 20}
    coupled = samplers.Chain(ladder, x, coupling="channel", **how).rates(x, draws=20)
    # Fitted on 40,000 draws, the densities are off by about (parameters)/(2 · 40,000) nats.
    assert coupled.sum().item() == pytest.approx(exact.rate, abs=0.01)
    apart = samplers.Chain(ladder, x, **how).rates(x, draws=20).sum().item()
    variances = [each[1][0] ** 2 for each in exact_codes(x)]
    price = sum(
        0.5 * torch.log((1 - (1 - v) * (1 - w)) / w).sum().item() for v, w in itertools.pairwise(variances)
    )  # log det of independent draws' conditional, over the finer posterior's
    assert apart == pytest.approx(ORACLE.solve(LADDER[0], SIGMA2).rate + price, abs=0.02)
    assert apart > exact.rate + 0.5


def test_better_conditionals_bring_the_total_down_to_the_last_code(x):
    """Data of two clusters under linear encoders: copies lose nothing, so two Gaussians cost the one code by two Gaussians."""
    ladder = [optimum(beta)[1] for beta in LADDER]
    apart = torch.zeros(5, dtype=torch.float64)
    apart[0] = 6.0
    clusters = x + torch.where(torch.arange(len(x)) % 2 == 0, 1.0, -1.0)[:, None] * apart
    one, two = (
        samplers.Chain(ladder, clusters, n_components=n, draws=20, coupling="channel")
        .rates(clusters, draws=20)[1:]
        .sum()
        .item()
        for n in (1, 2)
    )
    mixture = samplers.Mixture(ladder[-1], clusters, n_components=2, draws=20).rate(clusters, draws=20)
    first = samplers.Mixture(ladder[0], clusters, n_components=2, draws=20).rate(clusters, draws=20)
    assert first + two == pytest.approx(mixture, abs=0.02)
    assert one > two + 0.05


def test_encoded_ladders_have_each_posterior_and_the_copies(x):
    ladder = [optimum(beta)[1] for beta in LADDER]
    chain = samplers.Chain(ladder, x, n_components=1, coupling="channel")
    every = chain.encode(x, seed=3)
    for z, (mean, std) in zip(every, exact_codes(x), strict=True):
        u = (z - mean) / std
        np.testing.assert_allclose(torch.cov(u.T), np.eye(4), atol=4.5 * (2 / len(x)) ** 0.5)
    alone = samplers.Chain(ladder, x, n_components=1).encode(x, seed=3)
    noises = [[(z - m)[:, 0] for z, (m, _) in zip(codes, exact_codes(x), strict=True)] for codes in (every, alone)]
    assert torch.corrcoef(torch.stack(noises[0]))[0, 1] > 0.3
    assert abs(torch.corrcoef(torch.stack(noises[1]))[0, 1]) < 0.1
    torch.testing.assert_close(every, chain.encode(x, seed=3))


@pytest.mark.parametrize("kind", ["channel", "matrix"])
def test_the_search_on_some_of_many_examples_finds_what_all_of_them_have(kind, monkeypatch):
    """Curved means and deviations of each example's own: no closed form, and the search on all is the reference."""
    generator = torch.Generator().manual_seed(3)
    u = torch.randn(6000, 3, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    fine = u + 0.2 * u.square(), 0.1 * (1 + u.tanh().square())
    coarse = (u @ (turn if kind == "matrix" else torch.eye(3).double())).tanh(), 0.3 + 0.2 * u.sigmoid()
    some = posterior.Coupling.fit(coarse, fine, kind)
    monkeypatch.setattr("nbvae.posterior.coupling._LEAST", 10**6)
    every = posterior.Coupling.fit(coarse, fine, kind)
    assert not torch.equal(some.gain, every.gain)
    assert every.cost(coarse, fine) - 1e-9 < some.cost(coarse, fine) < every.cost(coarse, fine) + 1e-3


@pytest.mark.parametrize("kind", ["channel", "matrix"])
def test_dead_latents_and_unrelated_codes_are_left_uncoupled_and_finite(kind):
    coarse, fine = code(200, 4), code(200, 4, 1)
    for each in (coarse, fine):  # two latents of each say nothing
        each[0][:, 2:], each[1][:, 2:] = 0.0, 1.0
    found = posterior.Coupling.fit(coarse, fine, kind)
    nothing = posterior.Coupling.fit(coarse, fine, "independent")
    assert found.cost(coarse, fine) < nothing.cost(coarse, fine)  # by the chance correlations of 200 examples
    gains = torch.diag(found.gain) if kind == "channel" else found.gain
    # Copying noise between latents that say nothing would only cost.
    assert gains[2:].abs().max() < 0.05
    assert gains[:, 2:].abs().max() < 0.05
    many = posterior.Coupling.fit((coarse[0][:, :2], coarse[1][:, :2]), fine, "matrix")
    assert many.gain.shape == (2, 4)


@pytest.mark.parametrize("tiny", [1e-3, 0.3])
def test_a_matrix_copies_no_worse_than_channels_beside_latents_that_say_almost_nothing(tiny):
    """Eight latents that agree and eight dead ones, whose means hardly vary: slopes on such means would be wild."""
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = []
    for v, i in ((0.1, 1), (0.02, 2)):
        alive = (1 - v) ** 0.5 * x + 0.02 * i * torch.tanh(3 * x.roll(1, 1))
        dead = tiny * torch.tanh(x[:, :1] * torch.linspace(1, 2, 8) + i * x[:, 1:2]) * torch.logspace(-2, 0, 8)
        std = torch.cat([torch.full((2000, 8), v**0.5), torch.ones(2000, 8)], 1).double()
        codes.append((torch.cat([alive, dead], 1), std))
    found = {kind: posterior.Coupling.fit(*codes, kind).cost(*codes) for kind in module.KINDS}
    assert found["matrix"] < found["channel"] + 1e-3
    assert found["channel"] < found["independent"] - 0.5


def test_a_matrix_sees_what_a_turn_hides_from_channels(x):
    """The fine codes turned, as another training may have them, with round posteriors: by channel little is left to copy."""
    (coarse, fine) = exact_codes(x)[:2]
    std = torch.full_like(fine[1], fine[1].mean().item())
    turn = torch.linalg.qr(gain(4, 4, seed=5))[0]
    turned = fine[0] @ turn.T, std
    by_matrix, straight = (
        posterior.Coupling.fit(coarse, each, "matrix").cost(coarse, each) for each in (turned, (fine[0], std))
    )
    assert by_matrix == pytest.approx(straight, abs=1e-5)
    assert posterior.Coupling.fit(coarse, turned, "channel").cost(coarse, turned) > by_matrix + 0.05


def test_what_is_refused():
    for call, words in [
        (lambda: posterior.Coupling(torch.zeros(2, 2, 2)), "gain must be a tensor (k,) or (k, k')"),
        (lambda: posterior.Coupling(torch.tensor([math.nan])), "finite"),
        (lambda: posterior.Coupling.fit(code(5, 2), code(5, 3)), "use 'matrix'"),
        (lambda: posterior.Coupling.fit(code(5, 2), code(4, 2)), "of the same examples"),
        (lambda: posterior.Coupling.fit(code(1, 2), code(1, 2)), "at least 2"),
        (lambda: posterior.Coupling.fit(code(5, 2), code(5, 2), "all"), "coupling must be"),
    ]:
        one_line(call, words)
