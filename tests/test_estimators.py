import math
from dataclasses import replace

import pytest
import torch
from errors import one_line
from torch import nn

from nbvae import _tensors, analytic, data, estimators, models, objectives, training
from nbvae.models import likelihoods


@pytest.fixture(scope="module")
def linear():
    """A linear VAE with weights of our choice, a correlated population, and the closed form of its R and MSE."""
    torch.manual_seed(1)
    model = models.VAE((5,), latent_dim=2, network="linear", likelihood="gaussian", sigma=0.7).double()
    with torch.no_grad():
        model.encoder.log_variance.copy_(torch.tensor([1.0, 0.4]))
    mix = torch.randn(5, 5, dtype=torch.float64)
    mean = torch.randn(5, dtype=torch.float64)
    x = mean + torch.randn(20000, 5, dtype=torch.float64) @ mix
    return model, x


def closed_form(model, x):
    """R and MSE of the model on the sample x itself, written out here: second moments are all that enters."""
    v, (W, b), (V, a) = model.encoder.log_variance.exp(), model.decoder[0].parameters(), model.encoder.mean.parameters()
    z = x @ V.T + a
    rate = 0.5 * (z.square() + v - 1 - v.log()).sum(-1)
    mse = (x - z @ W.T - b).square().sum(-1) + (W.square().sum(0) * v).sum()
    return rate.mean().item(), mse.mean().item()


@torch.no_grad()
def test_evaluate_agrees_with_the_closed_form(linear):
    model, x = linear
    assert estimators.evaluate(model, x, n_samples=1).rate == pytest.approx(closed_form(model, x)[0], abs=1e-9)
    for row in x[:5]:  # one example many times: what is left in the standard error is the noise of z
        same = row.expand(20000, 5)
        point = estimators.evaluate(model, same, n_samples=10)
        mse = closed_form(model, same)[1]
        assert abs(point.mse - mse) < 4 * point.mse_stderr < 0.05 * mse
        at_mean = (row - model.likelihood(model.posterior(row[None]).mean).mean).square().sum().item()
        assert mse - at_mean > 20 * point.mse_stderr  # evaluating at the posterior's mean would be caught
        sigma2 = model.observation.sigma.item() ** 2
        assert point.distortion == pytest.approx(likelihoods.gaussian_distortion(point.mse, sigma2, 5), rel=1e-12)


def test_standard_errors_are_those_of_independent_repetitions(linear):
    model, x = linear
    points = [estimators.evaluate(model, part, beta=2.0, seed=seed) for seed, part in enumerate(x.split(200))]
    for name in ("rate", "distortion", "mse"):
        values = torch.tensor([getattr(point, name) for point in points])
        claimed = torch.tensor([getattr(point, f"{name}_stderr") for point in points]).mean()
        assert values.std().item() == pytest.approx(claimed.item(), rel=0.25)  # 100 repetitions: ± 7 % each σ
    losses = torch.tensor([point.distortion + 2 * point.rate for point in points])
    claimed = torch.tensor([point.loss_stderr for point in points]).mean()
    assert losses.std().item() == pytest.approx(claimed.item(), rel=0.25)


def test_chunks_change_nothing(linear, monkeypatch):
    model, x = linear
    whole = estimators.evaluate(model, x[:100], n_samples=400)
    monkeypatch.setattr(_tensors, "AT_ONCE", 5 * 7)
    parts = estimators.evaluate(model, x[:100], n_samples=400)
    assert parts.rate == pytest.approx(whole.rate, rel=1e-12)
    assert parts.mse == pytest.approx(whole.mse, abs=4 * math.hypot(whole.mse_stderr, parts.mse_stderr) / 20)


def test_ten_thousand_draws_by_default(linear):
    model, x = linear
    assert estimators.evaluate(model, x[:300]) == estimators.evaluate(model, x[:300], n_samples=34)
    assert estimators.evaluate(model, x) == estimators.evaluate(model, x, n_samples=1)


def test_evaluation_leaves_the_stream_and_the_model(linear):
    model, x = linear
    state = torch.random.get_rng_state()
    a, b = (estimators.evaluate(model, x[:50], seed=4) for _ in range(2))
    assert a == b
    assert a.mse != estimators.evaluate(model, x[:50], seed=5).mse
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rd_curve_averages_seeds_and_says_how_they_spread():
    digits = data.load("digits")
    config = training.TrainConfig(epochs=2, batch_size=300)
    runs = training.sweep(lambda: models.VAE(digits.shape, 4), digits, [2.0, 0.5], seeds=(0, 1, 2), config=config)
    curve = estimators.rd_curve(runs, digits.test)
    assert curve.betas.tolist() == [0.5, 2.0]
    rates = torch.tensor([estimators.evaluate(run.model, digits.test, 2.0).rate for run in runs if run.objective.beta == 2.0])
    assert curve[2.0].rate == pytest.approx(rates.mean().item())
    assert curve[2.0].rate_stderr == pytest.approx((rates.std() / 3**0.5).item())
    mixed = estimators.rd_curve([*runs[::2], *runs[1::2]], digits.test)  # in whatever order they come
    assert mixed.rates == pytest.approx(curve.rates)
    assert mixed.rate_stderrs == pytest.approx(curve.rate_stderrs)
    single = estimators.rd_curve(runs[0], digits.test)[2.0]
    assert list(estimators.rd_curve(runs[:1], digits.test)) == [single]
    assert single == estimators.evaluate(runs[0].model, digits.test, 2.0)


def test_bad_input(linear):
    model, x = linear
    for call, message in (
        (lambda: estimators.evaluate(model, x[:0]), "at least 1 example, got 0"),
        (lambda: estimators.evaluate(model, x, n_samples=0), "n_samples must be"),
        (lambda: estimators.evaluate(model, x, beta=0), "beta must be"),
        (lambda: estimators.rd_curve([], x), "runs must be a list with at least one"),
        (lambda: estimators.rd_curve(None, x), "runs must be a list"),
    ):
        one_line(call, message)
    one, other = (
        training.Run(models.VAE((5,), 2, likelihood="gaussian", sigma=s), objectives.VAE(), training.TrainConfig(), {}, 0.0)
        for s in (0.3, 0.4)
    )
    with pytest.raises(ValueError, match="different settings"):
        estimators.rd_curve([one, other], x)
    row = training.Run(one.model, objectives.FactorVAE(), training.TrainConfig(), {}, 0.0)
    with pytest.raises(ValueError, match="no β to order a curve by"):
        estimators.rd_curve(row, x)


def test_runs_whose_own_networks_are_not_built_alike_are_not_averaged(linear):
    """Models of one's own networks have no `config`: what they are made of tells them apart."""
    _, x = linear
    config = training.TrainConfig()

    def run(seed, *layers):
        with training.seeded(seed):
            made = models.VAE((5,), 2, likelihood="gaussian", encoder=nn.Sequential(*(layer() for layer in layers)))
        return training.Run(made, objectives.VAE(), replace(config, seed=seed), {}, 0.0)

    def narrow():
        return nn.Linear(5, 3)

    def out():
        return nn.Linear(3, 4)

    one, again = run(0, narrow, nn.ReLU, out), run(1, narrow, nn.ReLU, out)
    mean = estimators.rd_curve([one, again], x)[1.0]
    assert mean.rate == pytest.approx(sum(estimators.evaluate(each.model, x).rate for each in (one, again)) / 2)
    wider = run(2, lambda: nn.Linear(5, 7), nn.ReLU, lambda: nn.Linear(7, 4))
    for other in (wider, run(2, narrow, nn.Tanh, out)):
        one_line(lambda other=other: estimators.rd_curve([one, again, other], x), "different settings")


def test_entropy_of_distinct_rows():
    x = torch.tensor([[0, 1], [0, 1], [1, 1], [0, 0]]).float().reshape(4, 1, 1, 2)
    assert estimators.empirical_entropy(x) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert estimators.empirical_entropy(torch.eye(7)) == pytest.approx(math.log(7))
    for bad in (torch.zeros(0, 3), torch.eye(3).numpy(), torch.full((2, 3), math.nan)):
        with pytest.raises(ValueError, match="x must"):
            estimators.empirical_entropy(bad)


@pytest.fixture(scope="module")
def population():
    return data.load("gaussian")


@pytest.mark.parametrize("level", [0.03, 0.3, 1.1, 2.2, 6.0])  # 8, 5, 3, 2 and 0 latents active
def test_a_trained_linear_vae_is_on_the_oracle_of_its_training_covariance(population, level):
    x = population.train
    sigma = 0.5
    beta = level / sigma**2
    torch.manual_seed(0)
    model = models.VAE(population.shape, latent_dim=8, network="linear", likelihood="gaussian", sigma=sigma)
    config = training.TrainConfig(epochs=20, batch_size=600, lr=0.1, schedule="cosine")
    training.fit(model, population, objectives.BetaVAE(beta), config)
    with torch.no_grad():
        rate, mse = closed_form(model.double(), x.double())
    oracle = analytic.LinearGaussian(torch.cov(x.T.double(), correction=0).numpy(), latent_dim=8)
    best = oracle.solve(beta=beta, sigma2=sigma**2)
    assert rate == pytest.approx(best.rate, abs=0.02)
    assert mse == pytest.approx(best.mse, rel=0.01)
    active = (0.5 * (model.posterior(x.double()).mean.var(0) - model.encoder.log_variance) > 0.02).sum()
    assert active == best.active == sum(eigenvalue > level for eigenvalue in (5, 3, 1.5, 0.8, 0.4, 0.2, 0.1, 0.05))


def test_a_curve_averages_over_seeds_and_nothing_else():
    digits = data.load("digits")
    config = training.TrainConfig(epochs=1)

    def runs(*kinds, seeds=(0, 1), config=config):
        return training.sweep(
            lambda: models.VAE(digits.shape, 2, hidden=(4,)), digits, objectives=kinds, seeds=seeds, config=config
        )

    fine = runs(objectives.BetaVAE(2.0))
    point = estimators.rd_curve(fine, digits.test, 1)[2.0]
    assert [each.seed for each in point.runs] == [0, 1]
    for mixed, what in (
        ([*fine, *runs(objectives.BetaTCVAE(beta=2.0))], "objective"),
        (runs(objectives.BetaTCVAE(beta=2.0), objectives.BetaTCVAE(alpha=2.0, beta=2.0)), "objective"),
        ([*fine, *runs(objectives.BetaVAE(2.0), seeds=(2,), config=training.TrainConfig(epochs=2))], "config"),
        ([*fine, fine[0]], "same seed, 0"),
    ):
        one_line(lambda mixed=mixed: estimators.rd_curve(mixed, digits.test, 1), what)


def test_a_view_of_one_beta_has_the_label_that_it_has():
    many = models.MultiBetaVAE((4,), 2, hidden=(4,), beta_range=(0.1, 10.0))
    x = torch.ones(5, 4)
    assert estimators.evaluate(many.at(0.2), x, n_samples=1).beta == 0.2
    assert estimators.evaluate(many.at(0.2), x, beta=3.0, n_samples=1).beta == 3.0
    assert estimators.evaluate(models.VAE((4,), 2), x, n_samples=1).beta == 1.0
