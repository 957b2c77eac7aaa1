"""Objectives that add a penalty on the aggregated posterior: its moments, or its distance from the prior."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nbvae import checks
from nbvae._randomness import streams
from nbvae.objectives.protocol import (
    Loss,
    Model,
    NeedsFixedCodes,
    components,
    draw_terms,
    not_negative_fields,
    set_field,
    weights_on,
)
from nbvae.objectives.weighted import aggregated
from nbvae.posterior import sample_mmd


@dataclass(frozen=True)
class DIPVAEI(NeedsFixedCodes):
    """D + R + λ_od Σ_{i≠j} S_ij² + λ_d Σ_i (S_ii − 1)², S = Cov_x[μ(x)] (Kumar et al. 2018, eq. 6).

    The penalty stands in for a larger weight on ④: it sees the second moments of the posterior means only. λ_od = λ_d = 0 is
    the VAE.

    - `off_diagonal`: λ_od >= 0.
    - `diagonal`: λ_d >= 0.
    - `estimator`: "batch" takes S over the batch, as published, "exact" over the reference.

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.DIPVAEI(off_diagonal=10.0, diagonal=5.0)(models.VAE((4,), 3), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    off_diagonal: float = 10.0
    diagonal: float = 5.0
    estimator: str = "batch"
    weights: ClassVar = weights_on("1", "1 + λ", "1 + λ")
    formula: ClassVar = "D + R + λ_od Σ_{i≠j} S_ij² + λ_d Σ_i (S_ii − 1)², S = Cov[μ]"
    reference: ClassVar = "Kumar et al. (2018)"

    def __post_init__(self) -> None:
        not_negative_fields(self, "off_diagonal", "diagonal")
        checks.choice("estimator", self.estimator, ("batch", "exact"))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        draw = draw_terms(model, x)
        mean, std = components(model, draw, reference if self.estimator == "exact" else None)
        covariance = self.covariance(mean, std)
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        outside = covariance.square().sum((-2, -1)) - diagonal.square().sum(-1)
        penalty = self.off_diagonal * outside + self.diagonal * (diagonal - 1).square().sum(-1)
        return Loss((draw.terms.distortion + draw.terms.rate).mean(-1) + penalty, draw.terms)

    def covariance(self, mean: Float[Tensor, "*models n k"], std: Float[Tensor, "*models n k"]) -> Float[Tensor, "*models k k"]:
        """S (k, k) over n posteriors with these `mean`s and `std`s, each (n, k); divided by n."""
        centred = mean - mean.mean(-2, keepdim=True)
        return centred.mT @ centred / mean.shape[-2]


@dataclass(frozen=True)
class DIPVAEII(DIPVAEI):
    """As `DIPVAEI` with S = Cov_x[μ(x)] + E_x[diag σ²(x)], the covariance of q(z) (Kumar et al. 2018, eq. 7).

    `off_diagonal`, `diagonal` and `estimator` are those of `DIPVAEI`.

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.DIPVAEII(off_diagonal=10.0, diagonal=5.0)(models.VAE((4,), 3), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    formula: ClassVar = "D + R + λ_od Σ_{i≠j} S_ij² + λ_d Σ_i (S_ii − 1)², S = Cov[μ] + E[diag σ²]"

    def covariance(self, mean: Float[Tensor, "*models n k"], std: Float[Tensor, "*models n k"]) -> Float[Tensor, "*models k k"]:
        """S (k, k) over n posteriors with these `mean`s and `std`s, each (n, k); divided by n."""
        return super().covariance(mean, std) + torch.diag_embed(std.square().mean(-2))


@dataclass(frozen=True)
class InfoVAE(NeedsFixedCodes):
    """D + (1 − α)R + (α + λ − 1)·MMD(q(z), p(z)) (Zhao et al. 2019, eq. 6): the weights are 1 − α on ② and λ on ④.

    α = 0 with λ = 1 is the VAE. At α = 1 nothing weighs ②.

    - `alpha`: α <= 1.
    - `lam`: λ >= 1 − α.
    - `estimator`: "mmd" puts the squared maximum mean discrepancy in the place of ④, between the batch's z and as many draws
      from the prior, with the kernel exp(−‖z − z'‖²/k²) and all pairs kept, which makes it biased and >= 0, as in the authors'
      code. "exact" has ④ itself.

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.InfoVAE(alpha=0.0, lam=30.0)(models.VAE((4,), 3), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    alpha: float = 0.0
    lam: float = 30.0
    estimator: str = "mmd"
    weights: ClassVar = weights_on("1 − α", "λ", "λ")
    formula: ClassVar = "D + (1 − α)R + (α + λ − 1) MMD(q(z), p(z))"
    reference: ClassVar = "Zhao et al. (2019)"

    def __post_init__(self) -> None:
        set_field(self, "alpha", checks.between("alpha", self.alpha, -math.inf, 1.0))
        set_field(self, "lam", checks.between("lam", self.lam, 1 - self.alpha, math.inf))
        checks.choice("estimator", self.estimator, ("mmd", "exact"))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        draw = draw_terms(model, x)
        prior = model.prior()
        if self.estimator == "exact":
            log_q = aggregated(model, draw, reference, "exact", latents=False)
            marginal = (log_q.joint - prior.log_prob(draw.z)).mean(-1)
        else:
            noise = streams(model).normal(draw.z.shape[-2:], draw.z)
            marginal = sample_mmd(draw.z, (prior.mean + prior.stddev * noise).expand_as(draw.z))
        rest = draw.terms.distortion.mean(-1) + (1 - self.alpha) * draw.terms.rate.mean(-1)
        return Loss(rest + (self.alpha + self.lam - 1) * marginal, draw.terms)
