"""Measuring changes nothing in a model and gives the numbers of evaluation mode, whatever kind of object the model is."""

import copy
import functools
import math
from dataclasses import fields, is_dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from errors import one_line
from torch import distributions, nn

from nbvae import _measuring, data, estimators, models, objectives, posterior, samplers, training

SHAPE = (1, 4, 4)
K = 3


class Restless(models.VAE):
    """Batch norm and dropout on both sides: in training mode every pass moves its running means and draws other numbers."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.encoder = nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(0.2), self.encoder)
        self.decoder = nn.Sequential(nn.BatchNorm1d(K), nn.Dropout(0.2), self.decoder)


class Normed(nn.Module):
    """Batch norm and dropout before a network that takes log β's modulations as well."""

    def __init__(self, width, network):
        super().__init__()
        self.before, self.network = nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(0.2)), network

    def forward(self, x, parts=()):
        return self.network(self.before(x), parts)


class Rows:
    """A user's object, no module itself: a convolutional encoder and decoder in a dict and a list, which take rows only.

    Batch norm refuses anything but (rows, k) and (rows, channels, height, width), `Unflatten(1, ...)` needs rows as well.
    """

    def __init__(self):
        self.nets = {
            "encoder": nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2 * K)
            )
        }
        self.layers = [nn.Linear(K, 16), nn.BatchNorm1d(16), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 1, 2, 2)]

    def posterior(self, x):
        mean, log_variance = self.nets["encoder"](x).chunk(2, 1)
        return distributions.Independent(distributions.Normal(mean, (0.5 * log_variance).exp()), 1)

    def likelihood(self, z):
        for layer in self.layers:
            z = layer(z)
        assert z.shape[1:] == SHAPE
        return distributions.Independent(distributions.Bernoulli(logits=z, validate_args=False), 3)

    def prior(self):
        return distributions.Independent(distributions.Normal(torch.zeros(K), torch.ones(K)), 1)


def of_one_beta():
    many = models.MultiBetaVAE(SHAPE, K, hidden=(8,))
    many.encoder, many.decoder = Normed(16, many.encoder), Normed(K, many.decoder)
    return many.at(1.0)


def of_functions():
    """No attribute holds the model: only what its functions close over, or are bound to."""
    model = Restless(SHAPE, K, hidden=(8,))
    likelihood = functools.partial(lambda owner, z: owner.likelihood(z), model)
    return SimpleNamespace(posterior=lambda x: model.posterior(x), likelihood=likelihood, prior=model.prior)


MADE = {
    "model": lambda: Restless(SHAPE, K, hidden=(8,)),
    "discretized": lambda: models.Discretized(Restless(SHAPE, K, likelihood="gaussian", sigma=0.4, hidden=(8,)), 2),
    "one β": of_one_beta,
    "rows": Rows,
    "functions": of_functions,
}


def run_of(model):
    return SimpleNamespace(model=model, objective=objectives.VAE())


MEASURED = {
    "evaluate": lambda m, x: estimators.evaluate(m, x, n_samples=3),
    "rd_curve": lambda m, x: list(estimators.rd_curve([run_of(m), run_of(m)], x, n_samples=2)),
    "decompose": lambda m, x: estimators.decompose(m, x[:20], x, n_samples=2, groups=[[0], [1, 2]]),
    "cross": lambda m, x: estimators.decompose(m, x[:20], x[20:], n_samples=2),
    "minibatch_terms": lambda m, x: estimators.minibatch_terms(m, x, 8, n_batches=3),
    "iwae": lambda m, x: estimators.iwae(m, x, 5),
    "ais": lambda m, x: estimators.ais(m, x[:3], 2, 3, 2),
    "reverse": lambda m, x: estimators.ais(m, x[:3], n_steps=3, posterior_samples=torch.zeros(2, 3, K)),
    "decoder_curve": lambda m, x: list(estimators.decoder_curve(m, x[:3], [0.5, 2.0], 2, 3, 2)),
    "gap": lambda m, x: estimators.gap(m, x[:3], estimators.Estimate.of(torch.zeros(3)), 4),
    "moments": lambda m, x: estimators.moments(m, x),
    "active_units": lambda m, x: estimators.active_units(m, x),
    "encode": lambda m, x: posterior.encode(m, x),
}

ANNEALED = ("ais", "reverse", "decoder_curve")


def drawn(sampler):
    return sampler.sample(6, torch.Generator().manual_seed(1))


SAMPLED = {
    "Prior": lambda m, x: drawn(samplers.Prior(m)),
    "Aggregate": lambda m, x: drawn(samplers.Aggregate(m, x)),
    "Recursive": lambda m, x: drawn(samplers.Recursive([m, m], rounds=2)),
    "drawn": lambda m, x: drawn(samplers.Recursive([m, m], draw_x=True)),
    "Chain": lambda m, x: drawn(samplers.Chain([m, m], x, n_components=1)),
    "rates": lambda m, x: samplers.Chain([m, m], x, n_components=1).rates(x),
    "Mixture": lambda m, x: drawn(samplers.Mixture(m, x, 1)),
    "rate": lambda m, x: samplers.Mixture(m, x, 1).rate(x),
    "SecondStage": lambda m, x: drawn(samplers.SecondStage(m, x, training.TrainConfig(epochs=1))),
}


def numbers(found):
    """All numbers of a result, as lists."""
    if isinstance(found, torch.Tensor):
        return found.tolist()
    if isinstance(found, tuple | list):
        return [numbers(each) for each in found]
    if is_dataclass(found):
        return [numbers(getattr(found, field.name)) for field in fields(found)]
    return found


@pytest.fixture(params=MADE)
def model(request):
    """With one of its parts in evaluation mode already, and running statistics of some data."""
    model = MADE[request.param]()
    for _ in range(3):
        model.likelihood(model.posterior(images()).rsample())
    parts = _measuring.modules(model)
    assert sum(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in parts) == 2
    parts[-1].eval()
    return model


def images(n=60):
    return (torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(3)) > 0.5).float()


def state_of(model):
    return [(part.training, [value.clone() for value in part.buffers()]) for part in _measuring.modules(model)]


def same_state(before, model):
    return all(
        training == part.training and all(map(torch.equal, buffers, part.buffers()))
        for (training, buffers), part in zip(before, _measuring.modules(model), strict=True)
    )


@pytest.mark.parametrize("name", [*MEASURED, *SAMPLED])
def test_measuring_is_that_of_evaluation_mode_and_leaves_the_model_as_it_was(name, model):
    call, x = (MEASURED | SAMPLED)[name], images()
    before = state_of(model)
    found = call(model, x)
    assert same_state(before, model)
    quiet = model if isinstance(model, SimpleNamespace) else copy.deepcopy(model)
    for part in _measuring.modules(quiet):
        part.eval()
    assert numbers(found) == numbers(call(quiet, x))


def test_in_training_mode_the_numbers_would_be_others(model):
    """Else the test above could not fail."""
    before = state_of(model)
    with torch.no_grad(), training.seeded(0):
        model.posterior(images())
    assert not same_state(before, model)


@pytest.mark.parametrize("name", [*MEASURED, *SAMPLED])
def test_modes_come_back_after_an_error(name, model):
    """Of the decoder where there is one to fail, else of the encoder."""
    before, failing = state_of(model), SimpleNamespace(prior=model.prior, posterior=model.posterior)

    def fails(*_):
        raise ZeroDivisionError

    failing.likelihood = fails
    if name in ("minibatch_terms", "moments", "active_units", "encode", "rates", "rate"):
        failing.posterior, failing.kept = fails, model
    with pytest.raises(ZeroDivisionError):
        (MEASURED | SAMPLED)[name](failing, images())
    assert [mode for mode, _ in before] == [part.training for part in _measuring.modules(model)]


def test_everything_that_an_object_can_compute_with_is_found():
    made = []

    def net():
        made.append(nn.BatchNorm1d(1))
        return made[-1]

    class Slots:
        __slots__ = ("net",)

    def closing():
        inner = net()
        return lambda x: inner(x)

    slots = Slots()
    slots.net = net()

    class Mine:
        shared = net()

        def __init__(self):
            self.deep = {"a": [(net(), {1: {frozenset([net()])}})]}
            self.closure, self.bound, self.partial = closing(), net().forward, functools.partial(print, net())
            self.space, self.slots, self.wrapped = SimpleNamespace(net=net()), slots, nn.Sequential(net())
            self.itself = self

        def posterior(self, x):
            return GLOBAL(x)

    mine = Mine()
    expected = [*made, GLOBAL, mine.wrapped]
    assert sorted(map(id, _measuring.modules(mine))) == sorted(map(id, expected))
    for nothing in (None, 5, "VAE", torch.ones(3), data.load("digits"), models.VAE, torch):
        assert _measuring.modules(nothing) == []


GLOBAL = nn.BatchNorm1d(1)


def test_measuring_within_measuring_and_functions_keep_their_names():
    model = Restless(SHAPE, K)
    with _measuring.measuring(model):
        with _measuring.measuring(model):
            assert not any(part.training for part in model.modules())
        assert not any(part.training for part in model.modules())
        assert not torch.is_grad_enabled()
    assert all(part.training for part in model.modules())
    assert torch.is_grad_enabled()
    assert estimators.evaluate.__name__ == "evaluate"
    assert estimators.iwae(model=model, x=images(), n_samples=2).value < 0


# ---------------------------------------------------------------- what user code is shown


@pytest.mark.parametrize("name", [*MEASURED, *SAMPLED])
def test_decoder_and_encoder_see_rows_only_and_the_numbers_do_not_depend_on_it(name):
    """The library's own networks take any leading dimensions: a wrapper that refuses them measures the same numbers."""
    torch.manual_seed(2)
    own = models.VAE(SHAPE, K, hidden=(8,)).eval()
    seen = []

    class Strict:
        prior = staticmethod(own.prior)

        def posterior(self, x):
            seen.append(x.shape)
            assert x.shape[1:] == SHAPE
            return own.posterior(x)

        def likelihood(self, z):
            seen.append(z.shape)
            assert z.dim() == 2
            assert z.shape[1] == K
            return own.likelihood(z)

    call = (MEASURED | SAMPLED)[name]
    assert numbers(call(Strict(), images())) == numbers(call(own, images()))
    assert seen


def test_the_number_of_rows_at_once_is_bounded(monkeypatch):
    """Whatever the number of draws and examples: the decoder is never shown more values than may be held."""
    most, rows = 200, []
    monkeypatch.setattr("nbvae._tensors.AT_ONCE", most)
    own = models.VAE(SHAPE, K, hidden=(8,))

    class Counting:
        posterior, prior = staticmethod(own.posterior), staticmethod(own.prior)

        def likelihood(self, z):
            rows.append(len(z))
            return own.likelihood(z)

    for name in set(MEASURED) - {"minibatch_terms", "moments", "active_units", "encode"} | {"Prior", "Recursive"}:
        rows.clear()
        (MEASURED | SAMPLED)[name](Counting(), images())
        assert 16 * max(rows) <= most, name
        assert len(rows) > 1 or name == "gap"


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_examples_of_any_number_type_are_the_same_examples(dtype):
    model, x = models.VAE(SHAPE, K, hidden=(8,)), images()
    for call in MEASURED.values():
        assert numbers(call(model, x.to(dtype))) == numbers(call(model, x))


# ---------------------------------------------------------------- one example, gradients switched off


def test_one_example_has_a_value_and_no_standard_error(recwarn):
    model, x = models.VAE(SHAPE, K, hidden=(8,)), images(1)
    point = estimators.evaluate(model, x)
    assert point.rate == pytest.approx(objectives.elbo_terms(model, x).rate.item(), rel=1e-6)
    assert point.distortion > 0
    for name in ("rate", "distortion", "mse", "loss"):
        assert math.isnan(getattr(point, f"{name}_stderr"))
    # Ten thousand draws: the same as those of one example many times, within what these tell.
    repeated = estimators.evaluate(model, x.expand(10_000, *SHAPE))
    assert point.distortion == pytest.approx(repeated.distortion, abs=5 * repeated.distortion_stderr)
    for found in (
        estimators.iwae(model, x, 10),
        estimators.ais(model, x, 2, 3, 2),
        estimators.gap(model, x, estimators.iwae(model, x, 10), 10),
    ):
        assert math.isfinite(found.value)
        assert math.isnan(found.stderr)
    many = images()
    assert math.isfinite(samplers.Mixture(model, many, 1).rate(x))
    assert samplers.Chain([model, model], many, n_components=1).rates(x)[0].item() == pytest.approx(point.rate, rel=1e-6)
    (curve,) = estimators.rd_curve(run_of(model), x)
    assert curve.rate == point.rate
    assert not recwarn.list
    for two in (estimators.decompose, estimators.moments, estimators.active_units, samplers.Aggregate, samplers.Mixture):
        with pytest.raises(ValueError, match="x must have at least 2 examples, got 1"):
            two(model, x)


def test_sums_over_many_draws_are_not_rounded():
    """A likelihood of 10⁶ nats and a half, and an MSE of 1 + 2⁻²⁰, in float32: of the sum of 10⁴ it would lose tens of nats."""

    class Constant:
        def posterior(self, x):
            return distributions.Independent(distributions.Normal(torch.zeros(len(x), 2), torch.ones(2)), 1)

        def likelihood(self, z):
            return distributions.Independent(Far(torch.zeros(len(z), 1)), 1)

        def prior(self):
            return distributions.Independent(distributions.Normal(torch.zeros(2), torch.ones(2)), 1)

    class Far(distributions.Normal):
        def __init__(self, loc):
            super().__init__(loc, 1.0, validate_args=False)

        def log_prob(self, value):
            return torch.full_like(self.loc, -1_000_000.5)

        @property
        def mean(self):
            return torch.full_like(self.loc, (1 + 2**-20) ** 0.5)

    squared = torch.full((), (1 + 2**-20) ** 0.5).square().item()
    for x in (torch.zeros(1, 1), torch.zeros(7, 1)):
        point = estimators.evaluate(Constant(), x, n_samples=10_000)
        assert point.distortion == 1_000_000.5
        assert point.mse == pytest.approx(squared, rel=1e-15)
        assert estimators.decompose(Constant(), torch.arange(7.0)[:, None], n_samples=3000).distortion == 1_000_000.5


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", [*MEASURED, *SAMPLED])
def test_the_numbers_do_not_depend_on_gradients_being_switched_on(name, off):
    torch.manual_seed(2)
    model, call = models.VAE(SHAPE, K, hidden=(8,)), (MEASURED | SAMPLED)[name]
    expected = numbers(call(model, images()))
    with off():
        assert numbers(call(model, images())) == expected
        assert not torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ais_needs_no_gradients_of_its_caller():
    model, x = models.VAE(SHAPE, K, hidden=(8,)), images(4)
    expected = estimators.ais(model, x, 2, 4, 2).values
    draws = torch.randn(2, 4, K)
    above = estimators.ais(model, x, n_steps=4, posterior_samples=draws).values
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(estimators.ais(model, x, 2, 4, 2).values, expected)
            assert torch.equal(estimators.ais(model, x.clone(), 2, 4, 2).values, expected)
            assert torch.equal(estimators.ais(model, x, n_steps=4, posterior_samples=draws.clone()).values, above)
            assert not torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.inference_mode():
        inside = models.VAE(SHAPE, K, hidden=(8,))
    for call in (lambda: estimators.ais(inside, x, 2, 4, 2), lambda: estimators.decoder_curve(inside, x, [1.0], 2, 4, 2)):
        with pytest.raises(ValueError, match="inference_mode"):
            call()


# ---------------------------------------------------------------- first mistakes


def test_first_mistakes_are_answered_in_one_line():
    model, many, x = models.VAE(SHAPE, K, hidden=(8,)), models.MultiBetaVAE(SHAPE, K, hidden=(8,)), images()
    digits = data.load("digits")
    run = training.Run(model, objectives.VAE(), training.TrainConfig(), {}, 0.0)
    grey = x * 0.5
    nan, infinite = x.clone(), x.clone()
    nan[3, 0, 1, 1], infinite[0, 0, 0, 0] = math.nan, math.inf
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 8)
    calls = {
        name: call
        for name, call in (MEASURED | SAMPLED).items()
        if name not in ("rd_curve", "gap", "Prior", "Recursive", "drawn", "decompose", "cross", *ANNEALED)
    }
    calls |= {
        "decompose": lambda m, x: estimators.decompose(m, x),
        "reference": lambda m, x: estimators.decompose(m, images(), x),
        "ais": lambda m, x: estimators.ais(m, x, 2, 2, 2),
        "decoder_curve": lambda m, x: estimators.decoder_curve(m, x, [1.0], 2, 2, 2),
        "gap": lambda m, x: estimators.gap(m, x, estimators.Estimate.of(torch.zeros(60)), 4),
        "of one run": lambda m, x: estimators.rd_curve(run_of(m), x),
    }
    data_mistakes = (
        (x.numpy(), "must be a torch tensor of examples, got ndarray: torch.as_tensor makes one of an array"),
        (digits, "must be a torch tensor of examples, got Dataset: pass its .train or .test"),
        (loader, "got DataLoader: stack its examples with torch.stack, or its batches with torch.cat"),
        (list(x), "must be a torch tensor of examples, got list"),
        (None, "must be a torch tensor of examples, got NoneType"),
        (torch.tensor(1.0), "must be a torch tensor of examples"),
        (x[:0], "must have at least"),
        (x[:, :, :2], "shape"),
        (x[0], ""),  # one example of the wrong shape, or too few
        (x.flatten(1), "shape"),
        (nan, "must hold finite real numbers, it holds nan or inf"),
        (infinite, "must hold finite real numbers, it holds nan or inf"),
        (x * 1j, "must hold finite real numbers, it holds complex ones"),
    )
    for name, call in calls.items():
        for bad, message in data_mistakes:
            if name != "reference" or bad is not None:
                one_line(lambda: call(model, bad), message)  # noqa: B023
        for bad, message in (
            (x, "a model must have posterior(x), likelihood(z) and prior(); Tensor has not: the model comes first"),
            (run, "Run has not: pass its .model"),
            (models.VAE, "VAE has not: make one of the class"),
            (many, "of many β"),
            (None, "a model must have"),
        ):
            if name != "of one run" or bad is not many:
                one_line(lambda: call(bad, x), message)  # noqa: B023
    one_line(lambda: estimators.evaluate(x, model), "the model comes first")
    one_line(lambda: estimators.evaluate(digits, model), "the model comes first")
    one_line(lambda: estimators.evaluate(model, model), "x must be a torch tensor of examples, got VAE")
    for measure in (estimators.evaluate, estimators.decompose, estimators.iwae, estimators.ais, samplers.Aggregate):
        one_line(lambda: measure(model, grey), "pixels that are 0 or 1")  # noqa: B023
    for bad, message in ((run, "pass its .model"), (x, "a model must have"), (models.VAE, "make one"), (many, "at(beta)")):
        one_line(lambda: samplers.Prior(bad), message)  # noqa: B023
    one_line(lambda: samplers.Recursive(run, (1.0, 2.0)), "pass its .model")
    one_line(lambda: samplers.Recursive([run, run]), "pass its .model")


@pytest.mark.parametrize("seed", [2**64, -1, 1.5, "a", None, True, np.array([1, 2])])
def test_seeds_are_checked(seed):
    model, x = models.VAE(SHAPE, K, hidden=(8,)), images()
    known = estimators.Estimate.of(torch.zeros(60))
    for call in (
        lambda: estimators.evaluate(model, x, seed=seed),
        lambda: estimators.rd_curve(run_of(model), x, seed=seed),
        lambda: estimators.decompose(model, x, seed=seed),
        lambda: estimators.minibatch_terms(model, x, 4, seed=seed),
        lambda: estimators.iwae(model, x, 2, seed=seed),
        lambda: estimators.ais(model, x, seed=seed),
        lambda: estimators.decoder_curve(model, x, [1.0], seed=seed),
        lambda: estimators.gap(model, x, known, seed=seed),
        lambda: samplers.Mixture(model, x, 1, seed=seed),
        lambda: samplers.Mixture(model, x, 1).rate(x, seed=seed),
        lambda: samplers.SecondStage(model, x, seed=seed),
        lambda: samplers.Chain([model, model], x, n_components=1, seed=seed),
    ):
        one_line(call, "seed must be a whole number")


def test_numbers_of_draws_are_checked():
    model, x = models.VAE(SHAPE, K, hidden=(8,)), images()
    known = estimators.Estimate.of(torch.zeros(60))
    for n in (0, -1, 2.5, "3", True):
        one_line(lambda: estimators.evaluate(model, x, n_samples=n), "n_samples must be")  # noqa: B023
        one_line(lambda: estimators.decompose(model, x, n_samples=n), "n_samples must be")  # noqa: B023
        one_line(lambda: estimators.iwae(model, x, n_samples=n), "n_samples must be")  # noqa: B023
        one_line(lambda: estimators.gap(model, x, known, n_samples=n), "n_samples must be")  # noqa: B023
        one_line(lambda: estimators.ais(model, x, n_chains=n), "n_chains must be")  # noqa: B023
        one_line(lambda: samplers.Prior(model).sample(n), "n must be")  # noqa: B023
    state = torch.random.get_rng_state()
    assert estimators.iwae(model, x, np.int64(2), seed=torch.tensor(3)) == estimators.iwae(model, x, 2, seed=3)
    estimators.iwae(model, x, 2, seed=2**63 - 1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_distributions_that_are_not_of_one_example_are_refused():
    """A forgotten `Independent` gives pixel-wise densities, which would broadcast into nonsense."""
    own, x = models.VAE(SHAPE, K, hidden=(8,)), images()
    bare_likelihood = SimpleNamespace(
        posterior=own.posterior, prior=own.prior, likelihood=lambda z: own.likelihood(z).base_dist
    )
    bare_posterior = SimpleNamespace(
        posterior=lambda x: own.posterior(x).base_dist, prior=lambda: own.prior().base_dist, likelihood=own.likelihood
    )
    heavy = SimpleNamespace(
        posterior=lambda x: distributions.Independent(distributions.StudentT(3.0 + torch.zeros(len(x), K)), 1),
        prior=own.prior,
        likelihood=own.likelihood,
    )
    full = SimpleNamespace(
        posterior=lambda x: distributions.MultivariateNormal(torch.zeros(len(x), K), torch.eye(K)),
        prior=own.prior,
        likelihood=own.likelihood,
    )
    known = estimators.Estimate.of(torch.zeros(60))
    for name in ("evaluate", "decompose", "iwae", "ais"):
        one_line(lambda: getattr(estimators, name)(bare_likelihood, x), "likelihood(z) must have the event", "Independent")  # noqa: B023
    one_line(lambda: estimators.evaluate(bare_posterior, x), "posterior(x) must have one", "Independent")
    for bad in (heavy, full):
        one_line(lambda: estimators.evaluate(bad, x), "closed form")  # noqa: B023
        one_line(lambda: estimators.gap(bad, x, known), "closed form")  # noqa: B023
        for measure in (
            estimators.decompose,
            estimators.moments,
            estimators.active_units,
            samplers.Aggregate,
            posterior.encode,
        ):
            one_line(lambda: measure(bad, x), "diagonal Gaussian")  # noqa: B023
        one_line(lambda: estimators.minibatch_terms(bad, x, 4), "diagonal Gaussian")  # noqa: B023
        assert estimators.iwae(bad, x, 10).value < 0  # samples and densities are enough
        assert estimators.ais(bad, x[:3], 2, 2, 2).value < 0  # the encoder is not used


def own_model(likelihood):
    """A user's model without a `check`: an encoder that takes x of any shape, and a distribution of the decoder's outputs."""
    encoder, decoder = nn.Linear(16, 2 * K), nn.Linear(K, 16)
    prior = distributions.Independent(distributions.Normal(torch.zeros(K), torch.ones(K)), 1)

    def posterior(x):
        mean, log_variance = encoder(x.flatten(1)).chunk(2, 1)
        return distributions.Independent(distributions.Normal(mean, (0.5 * log_variance).exp()), 1)

    made = lambda z: distributions.Independent(likelihood(decoder(z).unflatten(1, SHAPE)), 3)  # noqa: E731
    return SimpleNamespace(posterior=posterior, prior=lambda: prior, likelihood=made)


MEASURES = {
    "evaluate": estimators.evaluate,
    "decompose": estimators.decompose,
    "iwae": estimators.iwae,
    "ais": lambda m, x: estimators.ais(m, x, 2, 2, 2),
    "terms": lambda m, x: objectives.elbo_terms(m, x),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_examples_of_another_shape_are_refused_by_a_model_that_checks_nothing(measure):
    """Without its channel, N images against N likelihoods broadcast into N², whose sum is a number for each like any other."""
    model, x = own_model(lambda output: distributions.Bernoulli(logits=output, validate_args=False)), images(9)
    measure(model, x)
    one_line(lambda: measure(model, x[:, 0]), "likelihood(z) must have the event", "(4, 4)", "(1, 4, 4)")


@pytest.mark.parametrize("measure", list(MEASURES.values())[:-1], ids=list(MEASURES)[:-1])
@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize(
    ("likelihood", "good", "bad"),
    [
        (lambda output, **o: distributions.Bernoulli(logits=output, **o), 1.0, 0.5),
        (lambda output, **o: distributions.Poisson(output.exp(), **o), 2.0, 0.5),
        (lambda output, **o: distributions.ContinuousBernoulli(logits=output, **o), 0.5, -1.0),
    ],
)
def test_data_outside_the_support_are_refused_for_a_model_that_checks_nothing(measure, likelihood, validated, good, bad):
    model = own_model(lambda output: likelihood(output, validate_args=validated))
    measure(model, good * images(9))
    one_line(lambda: measure(model, bad * images(9)), "likelihood(z)", "support")


def test_a_likelihood_on_all_numbers_or_with_a_support_of_its_own_takes_any_data():
    wide = own_model(lambda output: distributions.Uniform(output - 9, output + 9, validate_args=False))
    for model in (own_model(lambda output: distributions.Normal(output, 1.0)), wide):
        estimators.iwae(model, 0.5 * images(9), 2)
    accepts = own_model(lambda output: distributions.Bernoulli(logits=output, validate_args=False))
    accepts.check = lambda x: None  # its author knows what he does
    assert estimators.iwae(accepts, 0.5 * images(9), 2).value < 0


HIDDEN = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 4))


def test_a_network_that_only_a_function_inside_a_method_names_is_found():
    class Model(models.VAE):
        def posterior(self, x):
            through = lambda each: HIDDEN(each)  # noqa: E731
            mean, log_variance = next(through(each) for each in (x,)).chunk(2, -1)
            return torch.distributions.Independent(torch.distributions.Normal(mean, log_variance.exp()), 1)

    before = HIDDEN[1].running_mean.clone()
    HIDDEN.train()
    estimators.evaluate(Model((1, 8, 8), 2), torch.rand(9, 1, 8, 8).round(), n_samples=1)
    assert torch.equal(HIDDEN[1].running_mean, before)
    assert HIDDEN[1].training
