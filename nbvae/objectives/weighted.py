"""Objectives that weigh D and the terms of R: the mutual information ②, the total correlation TC, the dimension-wise KL DW.

A whole R is exact. Its parts need log q(z): over the whole training set, or estimated from the batch (`aggregated`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, distributions

from nbvae import checks
from nbvae.objectives.protocol import (
    Draw,
    Loss,
    Model,
    NeedsFixedCodes,
    Objective,
    components,
    draw_terms,
    elbo_terms,
    not_negative_fields,
    set_field,
    weights_on,
)
from nbvae.posterior import MINIBATCH, LogDensities, check_reference, log_densities, log_weights, mean_and_std, partition


@dataclass(frozen=True)
class VAE(Objective):
    """−ELBO = D + R (Kingma & Welling 2013; Rezende et al. 2014).

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.VAE()(models.VAE((4,), 3), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    weights: ClassVar = weights_on("1", "1", "1")
    formula: ClassVar = "D + R"
    reference: ClassVar = "Kingma & Welling (2013), Rezende et al. (2014)"
    beta: ClassVar[float] = 1.0

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        terms = elbo_terms(model, x)
        return Loss((terms.distortion + terms.rate).mean(-1), terms)


@dataclass(frozen=True)
class BetaVAE(Objective):
    """D + βR (Higgins et al. 2017): minus the slope of the rate–distortion curve at the optimum is β.

    - `beta`: what a nat of rate costs in nats of distortion, > 0. β = 1 is the VAE.

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.BetaVAE(beta=4.0)(models.VAE((4,), 3), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    beta: float = 1.0
    weights: ClassVar = weights_on("β", "β", "β")
    formula: ClassVar = "D + βR"
    reference: ClassVar = "Higgins et al. (2017)"

    def __post_init__(self) -> None:
        set_field(self, "beta", checks.positive("beta", self.beta))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        terms = elbo_terms(model, x)
        return Loss(terms.distortion.mean(-1) + self.beta * terms.rate.mean(-1), terms)


@dataclass(frozen=True)
class Capacity(Objective):
    """D + γ·|E[R] − C(t)|: a target for the mean rate (Burgess et al. 2018, eq. 8; Alemi et al. 2018).

    The absolute value is of the batch's mean rate. γ = 1 with C = 0 is the VAE.

    - `gamma`: what a nat of deviation from the target costs, >= 0.
    - `capacity`: the target in nats, >= 0.
    - `ramp_steps`: C rises linearly from 0 to `capacity` over so many steps; with 0 it is `capacity` from the start, which is
      Alemi's target rate.

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.Capacity(gamma=10.0, capacity=3.0)(models.VAE((4,), 3), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    gamma: float = 10.0
    capacity: float = 3.0
    ramp_steps: int = 0
    weights: ClassVar = weights_on("±γ", "±γ", "±γ")
    formula: ClassVar = "D + γ |R − C(t)|"
    reference: ClassVar = "Burgess et al. (2018), Alemi et al. (2018)"

    def __post_init__(self) -> None:
        not_negative_fields(self, "gamma", "capacity")
        set_field(self, "ramp_steps", checks.whole("ramp_steps", self.ramp_steps, minimum=0))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        terms = elbo_terms(model, x)
        target = self.capacity * (min(1.0, step / self.ramp_steps) if self.ramp_steps else 1.0)
        return Loss(terms.distortion.mean(-1) + self.gamma * (terms.rate.mean(-1) - target).abs(), terms)


@dataclass(frozen=True)
class AnchorVAE(NeedsFixedCodes):
    """D + R − λ·I(z_a; x) for the anchor latents a (Gao et al. 2019).

    λ = 0 is the VAE.

    - `anchors`: the indices of these latents.
    - `lam`: the weight λ >= 0. From 1 on only log N bounds the term, so that nothing but the estimate keeps the anchors' rate
      finite.
    - `estimator`: how I(z_a; x) is estimated from the batch, one of `posterior.MINIBATCH`, or "exact".

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.AnchorVAE(anchors=(0,), lam=0.5)(models.VAE((4,), 3), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    anchors: tuple[int, ...] = (0,)
    lam: float = 0.5
    estimator: str = "hfvae"
    weights: ClassVar = weights_on("1, and −λ on I(x; z_a)", "1", "1")
    formula: ClassVar = "D + R − λ I(x; z_a)"
    reference: ClassVar = "Gao et al. (2019)"

    def __post_init__(self) -> None:
        set_field(self, "anchors", tuple(checks.whole("anchors", i, minimum=0) for i in checks.listed("anchors", self.anchors)))
        not_negative_fields(self, "lam")
        checks.choice("estimator", self.estimator, (*MINIBATCH, "exact"))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        draw = draw_terms(model, x)
        k = draw.z.shape[-1]
        if max(self.anchors) >= k or len(set(self.anchors)) < len(self.anchors):
            raise ValueError(f"anchors must be different latents of 0 to {k - 1}, got {self.anchors}")
        chosen = list(self.anchors)
        log_q = aggregated(model, draw, reference, self.estimator, [chosen], latents=False).groups[..., 0]
        own = per_latent(draw.posterior, draw.z)[..., chosen].sum(-1)
        information = (own - log_q).mean(-1)
        return Loss((draw.terms.distortion + draw.terms.rate).mean(-1) - self.lam * information, draw.terms)


class _OfFourTerms(NeedsFixedCodes):
    """D plus weighted ②, TC, DW and (i), the total correlation within groups of latents, all at the same z.

    With all weights one it is D plus the sampled log q(z|x)/p(z).
    """

    estimator: str

    def __post_init__(self) -> None:
        not_negative_fields(self, *(name for name in ("alpha", "beta", "gamma", "dimension") if hasattr(self, name)))
        checks.choice("estimator", self.estimator, (*MINIBATCH, "exact"))

    def _loss(
        self,
        model: Model,
        x: Tensor,
        reference: Tensor | None,
        on_information: Any,
        on_correlation: Any,
        on_dimensions: Any,
        on_within: Any = 0.0,
        groups: Any = None,
    ) -> Loss:
        """The weighted sum; the weights are numbers, or tensors (models,) of a stack."""
        draw = draw_terms(model, x)
        parts = () if groups is None else partition(groups, draw.z.shape[-1])
        log_q = aggregated(model, draw, reference, self.estimator, parts)
        singles = log_q.latents.sum(-1)
        between = log_q.groups.sum(-1) if parts else singles
        information = (draw.posterior.log_prob(draw.z) - log_q.joint).mean(-1)
        # Total correlation, log q(z) − Σ_d log q(z_d): between groups of latents if there are any, and then within them.
        correlation = (log_q.joint - between).mean(-1)
        within = (between - singles).mean(-1)
        dimensions = (singles - model.prior().log_prob(draw.z)).mean(-1)
        rest = on_information * information + on_correlation * correlation + on_within * within + on_dimensions * dimensions
        return Loss(draw.terms.distortion.mean(-1) + rest, draw.terms)


@dataclass(frozen=True)
class InformationDropout(_OfFourTerms):
    """D + β② + γ TC (Achille & Soatto 2018), as its Gaussian equivalent: no weight on DW, the marginal is free but factorised.

    The published model multiplies activations by log-normal noise, log z = log f(x) + α(x)ε: a Gaussian encoder of log z. Its
    penalty is the KL to a factorised marginal that is fitted; at the best one that is ② + TC. With the free marginal there is
    no prior to sample from and R has no meaning as a cost: the row has no place on a rate axis.
    β = γ = 1 with `dimension` = 1 is the VAE, with its KL sampled.

    - `beta`: the weight of ②, >= 0.
    - `gamma`: the weight of TC, >= 0.
    - `dimension`: the weight of DW, >= 0.
    - `estimator`: how they are estimated from the batch, one of `posterior.MINIBATCH`, or "exact".

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.InformationDropout(beta=1.0, gamma=3.0)(models.VAE((4,), 3), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    beta: float = 1.0
    gamma: float = 1.0
    dimension: float = 0.0
    estimator: str = "hfvae"
    weights: ClassVar = weights_on("β", "γ", "0")
    formula: ClassVar = "D + β I(x; z) + γ TC"
    reference: ClassVar = "Achille & Soatto (2018)"

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        return self._loss(model, x, reference, self.beta, self.gamma, self.dimension)


@dataclass(frozen=True)
class BetaTCVAE(_OfFourTerms):
    """D + α② + β TC + γ DW (Chen et al. 2018, eq. 4). α = β = γ = 1 is the VAE, with its KL sampled.

    - `alpha`, `beta`, `gamma`: the weights of ②, TC and DW, each >= 0.
    - `estimator`: how they are estimated from the batch: "weighted", as published, "stratified" or "hfvae"; or "exact".

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.BetaTCVAE(beta=6.0)(models.VAE((4,), 3), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    alpha: float = 1.0
    beta: float = 6.0
    gamma: float = 1.0
    estimator: str = "weighted"
    weights: ClassVar = weights_on("α", "β", "γ")
    formula: ClassVar = "D + α I(x; z) + β TC + γ DW"
    reference: ClassVar = "Chen et al. (2018)"

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        return self._loss(model, x, reference, self.alpha, self.beta, self.gamma)


@dataclass(frozen=True)
class HFVAE(_OfFourTerms):
    """D + α② + β TC + γ(i) + (ii): TC between groups of latents, (i) the total correlation within each, (ii) = DW.

    (Esmaeili et al. 2019, eq. 7.) α = β = γ = 1 is the VAE, with its KL sampled.

    - `groups`: lists of latents, each latent in exactly one; None makes each its own group.
    - `alpha`, `beta`, `gamma`: the weights of ②, of TC between groups and of (i), each >= 0.
    - `estimator`: how they are estimated from the batch: "hfvae", as published, another of `posterior.MINIBATCH`, or "exact".

    >>> import torch
    >>> from nbvae import models, objectives
    >>> loss = objectives.HFVAE(groups=[[0, 1], [2]])(models.VAE((4,), 3), torch.ones(8, 4))
    >>> loss.total.shape, loss.terms.rate.shape
    (torch.Size([]), torch.Size([8]))
    """

    groups: tuple[tuple[int, ...], ...] | None = None
    alpha: float = 1.0
    beta: float = 6.0
    gamma: float = 2.0
    estimator: str = "hfvae"
    weights: ClassVar = weights_on("α", "β between groups, γ within", "1")
    formula: ClassVar = "D + α I(x; z) + β TC + γ TC within + DW"
    reference: ClassVar = "Esmaeili et al. (2019)"

    def __post_init__(self) -> None:
        if self.groups is not None:
            set_field(self, "groups", partition(self.groups))
        super().__post_init__()

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        return self._loss(model, x, reference, self.alpha, self.beta, 1.0, self.gamma, self.groups)


def aggregated(
    model: Model,
    draw: Draw,
    reference: Tensor | None,
    estimator: str,
    groups: Sequence[Sequence[int]] = (),
    latents: bool = True,
) -> LogDensities:
    """log q(z) of the batch's z: exact over the reference, or estimated from the batch. With gradients."""
    batch = draw.z.shape[-2]
    if reference is not None:
        check_reference(reference)
    n = batch if reference is None else len(reference)
    mean, std = components(model, draw, reference if estimator == "exact" else None)
    weights = -math.log(n) if estimator == "exact" else log_weights(estimator, batch, n, draw.z)
    return log_densities(draw.z, mean, std, weights, groups, latents)


def per_latent(distribution: distributions.Distribution, z: Tensor) -> Tensor:
    """log q(z_d|x) (..., k) of a diagonal Gaussian."""
    return distributions.Normal(*mean_and_std(distribution), validate_args=False).log_prob(z)
