"""Moments of the aggregated posterior, and the latents that carry information."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nbvae import checks, objectives, results
from nbvae.posterior import encode


class Moments(NamedTuple):
    """First and second moments of q(z) on x, with the parts that they are made of and standard errors over the examples."""

    mean: Float[Tensor, " k"]  # E μ_i
    mean_stderr: Float[Tensor, " k"]
    second_moment: Float[Tensor, " k"]  # E z_i² = E[μ_i² + σ_i²]
    second_moment_stderr: Float[Tensor, " k"]
    mean_covariance: Float[Tensor, "k k"]  # Cov_x[μ], divided by N: DIP-VAE I's S
    covariance: Float[Tensor, "k k"]  # Cov_x[μ] + E diag σ²: DIP-VAE II's S, the covariance of q(z)
    n: int | None = None  # examples

    estimates, estimate, to_frame = results.Quantities.estimates, results.Quantities.estimate, results.Quantities.to_frame

    @property
    def off_diagonal(self) -> float:
        """Σ_{i≠j} Cov_x[μ]_ij², what DIP-VAE's λ_od weighs."""
        return (self.mean_covariance.square().sum() - self.mean_covariance.diagonal().square().sum()).item()


def moments(model: objectives.Model, x: Float[Tensor, "batch ..."]) -> Moments:
    """First and second moments of the aggregated posterior q(z) of a `model` on x (batch, *shape), exact, without draws.

    At a stationary point of D + a② + t TC + m DW, m > 0, on the training average, with linear unclamped encoder heads and a
    linear first layer of the decoder, each `second_moment` is 1 and each `mean` 0, for rescaling or shifting a latent costs
    nothing else: a check of convergence, necessary and not sufficient.

    Raises `ValueError` for fewer than two examples, and unless the posterior is a diagonal Gaussian.

    >>> import torch
    >>> from nbvae import data, estimators, models
    >>> digits = data.load("digits")
    >>> found = estimators.moments(models.VAE(digits.shape, 2, hidden=(8,)), digits.test)
    >>> torch.allclose(found.second_moment, found.covariance.diagonal() + found.mean**2)
    True
    """
    objectives.check_input(model, x, least=2)
    mean, std = (part.cpu().double() for part in encode(model, x))
    second = mean.square() + std.square()
    covariance = torch.cov(mean.T, correction=0).reshape(mean.shape[-1], -1)
    root = len(x) ** 0.5
    return Moments(
        mean.mean(0),
        mean.std(0) / root,
        second.mean(0),
        second.std(0) / root,
        covariance,
        covariance + std.square().mean(0).diag(),
        len(x),
    )


@dataclass(frozen=True, eq=False)
class ActiveUnits(results.Quantities):
    """Latents whose posterior mean varies over the data by more than the threshold."""

    count: int  # how many are active
    active: Bool[Tensor, " k"]  # which
    variance: Float[Tensor, " k"]  # Var_x[μ_i], divided by N − 1
    variance_stderr: Float[Tensor, " k"]
    n: int | None = None  # examples


def active_units(model: objectives.Model, x: Float[Tensor, "batch ..."], threshold: float = 0.01) -> ActiveUnits:
    """The latents whose posterior mean varies with x, by Var_x[μ_i(x)] (Burda et al. 2016, section 5.2).

    - `model`: the model that is measured, in evaluation mode. It is left as it was.
    - `x`: the examples (batch, *shape) over which the variance is taken, at least two.
    - `threshold`: the variance that an active latent exceeds, > 0.

    Raises `ValueError` for fewer than two examples, and unless the posterior is a diagonal Gaussian.

    >>> from nbvae import data, estimators, models
    >>> digits = data.load("digits")
    >>> units = estimators.active_units(models.VAE(digits.shape, 3, hidden=(8,)), digits.test, threshold=1e-9)
    >>> units.count, units.active.tolist()
    (3, [True, True, True])
    """
    objectives.check_input(model, x, least=2)
    threshold = checks.positive("threshold", threshold)
    mean = encode(model, x)[0].cpu().double()
    variance = mean.var(0)
    # The standard error of a variance, from the spread of the squared deviations.
    error = (mean - mean.mean(0)).square().std(0) / len(x) ** 0.5
    return ActiveUnits(int((variance > threshold).sum()), variance > threshold, variance, error, len(x))
