"""One suite of truths over every kind of model, with the shapes in the annotations checked as they run."""

import itertools

import pytest
import torch
from beartype import beartype
from errors import one_line
from jaxtyping import jaxtyped
from still import Still

from nbvae import data, estimators, models, objectives, training

elbo_terms = jaxtyped(typechecker=beartype)(objectives.elbo_terms)
SHAPE = (1, 4, 5)
KINDS = list(itertools.product(["linear", "mlp"], [("bernoulli", None), ("gaussian", 0.3)]))


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1][0]}")
def model(request):
    network, (likelihood, sigma) = request.param
    torch.manual_seed(3)
    return models.VAE(SHAPE, latent_dim=3, network=network, likelihood=likelihood, sigma=sigma, hidden=(12,)).double()


@pytest.fixture
def x():
    return (torch.rand(9, *SHAPE) > 0.5).double()


def test_shapes_and_events(model, x):
    posterior = jaxtyped(typechecker=beartype)(type(model).posterior)(model, x)
    assert posterior.batch_shape == (9,)
    assert posterior.event_shape == (3,)
    likelihood = model.likelihood(posterior.rsample((2,)))
    assert likelihood.batch_shape == (2, 9)
    assert likelihood.event_shape == SHAPE
    assert likelihood.mean.shape == (2, 9, *SHAPE)
    assert model.prior().event_shape == (3,)
    for encode in (type(model.encoder).forward, jaxtyped(typechecker=beartype)(type(model.encoder).forward)):
        assert [part.shape for part in encode(model.encoder, x.flatten(1))] == [(9, 3), (9, 3)]


def test_terms_are_per_example_and_independent_of_batching(model, x):
    noise = torch.randn(9, 3, dtype=torch.float64)
    whole = elbo_terms(Still(model, noise), x)
    assert whole.distortion.shape == whole.rate.shape == (9,)
    for parts in ([4, 5], [1] * 9):
        pieces = [elbo_terms(Still(model, n), part) for part, n in zip(x.split(parts), noise.split(parts), strict=True)]
        for name in whole._fields:
            torch.testing.assert_close(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))


def test_permuting_the_batch_permutes_the_terms(model, x):
    noise, order = torch.randn(9, 3, dtype=torch.float64), torch.randperm(9)
    terms, permuted = elbo_terms(Still(model, noise), x), elbo_terms(Still(model, noise[order]), x[order])
    for a, b in zip(terms, permuted, strict=True):
        torch.testing.assert_close(a[order], b)


def test_rate_is_the_closed_form_and_not_negative(model, x):
    rate = elbo_terms(model, x).rate
    mean, log_variance = model.encoder(x.flatten(1))
    torch.testing.assert_close(rate, 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1))
    assert (rate >= 0).all()


def test_rate_is_zero_for_a_collapsed_encoder(model, x):
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    assert elbo_terms(model, x).rate.abs().max() == 0


def test_distortion_is_an_unbiased_draw(model, x):
    """Its mean over many draws agrees with Gauss–Hermite quadrature of −log p(x|z), latent by latent."""
    with torch.no_grad():
        nodes, weights = torch.tensor(_hermite(16))
        posterior = model.posterior(x[:1])
        grid = torch.cartesian_prod(nodes, nodes, nodes)
        exact = -(
            model.likelihood(posterior.mean + posterior.stddev * grid).log_prob(x[:1])
            * torch.cartesian_prod(weights, weights, weights).prod(-1)
        ).sum()
        draws = elbo_terms(model, x[:1].expand(20000, *SHAPE)).distortion
    assert abs(draws.mean() - exact) < 4 * draws.std() / len(draws) ** 0.5


def _hermite(n):
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return np.stack([nodes, weights / weights.sum()])


def test_objectives_weigh_the_terms(model, x):
    noise = torch.randn(9, 3, dtype=torch.float64)
    terms = elbo_terms(Still(model, noise), x)
    for objective, beta in ((objectives.VAE(), 1.0), (objectives.BetaVAE(1.0), 1.0), (objectives.BetaVAE(4), 4.0)):
        loss = objective(Still(model, noise), x)
        torch.testing.assert_close(loss.total, terms.distortion.mean() + beta * terms.rate.mean())
        torch.testing.assert_close(loss.terms.rate, terms.rate)


def test_gradients_agree_with_finite_differences(model, x):
    noise = torch.randn(9, 3, dtype=torch.float64)
    objective = objectives.BetaVAE(2.0)
    names, values = zip(*model.named_parameters(), strict=True)

    def loss(*parameters):
        state = dict(zip(names, parameters, strict=True))
        call = lambda m: objective(m, x).total  # noqa: E731
        return torch.func.functional_call(_Wrapped(model, noise, call), {f"model.{k}": v for k, v in state.items()}, ())

    assert torch.autograd.gradcheck(loss, tuple(value.detach().requires_grad_() for value in values), eps=1e-6, atol=1e-5)


class _Wrapped(torch.nn.Module):
    def __init__(self, model, noise, call):
        super().__init__()
        self.model, self.noise, self.call = model, noise, call

    def forward(self):
        return self.call(Still(self.model, self.noise))


def test_single_precision_data_on_a_double_model(model, x):
    assert elbo_terms(model, x.float()).distortion.dtype == torch.float64


def test_any_object_with_the_three_distributions_will_do(x):
    class Prior:
        """q(z|x) = p(z): rate zero; the decoder ignores z."""

        def prior(self):
            zero = torch.zeros(2, dtype=torch.float64)
            return torch.distributions.Independent(torch.distributions.Normal(zero, zero + 1), 1)

        def posterior(self, x):
            return self.prior().expand((len(x),))

        def likelihood(self, z):
            logits = torch.zeros(*z.shape[:-1], *SHAPE, dtype=torch.float64)
            return torch.distributions.Independent(torch.distributions.Bernoulli(logits=logits, validate_args=False), 3)

    point = estimators.evaluate(Prior(), x)
    assert point.rate == 0
    assert point.distortion == pytest.approx(20 * torch.log(torch.tensor(2.0)).item())
    assert point.mse == pytest.approx(20 * 0.25)
    assert point.distortion_stderr == pytest.approx(0, abs=1e-12)


def test_the_same_seed_gives_the_same_curve_bit_for_bit():
    digits = data.load("digits")
    config = training.TrainConfig(epochs=2, batch_size=200)
    curves = []
    for disturb in (0, 5):
        torch.manual_seed(disturb)
        runs = training.sweep(lambda: models.VAE(digits.shape, 4), digits, [0.5, 2.0], seeds=(0, 1), config=config)
        curves.append(estimators.rd_curve(runs, digits.test))
    assert list(curves[0]) == list(curves[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be a whole number >= 1"),
        ({"latent_dim": 2.5}, "latent_dim must be"),
        ({"latent_dim": "8"}, "latent_dim must be"),
        ({"network": "cnn"}, "linear, mlp"),
        ({"likelihood": "poisson"}, "bernoulli, gaussian"),
        ({"hidden": (0,)}, "hidden must be"),
        ({"likelihood": "gaussian", "sigma": -1}, "sigma must be"),
        ({"sigma": 0.3}, "has none"),
        ({"shape": 64}, "shape must be"),
        ({"shape": ()}, "shape must be"),
        ({"shape": (1, 0)}, "shape must be"),
    ],
)
def test_bad_models(arguments, message):
    one_line(lambda: models.VAE(**({"shape": SHAPE} | arguments)), message)


@pytest.mark.parametrize("beta", [0, -1, float("nan"), float("inf"), "1", None, True])
def test_bad_beta(beta):
    with pytest.raises(ValueError, match="beta must be a finite number > 0"):
        objectives.BetaVAE(beta)


def test_bad_shapes(model, x):
    for bad in (x[0], x.flatten(1), x[..., :3]):
        with pytest.raises(ValueError, match=r"x must have the shape \(batch, 1, 4, 5\)"):
            model.posterior(bad)
    with pytest.raises(ValueError, match="3 latents"):
        model.likelihood(torch.zeros(2, 4, dtype=torch.float64))
