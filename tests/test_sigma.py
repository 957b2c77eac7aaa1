"""σ in training: fixed, learned in each mode, optimal; on the oracle, on its floor, in a sweep, on disk."""

import copy
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from errors import one_line
from still import Still

from nbvae import analytic, data, estimators, models, objectives, training
from nbvae.estimators import decomposition
from nbvae.models import likelihoods
from nbvae.training import calibration

LEARNED = ("global", "optimal", "z", "z_diag")
QUICK = training.TrainConfig(epochs=2, batch_size=300, lr=3e-3, schedule="cosine")


@pytest.fixture(scope="module")
def grey():
    return data.load("digits", binarize=None)


def make(sigma=None, likelihood="gaussian", levels=None, network="mlp"):
    return models.VAE((1, 8, 8), 4, network, likelihood, sigma=sigma, levels=levels, hidden=(16,)).double()


def seeded(build, seed=0):
    torch.manual_seed(seed)
    return build()


def sigma2(model):
    return model.observation.scale.item() ** 2


# The oracle.


@pytest.fixture(scope="module")
def population():
    """20 000 samples, with the exact R and MSE on them of a linear model and the optimum at k = 4."""
    dataset = data.load("gaussian", sizes=(20_000, 100, 100))
    x = dataset.train.double()
    cov, mean = torch.cov(x.T, correction=0).numpy(), x.mean(0).numpy()
    terms = lambda model: analytic.linear_elbo_terms(cov, mean=mean, **model.linear_maps())  # noqa: E731
    return dataset, analytic.LinearGaussian(cov, latent_dim=4), terms


def linear(sigma):
    return models.VAE((8,), 4, "linear", "gaussian", sigma=sigma)


@pytest.mark.parametrize("mode", ["global", "optimal"])
def test_a_learned_sigma_is_that_of_the_oracle_around_beta_one_and_around_collapse(population, mode):
    dataset, oracle, terms = population
    betas = [0.3, 0.7, 1.0, 2.0, 3.3, 3.7]
    assert 3.5 < oracle.collapse_beta() < 3.65  # λ_1/mean λ lies between the last two
    config = training.TrainConfig(epochs=60, batch_size=2000, lr=0.2, schedule="cosine")
    actives = []
    for run in training.sweep(lambda: linear(mode), dataset, betas, config=config):
        best = oracle.solve(beta=run.objective.beta)
        rate, mse = terms(run.model)
        assert sigma2(run.model) == pytest.approx(best.sigma2, rel=0.01), run.objective
        assert rate == pytest.approx(best.rate, abs=0.03), run.objective
        assert mse == pytest.approx(best.mse, rel=0.01), run.objective
        actives.append(best.active)
    assert actives == [4, 4, 4, 2, 1, 0]


def test_models_at_equal_water_levels_are_one_model_whatever_beta_is(population):
    """Three βs by three σs, five water levels: equal ones agree to float32, different ones do not, all are on the oracle."""
    dataset, oracle, terms = population
    config = training.TrainConfig(epochs=30, batch_size=2000, lr=0.2, schedule="cosine")
    runs = training.sweep(linear, dataset, [0.5, 2.0, 8.0], sigmas=[1.0, 0.5, 0.25], config=config)
    found = {}
    for run in runs:
        level = run.objective.beta * run.model.config["sigma"] ** 2
        rate, mse = terms(run.model)
        assert (rate, mse) == (
            pytest.approx(oracle.at_water_level(level)[0], abs=0.06),
            pytest.approx(oracle.at_water_level(level)[1], rel=0.01),
        )
        found.setdefault(level, []).append((rate, mse))
    assert sorted(map(len, found.values())) == [1, 1, 2, 2, 3]
    for same in found.values():
        assert all(point == pytest.approx(same[0], abs=1e-3) for point in same)
    assert all(abs(a[0][0] - b[0][0]) > 0.5 for a in found.values() for b in found.values() if a is not b)


def test_gradients_at_equal_water_levels_are_proportional(grey):
    """D + βR at σ is β times a function of βσ² and the weights: the gradients of two βs differ by the factor of the βs."""
    noise, x = torch.randn(50, 4, dtype=torch.float64), grey.train[:50].double()

    def gradients(beta, sigma):
        model = seeded(lambda: make(sigma))
        model.observation.sigma.fill_(sigma)  # in float64: the constructor rounds to float32
        total = objectives.BetaVAE(beta)(Still(model, noise), x).total
        return torch.autograd.grad(total, list(model.parameters()))

    for beta, other in ((0.25, 1.0), (4.0, 1.0), (7.0, 0.3)):
        one, two = gradients(beta, math.sqrt(0.2 / beta)), gradients(other, math.sqrt(0.2 / other))
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, beta / other * b, rtol=1e-11, atol=1e-11)
        off = gradients(other, math.sqrt(0.3 / other))
        assert not all(torch.allclose(a, beta / other * b, rtol=0.01) for a, b in zip(one, off, strict=True))


def test_training_at_equal_water_levels_walks_one_path(grey):
    """Adam does not see the factor of the gradients but for its ε: networks too end at one R and MSE, after any training."""
    config = training.TrainConfig(epochs=4, batch_size=100, lr=3e-3)
    points = []
    for beta in (0.1, 1.0, 30.0):
        model = seeded(lambda beta=beta: models.VAE((1, 8, 8), 4, likelihood="gaussian", sigma=(0.05 / beta) ** 0.5))
        training.fit(model, grey, objectives.BetaVAE(beta), config)
        point = estimators.evaluate(model, grey.test)
        points.append((point.rate, point.mse))
    assert points[0][0] > 1  # or the encoder has learned nothing
    assert all(point == pytest.approx(points[0], rel=1e-3) for point in points)


# σ belongs to the training set.


@pytest.mark.parametrize("sigma", LEARNED)
def test_no_sigma_is_fitted_to_held_out_data(grey, sigma):
    """Other validation and test splits, ten times as wide, give the same bits; measuring on them changes none."""
    other = replace(grey, validation=10 * grey.validation[:7], test=10 * grey.test, validation_labels=None)
    one, two = (training.fit(seeded(lambda: make(sigma)), ds, objectives.VAE(), QUICK).model for ds in (grey, other))
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    before = {name: value.clone() for name, value in one.state_dict().items()}
    estimators.evaluate(one, other.test, n_samples=1)
    decomposition.decompose(one, grey.test)
    estimators.evaluate(models.Discretized(one, 17), grey.test, n_samples=1)
    assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())


def test_optimal_sigma_is_the_error_on_the_training_set(grey):
    """By hand with the same draws to round-off, with other draws within their noise, on any other data it is not."""
    model = training.fit(seeded(lambda: make("optimal")), grey, objectives.BetaVAE(0.5), replace(QUICK, epochs=8, seed=3)).model

    @torch.no_grad()
    def error(x, seed):
        with training.seeded(seed):
            rebuilt = model.decoder(model.posterior(x.double()).rsample())
        return (x.double().flatten(1) - rebuilt).square().mean(-1)

    assert sigma2(model) == pytest.approx(error(grey.train, 3).mean().item(), rel=1e-12)
    others = torch.stack([error(grey.train, seed).mean() for seed in range(10, 30)])
    assert abs(sigma2(model) - others.mean().item()) < 4 * others.std().item()
    assert abs(sigma2(model) - error(grey.train[grey.train_labels == 1], 3).mean().item()) > 10 * others.std().item()
    point = estimators.evaluate(model, grey.train)
    best = analytic.calibrated_distortion(point.mse, 64)
    assert point.distortion == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize("sigma", ["global", "z", "z_diag"])
def test_a_learned_sigma_starts_at_the_best_multiple_of_the_untrained_one(grey, sigma):
    """No other factor of σ² is likelier on the same draw of z; and as the untrained σ is near 1, σ² is near the MSE."""
    model = seeded(lambda: make(sigma))
    calibration.start(model, grey, 5)
    x = grey.train.double()

    @torch.no_grad()
    def score(factor):
        with training.seeded(5):
            one = model.likelihood(model.posterior(x).rsample())
        scaled = torch.distributions.Normal(one.mean, one.stddev * factor**0.5)
        return scaled.log_prob(x).sum().item(), (x - one.mean).square().mean().item()

    best, mse = score(1.0)
    assert best > max(score(0.99)[0], score(1.01)[0])
    assert model.observation.variance.item() == pytest.approx(mse, rel=1e-12 if sigma == "global" else 0.05)


@pytest.mark.parametrize("sigma", ["global", "z", "z_diag"])
def test_a_sigma_that_a_loop_of_ones_own_has_trained_is_not_thrown_away(grey, sigma):
    model, x = seeded(lambda: make(sigma)), grey.train.double()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        optimiser.zero_grad()
        objectives.VAE()(model, x).total.backward()
        optimiser.step()
    assert model.observation.variance.item() == 1  # what `start` takes for untrained
    before = estimators.evaluate(model, x).distortion
    assert before < -10
    calibration.start(model, grey, 0)
    assert estimators.evaluate(model, x).distortion == pytest.approx(before, abs=1)


# Sweeps and runs on disk.


@pytest.mark.parametrize(
    ("options", "objective"),
    [({"sigma": sigma}, "beta_vae") for sigma in (0.3, *LEARNED)]
    + [({"likelihood": kind, "sigma": "global", "levels": 17}, "beta_vae") for kind in ("discretized_gaussian",)]
    + [({"likelihood": "discretized_logistic", "sigma": "z_diag", "levels": 17}, "beta_vae")]
    + [({"likelihood": "continuous_bernoulli"}, "beta_vae"), ({"sigma": "optimal"}, "log_mse"), ({}, "log_mse")],
    ids=lambda value: " ".join(map(str, value.values())) or "default" if isinstance(value, dict) else value,
)
def test_a_sweep_equals_the_fits_and_a_run_is_kept_on_disk(grey, tmp_path, options, objective):
    """σ² too, and it differs between the models; the loaded model is the model."""
    build = lambda: make(**options)  # noqa: E731
    runs = training.sweep(build, grey, [0.5, 3.0], objective=objective, seeds=(0, 1), config=QUICK)
    for run in runs:
        alone = training.fit(seeded(build, run.config.seed), grey, run.objective, run.config)
        for (name, a), b in zip(run.model.state_dict().items(), alone.model.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0, msg=name)
        assert run.history["distortion"] == pytest.approx(alone.history["distortion"], rel=1e-9)
    if options.get("sigma") in ("global", "optimal"):
        assert len({round(sigma2(run.model), 8) for run in runs}) == 4
    loaded = training.load(runs[0].save(tmp_path))
    assert (loaded.objective, loaded.model.config) == (runs[0].objective, runs[0].model.config)
    state = runs[0].model.state_dict()
    assert set(state) == set(loaded.model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in loaded.model.state_dict().items())
    points = [estimators.evaluate(each.model, grey.test, n_samples=1) for each in (loaded, runs[0])]
    assert points[0] == points[1]


@pytest.mark.parametrize("sigma", LEARNED)
def test_training_goes_on_where_it_stopped(grey, sigma, tmp_path):
    """A second fit, also of a loaded model, with steps of next to nothing leaves σ where the first has brought it."""
    run = training.fit(seeded(lambda: make(sigma)), grey, objectives.VAE(), replace(QUICK, epochs=10))
    still = replace(QUICK, epochs=1, lr=1e-14)
    x = grey.test[:20].double()
    for model in (training.load(run.save(tmp_path)).model, run.model):
        scale = lambda: model.likelihood(model.posterior(x).mean).stddev.detach()  # noqa: E731, B023
        before = scale()
        training.fit(model, grey, objectives.VAE(), still)
        torch.testing.assert_close(scale(), before, rtol=1e-9, atol=0)
        assert before.mean() < 0.7  # where the default is one


# σ → 0.


def degenerate(kind):
    """Data that a linear model with three latents reproduces exactly, and the directions and the centre that it needs."""
    torch.manual_seed(1)
    centre, directions = torch.rand(6), torch.linalg.qr(torch.randn(6, 2)).Q
    codes = {"constant": torch.zeros(64, 2), "duplicates": torch.tensor([[1.0, 0], [0, -1]])[torch.arange(64) % 2]}
    x = centre + codes.get(kind, torch.randn(64, 2)) @ directions.T
    return data.Dataset(kind, x, x[:10], x[:10]), directions, centre


@pytest.mark.parametrize("sigma", LEARNED)
@pytest.mark.parametrize("kind", ["constant", "duplicates", "low rank"])
def test_data_that_can_be_reproduced_exactly_bring_sigma_to_its_floor_with_a_warning(kind, sigma, caplog):
    """From next to the exact solution, where nothing but the floor holds σ up; all stays finite."""
    dataset, directions, centre = degenerate(kind)
    model = models.VAE((6,), 3, "linear", "gaussian", sigma=sigma)
    with torch.no_grad():
        for weight in (*model.decoder.parameters(), *model.encoder.parameters()):
            weight.zero_()
        model.decoder[0].weight[:6, :2], model.decoder[0].bias[:6] = directions, centre
        model.encoder.mean.weight[:2], model.encoder.mean.bias[:2] = directions.T, -directions.T @ centre
        model.encoder.log_variance[:2] = -17.0
        model.decoder[0].bias[6:] = 0.02  # σ starts 1 % above the floor
        if sigma == "global":
            model.observation.log_ratio.fill_(0.002)
    config = training.TrainConfig(epochs=150, batch_size=64, lr=5e-4, schedule="cosine")
    with caplog.at_level(logging.WARNING, logger="nbvae.training"):
        run = training.fit(model, dataset, objectives.BetaVAE(0.01), config)
    assert all(math.isfinite(value) for values in run.history.values() for value in values)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    scale = model.likelihood(model.posterior(dataset.train).mean).stddev
    assert scale.min().item() == pytest.approx(likelihoods.FLOOR, rel=1e-5)
    assert not (scale < likelihoods.FLOOR * (1 - 1e-5)).any()
    assert calibration.at_floor(model, dataset.train) > 0.5
    [record] = [record for record in caplog.records if record.name == "nbvae.training"]
    assert record.levelno == logging.WARNING
    assert "floor of 0.001" in record.getMessage()
    assert repr(sigma) in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("sigma", LEARNED)
@pytest.mark.parametrize("kind", ["constant", "duplicates", "low rank"])
def test_exact_data_do_no_harm_from_an_ordinary_start(kind, sigma):
    dataset, *_ = degenerate(kind)
    model = models.VAE((6,), 3, "mlp", "gaussian", sigma=sigma, hidden=(8,))
    config = training.TrainConfig(epochs=30, batch_size=32, lr=0.03)
    run = training.fit(model, dataset, objectives.BetaVAE(0.1), config)
    least = 3 * math.log(2 * math.pi * likelihoods.FLOOR**2)  # −log p at no error and σ on the floor
    assert all(least - 1e-3 < value < 1e6 for value in run.history["distortion"])
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_no_warning_on_ordinary_data_nor_for_a_fixed_sigma(grey, caplog):
    with caplog.at_level(logging.INFO, logger="nbvae.training"):
        for sigma in (*LEARNED, 0.5 * likelihoods.FLOOR):
            model = seeded(lambda sigma=sigma: make(sigma))
            training.fit(model, grey, objectives.VAE(), replace(QUICK, lr=1e-4))
            assert calibration.at_floor(model, grey.train) == 0
    assert not caplog.records


def test_a_sweep_warns_for_each_of_its_models(caplog):
    dataset = data.Dataset("black", *(torch.zeros(20, 6),) * 3)
    build = lambda: models.VAE((6,), 2, "linear", "gaussian", sigma="optimal")  # noqa: E731
    config = training.TrainConfig(epochs=400, batch_size=20, lr=0.02, schedule="cosine")
    with caplog.at_level(logging.WARNING, logger="nbvae.training"):
        runs = training.sweep(build, dataset, [0.5, 2.0], config=config)
    assert [sigma2(run.model) for run in runs] == [pytest.approx(likelihoods.FLOOR**2, rel=1e-5)] * 2
    assert sum("floor" in record.getMessage() for record in caplog.records) == 2


@pytest.mark.parametrize("sigma", ["global", "z", "z_diag"])
def test_a_sigma_below_the_floor_rises_again(grey, sigma):
    """Put at σ = 1e-4 with errors of 0.3: the likelihood is that of the floor, and training lifts σ off it."""
    model = seeded(lambda: make(sigma, network="linear"))
    with torch.no_grad():
        model.observation.set_variance(torch.tensor(likelihoods.FLOOR**2))
        if sigma == "global":
            model.observation.log_ratio.fill_(-0.4)
        else:
            model.decoder[0].weight[64:], model.decoder[0].bias[64:] = 0, -4.0
    assert calibration.at_floor(model, grey.train) == 1
    just_above = copy.deepcopy(model)
    just_above.observation.set_variance(torch.tensor((1.2 * likelihoods.FLOOR) ** 2))
    if sigma != "global":
        just_above.decoder[0].bias[64:].data.zero_()
    assert calibration.at_floor(just_above, grey.train) == 0
    training.fit(model, grey, objectives.VAE(), replace(QUICK, epochs=20, batch_size=60, lr=0.03))
    point = estimators.evaluate(model, grey.train)
    assert calibration.at_floor(model, grey.train) == 0
    assert point.distortion < 0.1 * point.mse / (2 * likelihoods.FLOOR**2)  # what it would be on the floor


# Discretised, as a view of a Gaussian model.


@pytest.fixture(scope="module")
def trained(grey):
    config = training.TrainConfig(epochs=15, batch_size=100, lr=3e-3, schedule="cosine")
    torch.manual_seed(0)
    return {sigma: training.fit(make(sigma), grey, objectives.VAE(), config).model for sigma in ("global", "z_diag")}


@pytest.mark.parametrize("sigma", ["global", "z_diag"])
def test_a_discretized_model_is_a_code_for_its_levels(trained, grey, sigma):
    """−log of a mass is >= 0 for each example, and D + R at least the entropy of the data, which no density promises."""
    view, x = models.Discretized(trained[sigma], 17), grey.test
    assert (objectives.elbo_terms(view, x).distortion >= 0).all()
    point = estimators.evaluate(view, x, n_samples=5)
    assert point.distortion + point.rate > estimators.empirical_entropy(x)
    assert point.rate == estimators.evaluate(trained[sigma], x, n_samples=1).rate
    assert estimators.evaluate(trained[sigma], x, n_samples=5).distortion < point.distortion - 64 * math.log(17) / 2
    one_line(lambda: estimators.evaluate(models.Discretized(trained[sigma]), x), "j/255")


@torch.no_grad()
@pytest.mark.parametrize("sigma", ["global", "z_diag"])
def test_fine_levels_come_to_the_density_times_the_width_of_a_bin(trained, grey, sigma):
    """At second order: σ of z_diag is small where pixels are constant, so inner values are asked for there."""
    model, x = trained[sigma], grey.test[:50].double().clamp(0.25, 0.75)
    z = model.posterior(x).mean
    density, errors = -model.likelihood(z).log_prob(x), []
    for bins in (4_000, 16_000, 64_000):
        mass = -models.Discretized(model, bins + 1).likelihood(z).log_prob(x)
        errors.append((mass - (density - 64 * math.log(1 / bins))).abs().max().item())
    assert errors[-1] < 1e-2
    assert errors[0] > 8 * errors[1] > 64 * errors[2]


def test_levels_may_be_a_numpy_number(grey, tmp_path):
    model = make(likelihood="discretized_gaussian", levels=np.int64(17))
    run = training.fit(model, grey, objectives.VAE(), QUICK)
    assert training.load(run.save(tmp_path)).model.config["levels"] == 17


def test_sigma_is_that_of_the_drawn_pixels_where_binarisation_is_dynamic():
    dynamic = data.load("digits", binarize="dynamic")
    model = training.fit(seeded(lambda: make("optimal")), dynamic, objectives.VAE(), QUICK).model
    drawn = estimators.evaluate(model, dynamic.draw(dynamic.train))
    assert sigma2(model) == pytest.approx(drawn.mse / 64, rel=0.02)


@pytest.mark.parametrize("sigma", [0.9, "global", "optimal"])
def test_one_sigma_can_be_calibrated_after_training_and_is_kept(grey, sigma, tmp_path):
    run = training.fit(seeded(lambda: make(sigma)), grey, objectives.VAE(), QUICK)
    with training.seeded(7):
        run.model.observation.set_variance(torch.tensor(9.0))  # far off, also where training has calibrated already
        calibration.calibrate(run.model, grey.train)
    found = estimators.evaluate(run.model, grey.train)
    assert sigma2(run.model) == pytest.approx(found.mse / 64, rel=0.02)
    assert found.distortion == pytest.approx(analytic.calibrated_distortion(found.mse, 64), abs=0.05)
    assert sigma2(training.load(run.save(tmp_path)).model) == pytest.approx(sigma2(run.model), rel=1e-7)


def spoilt(x, call):
    """A data set whose draw number `call`, from 1, is 1e30 everywhere."""

    class Spoilt(data.Dataset):
        calls = 0

        def draw(self, x, generator=None):
            Spoilt.calls += 1
            return torch.full_like(x, 1e30) if Spoilt.calls == call else x

    return Spoilt("spoilt", x, x, x)


def test_a_diverged_run_keeps_the_sigma_of_its_last_good_epoch():
    """Epoch 1 meets an example of 1e30: the weights go back to the end of epoch 0, and σ, which saw it, with them."""
    x = torch.randn(60, 6)

    model = seeded(lambda: models.VAE((6,), 2, "linear", "gaussian", sigma="optimal"))
    config = training.TrainConfig(epochs=3, batch_size=15)
    # One check and four batches come before the second epoch.
    with pytest.raises(training.Diverged) as error:
        training.fit(model, spoilt(x, 6), objectives.VAE(), config)
    [run] = error.value.runs
    assert len(run.history["loss"]) == 1
    assert 0.5 < sigma2(model) < 2
    one = seeded(lambda: models.VAE((6,), 2, "linear", "gaussian", sigma="optimal"))
    training.fit(one, data.Dataset("good", x, x, x), objectives.VAE(), replace(config, epochs=1))
    for a, b in zip(model.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(a, b)


class OnesOwn(torch.nn.Module):
    """A VAE of vectors of six numbers, by somebody else."""

    def __init__(self):
        super().__init__()
        self.inward, self.outward = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)

    def posterior(self, x):
        mean, log_std = self.inward(x).chunk(2, -1)
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp(), validate_args=False), 1)

    def likelihood(self, z):
        return torch.distributions.Independent(torch.distributions.Normal(self.outward(z), 1.0), 1)

    def prior(self):
        return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)


def test_a_sigma_that_would_not_be_finite_is_refused_and_the_old_one_kept(grey):
    class Unchecked(models.VAE):
        check = None

    torch.manual_seed(0)
    model = Unchecked((1, 8, 8), 4, likelihood="gaussian", sigma=0.5)
    for x in (grey.train.clone().fill_(math.nan), grey.train * 1e30):
        one_line(lambda x=x: calibration.calibrate(model, x), "finite")
        assert model.observation.scale.item() == 0.5


def test_a_diverged_run_puts_batch_statistics_back_too():
    """As above, by a module of one's own: what BatchNorm saw of the example of 1e30 is undone."""
    x = torch.randn(60, 6)

    class Own(OnesOwn):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(6)

        def likelihood(self, z):
            return torch.distributions.Independent(
                torch.distributions.Normal(self.norm(self.outward(z)), 1.0, validate_args=False), 1
            )

    model = seeded(Own)
    # One check and four batches come before the second epoch.
    with pytest.raises(training.Diverged):
        training.fit(model, spoilt(x, 6), objectives.VAE(), training.TrainConfig(epochs=3, batch_size=15))
    assert model.norm.num_batches_tracked == 4
    assert model.norm.running_mean.abs().max() < 10
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_an_observation_that_is_no_likelihood_of_ours_is_left_alone(grey):
    """A module may call what it likes `observation`: nn.Upsample has a `mode` too."""

    class Own(OnesOwn):
        def __init__(self):
            super().__init__()
            self.observation = torch.nn.Upsample(scale_factor=1)

    x = torch.randn(60, 6)
    run = training.fit(seeded(Own), data.Dataset("own", x, x, x), objectives.VAE(), QUICK)
    assert len(run.history["loss"]) == QUICK.epochs
    assert calibration.at_floor(run.model, x) == 0


def test_log_mse_warns_where_examples_are_met_exactly(caplog):
    dataset = data.Dataset("black", *(torch.zeros(20, 6),) * 3)
    model = seeded(lambda: models.VAE((6,), 2, "linear", "gaussian", sigma=0.3))
    config = training.TrainConfig(epochs=400, batch_size=20, lr=0.02, schedule="cosine")
    with caplog.at_level(logging.WARNING, logger="nbvae.training"):
        run = training.fit(model, dataset, objectives.LogMSE(), config)
    assert run.objective.at_floor(model, dataset.train) > 0.5
    [message] = [record.getMessage() for record in caplog.records]
    assert "LogMSE" in message
    assert "floor of 0.001" in message


def test_a_module_of_ones_own_with_a_learned_sigma_is_trained():
    class Own(OnesOwn):
        def __init__(self):
            super().__init__()
            self.observation, self.outward = likelihoods.make("gaussian", (6,), "z"), torch.nn.Linear(2, 7)

        def likelihood(self, z):
            return self.observation(self.outward(z))

    x = 5 + 0.1 * torch.randn(300, 6)
    run = training.fit(seeded(Own), data.Dataset("own", x, x, x), objectives.VAE(), replace(QUICK, batch_size=30))
    assert run.model.observation.variance.item() > 5  # it did start at the scale of the data
    assert run.history["loss"][-1] < run.history["loss"][0]
