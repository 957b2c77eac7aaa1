"""`sweep` equals the fits: for our networks and objectives, and for whatever kinds of them a user brings."""

import functools
import itertools
import logging
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from rows import PER_RUN
from torch import distributions, nn
from torch.nn import functional
from torch.nn.utils import prune

from nbvae import data, models, objectives, training

BATCH = 8


@pytest.fixture(scope="module")
def small():
    """Binary images, so few that an epoch is three steps, the last of an odd size."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(21, 1, 4, 4, dtype=torch.float64, generator=generator) > 0.6).double()
    return data.Dataset("small", x, x[:5], x[5:9])


CONFIG = training.TrainConfig(epochs=3, batch_size=BATCH, lr=3e-3, schedule="cosine")


def vae(**options):
    return models.VAE((1, 4, 4), 3, hidden=(6,), **options).double()


# Kinds of modules that a user may bring. Each changes the second layer of the decoder, or adds to the encoder.


class Positive(nn.Linear):
    def forward(self, x):
        return functional.linear(x, functional.softplus(self.weight), self.bias)


class Denoising(models.VAE):
    def posterior(self, x):
        return super().posterior(x + 0.3 * torch.randn_like(x))


class OfOnesOwn(nn.Module):
    """No class of the library: a norm over the batch, a layer that is used twice, a buffer."""

    def __init__(self):
        super().__init__()
        self.shared, self.inward, self.outward = nn.Linear(5, 5), nn.Linear(16, 5), nn.Linear(3, 5)
        self.heads, self.logits, self.norm = nn.Linear(5, 6), nn.Linear(5, 16, bias=False), nn.BatchNorm1d(5)
        self.register_buffer("zero", torch.zeros(3))
        self.double()

    def prior(self):
        return distributions.Independent(distributions.Normal(self.zero, torch.ones_like(self.zero)), 1)

    def posterior(self, x):
        hidden = self.norm(self.shared(self.inward(x.flatten(1)).relu()))
        mean, log_variance = self.heads(hidden).chunk(2, -1)
        return distributions.Independent(distributions.Normal(mean, (log_variance / 2).exp()), 1)

    def likelihood(self, z):
        logits = self.logits(self.shared(self.outward(z).tanh())).unflatten(-1, (1, 4, 4))
        return distributions.Independent(distributions.Bernoulli(logits=logits), 3)


class Convolutions(nn.Module):
    """An encoder for `models.VAE(encoder=…)` that takes images and gives mean and log-variance."""

    def __init__(self):
        super().__init__()
        self.convolution, self.heads = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 6)

    def forward(self, x):
        return self.heads(self.convolution(x).relu().flatten(1)).chunk(2, -1)


def subclass():
    model = vae()
    model.decoder[2] = Positive(6, 16).double()
    return model


def weight_norm():
    model = vae()
    nn.utils.parametrizations.weight_norm(model.decoder[2])
    return model


def hooked():
    model = vae()
    model.decoder[2].register_forward_hook(lambda layer, arguments, output: 0.1 * output)
    return model


def pruned():
    model = vae()
    prune.random_unstructured(model.decoder[2], "weight", amount=0.5)
    return model


def frozen():
    model = vae()
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    return model


def tied():
    model = models.VAE((1, 4, 4), 3, hidden=(6, 6)).double()
    model.decoder[4].weight = nn.Parameter(model.encoder.body[0].weight.detach().T.clone())
    model.encoder.body[2].weight = model.decoder[2].weight
    return model


class Standing(nn.Module):
    """A part with a buffer, which stands under two names."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.full((16,), 0.7), persistent=False)

    def forward(self, x):
        return self.scale * x


def standing_twice():
    model, layer, part = vae(), nn.Linear(16, 16).double(), Standing()
    model.encoder = nn.Sequential(layer, nn.ReLU(), part, layer, part, model.encoder)
    return model


def convolutions():
    return models.VAE((1, 4, 4), 3, encoder=Convolutions().double(), hidden=(6,)).double()


def batch_norm():
    model = vae()
    model.encoder = nn.Sequential(nn.BatchNorm1d(16).double(), model.encoder)
    return model


def dropout():
    model = vae()
    model.encoder = nn.Sequential(nn.Dropout(0.5), model.encoder)
    return model


def denoising():
    return Denoising((1, 4, 4), 3, hidden=(6,)).double()


class Steady(nn.Module):
    """Branches on values of its input, which `torch.func` cannot map."""

    def forward(self, x):
        return x * 0.5 if x.abs().max() > 1e9 else x


def branching():
    model = vae()
    model.decoder = nn.Sequential(Steady(), *model.decoder)
    return model


STACK = {
    "subclass": subclass,
    "weight_norm": weight_norm,
    "hooked": hooked,
    "pruned": pruned,
    "frozen": frozen,
    "tied": tied,
    "standing twice": standing_twice,
    "one's own": OfOnesOwn,
    "convolutions": convolutions,
    "batch_norm": batch_norm,
}
ONE_BY_ONE = {"dropout": dropout, "denoising": denoising, "branching": branching}
OURS = {
    "linear": lambda: vae(network="linear"),
    "mlp": vae,
    "conv": lambda: models.VAE((1, 4, 4), 3, "conv", hidden=(3,)).double(),
    "residual": lambda: models.VAE((1, 4, 4), 3, "residual", hidden=(4,)).double(),
}


# Objectives that a user may write.


@dataclass(frozen=True)
class Mean:
    """Reduced by the user, the parameter times a term of each example."""

    beta: float

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        return objectives.Loss((terms.distortion + self.beta * terms.rate).mean(-1), terms)


@dataclass(eq=False)
class PerExample:
    """Not reduced; draws several z for each example; the mean over the batch is part of it."""

    beta: float

    def __call__(self, model, x, step=0, reference=None):
        posterior = model.posterior(x)
        distortion = -model.likelihood(posterior.rsample()).log_prob(x)
        rate = distributions.kl_divergence(posterior, model.prior())
        other = posterior.rsample((2,)).square().mean((0, 2))
        return objectives.Loss(
            distortion + self.beta * rate + (rate - rate.mean()).square() + other, objectives.Terms(distortion, rate)
        )


class WarmUp:
    """No dataclass; depends on the step, and after a few of them on other code."""

    def __init__(self, beta):
        self.beta = beta

    def __call__(self, model, x, step, reference):
        terms = objectives.elbo_terms(model, x)
        if step > 4:
            return objectives.Loss((terms.distortion + self.beta * terms.rate.clamp(min=0.1)).mean(), terms)
        return objectives.Loss(terms.distortion.mean() + min(1.0, step / 4) * self.beta * terms.rate.mean(), terms)


USERS = {"mean": Mean, "per example": PerExample, "warm-up": WarmUp}
ROWS = {name: lambda beta, row=row, numbers=PER_RUN[name]: row(**numbers(beta)) for name, row in objectives.TABLE.items()}


def compared(make, kinds, dataset, seeds=(0, 1), config=CONFIG):
    """The largest difference, summed over a tensor, between the runs of a sweep and the fits, over weights and buffers."""
    runs = training.sweep(make, dataset, objectives=kinds, seeds=seeds, config=config)
    assert len(runs) == len(kinds) * len(seeds)
    apart = 0.0
    for run in runs:
        torch.manual_seed(run.config.seed)
        fit = training.fit(make(), dataset, run.objective, run.config)
        state, other = run.model.state_dict(), fit.model.state_dict()
        assert state.keys() == other.keys()
        apart = max([apart, *((state[name].double() - other[name].double()).abs().sum().item() for name in state)])
        assert run.history.keys() == fit.history.keys()
        for name, values in run.history.items():
            assert values == pytest.approx(fit.history[name], rel=1e-7 if dataset.train.dtype == torch.float64 else 1e-5), name
    assert len({run.history["loss"][-1] for run in runs}) == len(set(kinds)) * len(seeds)  # not one model many times
    return apart


@pytest.mark.parametrize("objective", [*USERS, *ROWS])
@pytest.mark.parametrize("kind", [*STACK, *OURS])
def test_whatever_stacks_is_what_the_fits_are(kind, objective, small, caplog):
    make, of = (STACK | OURS)[kind], (USERS | ROWS)[objective]
    with caplog.at_level(logging.WARNING, "nbvae.training"):
        assert compared(make, [of(0.3), of(2.0)], small) < 1e-5
    assert not caplog.records, caplog.text


@pytest.mark.parametrize("objective", [*USERS, "beta_vae", "factor_vae"])
@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_what_cannot_be_stacked_is_fitted_one_by_one_and_says_why(kind, objective, small, caplog):
    of = (USERS | ROWS)[objective]
    with caplog.at_level(logging.WARNING, "nbvae.training"):
        assert compared(ONE_BY_ONE[kind], [of(0.3), of(2.0)], small) == 0.0
    [record] = caplog.records
    reason = "cannot map" if kind == "branching" else "random numbers of its own"
    assert reason in record.message
    assert record.message.startswith("4 of 4 models are trained one after the other")
    assert "\n" not in record.message


def test_float32_stacks_too(small, caplog):
    """In the precision that people train in, where the comparison before training is a rougher one."""
    single = data.Dataset("small", small.train.float(), small.validation.float(), small.test.float())
    for make in (subclass, weight_norm, OfOnesOwn, convolutions):
        assert compared(lambda make=make: make().float(), [Mean(0.3), Mean(2.0)], single) < 1e-4
    assert not caplog.records


def test_a_layer_that_holds_a_tensor_of_its_own_precision_stacks(small, caplog):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = torch.ones(16)  # neither weight nor buffer

        def forward(self, x):
            return x + (self.by @ torch.ones(16)) / 16

    def shifted():
        model = vae().float()
        model.decoder = nn.Sequential(*model.decoder, Shifted())
        return model

    single = data.Dataset("small", small.train.float(), small.validation.float(), small.test.float())
    assert compared(shifted, [Mean(0.3), Mean(2.0)], single) < 1e-4
    assert not caplog.records


def test_models_that_differ_in_a_setting_are_no_copies_of_each_other(small):
    temperatures = iter([1.0, 3.0, 1.0, 3.0])

    class Tempered(nn.Module):
        def __init__(self, temperature):
            super().__init__()
            self.temperature = temperature

        def forward(self, x):
            return x / self.temperature

    def tempered(temperature):
        model = vae()
        model.decoder = nn.Sequential(*model.decoder, Tempered(temperature))
        return model

    runs = training.sweep(lambda: tempered(next(temperatures)), small, [0.3, 2.0], seeds=(0, 1), config=CONFIG)
    for run, temperature in zip(runs, [1.0, 3.0, 1.0, 3.0], strict=True):
        torch.manual_seed(run.config.seed)
        fit = training.fit(tempered(temperature), small, run.objective, run.config)
        assert run.history["loss"] == pytest.approx(fit.history["loss"], rel=1e-9)


@pytest.mark.parametrize(
    ("hook", "kind"),
    [
        (lambda out, by: out * by, "loss"),
        (lambda out, by: out * (1 + 1e-6 * (by - 1)), "loss"),
        (lambda out, by: out if by == 1 else out.detach(), "gradient"),
        (lambda out, by: out + (by - 1) * (out - out.detach()), "gradient"),
    ],
)
def test_a_hidden_difference_is_found_before_training(hook, kind, small, caplog):
    """Two models that look alike, one of which computes something else: told apart by two steps of each."""
    which = iter([1.0, 3.0])

    def hidden(by):
        model = vae()
        model.decoder[0].register_forward_hook(lambda layer, arguments, output: hook(output, by))
        return model

    with caplog.at_level(logging.WARNING, "nbvae.training"):
        runs = training.sweep(lambda: hidden(next(which)), small, [0.3, 2.0], config=CONFIG)
    assert f"another {kind} in a stack than alone" in caplog.text
    for run, by in zip(runs, (1.0, 3.0), strict=True):
        torch.manual_seed(0)
        fit = training.fit(hidden(by), small, run.objective, run.config)
        assert run.history["loss"] == fit.history["loss"]


def test_a_difference_in_a_buffer_or_in_the_second_step_is_found(small, caplog):
    which = iter([0.1, 0.9, 0.1, 0.9])

    class Averages(nn.Module):
        def __init__(self, used):
            super().__init__()
            self.used = used
            self.register_buffer("mean", torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            with torch.no_grad():
                self.mean.add_(CLOSED[self] * (x.mean() - self.mean))
            return x + self.mean.detach() if self.used else x

    for used, kind in ((False, "buffer"), (True, "loss")):
        CLOSED = {}

        def averaging(used=used, closed=CLOSED):
            model = vae()
            layer = Averages(used)
            closed[layer] = next(which)
            model.decoder = nn.Sequential(*model.decoder[:2], layer, model.decoder[2])
            return model

        caplog.clear()
        with caplog.at_level(logging.WARNING, "nbvae.training"):
            training.sweep(averaging, small, [0.3, 2.0], config=CONFIG)
        assert f"another {kind} in a stack than alone" in caplog.text, used


def test_noise_that_comes_later_is_found_after_training(small, caplog):
    """Random numbers from the third epoch on, when the comparison is long over: the stack is thrown away."""

    class Late(Mean):
        def __call__(self, model, x, step=0, reference=None):
            return super().__call__(model, x + torch.randn(()) * (step > 6), step)

    with caplog.at_level(logging.WARNING, "nbvae.training"):
        assert compared(vae, [Late(0.3), Late(2.0)], small) == 0.0
    assert "random numbers of its own" in caplog.text


def test_code_that_cannot_be_mapped_later_is_fitted(small, caplog):
    class Branches(Mean):
        def __call__(self, model, x, step=0, reference=None):
            loss = super().__call__(model, x, step)
            return loss._replace(total=loss.total * 2) if step > 6 and loss.total > 0 else loss

    with caplog.at_level(logging.WARNING, "nbvae.training"):
        assert compared(vae, [Branches(0.3), Branches(2.0)], small) == 0.0
    assert "cannot map" in caplog.text


def test_tensors_in_attributes_are_not_left_behind(small, caplog):
    """A forward pass may leave tensors in attributes; those of a map over models are of no use to anyone."""

    class Keeps(nn.Module):
        def forward(self, x):
            self.last = x
            return x

    def keeps():
        model = vae()
        model.decoder = nn.Sequential(*model.decoder, Keeps())
        return model

    for run in training.sweep(keeps, small, objectives=[Mean(0.3), Mean(2.0)], config=CONFIG):
        assert not hasattr(run.model.decoder[-1], "last")
        run.model.likelihood(torch.zeros(1, 3, dtype=torch.float64))
        assert run.model.decoder[-1].last.shape == (1, 16)
    assert not caplog.records


class Counts(nn.Module):
    """Anneals by its own count of calls; a list, a dict and a generator are the other ways to keep one."""

    def __init__(self, way):
        super().__init__()
        self.way, self.number, self.box, self.table = way, 0, [0], {"calls": 0}
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        if self.way == "generator":
            return x + torch.rand((), generator=self.generator, dtype=x.dtype)
        if self.way == "number":
            self.number += 1
        elif self.way == "list":
            self.box[0] += 1
        else:
            self.table["calls"] += 1
        return x * (1 + 0.1 * (self.number + self.box[0] + self.table["calls"]))


class CallsCounted:
    """An objective that keeps state, from the first call or from a later one on."""

    def __init__(self, beta, late):
        self.beta, self.late, self.calls = beta, late, 0

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        if step >= self.late:
            self.calls = self.calls + 1
        return objectives.Loss(terms.distortion + self.beta / (1 + self.calls) * terms.rate, terms)


@pytest.mark.parametrize("way", ["number", "list", "dict", "generator"])
def test_models_that_keep_state_are_fitted(way, small, caplog):
    def counting():
        model = vae()
        model.decoder = nn.Sequential(*model.decoder, Counts(way))
        return model

    with caplog.at_level(logging.WARNING, "nbvae.training"):
        runs = training.sweep(counting, small, [0.3, 2.0], config=CONFIG)
    assert "keeps state" in caplog.text
    for run in runs:
        torch.manual_seed(0)
        fit = training.fit(counting(), small, run.objective, run.config)
        assert run.history == fit.history
        counts = [(each.decoder[-1].number, each.decoder[-1].box, each.decoder[-1].table) for each in (run.model, fit.model)]
        assert counts[0] == counts[1]


@pytest.mark.parametrize("late", [0, 1, 5])
def test_objectives_that_keep_state_are_fitted_from_where_they_were(late, small, caplog):
    with caplog.at_level(logging.WARNING, "nbvae.training"):
        runs = training.sweep(vae, small, objectives=[CallsCounted(0.3, late), CallsCounted(2.0, late)], config=CONFIG)
    assert "keeps state" in caplog.text
    for run in runs:
        torch.manual_seed(0)
        fit = training.fit(vae(), small, CallsCounted(run.objective.beta, late), run.config)
        assert run.history == fit.history
        assert run.objective.calls == fit.objective.calls == 9 - late


@dataclass(eq=False)
class Derived:
    """What is derived from a number, used late: another number, or a list."""

    beta: float
    listed: bool = False

    def __post_init__(self):
        self.goal = 2 * self.beta
        self.schedule = [0.0, self.beta] if self.listed else None

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        weight = 1.0 if step < 3 else self.schedule[1] if self.listed else self.goal
        return objectives.Loss(terms.distortion + weight * terms.rate, terms)


@pytest.mark.parametrize("listed", [False, True])
def test_what_an_objective_derives_from_its_numbers_is_its_own(listed, small):
    assert compared(vae, [Derived(0.3, listed), Derived(2.0, listed)], small) < 1e-10


def late_beta(beta, model, x, step):
    """β counts from the second epoch on, when the comparison is long over."""
    terms = objectives.elbo_terms(model, x)
    return objectives.Loss(terms.distortion + (1.0 if step < 3 else beta) * terms.rate, terms)


def late_function(model, x, step=0, reference=None, beta=1.0):
    return late_beta(beta, model, x, step)


class InSlots:
    __slots__ = ("beta",)

    def __init__(self, beta):
        self.beta = beta

    def __call__(self, model, x, step=0, reference=None):
        return late_beta(self.beta, model, x, step)


class AsTuple(NamedTuple):
    beta: float

    def __call__(self, model, x, step=0, reference=None):
        return late_beta(self.beta, model, x, step)


class AsDict(dict):
    def __call__(self, model, x, step=0, reference=None):
        return late_beta(self["beta"], model, x, step)

    def __hash__(self):
        return id(self)


@pytest.mark.parametrize(
    "kind",
    [lambda beta: functools.partial(late_function, beta=beta), InSlots, AsTuple, lambda beta: AsDict(beta=beta)],
    ids=["partial", "slots", "tuple", "dict"],
)
def test_objectives_that_hold_their_numbers_elsewhere_than_in_attributes_keep_their_own(kind, small):
    assert compared(vae, [kind(0.3), kind(2.0)], small) < 1e-10


class Multiplier:
    """An objective that keeps state in a dictionary, number or tensor, from a late step on."""

    def __init__(self, beta, start):
        self.beta, self.kept = beta, {"weight": start}

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        if step >= 4:
            self.kept["weight"] = self.kept["weight"] * 1.1
        return objectives.Loss(terms.distortion + self.beta * self.kept["weight"] * terms.rate, terms)


@pytest.mark.parametrize("start", [1.0, torch.ones((), dtype=torch.float64)], ids=["number", "tensor"])
def test_state_inside_an_attribute_that_comes_late_is_found_and_each_objective_keeps_its_own(start, small, caplog):
    pair = [Multiplier(0.3, start), Multiplier(2.0, start)]
    with caplog.at_level(logging.WARNING, "nbvae.training"):
        runs = training.sweep(vae, small, objectives=pair, config=CONFIG)
    assert "keeps state" in caplog.text
    for run in runs:
        torch.manual_seed(0)
        fit = training.fit(vae(), small, Multiplier(run.objective.beta, start), run.config)
        assert run.history == fit.history
        assert run.objective.kept["weight"] == fit.objective.kept["weight"]
    training.fit(vae(), small, pair[0], CONFIG)  # nothing of the stack is left in it


class Tempered(models.VAE):
    """One weight that is a single number, and one that is empty."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.temperature, self.nothing = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(0))

    def likelihood(self, z):
        return super().likelihood(z * self.temperature)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_single_number_as_a_weight_stacks(clip, small, caplog):
    with caplog.at_level(logging.WARNING, "nbvae.training"):
        config = replace(CONFIG, clip=clip)
        assert (
            compared(lambda: Tempered((1, 4, 4), 3, hidden=(6,)).double(), [Mean(0.3), Mean(2.0)], small, config=config) < 1e-10
        )
    assert not caplog.records, caplog.text


class Private(models.VAE):
    """A private attribute that counts in evaluation mode alone, where the comparison before training is blind."""

    def __init__(self, scale):
        super().__init__((1, 4, 4), 3, hidden=(6,))
        self._scale = scale

    def likelihood(self, z):
        return super().likelihood(z if self.training else self._scale * z)


def test_models_that_differ_in_a_private_setting_are_no_copies_of_each_other(small):
    scales = itertools.cycle([1.0, 3.0])
    config = replace(CONFIG, validate_every=1)
    runs = training.sweep(lambda: Private(next(scales)).double(), small, [0.3, 2.0], config=config)
    for run, scale in zip(runs, (1.0, 3.0), strict=True):
        torch.manual_seed(0)
        fit = training.fit(Private(scale).double(), small, run.objective, config)
        for name, values in run.history.items():
            assert values == pytest.approx(fit.history[name]), name


def test_only_the_second_step_tells_of_some_differences(small, caplog):
    """A function's own count of its calls is used from the second step on: what is compared must be two steps."""
    calls = itertools.count()

    def counted(model, x, step=0, reference=None):
        terms, number = objectives.elbo_terms(model, x), next(calls)
        return objectives.Loss(terms.distortion + terms.rate + (0.1 * number if step else 0.0), terms)

    with caplog.at_level(logging.WARNING, "nbvae.training"):
        training.sweep(vae, small, objectives=[counted], seeds=(0, 1), config=CONFIG)
    assert "another loss in a stack than alone" in caplog.text


def test_functions_with_attributes_stay_as_they_are(small):
    def with_beta(beta):
        def objective(model, x, step=0, reference=None):
            terms = objectives.elbo_terms(model, x)
            return objectives.Loss(terms.distortion + beta * terms.rate, terms)

        objective.beta = beta
        return objective

    pair = [with_beta(0.3), with_beta(2.0)]
    assert compared(vae, pair, small) < 1e-10
    assert [objective.beta for objective in pair] == [0.3, 2.0]


def test_a_layer_that_stands_twice_is_computed_twice(small, caplog):
    def twice():
        model, relu = vae(), nn.ReLU()
        model.decoder = nn.Sequential(nn.Linear(3, 6), relu, nn.Linear(6, 6), relu, nn.Linear(6, 16)).double()
        return model

    assert compared(twice, [objectives.BetaVAE(0.3), objectives.BetaVAE(2.0)], small) < 1e-10
    assert not caplog.records


@pytest.mark.parametrize("method", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_weights_are_obeyed(method, small, caplog):
    def masked():
        model = vae()
        weight = model.decoder[0].weight
        if method == "register_hook":
            weight.register_hook(lambda gradient: 0 * gradient)
        else:
            weight.register_post_accumulate_grad_hook(lambda parameter: [parameter.grad.zero_()].clear())
        return model

    with caplog.at_level(logging.WARNING, "nbvae.training"):
        assert compared(masked, [objectives.BetaVAE(0.3), objectives.BetaVAE(2.0)], small) == 0.0
    assert "hooks" in caplog.text


def test_half_precision_is_fitted(small, caplog):
    def half():
        model = vae().float()
        first, second = model.encoder.body[0].to(torch.bfloat16), model.encoder.body[2]
        model.encoder = nn.Sequential(To(torch.bfloat16), first, nn.ReLU(), To(torch.float32), second, Halves())
        return model

    single = data.Dataset("small", small.train.float(), small.validation.float(), small.test.float())
    with caplog.at_level(logging.WARNING, "nbvae.training"):
        runs = training.sweep(half, single, objectives=[Mean(1.001), Mean(1.003)], config=CONFIG)
    assert "half precision" in caplog.text
    assert runs[0].history["loss"] != runs[1].history["loss"]


class To(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


class Halves(nn.Module):
    def forward(self, x):
        return x.chunk(2, -1)


def test_code_that_fails_in_the_comparison_is_said(small, caplog):
    """An error alone, before training: logged, and then raised by the fit."""

    class Fails(Mean):
        def __call__(self, model, x, step=0, reference=None):
            raise RuntimeError("on purpose")

    with caplog.at_level(logging.WARNING, "nbvae.training"), pytest.raises(RuntimeError, match="on purpose"):
        training.sweep(vae, small, objectives=[Fails(0.3), Fails(2.0)], config=CONFIG)
    assert "on purpose" in caplog.text


def test_code_that_counts_on_its_batch_and_reference_stacks(small, caplog):
    class Sized(Mean):
        def __call__(self, model, x, step=0, reference=None):
            assert len(reference) == 21
            return super().__call__(model, x.reshape(len(x), -1).view(-1, 1, 4, 4) + reference[15:].std() * 0, step)

    assert compared(vae, [Sized(0.3), Sized(2.0)], small) < 1e-10
    assert not caplog.records


def test_functions_as_objectives(small, caplog):
    """Two functions have nothing in common: seeds of each are stacked."""

    def one(model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        return objectives.Loss(terms.distortion + terms.rate, terms)

    def two(model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        return objectives.Loss((terms.distortion + terms.rate.sqrt()).mean(), terms)

    assert compared(vae, [one, two], small) < 1e-5
    assert not caplog.records


def test_one_member_with_a_hook_makes_no_broadcast_stack(small, caplog):
    """A hook is nothing that two architectures are told apart by: it is found in whichever model has it."""
    which = iter([False, True, False, True])

    def some():
        model = vae()
        if next(which):
            model.decoder[2].register_forward_hook(lambda layer, arguments, output: 0.1 * output)
        return model

    runs = training.sweep(some, small, [0.3, 2.0], config=CONFIG)
    for run, build in zip(runs, (vae, hooked), strict=True):
        torch.manual_seed(0)
        fit = training.fit(build(), small, run.objective, run.config)
        assert run.history["loss"] == pytest.approx(fit.history["loss"], rel=1e-9)
