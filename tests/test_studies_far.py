"""The study of pairs far beyond log N: its density and objective against closed forms, its search, its checks."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line
from torch import distributions

from nbvae import data, models, objectives, training
from studies import far


def companion(k: int = 2, components: int = 3) -> far.Beside:
    with training.seeded(0):
        found = far.Beside(k, components)
        for parameter in found.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return found


def test_the_density_beside_a_model_is_a_mixture_of_gaussians():
    """Against torch's, from the same precisions, with the twentieth that is N(0, I)."""
    found, z = companion(), torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    root = found.lower.tril(-1) + torch.diag_embed(found.log_diagonal.exp())
    each = distributions.MultivariateNormal(found.mean, precision_matrix=root.mT @ root)
    mixed = distributions.MixtureSameFamily(distributions.Categorical(logits=found.weight), each)
    plain = distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    truth = (0.95 * mixed.log_prob(z).exp() + 0.05 * plain.log_prob(z).exp()).log()
    torch.testing.assert_close(found(z), truth, rtol=1e-4, atol=1e-4)


def test_with_equal_weights_the_objective_is_that_of_a_beta_vae():
    with training.seeded(0):
        model, x = models.VAE((4,), 2, hidden=(8,)), torch.rand(50, 4).round()
    found = []
    for kind, more in ((far.Shaped(0.3, 0.3), {"companion": companion()}), (objectives.BetaVAE(0.3), {})):
        with training.seeded(1):
            found.append(kind(model, x, **more).total.mean())
    torch.testing.assert_close(*found)


class Exact(torch.nn.Module):
    def __init__(self, covariance: torch.Tensor):
        super().__init__()
        self.law = distributions.MultivariateNormal(torch.zeros(len(covariance)), covariance)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.law.log_prob(z)


class Sent(models.VAE):
    """Codes are x itself, to within very little."""

    def posterior(self, x: torch.Tensor) -> distributions.Distribution:
        return distributions.Independent(distributions.Normal(x, torch.full_like(x, 1e-3)), 1)


def test_shape_is_the_kl_to_independent_gaussians_of_the_same_variances():
    """Of a correlated Gaussian it is −½ log det of the correlations, whatever the variances are."""
    covariance = torch.tensor([[2.0, 0.9], [0.9, 1.0]])
    with training.seeded(0):
        x = distributions.MultivariateNormal(torch.zeros(2), covariance).sample((200_000,))
        model = Sent((2,), 2, likelihood="gaussian", hidden=(4,))
    losses = []
    for w in (0.5, 2.5):
        with training.seeded(1), torch.no_grad():
            losses.append(far.Shaped(0.5, w)(model, x, companion=Exact(covariance)).total)
    truth = -0.5 * math.log(1 - 0.9**2 / 2.0)
    assert ((losses[1] - losses[0]) / 2).item() == pytest.approx(truth, abs=0.005)


def test_a_density_that_is_worse_than_independent_gaussians_earns_nothing():
    with training.seeded(0):
        x = torch.randn(1000, 2)
        model = Sent((2,), 2, likelihood="gaussian", hidden=(4,))
    losses = []
    for w in (0.5, 2.5):
        with training.seeded(1), torch.no_grad():
            losses.append(far.Shaped(0.5, w)(model, x, companion=Exact(9 * torch.eye(2))).total)
    torch.testing.assert_close(*losses)


def test_a_sweep_trains_the_density_beside_each_model():
    """The aggregated posterior of the light model has more shape by far, on codes of new images."""
    ds = data.load("digits")
    common = {"beside": 5, "passes": 100, "latent_dim": 4, "hidden": [32], "batch": 100, "lr": 1e-2, "store": None}
    found = []
    for weights in ([0.3, 3.0], [0.3, 0.03]):
        (model,) = far._trained(ds, weights, [0], device="cpu", **common)
        view, x = far._at_best_scale(ds, model)
        found.append(far.marginal_kl_lower(view, x, ds.test, 5)[far.SHAPE].value)
    assert found[1] > found[0] + 0.15


def test_the_search_finds_where_a_known_curve_has_the_rate():
    grid = (0.1, 0.15, 0.2, 0.3)
    rates = [20 - 5 * math.log(a) - math.log(a) ** 2 for a in grid]
    truth = 0.17
    target = 20 - 5 * math.log(truth) - math.log(truth) ** 2
    assert far.crossing(grid, rates, target) == pytest.approx(truth, rel=1e-3)
    assert far.crossing(grid, rates, 1e3) in (pytest.approx(0.1), pytest.approx(0.3))  # outside: an end


def frame(
    apart: float = 0.0, shape: float = 1.0, rate: float = 20.0, costs: tuple[float, ...] = (1.0, 1.0), passes: tuple = (1, 2)
) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for times, cost in zip(passes, costs, strict=False):
        for name, more in ((far.HEAVY, 0.0), (far.LIGHT, 1.0)):
            for seed in range(5):
                place = {"objective": name, "seed": seed, "passes": times, "stderr": None, "n": 1}
                noise = 0.01 * rng.normal()
                values = {("train", None, "rate"): rate + more * apart + noise, ("train", None, "distortion"): 5.0 + noise}
                values |= {("test", None, far.SHAPE): 1.0 + more * shape + noise, ("train", None, "marginal_kl"): 1.0}
                if times == 1:  # the flow is fitted after the plan's passes alone
                    values |= {("test", None, far.FLOW): 1.0 + more * shape + noise}
                for distance in far.DISTANCES:
                    values |= {("test", "prior", distance): 3.0 + cost * more, ("test", "aggregate", distance): 2.0 + noise}
                    values |= {("test", "mixture", distance): 2.5}
                rows += [
                    place | {"split": split, "sampler": way, "quantity": quantity, "value": value}
                    for (split, way, quantity), value in values.items()
                ]
    return pd.DataFrame(rows)


def test_differences_are_light_less_heavy_and_costs_are_above_the_aggregates():
    found = far.differences(frame(apart=0.5, passes=(1,)).drop(columns="passes")).groupby("quantity")["value"].mean()
    assert found["rate"] == pytest.approx(0.5, abs=0.02)
    assert found[far.SHAPE] == pytest.approx(1.0, abs=0.02)
    assert found["frechet cost"] == pytest.approx(1.0, abs=0.02)
    assert found["coverage cost"] == pytest.approx(-1.0, abs=0.02)  # the light one covers more here
    assert found["frechet cost of a mixture"] == pytest.approx(0.0, abs=0.02)
    each = far.by_model(frame(passes=(1,)).drop(columns="passes")).groupby(["quantity", "objective"])["value"].mean()
    assert each["frechet cost of a mixture", far.LIGHT] == pytest.approx(0.5, abs=0.02)
    assert each["frechet cost", far.LIGHT] == pytest.approx(2.0, abs=0.02)
    assert each["coverage cost of a mixture", far.HEAVY] == pytest.approx(-0.5, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "failed"),
    [
        ({}, []),
        ({"apart": 0.3}, ["the pair has one rate"]),
        ({"shape": 0.0}, ["the light one has more shape"]),
        ({"shape": -1.0}, ["the light one has more shape"]),
        ({"costs": (1.0, -1.0)}, ["2 passes leave every claim on its side"]),
        ({"rate": 10.0}, ["every rate is at least"]),
    ],
)
def test_the_checks_fail_for_what_they_are_there_for(settings, failed):
    checks = far._checks(far.Plan(passes=1), frame(**settings), images=1000)
    assert sum("has more shape" in each.name for each in checks) == 3
    names = {each.name for each in checks if not each.passed}
    assert all(any(name.startswith(each) for name in names) for each in failed)
    assert all(any(name.startswith(each) for each in failed) for name in names)


@pytest.mark.parametrize(
    "settings",
    [{"heavy": (1.0,)}, {"heavy": (0.1, 0.2), "light": 3.0}, {"grid": (0.1, 0.2)}, {"seeds": (0,)}, {"search_seeds": 0}],
)
def test_refuses_plans_that_cannot_be_run(settings):
    one_line(lambda: far.Plan(**settings))
