"""Models that a user brings, models of given linear maps, what a model refuses, and how models move, copy and come back."""

import copy
import io
import math
import pickle
import re

import numpy as np
import pytest
import torch
from errors import one_line
from torch import nn

from nbvae import analytic, checks, data, estimators, models, objectives, training
from nbvae.models import likelihoods, networks

SHAPE = (2, 4, 5)
N = math.prod(SHAPE)
K = 3
RANGE = (0.1, 10.0)


def seeded(make, seed=0):
    with training.seeded(seed):
        return make()


class Seen(nn.Module):
    """A network that notes the shapes it was called with."""

    def __init__(self, body):
        super().__init__()
        self.body, self.shapes = body, []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return self.body(x)


class Heads(nn.Module):
    """Two linear heads, returned by `how` of mean and log-variance."""

    def __init__(self, how, n=N, k=K):
        super().__init__()
        self.how, self.mean, self.log_variance = how, nn.Linear(n, k), nn.Linear(n, k)

    def forward(self, x):
        x = x.flatten(1)
        return self.how(self.mean(x), self.log_variance(x))


def pair(mean, log_variance):
    return mean, log_variance


def stacked(mean, log_variance):
    return torch.cat([mean, log_variance], -1)


# Networks of one's own.


@pytest.mark.parametrize("how", [pair, stacked, lambda *heads: list(heads)])
def test_an_encoder_of_ones_own_is_the_posterior(how):
    encoder = Heads(how)
    model = models.VAE(SHAPE, K, encoder=encoder)
    x = torch.rand(6, *SHAPE)
    posterior = model.posterior(x)
    torch.testing.assert_close(posterior.mean, encoder.mean(x.flatten(1)))
    torch.testing.assert_close(posterior.variance, encoder.log_variance(x.flatten(1)).exp())
    assert model.encoder is encoder


@pytest.mark.parametrize("outputs", [(N,), SHAPE])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_decoder_of_ones_own_is_the_likelihood(outputs, likelihood):
    body = nn.Linear(K, N)
    decoder = nn.Sequential(body, nn.Unflatten(1, outputs))
    model = models.VAE(SHAPE, K, likelihood=likelihood, decoder=decoder)
    z = torch.randn(6, K)
    wanted = body(z).unflatten(1, SHAPE)
    torch.testing.assert_close(model.likelihood(z).mean, wanted.sigmoid() if likelihood == "bernoulli" else wanted)
    assert model.decoder is decoder


def test_a_sigma_of_z_comes_behind_the_locations():
    """Flat (batch, 2n) and images of twice the channels are one output; for one number behind n there is only the flat form."""
    z = torch.randn(6, K)
    flat = nn.Linear(K, 2 * N)
    one, other = (
        models.VAE(SHAPE, K, likelihood="gaussian", sigma="z_diag", decoder=decoder)
        for decoder in (flat, nn.Sequential(flat, nn.Unflatten(1, (2 * SHAPE[0], *SHAPE[1:]))))
    )
    assert torch.equal(one.likelihood(z).mean, flat(z)[:, :N].unflatten(1, SHAPE))
    torch.testing.assert_close(one.likelihood(z).variance, flat(z)[:, N:].exp().unflatten(1, SHAPE))
    for name in ("mean", "stddev"):
        assert torch.equal(getattr(one.likelihood(z), name), getattr(other.likelihood(z), name))
    single = models.VAE(SHAPE, K, likelihood="gaussian", sigma="z", decoder=nn.Linear(K, N + 1))
    torch.testing.assert_close(single.likelihood(z).variance[..., 0, 0, 0].log(), single.decoder(z)[:, -1])
    refused = models.VAE(SHAPE, K, likelihood="gaussian", sigma="z", decoder=nn.Linear(K, N))
    one_line(lambda: refused.likelihood(z), f"a tensor (6, {N + 1}) for z (6, {K}); it returned (6, {N})")


def test_where_one_network_is_given_the_other_is_the_library_s():
    torch.manual_seed(0)
    model = models.VAE(SHAPE, K, "mlp", hidden=(7,), encoder=Heads(pair))
    assert [type(layer) for layer in model.decoder] == [nn.Linear, nn.ReLU, nn.Linear]
    assert model.decoder[0].out_features == 7
    model = models.VAE(SHAPE, K, "conv", hidden=(4, 6), decoder=nn.Linear(K, N))
    assert isinstance(model.encoder.body, networks.ConvEncoder)
    assert model.likelihood(model.posterior(torch.rand(2, *SHAPE)).mean).mean.shape == (2, *SHAPE)


def test_networks_of_ones_own_see_rows_only():
    encoder, decoder = Seen(Heads(stacked)), Seen(nn.Linear(K, N))
    model = models.VAE(SHAPE, K, encoder=encoder, decoder=decoder)
    x = torch.rand(2, 3, 6, *SHAPE)
    posterior = model.posterior(x)
    assert posterior.mean.shape == (2, 3, 6, K)
    torch.testing.assert_close(posterior.mean[1, 2], model.posterior(x[1, 2]).mean)
    z = torch.randn(5, 2, 6, K)
    likelihood = model.likelihood(z)
    assert likelihood.mean.shape == (5, 2, 6, *SHAPE)
    torch.testing.assert_close(likelihood.mean[4, 1], model.likelihood(z[4, 1]).mean)
    assert model.likelihood(z[0, 0, 0]).mean.shape == SHAPE
    assert {shape[1:] for shape in encoder.shapes} == {SHAPE}
    assert {shape[1:] for shape in decoder.shapes} == {(K,)}
    assert encoder.shapes[0] == (36, *SHAPE)


@pytest.mark.parametrize("data_shape", [(4,), (3, 3), (1, 2, 3, 2)])
def test_networks_of_ones_own_for_data_of_any_rank(data_shape):
    n = math.prod(data_shape)
    decoder = nn.Sequential(nn.Linear(K, n), nn.Unflatten(1, data_shape))
    model = models.VAE(data_shape, K, encoder=Heads(pair, n), decoder=decoder)
    x = torch.rand(2, 5, *data_shape)
    assert model.likelihood(model.posterior(x).rsample()).log_prob(x).shape == (2, 5)


def test_construction_runs_no_network():
    """Neither batch statistics nor torch's stream move before the first batch, and then once for each call."""
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(N), nn.Dropout(0.5), nn.Linear(N, 2 * K))
    decoder = nn.Sequential(nn.Linear(K, N), nn.BatchNorm1d(N))
    before = torch.get_rng_state()
    model = models.VAE(SHAPE, K, encoder=encoder, decoder=decoder)
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder[1].num_batches_tracked == decoder[1].num_batches_tracked == 0
    model.likelihood(model.posterior(torch.rand(6, *SHAPE)).mean)
    assert encoder[1].num_batches_tracked == decoder[1].num_batches_tracked == 1


def test_the_rest_of_the_model_follows_the_precision_of_a_given_network():
    model = models.VAE(SHAPE, K, encoder=Heads(pair).double())
    assert {value.dtype for value in [*model.parameters(), *model.buffers()]} == {torch.float64}
    assert objectives.elbo_terms(model, (torch.rand(6, *SHAPE) > 0.5).float()).rate.dtype == torch.float64
    one_line(
        lambda: models.VAE(SHAPE, K, encoder=Heads(pair).double(), decoder=nn.Linear(K, N)),
        "one precision on one device, got float32 on cpu and float64 on cpu",
    )
    assert models.VAE(SHAPE, K, decoder=nn.Identity()).prior().mean.dtype == torch.float32


def test_networks_that_are_none_are_refused_at_once():
    for name in ("encoder", "decoder"):
        for bad, message in (
            (Heads, f"Heads is a class: make one, {name}=Heads"),
            (lambda x: x, "torch module, whose weights are trained with the model; got function"),
            ("mlp", "torch module.*got str"),
            (0, "torch module.*got int"),
            (nn.LazyLinear(3), f"{name} has layers that get their weights at the first call"),
        ):
            one_line(lambda name=name, bad=bad: models.VAE(SHAPE, K, **{name: bad}), match=message)
    both = {"encoder": Heads(pair), "decoder": nn.Linear(K, N)}
    for options in ({"network": "mlp"}, {"hidden": (5,)}, {"network": "conv", "hidden": (5,)}):
        one_line(lambda options=options: models.VAE(SHAPE, K, **both, **options), "network and hidden describe networks of")
    one_line(lambda: models.VAE(SHAPE, K, "transformer", encoder=both["encoder"]), "linear, mlp")
    one_line(lambda: models.VAE(SHAPE, 0, **both), "latent_dim must be")


def test_what_a_network_returns_is_checked_at_each_call():
    x, z = torch.rand(6, *SHAPE), torch.randn(6, K)
    for how, found in (
        (lambda m, v: m, rf"\(6, {K}\)"),
        (lambda m, v: (m,), rf"a tuple of \(6, {K}\)"),
        (lambda m, v: (m, v, v), "a tuple of"),
        (lambda m, v: (m, v[:, :1]), rf"a tuple of \(6, {K}\), \(6, 1\)"),
        (lambda m, v: (m[:3], v[:3]), rf"a tuple of \(3, {K}\)"),
        (lambda m, v: (m, None), "a tuple of .*NoneType"),
        (lambda m, v: (m.mean(), v.mean()), r"a tuple of \(\), \(\)"),
        (lambda m, v: {"mean": m, "log_variance": v}, "dict"),
        (lambda m, v: torch.distributions.Normal(m, v.exp()), "Normal"),
        (lambda m, v: torch.stack([m, v]), rf"\(2, 6, {K}\)"),
        (lambda m, v: torch.cat([m, v, v], -1), rf"\(6, {3 * K}\)"),
        (lambda m, v: [], "a list of nothing"),
        (lambda m, v: None, "NoneType"),
    ):
        model = models.VAE(SHAPE, K, encoder=Heads(how))
        one_line(
            lambda model=model: model.posterior(x), match=rf"each \(6, {K}\), or one tensor \(6, {2 * K}\).*it returned {found}"
        )
    for body, found in (
        (nn.Linear(K, N + 1), rf"\(6, {N + 1}\)"),
        (nn.Sequential(nn.Linear(K, N), nn.Unflatten(1, SHAPE[::-1])), re.escape(str((6, *SHAPE[::-1])))),
        (nn.Sequential(nn.Linear(K, N), nn.Flatten(0)), rf"\({6 * N},\)"),
        (Heads(pair, K, N), "a tuple of"),
    ):
        model = models.VAE(SHAPE, K, decoder=body)
        one_line(lambda model=model: model.likelihood(z), match=rf"a tensor \(6, {N}\) or \(6, 2, 4, 5\).*it returned {found}")


def test_a_batch_of_two_is_no_pair():
    """A tensor (2, 2k) is both in one, for two examples; a tensor (2, k) is neither."""
    x = torch.rand(2, *SHAPE)
    both, means = (models.VAE(SHAPE, K, encoder=Heads(how)) for how in (stacked, lambda m, v: m))
    torch.testing.assert_close(both.posterior(x).mean, both.encoder.mean(x.flatten(1)))
    one_line(lambda: means.posterior(x), "the encoder must return")


@pytest.mark.parametrize("sigma", ["global", "z_diag", 0.5])
def test_a_model_can_be_mapped_over_stacked_weights(sigma):
    """By torch.func.vmap, with gradients: what each model alone gives, for networks of one's own and for the library's."""
    n_out = 2 * N if sigma == "z_diag" else N

    def own():
        body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 20, 2 * K))
        decoder = nn.Sequential(nn.Linear(K, n_out), nn.Unflatten(1, (n_out // 20, 4, 5)))
        return models.VAE(SHAPE, K, likelihood="gaussian", sigma=sigma, encoder=body, decoder=decoder)

    def ours():
        return models.VAE(SHAPE, K, "residual", "gaussian", sigma=sigma, hidden=(4, 6))

    x, noise = torch.rand(6, *SHAPE, dtype=torch.float64), torch.randn(6, K, dtype=torch.float64)

    class Loss(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self):
            posterior = self.model.posterior(x)
            z = posterior.mean + posterior.stddev * noise
            return -self.model.likelihood(z).log_prob(x).mean()

    for make in (own, ours):
        each = [Loss(seeded(make, seed).double()) for seed in range(3)]
        parameters, buffers = torch.func.stack_module_state(each)

        def loss(parameters, buffers, each=each):
            return torch.func.functional_call(each[0], (parameters, buffers), ())

        together = torch.func.vmap(torch.func.grad(loss))(parameters, buffers)
        for index, one in enumerate(each):
            one().backward()
            for name, value in one.named_parameters():
                torch.testing.assert_close(together[name][index], value.grad)


def test_what_is_discrete_can_be_mapped_too():
    location = torch.linspace(-1, 2, 7, dtype=torch.float64)

    def total(location, levels=5, kind="gaussian"):
        return likelihoods.OnLevels(location, torch.tensor(0.3, dtype=torch.float64), levels, kind).log_prob(
            torch.tensor(0.25, dtype=torch.float64)
        )

    mapped = torch.func.vmap(torch.func.grad(total))(location)
    alone = torch.stack([torch.func.grad(total)(each) for each in location])
    torch.testing.assert_close(mapped, alone)
    assert (mapped[0] > 0) & (mapped[-1] < 0)


def test_networks_of_ones_own_are_trained_and_measured_as_any_other():
    """The same layers as the library's give, with the same seeds, the same run."""
    digits = data.load("digits")
    config = training.TrainConfig(epochs=2, batch_size=200)

    def ours():
        return models.VAE(digits.shape, 4, hidden=(32,))

    def own():
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 64), nn.Unflatten(1, digits.shape))
        return models.VAE(digits.shape, 4, encoder=encoder, decoder=decoder)

    runs = [training.fit(seeded(make), digits, objectives.VAE(), config) for make in (ours, own)]
    points = [estimators.evaluate(run.model, digits.test) for run in runs]
    assert points[0].rate == pytest.approx(points[1].rate, rel=1e-5)
    assert points[0].distortion == pytest.approx(points[1].distortion, rel=1e-5)
    assert runs[1].model.config is None
    assert estimators.iwae(runs[1].model, digits.test[:20], 30).value == pytest.approx(
        estimators.iwae(runs[0].model, digits.test[:20], 30).value, rel=1e-5
    )


@pytest.mark.parametrize("flat", [True, False])
def test_a_sweep_of_networks_of_ones_own_is_the_fits(flat):
    """Also of layers that the library stacks in models of its own: here each is called with the rows of one model."""
    x = torch.randn(200, 6)
    dataset = data.Dataset("own", x, x[:50], x[50:100])
    config = training.TrainConfig(epochs=2, batch_size=50)
    encoder, decoder = (nn.Linear(6, 2 * K), nn.Linear(K, 6)) if flat else (Heads(stacked, 6), nn.Sequential(nn.Linear(K, 6)))

    def own():
        one, other = copy.deepcopy(encoder), copy.deepcopy(decoder)
        for part in (one, other):
            for value in part.parameters():
                nn.init.normal_(value, std=0.3)
        return models.VAE((6,), K, likelihood="gaussian", sigma=0.5, encoder=one, decoder=other)

    runs = training.sweep(own, dataset, betas=[0.5, 2.0], seeds=(0, 1), config=config)
    for run in runs:
        alone = training.fit(seeded(own, run.config.seed), dataset, run.objective, run.config)
        for (name, value), expected in zip(run.model.state_dict().items(), alone.model.state_dict().values(), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=name)
    assert not torch.allclose(next(runs[0].model.parameters()), next(runs[1].model.parameters()), atol=1e-2)


# Linear maps.


def random_maps(n=6, k=4, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "encoder": generator.normal(size=(k, n)),
        "encoder_bias": generator.normal(size=k),
        "variance": np.exp(generator.normal(-3, 4, size=k)),
        "decoder": generator.normal(size=(n, k)),
        "decoder_bias": generator.normal(size=n),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigma": 0.3},
        {"sigma": "global", "shape": (1, 2, 3)},
        {"sigma": "optimal"},
        {"sigma": "z"},
        {"sigma": "z_diag"},
        {"likelihood": "bernoulli", "shape": (2, 3)},
        {"likelihood": "discretized_logistic", "sigma": 0.1, "levels": 17},
    ],
)
def test_a_model_from_linear_maps_has_exactly_these_maps(options):
    """Bit for bit; a logarithm of the variance would not keep them: for some no exponential gives them back."""
    for seed in range(20):
        maps = random_maps(seed=seed)
        model = models.VAE.from_linear(**maps, **options)
        found = model.linear_maps()
        assert found.keys() == maps.keys()
        for name, value in maps.items():
            assert np.array_equal(found[name], value), name
    x = torch.randn(5, *model.shape, dtype=torch.float64)
    mean = x.flatten(1) @ torch.from_numpy(maps["encoder"]).T + torch.from_numpy(maps["encoder_bias"])
    torch.testing.assert_close(model.posterior(x).mean, mean)
    torch.testing.assert_close(model.posterior(x).variance[0], torch.from_numpy(maps["variance"]))
    if options.get("likelihood", "gaussian") == "gaussian":
        decoded = mean @ torch.from_numpy(maps["decoder"]).T + torch.from_numpy(maps["decoder_bias"])
        torch.testing.assert_close(model.likelihood(mean).mean.flatten(1), decoded)
        sigma = options.get("sigma", 1.0)
        expected = sigma if isinstance(sigma, float) else 1.0
        assert (model.likelihood(mean).stddev == expected).all()  # not that of float32


def test_the_maps_of_a_model_make_the_model_again():
    model = seeded(lambda: models.VAE((6,), 3, "linear", "gaussian", sigma=0.7)).double()
    with torch.no_grad():
        model.encoder.log_variance.normal_()
    again = models.VAE.from_linear(**model.linear_maps(), sigma=0.7)
    assert again.config == model.config | {"hidden": again.config["hidden"]}
    x = torch.randn(50, 6, dtype=torch.float64)
    for a, b in ((model, again), (again, models.VAE.from_linear(**again.linear_maps(), sigma=0.7))):
        assert all(
            np.array_equal(one, other) for one, other in zip(a.linear_maps().values(), b.linear_maps().values(), strict=True)
        )
        torch.testing.assert_close(a.posterior(x).stddev, b.posterior(x).stddev, rtol=1e-14, atol=0)
        assert torch.equal(a.posterior(x).mean, b.posterior(x).mean)
    multi = seeded(lambda: models.MultiBetaVAE((6,), 3, "linear", "gaussian", sigma=0.7, beta_range=RANGE)).double()
    view = multi.at(0.5)
    plain = models.VAE.from_linear(**view.linear_maps(), sigma=0.7)
    torch.testing.assert_close(plain.posterior(x).mean, view.posterior(x).mean)
    torch.testing.assert_close(plain.likelihood(x[:, :3]).mean, view.likelihood(x[:, :3]).mean)


def test_the_optimum_of_the_closed_form_is_a_model_with_its_rate_and_error():
    covariance = np.diag([5.0, 3.0, 1.5, 0.8, 0.4, 0.2])
    best = analytic.LinearGaussian(covariance, latent_dim=4).solve(beta=3.0, sigma2=0.3)
    assert 0 < best.active < 4
    model = models.VAE.from_linear(
        encoder=best.encoder, variance=best.posterior_variance, decoder=best.decoder, sigma=best.sigma2**0.5
    )
    with training.seeded(1):
        x = torch.randn(20_000, 6, dtype=torch.float64) * torch.from_numpy(np.sqrt(np.diag(covariance)))
    point = estimators.evaluate(model, x, 3.0)
    for name in ("rate", "mse", "distortion"):
        assert abs(getattr(point, name) - getattr(best, name)) < 3.5 * getattr(point, f"{name}_stderr"), name
    assert point.rate_stderr < 0.02 * best.rate
    # Moved off the optimum in any map, D + βR is worse by more than its error on the same draws.
    for name in ("encoder", "variance", "decoder"):
        moved = models.VAE.from_linear(**model.linear_maps() | {name: 1.3 * model.linear_maps()[name]}, sigma=0.3**0.5)
        worse = estimators.evaluate(moved, x, 3.0)
        assert worse.distortion + 3 * worse.rate > point.distortion + 3 * point.rate + 0.01


def test_building_from_maps_draws_nothing_and_reads_lists_and_tensors():
    before = torch.get_rng_state()
    maps = random_maps()
    model = models.VAE.from_linear(**{name: value.tolist() for name, value in maps.items()})
    weights = torch.from_numpy(maps["encoder"]).requires_grad_()
    other = models.VAE.from_linear(**maps | {"encoder": weights})
    maps["decoder"] *= 2  # the model has values of its own
    assert all(np.array_equal(a, b) for a, b in zip(model.linear_maps().values(), other.linear_maps().values(), strict=True))
    assert not any(value is weights for value in other.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    without = models.VAE.from_linear(**{name: maps[name] for name in ("encoder", "variance", "decoder")})
    assert not without.linear_maps()["encoder_bias"].any()
    assert not without.linear_maps()["decoder_bias"].any()


def test_a_model_from_maps_is_trained_and_kept(tmp_path):
    dataset = data.load("gaussian", sizes=(500, 50, 50))
    oracle = analytic.LinearGaussian(np.cov(dataset.train.numpy().T), latent_dim=4)
    best = oracle.solve(beta=1.0, sigma2=0.3)
    maps = {"encoder": best.encoder, "variance": best.posterior_variance, "decoder": best.decoder}
    model = models.VAE.from_linear(**maps, sigma=0.3**0.5).float()
    run = training.fit(model, dataset, objectives.VAE(), training.TrainConfig(epochs=2))
    assert not np.allclose(model.linear_maps()["variance"], best.posterior_variance, rtol=1e-4)
    again = training.load(run.save(tmp_path / "run")).model
    for name, value in model.linear_maps().items():
        assert np.array_equal(again.linear_maps()[name], value)


def test_maps_that_fit_nothing_are_refused():
    maps = random_maps()
    for name, bad, message in (
        ("encoder", np.zeros(6), r"encoder must have the shape \(any, any\), got \(6,\)"),
        ("encoder", np.zeros((0, 6)), "encoder must have the shape"),
        ("encoder", "weights", "encoder must be an array of real numbers"),
        ("encoder", np.full((4, 6), np.nan), "encoder must be finite"),
        ("encoder_bias", np.zeros(3), r"encoder_bias must have the shape \(4,\), got \(3,\)"),
        ("variance", np.zeros(4), "variance must be > 0, got 0"),
        ("variance", -np.ones(4), "variance must be > 0, got -1"),
        ("variance", None, "variance must be an array"),
        ("variance", 1.0, r"variance must have the shape \(4,\), got \(\)"),
        ("decoder", maps["decoder"].T, r"decoder must have the shape \(6, 4\), got \(4, 6\)"),
        ("decoder_bias", [math.inf] * 6, "decoder_bias must be finite"),
        ("decoder_bias", [1j] * 6, "decoder_bias must be an array of real numbers"),
        ("shape", (2, 2), r"shape must have the product 6, the dimensions that the maps are for; got \(2, 2\)"),
        ("shape", 6, "shape must be"),
        ("sigma", -1.0, "sigma must be"),
        ("likelihood", "poisson", "bernoulli, gaussian"),
    ):
        one_line(lambda name=name, bad=bad: models.VAE.from_linear(**maps | {name: bad}), match=message)
    one_line(lambda: models.MultiBetaVAE.from_linear(**maps), "those of one β")
    for model in (
        models.VAE((6,), 3),
        models.VAE((6,), 3, encoder=Heads(pair, 6)),
        models.VAE((6,), 3, decoder=nn.Linear(3, 6)),
    ):
        one_line(model.linear_maps, "only network='linear' has linear maps")


# What models say of data.


def make(network="mlp", kind=models.VAE, **options):
    options = {"likelihood": "gaussian", "sigma": 0.3, "hidden": (8, 6)} | options
    return seeded(lambda: kind(SHAPE, K, network, **options))


KINDS = {
    "ours": make,
    "own": lambda: make(None, hidden=None, encoder=Heads(pair), decoder=nn.Linear(K, N)),
    "multi": lambda: make(kind=models.MultiBetaVAE, beta_range=RANGE).at(0.5),
    "grey": lambda: models.Discretized(make(), 17),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_real_type_is_converted_to_the_model_s(kind):
    model = KINDS[kind]()
    x = (torch.rand(6, *SHAPE) > 0.5).float()
    z = torch.randint(-2, 3, (6, K)).float()
    for dtype in (torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool):
        assert torch.equal(model.posterior(x.to(dtype)).mean, model.posterior(x).mean)
        model.check(x.to(dtype))
    for dtype in (torch.float64, torch.float16, torch.int64):
        assert torch.equal(model.likelihood(z.to(dtype)).mean, model.likelihood(z).mean)
    model = copy.deepcopy(model).double()
    assert model.posterior(x).mean.dtype == model.likelihood(z).mean.dtype == torch.float64
    x.requires_grad_()
    model.posterior(x).mean.sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_data_is_refused(kind):
    model = KINDS[kind]()
    x, z = torch.rand(6, *SHAPE), torch.randn(6, K)
    for bad, message in (
        (x.numpy(), "x must be a torch tensor, got ndarray"),
        (x.tolist(), "x must be a torch tensor, got list"),
        (None, "x must be a torch tensor, got NoneType"),
        (x[0], r"x must have the shape \(batch, 2, 4, 5\)"),
        (x.flatten(1), r"x must have the shape \(batch, 2, 4, 5\)"),
        (x.transpose(1, 3), r"x must have the shape \(batch, 2, 4, 5\)"),
        (x.sum(), r"x must have the shape \(batch, 2, 4, 5\), got \(\)"),
        (x[:0], "at least one example"),
        (x.to(torch.complex64), "x must hold real numbers, got torch.complex64"),
        (x.to("meta"), "x is on meta and the model on cpu: move one of them"),
    ):
        one_line(lambda bad=bad: model.posterior(bad), match=message)
    for bad, message in (
        (z.numpy(), "z must be a torch tensor, got ndarray"),
        (z[:, :2], "z must have 3 latents"),
        (z.sum(), "z must have 3 latents"),
        (z.to(torch.complex64), "z must hold real numbers"),
        (z.to("meta"), "z is on meta and the model on cpu"),
    ):
        one_line(lambda bad=bad: model.likelihood(bad), message)
    for bad, message in (
        (x.numpy(), "x must be a torch tensor"),
        (x[0], "for examples of shape"),
        (x.sum(), "for examples of shape"),
        (x.flatten(1), "for examples of shape"),
        (x.to(torch.complex64), "x must hold real numbers"),
        (x * math.nan, "finite"),
    ):
        one_line(lambda bad=bad: model.check(bad), message)


def test_a_model_of_many_beta_refuses_the_same():
    model = make(kind=models.MultiBetaVAE, beta_range=RANGE)
    x, z = torch.rand(6, *SHAPE), torch.randn(6, K)
    for beta in (0.5, torch.full((6,), 0.5)):
        assert torch.equal(model.posterior(x.double(), beta).mean, model.posterior(x, beta).mean)
        for bad, message in (
            (x.tolist(), "torch tensor, got list"),
            (x[0], "x must have the shape"),
            (x.numpy(), "got ndarray"),
        ):
            one_line(lambda bad=bad, beta=beta: model.posterior(bad, beta), message)
        for bad, message in ((z.tolist(), "torch tensor, got list"), (z[:, :2], "3 latents"), (z.to("meta"), "z is on meta")):
            one_line(lambda bad=bad, beta=beta: model.likelihood(bad, beta), message)


def test_grey_pixels_are_refused_in_any_type():
    bernoulli, grey = models.VAE((4,)), models.Discretized(models.VAE((4,), likelihood="gaussian"), 5)
    for dtype in (torch.float64, torch.float16, torch.float32):
        one_line(lambda dtype=dtype: bernoulli.check(torch.full((2, 4), 0.5, dtype=dtype)), "0 or 1")
        one_line(lambda dtype=dtype: grey.check(torch.full((2, 4), 0.3, dtype=dtype)), "j/4")
        grey.check(torch.full((2, 4), 0.25, dtype=dtype))
    one_line(lambda: bernoulli.check(torch.full((2, 4), 255, dtype=torch.uint8)), "0 or 1")
    one_line(lambda: grey.check(torch.full((2, 4), 3)), "j/4")


def test_bad_arguments_of_a_model():
    for arguments, message in (
        ({"shape": None}, "shape must be a list of whole numbers"),
        ({"shape": "ab"}, "shape must be"),
        ({"shape": 2.5}, "shape must be"),
        ({"hidden": 128}, "hidden must be a list of whole numbers"),
        ({"hidden": "128"}, "hidden must be"),
        ({"hidden": (128, 2.5)}, "hidden must be a whole number"),
        ({"network": 3}, "network must be one of linear, mlp"),
        ({"network": ["mlp"]}, "network must be one of linear, mlp"),
        ({"likelihood": None}, "likelihood must be one of"),
        ({"likelihood": "gaussian", "sigma": np.ones((5, 5))}, "sigma must be a finite number > 0"),
        ({"likelihood": "gaussian", "sigma": 10**400}, "sigma must be a finite number > 0"),
    ):
        one_line(lambda arguments=arguments: models.VAE(**{"shape": SHAPE} | arguments), message)
    assert models.VAE(torch.Size(SHAPE), 3, hidden=np.array([5])).config["shape"] == SHAPE
    for bad in (None, 3.0, "ab", (1.0,), (1, 2, 3), (2.0, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, math.inf), ("1", "2"), np.eye(2)):
        one_line(
            lambda bad=bad: models.MultiBetaVAE((4,), beta_range=bad), "beta_range must be two numbers, 0 < low < high; got"
        )
        one_line(lambda bad=bad: checks.pair("range", bad), "range must be two numbers")


# Models and views that move, are copied and come back.


def views():
    multi = make(kind=models.MultiBetaVAE, beta_range=RANGE, sigma="global")
    plain = make()
    return {
        **{name: kind() for name, kind in KINDS.items()},
        "conv": make("residual", sigma="z_diag"),
        "linear": make("linear", sigma="optimal"),
        "gates": make("linear", kind=models.MultiBetaVAE, beta_range=RANGE, likelihood="bernoulli", sigma=None).at(0.5),
        "global": multi.at(2.0),
        "grey at": models.Discretized(multi.at(2.0), 17),
        "plain": plain,
    }


def said(model, x, z):
    """All numbers of the two distributions."""
    posterior, likelihood = model.posterior(x), model.likelihood(z)
    return [posterior.mean, posterior.stddev, likelihood.mean, likelihood.variance]


@pytest.mark.parametrize("name", views())
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_models_and_views_are_copied(name, how):
    model = views()[name]
    x, z = torch.rand(6, *SHAPE), torch.randn(6, K)
    expected = said(model, x, z)
    if how == "deepcopy":
        again = copy.deepcopy(model)
    elif how == "pickle":
        again = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        again = torch.load(file, weights_only=False)
    assert all(torch.equal(a, b) for a, b in zip(said(again, x, z), expected, strict=True))
    again.check((x > 0.5).float())
    with torch.no_grad():  # a copy is a copy
        for value in again.parameters():
            value.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(said(model, x, z), expected, strict=True))
    assert not torch.equal(said(again, x, z)[0], expected[0])


@pytest.mark.parametrize("name", views())
def test_models_and_views_move(name):
    model, x, z = views()[name], torch.rand(6, *SHAPE), torch.randn(6, K)
    expected = said(model, x, z)
    for moved in (model.double(), model.to(torch.float64)):
        assert moved is model
        for value, before in zip(said(model, x, z), expected, strict=True):
            assert value.dtype == torch.float64
            torch.testing.assert_close(value.float(), before, rtol=1e-4, atol=1e-5)
    assert {value.dtype for value in [*model.parameters(), *model.buffers()]} == {torch.float64}
    # The device without values is the one that every machine has.
    elsewhere = copy.deepcopy(model).to("meta")
    assert {value.device.type for value in said(elsewhere, x.to("meta"), z.to("meta"))} == {"meta"}
    assert elsewhere.prior().mean.device.type == "meta"
    one_line(lambda: elsewhere.posterior(x), "x is on cpu and the model on meta")


@pytest.mark.parametrize("sigma", [0.3, "global", "z_diag"])
def test_a_view_follows_a_model_that_is_moved_after_it_was_made(sigma):
    model = make(kind=models.MultiBetaVAE, beta_range=RANGE, sigma=sigma)
    view, x, z = model.at(0.5), torch.rand(6, *SHAPE), torch.randn(6, K)
    if sigma == 0.3:
        view.observation.set_variance(torch.tensor(4.0))  # calibrated for this β alone
    grey, before = models.Discretized(view, 17), said(view, x, z)
    model.double()
    for each, value in zip(said(view, x, z), before, strict=True):
        assert each.dtype == torch.float64
        torch.testing.assert_close(each.float(), value, rtol=1e-4, atol=1e-5)
    assert grey.likelihood(z).log_prob((x > 0.5).float()).dtype == torch.float64
    model.to("meta")
    assert view.likelihood(z.to("meta")).stddev.device.type == "meta"
    assert grey.likelihood(z.to("meta")).base_dist.scale.device.type == "meta"


@pytest.mark.parametrize("name", views())
def test_states_come_back(name):
    model, other = views()[name], views()[name]
    x, z = torch.rand(6, *SHAPE), torch.randn(6, K)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    assert not torch.equal(said(model, x, z)[0], said(other, x, z)[0])
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(said(model, x, z), said(other, x, z), strict=True))


@pytest.mark.parametrize("options", [{}, {"network": "conv"}, {"network": "linear", "sigma": "z"}, {"likelihood": "bernoulli"}])
def test_a_config_makes_the_model_again(options):
    for kind, more in ((models.VAE, {}), (models.MultiBetaVAE, {"beta_range": RANGE, "conditioning": "gates"})):
        if options.get("likelihood") == "bernoulli":
            more = more | {"sigma": None}
        model = make(kind=kind, **options | more)
        again = kind(**model.config)
        again.load_state_dict(model.state_dict())
        assert again.config == model.config
        assert repr(again) == repr(model)


def test_a_model_says_what_it_is():
    text = repr(models.VAE((1, 8, 8), 4, "mlp", "gaussian", sigma=0.3, hidden=(16,)))
    first = "shape=(1, 8, 8), latent_dim=4, network='mlp', likelihood='gaussian', sigma=0.3, hidden=(16,)"
    assert first in text
    assert "Gaussian(shape=(1, 8, 8), mode='fixed')" in text
    assert "Linear(in_features=64, out_features=16" in text
    own = repr(models.VAE((1, 8, 8), 4, encoder=Heads(pair, 64, 4)))
    assert "shape=(1, 8, 8), latent_dim=4\n" in own
    assert "Heads(" in own
    many = models.MultiBetaVAE((4,), 2, beta_range=RANGE)
    assert "beta_range=(0.1, 10.0), conditioning='film'" in repr(many)
    assert "beta=0.5" in repr(many.at(0.5))
    assert "levels=17" in repr(models.Discretized(models.VAE((4,), likelihood="gaussian"), 17))
    for each in views().values():
        repr(copy.deepcopy(each).to("meta"))


def test_a_view_reads_nothing_from_the_device():
    """On the device without values a check of β would raise."""
    view = make(kind=models.MultiBetaVAE, beta_range=RANGE).at(0.5).to("meta")
    x = torch.rand(6, *SHAPE, device="meta")
    assert view.likelihood(view.posterior(x).rsample()).log_prob(x).shape == (6,)
