"""One model for all β: the linear one against the closed form, its views, its objective, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from errors import one_line

from nbvae import analytic, data, estimators, models, objectives, training
from nbvae.models import networks
from nbvae.training import calibration

RANGE = (0.02, 20.0)


def seeded(make, seed=0):
    with training.seeded(seed):
        return make()


def multi(network="mlp", shape=(6,), **options):
    options = {"likelihood": "gaussian", "sigma": 0.5, "beta_range": RANGE, "hidden": (12, 10)} | options
    return seeded(lambda: models.MultiBetaVAE(shape, 3, network, **options)).double()


def jolt(model):
    """Zero-initialised conditioning hides mistakes: move every weight."""
    with torch.no_grad(), training.seeded(1):
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_one_linear_model_matches_the_closed_form_over_three_decades():
    """Theorem: one gate and one log-variance line for each latent is the optimum's whole response to β at fixed σ."""
    gaussian = data.load("gaussian", sizes=(20_000, 100, 100))
    x, sigma = gaussian.train.double(), 0.7
    cov, mean = torch.cov(x.T, correction=0).numpy(), x.mean(0).numpy()
    oracle = analytic.LinearGaussian(cov, 4)
    model = seeded(lambda: models.MultiBetaVAE((8,), 4, "linear", "gaussian", sigma=sigma, beta_range=RANGE))
    config = training.TrainConfig(epochs=60, batch_size=500, lr=0.02, schedule="cosine")
    training.fit(model, gaussian, objectives.MultiBeta(), config)
    for beta in np.geomspace(*RANGE, 9):
        exact = oracle.solve(float(beta), sigma**2)
        rate, mse = analytic.linear_elbo_terms(cov, **model.at(float(beta)).linear_maps(), mean=mean)
        assert rate == pytest.approx(exact.rate, abs=0.03)
        assert mse == pytest.approx(exact.mse, rel=0.02)


def test_the_water_level_is_the_optimum_itself():
    """With the eigenvalues put in, gates and variances are those of `LinearGaussian.solve` at every β."""
    oracle, sigma2 = analytic.LinearGaussian([5.0, 3.0, 1.5, 0.8, 0.2], 3), 0.3
    water = networks.WaterLevel(3, 10.0).double()
    with torch.no_grad():
        water.log_ratio.copy_(torch.as_tensor(np.log(oracle.eigenvalues[:3] / sigma2)))
    for beta in (0.01, 0.3, 1.0, 4.0, 6.0, 12.0, 30.0):
        gate, log_variance = water(torch.tensor([math.log(beta)], dtype=torch.float64))
        exact = oracle.solve(beta, sigma2)
        found = gate.detach().numpy() * np.sqrt(oracle.eigenvalues[:3])
        np.testing.assert_allclose(found, np.linalg.norm(exact.decoder, axis=0), atol=0.02)
        np.testing.assert_allclose(log_variance.exp().detach().numpy(), exact.posterior_variance)


@pytest.mark.parametrize("network", networks.NETWORKS)
@pytest.mark.parametrize("conditioning", networks.CONDITIONINGS)
def test_the_view_of_one_beta_is_the_model_at_that_beta(network, conditioning):
    shape = (1, 3, 5) if network in networks.BLOCKS else (6,)
    model = jolt(multi(network, shape, conditioning=conditioning))
    x, betas = torch.randn(5, *shape, dtype=torch.float64), torch.tensor([0.02, 0.3, 1.0, 7.0, 20.0], dtype=torch.float64)
    together = model.posterior(x, betas)
    decoded = model.likelihood(together.mean, betas)
    for index, beta in enumerate(betas.tolist()):
        view = model.at(beta)
        alone = view.posterior(x[index : index + 1])
        torch.testing.assert_close(alone.mean[0], together.mean[index])
        torch.testing.assert_close(alone.stddev[0], together.stddev[index])
        torch.testing.assert_close(view.likelihood(alone.mean).mean[0], decoded.mean[index])
        torch.testing.assert_close(model.posterior(x, beta).mean, view.posterior(x).mean)
    assert not torch.allclose(model.posterior(x, 0.02).stddev, model.posterior(x, 20.0).stddev)
    drawn = together.sample((3,))  # draws in front, as estimators ask for them
    torch.testing.assert_close(model.likelihood(drawn, betas).mean[2], model.likelihood(drawn[2], betas).mean)


def test_the_view_passes_through_every_estimator():
    model = jolt(multi("linear", hidden=None))
    x, view = torch.randn(400, 6, dtype=torch.float64), None
    view = model.at(0.7)
    exact = analytic.linear_elbo_terms(torch.cov(x.T, correction=0).numpy(), **view.linear_maps(), mean=x.mean(0).numpy())
    point = estimators.evaluate(view, x, 0.7, n_samples=200)
    assert point.rate == pytest.approx(exact[0], rel=1e-6)
    assert point.mse == pytest.approx(exact[1], rel=0.01)
    assert estimators.decompose(view, x, n_samples=50).rate == pytest.approx(exact[0], rel=1e-6)
    assert estimators.iwae(view, x[:50], 20).value > -point.distortion - point.rate - 3
    assert estimators.active_units(view, x).count > 0
    curve = estimators.rd_curve(model, x, betas=[0.1, 0.7, 5.0])
    assert curve.betas.tolist() == [0.1, 0.7, 5.0]
    assert curve[0.7].rate == pytest.approx(point.rate)
    assert estimators.rd_curve([model, jolt(multi("linear", hidden=None))], x, betas=[0.7])[0.7].n_runs == 2


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_the_objective_is_the_weighted_average_over_beta(power):
    """The stratified loss against quadrature over log β of each example's own D + βR, with the same linear model."""
    model = jolt(multi("linear", hidden=None))
    x = torch.randn(1, 6, dtype=torch.float64)
    with training.seeded(3):
        losses = [objectives.MultiBeta(power)(model, x.expand(500, -1)).total for _ in range(60)]
    found, error = torch.stack(losses).mean().item(), (torch.stack(losses).std() / 60**0.5).item()
    grid = np.exp(np.linspace(*np.log(RANGE), 400))
    each = []
    for beta in grid:
        view, maps = model.at(beta), model.at(beta).linear_maps()
        zero = np.zeros((6, 6))
        rate, mse = analytic.linear_elbo_terms(zero, **maps, mean=x[0].numpy())
        assert view.posterior(x).mean.shape == (1, 3)
        distortion = 3 * math.log(2 * math.pi * 0.25) + mse / 0.5
        each.append(beta**-power * (distortion + beta * rate))
    assert found == pytest.approx(np.mean(each), abs=4 * error + 2e-3 * abs(np.mean(each)))


def test_betas_are_stratified_over_the_whole_range():
    class Spy(models.MultiBetaVAE):
        def condition(self, log_beta):
            self.seen = log_beta.squeeze(-1)
            return super().condition(log_beta)

    model = Spy((6,), 3, likelihood="gaussian", beta_range=RANGE)
    with training.seeded(0):
        objectives.MultiBeta()(model, torch.randn(50, 6))
    place = (model.seen - math.log(RANGE[0])) / math.log(RANGE[1] / RANGE[0])
    assert torch.equal((place * 50).floor().sort().values, torch.arange(50.0))
    assert ((place * 50) % 1).std() > 0.2


def test_every_place_in_a_batch_sees_the_whole_range():
    """Else the loss of an ordered batch would pair its examples with their βs: here, two examples that differ much."""
    model = jolt(multi("linear", hidden=None))
    x = torch.stack([torch.zeros(6), 5 * torch.ones(6)]).double()
    with training.seeded(3):
        both = torch.tensor(
            [[objectives.MultiBeta()(model, each).total.item() for each in (x, x.flip(0))] for _ in range(3000)]
        )
    apart = both[:, 0] - both[:, 1]
    assert abs(apart.mean()) < 4 * apart.std() / 3000**0.5
    assert both.mean() > 10 * apart.std() / 3000**0.5


@pytest.mark.parametrize("network", networks.BLOCKS)
def test_a_network_that_convolves_starts_as_an_ordinary_one_at_every_beta(network):
    """FiLM adds nothing at first: with the same weights, both networks are those of a plain VAE."""
    model = multi(network, (1, 6, 6), hidden=(4, 8))
    plain = models.VAE((1, 6, 6), 3, network, "gaussian", sigma=0.5, hidden=(4, 8)).double()
    theirs = plain.state_dict()
    plain.load_state_dict({name: model.state_dict()[name.replace("encoder.body", "encoder")] for name in theirs})
    x = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    for beta in (0.02, 20.0):
        torch.testing.assert_close(model.at(beta).posterior(x).mean, plain.posterior(x).mean)
        torch.testing.assert_close(model.at(beta).likelihood(x[:, 0, 0, :3]).mean, plain.likelihood(x[:, 0, 0, :3]).mean)


@pytest.mark.parametrize("network", networks.BLOCKS)
def test_a_multi_beta_network_that_convolves_learns_the_curve(network):
    digits = data.load("digits", binarize="threshold")
    model = seeded(lambda: models.MultiBetaVAE(digits.shape, 4, network, beta_range=(0.1, 10.0), hidden=(8, 16)))
    config = training.TrainConfig(epochs=15, batch_size=32, lr=5e-3, schedule="one_cycle")
    training.fit(model, digits, objectives.MultiBeta(), config)
    low, high = (estimators.evaluate(model.at(beta), digits.test, beta) for beta in (0.1, 10.0))
    assert low.rate > 3 + high.rate
    assert low.distortion + 3 < high.distortion < 64 * math.log(2)  # coin flips


@pytest.mark.parametrize("conditioning", networks.CONDITIONINGS)
def test_units_that_no_beta_uses_at_first(conditioning):
    """FiLM starts as an ordinary network at every β. The Multi-Rate gates kill some of the decoder's units for all β.

    An ordinary network has a few units that no digit turns on: PyTorch's random weights and biases, no matter of β.
    """
    digits = data.load("digits")
    x, z = digits.train, torch.randn(1200, 8, generator=torch.Generator().manual_seed(0))
    for network, hidden in (("mlp", (256, 128)), ("residual", (16, 32, 64))):
        kind = {"network": network, "hidden": hidden, "conditioning": conditioning, "beta_range": (1e-2, 1e1)}
        model = seeded(lambda kind=kind: models.MultiBetaVAE(digits.shape, 8, **kind))
        for part, use in (
            (model.encoder, lambda beta, model=model: model.posterior(x, beta)),
            (model.decoder, lambda beta, model=model: model.likelihood(z, beta)),
        ):
            active = []

            def note(_, inputs, active=active):
                # What enters a layer is what the ReLU before it let through: channels of images, units otherwise.
                active.append((inputs[0] > 0).transpose(0, 1).flatten(1).any(1))

            layers = [module for module in part.modules() if hasattr(module, "weight")]
            for layer in layers[1:]:
                layer.register_forward_pre_hook(note)
            betas = np.geomspace(1e-2, 1e1, 13)
            with torch.no_grad():
                for beta in betas:
                    use(beta)
            on = torch.cat(active).view(len(betas), -1)
            dead = 1 - on.any(0).double().mean().item()
            if conditioning == "film":
                assert on.eq(on[0]).all(), network
                assert dead < 0.02, network
            elif part is model.decoder:
                assert 0.03 < dead < 0.3, network


def test_a_sweep_over_seeds_is_the_fits():
    dataset = data.Dataset("some", *[torch.randn(60, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    config = training.TrainConfig(epochs=2, batch_size=16)
    for network in ("linear", "mlp"):

        def make(network=network):
            return models.MultiBetaVAE((6,), 3, network, "gaussian", beta_range=RANGE, hidden=(7,))

        runs = training.sweep(make, dataset, objectives=[objectives.MultiBeta()], seeds=[0, 5], config=config)
        for run in runs:
            alone = training.fit(seeded(make, run.config.seed), dataset, objectives.MultiBeta(), run.config)
            for a, b in zip(run.model.parameters(), alone.model.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
            assert run.history["loss"] == pytest.approx(alone.history["loss"], rel=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_powers_may_differ_in_a_sweep(batch):
    dataset = data.Dataset("some", *[torch.randn(48, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    config = training.TrainConfig(epochs=2, batch_size=batch, lr=1e-2)

    def make():
        return models.MultiBetaVAE((6,), 3, "mlp", "gaussian", beta_range=RANGE, hidden=(7,))

    runs = training.sweep(make, dataset, [0.25, 1.0], objective=objectives.MultiBeta, config=config)
    for run in runs:
        alone = training.fit(seeded(make), dataset, run.objective, config)
        assert run.history["loss"] == pytest.approx(alone.history["loss"], rel=1e-3)
    assert runs[0].history["loss"][-1] != pytest.approx(runs[1].history["loss"][-1], rel=0.1)


def test_features_are_bumps_along_log_beta():
    features = networks.BetaFeatures((0.1, 10.0), size=5).double()
    centres = np.log([0.1, 10**-0.5, 1.0, 10**0.5, 10.0])
    for beta in (0.1, 0.7, 10.0):
        width = np.log(10) / 2  # the distance of neighbours
        wanted = np.exp(-((np.log(beta) - centres) ** 2) / (2 * width**2))
        np.testing.assert_allclose(features(torch.tensor([math.log(beta)]).double()).numpy(), wanted, rtol=1e-5)


def test_film_starts_as_an_ordinary_network_with_a_variance_that_follows_beta():
    """σ² = 1/(1 + β⁻¹e^−v), which goes as β where β is small: −softplus(−(v + log β)) written out."""
    model, plain = multi(), models.VAE((6,), 3, likelihood="gaussian", sigma=0.5, hidden=(12, 10)).double()
    theirs = [*plain.encoder.body, *plain.decoder]
    ours = [*model.encoder.layers, *model.decoder.layers]
    for mine, other in zip(ours, [layer for layer in theirs if isinstance(layer, torch.nn.Linear)], strict=True):
        other.load_state_dict(mine.state_dict())
    x = torch.randn(5, 6, dtype=torch.float64)
    v = plain.encoder(x)[1]
    for beta in (0.02, 1.0, 20.0):
        view = model.at(beta)
        torch.testing.assert_close(view.posterior(x).mean, plain.posterior(x).mean)
        torch.testing.assert_close(view.posterior(x).variance, 1 / (1 + (-v).exp() / beta))
        torch.testing.assert_close(view.likelihood(x[:, :3]).mean, plain.likelihood(x[:, :3]).mean)


def test_film_scales_and_shifts_every_layer():
    network = networks.ConditionedMLP(2, 1, (3,)).double()
    parts = [torch.randn(4, width, dtype=torch.float64) for width in (3, 3, 1, 1)]
    x = torch.randn(4, 2, dtype=torch.float64)
    hidden = (network.layers[0](x) * parts[0] + parts[1]).clamp(min=0)
    torch.testing.assert_close(network(x, parts), network.layers[1](hidden) * parts[2] + parts[3])
    gated = network.layers[1]((network.layers[0](x) * parts[0]).clamp(min=0))
    torch.testing.assert_close(network(x, parts[:1]), gated)


def test_the_curve_of_one_model_is_a_curve():
    """R falls and D rises with β, within errors, after an ordinary training; and the posterior's variance goes with β."""
    digits = data.load("digits")
    model = seeded(lambda: models.MultiBetaVAE(digits.shape, 8, beta_range=(0.05, 10.0)))
    training.fit(model, digits, objectives.MultiBeta(), training.TrainConfig(30, 64, 4e-3, "one_cycle"))
    curve = estimators.rd_curve(model, digits.test, betas=np.geomspace(0.05, 10.0, 9).tolist())
    error = np.hypot(curve.rate_stderrs[1:], curve.rate_stderrs[:-1])
    assert (np.diff(curve.rates) < 2 * error).all()
    error = np.hypot(curve.distortion_stderrs[1:], curve.distortion_stderrs[:-1])
    assert (np.diff(curve.distortions) > -2 * error).all()
    assert curve.rates[0] > 15 > 1 > curve.rates[-1]
    spread = [model.at(beta).posterior(digits.test).stddev.mean().item() for beta in (0.05, 1.0, 10.0)]
    assert spread[0] < spread[1] < spread[2]


def test_the_floor_is_looked_for_at_the_smallest_beta(caplog):
    """There σ(z) is least: the warning must not hide behind the large βs."""

    class Spy(models.MultiBetaVAE):
        def at(self, beta):
            self.asked = beta
            return super().at(beta)

    x = torch.zeros(40, 6)
    model = seeded(lambda: Spy((6,), 2, "linear", "gaussian", sigma="z", beta_range=RANGE))
    training.fit(model, data.Dataset("black", x, x, x), objectives.MultiBeta(), training.TrainConfig(1, 20, 1e-3))
    assert model.asked == RANGE[0]


def test_a_run_is_read_back(tmp_path):
    model = jolt(multi()).float()
    run = training.Run(model, objectives.MultiBeta(0.3), training.TrainConfig(), {"loss": [1.0]}, 0.1)
    again = training.load(run.save(tmp_path / "run"))
    x = torch.randn(4, 6)
    assert again.objective == run.objective
    assert again.model.beta_range == RANGE
    torch.testing.assert_close(again.model.at(3.0).posterior(x).mean, model.at(3.0).posterior(x).mean)


def test_a_range_may_be_a_tensor():
    assert multi(beta_range=torch.tensor([0.5, 2.0])).beta_range == (0.5, 2.0)
    assert models.MultiBetaVAE((4,), beta_range=np.array([0.5, 2.0])).beta_range == (0.5, 2.0)


def test_sigma_is_calibrated_for_one_beta_alone():
    model, x = jolt(multi()), torch.randn(300, 6, dtype=torch.float64)
    low, high = model.at(0.02), model.at(20.0)
    with training.seeded(0):
        calibration.calibrate(low, x)
    mse = estimators.evaluate(low, x, n_samples=50).mse
    assert low.observation.scale.item() ** 2 == pytest.approx(mse / 6, rel=0.05)
    assert high.observation.scale.item() == model.observation.scale.item() == 0.5


def test_what_a_multi_beta_model_refuses():
    x = torch.randn(4, 6, dtype=torch.float64)
    model = multi()
    one_line(lambda: objectives.MultiBeta()(model, x[:0]), "at least one example")
    one_line(lambda: objectives.BetaVAE(1.0)(model.at(1.0), x[:0]), "at least one example")
    for beta in (0.0, -1.0, 0.01, 21.0, math.nan, math.inf, torch.tensor([1.0, 1.0, 1.0, 50.0])):
        one_line(lambda beta=beta: model.posterior(x, beta), "0.02 to 20")
        one_line(lambda beta=beta: model.likelihood(x[:, :3], beta), "0.02 to 20")
    one_line(lambda: model.at(30.0), "0.02 to 20; got 30")
    for bad in (torch.ones(3), [1.0], np.ones(2), "1", None, True, object()):
        one_line(lambda bad=bad: model.at(bad), match="one beta|number|needs one")
    for bad in (torch.ones(4, 1), torch.ones(3), [1.0, 2.0], torch.ones(0)):
        one_line(lambda bad=bad: model.posterior(x, bad), "one for each example, (4,)")
        one_line(lambda bad=bad: model.likelihood(x[:, :3], bad), "one for each example, (4,)")
    for beta in (0.02 * 0.99, 20 * 1.01, np.float32(30)):
        one_line(lambda beta=beta: model.at(beta), match=r"0.02 to 20; got [\d.]+$")
    for call in (estimators.evaluate, estimators.decompose, estimators.active_units, objectives.VAE()):
        one_line(lambda call=call: call(model, x), "model.at")
    one_line(lambda: models.Discretized(model, 5), "model.at")
    assert model.at(1).config["beta"] == 1.0
    one_line(lambda: model.linear_maps(), "at(beta)")
    one_line(lambda: model.at(1.0).linear_maps(), "network='linear'")
    for bad in ((1.0, 1.0), (2.0, 1.0), (0.0, 1.0), 3.0, (1, 2, 3), "ab"):
        one_line(lambda bad=bad: multi(beta_range=bad), "beta_range")
    one_line(lambda: multi(sigma="optimal"), "calibrate")
    one_line(lambda: multi(conditioning="magic"), "film, gates")
    one_line(lambda: multi("transformer"), "linear, mlp")
    one_line(lambda: multi("residual"), "needs images")
    one_line(lambda: objectives.MultiBeta(-1.0), "power")
    one_line(lambda: objectives.MultiBeta()(models.VAE((6,), likelihood="gaussian"), x), "MultiBetaVAE, got VAE")
    one_line(lambda: estimators.rd_curve(models.VAE((6,)), x, betas=[1.0]), "betas are for a model with at")
    run = training.Run(model, objectives.MultiBeta(), training.TrainConfig(), {}, 0.0)
    one_line(lambda: estimators.rd_curve(run, x), "give betas=")
    for view in (model.at(0.7), [model.at(0.7), model.at(5.0)], models.Discretized(model.at(0.7), 5)):
        one_line(lambda view=view: estimators.rd_curve(view, x, betas=[0.7]), "view of one β")
        one_line(lambda view=view: estimators.rd_curve(view, x), "evaluate")
    one_line(lambda: estimators.rd_curve([model, multi(sigma=3.0)], x, betas=[0.7]), "different settings")
    some = data.Dataset("some", x.float(), x.float(), x.float())
    one_line(lambda: training.sweep(lambda: multi().float(), some, [1.0], "multi_beta"), "objectives=[...]")
    dataset = data.Dataset("some", x.float(), x.float(), x.float())
    one_line(lambda: training.fit(multi().float(), dataset, objectives.VAE()), "MultiBeta")
