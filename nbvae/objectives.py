"""Training objectives as weights on the terms of the ELBO: stateless objects, called beside the training loop.

Minimised form: D + a·② + t·TC + m·DW, with D the distortion, ② = I(x; z), TC the total correlation of the aggregated
posterior and DW the sum of its dimension-wise KL divergences to the prior; the rate is R = ② + TC + DW. All in nats.

Every row is called as `objective(model, x, step=0, reference=None)`. `reference` is the training set (N, *shape): minibatch
estimators need its size, the estimator "exact" all of its codes; without it the batch x is taken for the whole data set.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, distributions, nn

from nbvae import aggregate, checks, elbo, likelihoods, stacking
from nbvae import nn as networks
from nbvae.elbo import Loss as Loss
from nbvae.elbo import Model as Model
from nbvae.elbo import Terms as Terms
from nbvae.elbo import check_data as check_data
from nbvae.elbo import check_input as check_input
from nbvae.elbo import elbo_terms as elbo_terms


@dataclass(frozen=True)
class VAE:
    """−ELBO = D + R (Kingma & Welling 2013; Rezende et al. 2014)."""

    weights: ClassVar = {"a": "1", "t": "1", "m": "1"}
    formula: ClassVar = "D + R"
    reference: ClassVar = "Kingma & Welling (2013), Rezende et al. (2014)"
    beta: ClassVar[float] = 1.0

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        terms = elbo_terms(model, x)
        return Loss((terms.distortion + terms.rate).mean(-1), terms)


@dataclass(frozen=True)
class BetaVAE:
    """D + βR (Higgins et al. 2017): minus the slope of the rate–distortion curve at the optimum is β.

    `beta` > 0; `ValueError` otherwise. The VAE: β = 1.
    """

    beta: float = 1.0
    weights: ClassVar = {"a": "β", "t": "β", "m": "β"}
    formula: ClassVar = "D + βR"
    reference: ClassVar = "Higgins et al. (2017)"

    def __post_init__(self) -> None:
        _set(self, "beta", checks.positive("beta", self.beta))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        terms = elbo_terms(model, x)
        return Loss(terms.distortion.mean(-1) + self.beta * terms.rate.mean(-1), terms)


@dataclass(frozen=True)
class LogMSE:
    """n/2 (log(2π MSE_i/n) + 1) + βR: the Gaussian loss at each example's own best σ_i² = MSE_i/n (Kim & Lee 2024).

    A training score, not a likelihood: σ_i is chosen with x in view, and exp(−score) does not integrate over x. It lies below
    −log p(x|z) of every isotropic Gaussian decoder with the same mean, so never put it on a likelihood axis; `Terms.distortion`
    holds it, `Run.history` too. The model's own σ is not used; with `sigma="optimal"` training calibrates it beside, and the
    model has a likelihood that can be measured. `beta` > 0. σ_i is at least
    `likelihoods.FLOOR`; on it the score is the Gaussian's.
    """

    beta: float = 1.0
    weights: ClassVar = {"a": "β", "t": "β", "m": "β"}
    formula: ClassVar = "n/2 log MSE_i + βR"
    reference: ClassVar = "Kim & Lee (2024)"

    def __post_init__(self) -> None:
        _set(self, "beta", checks.positive("beta", self.beta))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        prior = model.prior()
        posterior = model.posterior(x := x.to(prior.mean))
        mse, n = self._mean_error(model.likelihood(posterior.rsample()), x)
        variance = mse.clamp(min=likelihoods.FLOOR**2)
        # Above the floor mse/variance is 1, and constant.
        score = 0.5 * n * ((2 * math.pi * variance).log() + mse / variance)
        terms = Terms(score, distributions.kl_divergence(posterior, prior))
        return Loss(score.mean(-1) + self.beta * terms.rate.mean(-1), terms)

    @torch.no_grad()
    def at_floor(self, model: Model, x: Float[Tensor, "batch *shape"]) -> float:
        """The share of the σ_i, over one draw of z for each x, that are on the floor."""
        mse, _ = self._mean_error(model.likelihood(model.posterior(x := x.to(model.prior().mean)).sample()), x)
        return (mse <= likelihoods.FLOOR**2).double().mean().item()

    def _mean_error(self, likelihood: distributions.Distribution, x: Tensor) -> tuple[Tensor, int]:
        """MSE_i/n (*models, batch), and n."""
        if not isinstance(getattr(likelihood, "base_dist", None), distributions.Normal):
            raise ValueError("LogMSE is a score for gaussian decoders: use likelihood='gaussian'")
        rank = len(likelihood.event_shape)
        return (x - likelihood.mean).square().flatten(-rank).mean(-1), math.prod(likelihood.event_shape)


@dataclass(frozen=True)
class MultiBeta:
    """E_β β^(−power) (D + βR) of a `models.MultiBetaVAE`, log β uniform over its range: the whole curve in one training.

    Each example has its own β. The draws of a batch are stratified, one in each of `batch` equal parts of log β's range, from
    a random example on: each example's β is uniform, and most of the average's noise is gone. D + βR is larger where β is, and
    so are its gradients; β^(−power) evens them out. `power` >= 0; 0 is the weighting of the Multi-Rate VAE (Bae et al. 2023).
    """

    power: float = 0.25
    weights: ClassVar = {"a": "β", "t": "β", "m": "β"}
    formula: ClassVar = "E_β β^(−power) (D + βR)"
    reference: ClassVar = "after Bae et al. (2023)"

    def __post_init__(self) -> None:
        _set(self, "power", checks.not_negative("power", self.power))

    def __call__(self, model: Any, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        inner = getattr(model, "stacked", model)
        if not (hasattr(inner, "encode") and hasattr(inner, "beta_range")):
            raise ValueError(f"MultiBeta trains a models.MultiBetaVAE, got {type(inner).__name__}")
        prior = model.prior()
        x = x.to(prior.mean)
        low, high = (math.log(beta) for beta in inner.beta_range)
        batch = x.shape[-1 - len(inner.shape)]
        if not batch:
            raise ValueError(f"x must have at least one example, got the shape {tuple(x.shape)}")
        uniform = stacking.streams(model, x.device).uniform((batch + 1,), x)
        first = (uniform[..., :1] * batch).floor()
        part = (torch.arange(batch, dtype=x.dtype, device=x.device) + first) % batch
        log_beta = low + (part + uniform[..., 1:]) * ((high - low) / batch)
        condition = model.condition(log_beta.unsqueeze(-1))
        posterior = model.encode(x, condition)
        distortion = -model.decode(posterior.rsample(), condition).log_prob(x)
        terms = Terms(distortion, distributions.kl_divergence(posterior, prior))
        loss = terms.distortion + log_beta.exp() * terms.rate
        # Of a stack trained with several powers: (models, 1), beside the batch.
        power = self.power.unsqueeze(-1) if isinstance(self.power, Tensor) else self.power
        return Loss(((-power * log_beta).exp() * loss).mean(-1), terms)


@dataclass(frozen=True)
class DIPVAEI:
    """D + R + λ_od Σ_{i≠j} S_ij² + λ_d Σ_i (S_ii − 1)², S = Cov_x[μ(x)] (Kumar et al. 2018, eq. 6).

    The penalty stands in for a larger weight on ④: it sees the second moments of the posterior means only. `off_diagonal` is
    λ_od, `diagonal` λ_d, both >= 0. `estimator`: S of the "batch", as published, or "exact", of the reference.
    The VAE: λ_od = λ_d = 0.
    """

    off_diagonal: float = 10.0
    diagonal: float = 5.0
    estimator: str = "batch"
    weights: ClassVar = {"a": "1", "t": "1 + λ", "m": "1 + λ"}
    formula: ClassVar = "D + R + λ_od Σ_{i≠j} S_ij² + λ_d Σ_i (S_ii − 1)², S = Cov[μ]"
    reference: ClassVar = "Kumar et al. (2018)"

    def __post_init__(self) -> None:
        _not_negative(self, "off_diagonal", "diagonal")
        checks.choice("estimator", self.estimator, ("batch", "exact"))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        draw = elbo.draw(model, x)
        mean, std = elbo.codes(model, draw, reference if self.estimator == "exact" else None)
        covariance = self.covariance(mean, std)
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        outside = covariance.square().sum((-2, -1)) - diagonal.square().sum(-1)
        penalty = self.off_diagonal * outside + self.diagonal * (diagonal - 1).square().sum(-1)
        return Loss((draw.terms.distortion + draw.terms.rate).mean(-1) + penalty, draw.terms)

    def covariance(self, mean: Float[Tensor, "*models n k"], std: Float[Tensor, "*models n k"]) -> Float[Tensor, "*models k k"]:
        """S (k, k) over the n given posteriors, divided by n."""
        centred = mean - mean.mean(-2, keepdim=True)
        return centred.mT @ centred / mean.shape[-2]


@dataclass(frozen=True)
class DIPVAEII(DIPVAEI):
    """As `DIPVAEI` with S = Cov_x[μ(x)] + E_x[diag σ²(x)], the covariance of q(z) (Kumar et al. 2018, eq. 7)."""

    formula: ClassVar = "D + R + λ_od Σ_{i≠j} S_ij² + λ_d Σ_i (S_ii − 1)², S = Cov[μ] + E[diag σ²]"

    def covariance(self, mean: Float[Tensor, "*models n k"], std: Float[Tensor, "*models n k"]) -> Float[Tensor, "*models k k"]:
        """S (k, k) over the n given posteriors, divided by n."""
        return super().covariance(mean, std) + torch.diag_embed(std.square().mean(-2))


@dataclass(frozen=True)
class InfoVAE:
    """D + (1 − α)R + (α + λ − 1)·MMD(q(z), p(z)) (Zhao et al. 2019, eq. 6): the weights are 1 − α on ② and λ on ④.

    `estimator`: "mmd" puts the squared maximum mean discrepancy in the place of ④, between the batch's z and as many draws
    from the prior, with the kernel exp(−‖z − z'‖²/k²) and all pairs kept (biased, >= 0), as in the authors' code; "exact" has ④
    itself. `alpha` <= 1 and `lam` >= 1 − `alpha`. At α = 1 nothing weighs ②. The VAE: α = 0, λ = 1.
    """

    alpha: float = 0.0
    lam: float = 30.0
    estimator: str = "mmd"
    weights: ClassVar = {"a": "1 − α", "t": "λ", "m": "λ"}
    formula: ClassVar = "D + (1 − α)R + (α + λ − 1) MMD(q(z), p(z))"
    reference: ClassVar = "Zhao et al. (2019)"

    def __post_init__(self) -> None:
        _set(self, "alpha", checks.between("alpha", self.alpha, -math.inf, 1.0))
        _set(self, "lam", checks.between("lam", self.lam, 1 - self.alpha, math.inf))
        checks.choice("estimator", self.estimator, ("mmd", "exact"))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        draw = elbo.draw(model, x)
        prior = model.prior()
        if self.estimator == "exact":
            log_q = elbo.log_q(model, draw, reference, "exact")
            marginal = (log_q.joint - prior.log_prob(draw.z)).mean(-1)
        else:
            noise = stacking.streams(model).normal(draw.z.shape[-2:], draw.z)
            marginal = aggregate.sample_mmd(draw.z, (prior.mean + prior.stddev * noise).expand_as(draw.z))
        rest = draw.terms.distortion.mean(-1) + (1 - self.alpha) * draw.terms.rate.mean(-1)
        return Loss(rest + (self.alpha + self.lam - 1) * marginal, draw.terms)


@dataclass(frozen=True)
class Capacity:
    """D + γ·|E[R] − C(t)|: a target for the mean rate (Burgess et al. 2018, eq. 8; Alemi et al. 2018).

    C rises linearly from 0 to `capacity` nats over `ramp_steps` steps, or is `capacity` from the start with 0 (Alemi's target
    rate). The absolute value is of the batch's mean rate. `gamma`, `capacity` >= 0. The VAE: γ = 1, C = 0.
    """

    gamma: float = 10.0
    capacity: float = 3.0
    ramp_steps: int = 0
    weights: ClassVar = {"a": "±γ", "t": "±γ", "m": "±γ"}
    formula: ClassVar = "D + γ |R − C(t)|"
    reference: ClassVar = "Burgess et al. (2018), Alemi et al. (2018)"

    def __post_init__(self) -> None:
        _not_negative(self, "gamma", "capacity")
        _set(self, "ramp_steps", checks.whole("ramp_steps", self.ramp_steps, minimum=0))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        terms = elbo_terms(model, x)
        target = self.capacity * (min(1.0, step / self.ramp_steps) if self.ramp_steps else 1.0)
        return Loss(terms.distortion.mean(-1) + self.gamma * (terms.rate.mean(-1) - target).abs(), terms)


@dataclass(frozen=True)
class AnchorVAE:
    """D + R − λ·I(z_a; x) for the anchor latents a (Gao et al. 2019).

    `anchors`: indices of latents. `lam` >= 0; from 1 on only log N bounds the term, so that nothing keeps the anchors' rate
    finite but the estimate. I(z_a; x) is estimated from the batch with one of `aggregate.MINIBATCH`, or is "exact".
    The VAE: λ = 0.
    """

    anchors: tuple[int, ...] = (0,)
    lam: float = 0.5
    estimator: str = "hfvae"
    weights: ClassVar = {"a": "1, and −λ on I(x; z_a)", "t": "1", "m": "1"}
    formula: ClassVar = "D + R − λ I(x; z_a)"
    reference: ClassVar = "Gao et al. (2019)"

    def __post_init__(self) -> None:
        _set(self, "anchors", tuple(checks.whole("anchors", i, minimum=0) for i in checks.listed("anchors", self.anchors)))
        _not_negative(self, "lam")
        checks.choice("estimator", self.estimator, (*aggregate.MINIBATCH, "exact"))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        draw = elbo.draw(model, x)
        k = draw.z.shape[-1]
        if max(self.anchors) >= k or len(set(self.anchors)) < len(self.anchors):
            raise ValueError(f"anchors must be different latents of 0 to {k - 1}, got {self.anchors}")
        chosen = list(self.anchors)
        log_q = elbo.log_q(model, draw, reference, self.estimator, [chosen]).groups[..., 0]
        own = elbo.per_latent(draw.posterior, draw.z)[..., chosen].sum(-1)
        information = (own - log_q).mean(-1)
        return Loss((draw.terms.distortion + draw.terms.rate).mean(-1) - self.lam * information, draw.terms)


class _Weighted:
    """D + a·② + t·TC + m·DW + w·(i), all at the same z; with all weights one it is D plus the sampled log q(z|x)/p(z)."""

    estimator: str

    def __post_init__(self) -> None:
        _not_negative(self, *(name for name in ("alpha", "beta", "gamma", "dimension") if hasattr(self, name)))
        checks.choice("estimator", self.estimator, (*aggregate.MINIBATCH, "exact"))

    def _loss(self, model: Model, x: Tensor, reference: Tensor | None, a: Any, t: Any, m: Any, w: Any, groups: Any) -> Loss:
        draw = elbo.draw(model, x)
        parts = () if groups is None else aggregate.partition(groups, draw.z.shape[-1])
        log_q = elbo.log_q(model, draw, reference, self.estimator, parts)
        singles = log_q.latents.sum(-1)
        between = log_q.groups.sum(-1) if parts else singles
        information = (draw.posterior.log_prob(draw.z) - log_q.joint).mean(-1)
        correlation = (log_q.joint - between).mean(-1)
        within = (between - singles).mean(-1)
        dimensions = (singles - model.prior().log_prob(draw.z)).mean(-1)
        total = draw.terms.distortion.mean(-1) + a * information + t * correlation + w * within + m * dimensions
        return Loss(total, draw.terms)


@dataclass(frozen=True)
class InformationDropout(_Weighted):
    """D + β② + γ TC (Achille & Soatto 2018), as its Gaussian equivalent: no weight on DW, the marginal is free but factorised.

    The published model multiplies activations by log-normal noise, log z = log f(x) + α(x)ε: a Gaussian encoder of log z. Its
    penalty is the KL to a factorised marginal that is fitted; at the best one that is ② + TC. With the free marginal there is
    no prior to sample from and R has no meaning as a cost: the row has no place on a rate axis.
    `beta`, `gamma`, `dimension` (m, the weight of DW) >= 0. The VAE, with its KL sampled: β = γ = m = 1.
    """

    beta: float = 1.0
    gamma: float = 1.0
    dimension: float = 0.0
    estimator: str = "hfvae"
    weights: ClassVar = {"a": "β", "t": "γ", "m": "0"}
    formula: ClassVar = "D + β② + γ TC"
    reference: ClassVar = "Achille & Soatto (2018)"

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        return self._loss(model, x, reference, self.beta, self.gamma, self.dimension, 0.0, None)


@dataclass(frozen=True)
class FactorVAE:
    """D + R + γ TC (Kim & Mnih 2018, eq. 2), TC by a discriminator trained beside the model.

    The discriminator tells z ~ q(z) from z with each latent permuted over another batch; its logit is the log density ratio,
    whose mean estimates TC. It is a network of its own optimiser: `companion(latent_dim)` makes one, `companion_loss` is what
    it minimises, and the objective is called with `companion=`. `training.fit` does all three. Called without a companion, and
    with `estimator="exact"`, the term is the exact TC of the reference.

    `gamma` >= 0; `width` of the discriminator's `depth` hidden layers; `lr` of its Adam. The VAE: γ = 0.
    """

    gamma: float = 5.0
    estimator: str = "discriminator"
    width: int = 128
    depth: int = 3
    lr: float = 1e-3
    weights: ClassVar = {"a": "1", "t": "1 + γ", "m": "1"}
    formula: ClassVar = "D + R + γ TC"
    reference: ClassVar = "Kim & Mnih (2018)"

    def __post_init__(self) -> None:
        _not_negative(self, "gamma")
        checks.choice("estimator", self.estimator, ("discriminator", "exact"))
        _set(self, "width", checks.whole("width", self.width))
        _set(self, "depth", checks.whole("depth", self.depth))
        _set(self, "lr", checks.positive("lr", self.lr))

    def companion(self, latent_dim: int) -> nn.Module | None:
        """A new discriminator z (..., k) -> logit (..., 1), drawn from torch's global stream; None if none is needed."""
        return None if self.estimator == "exact" else networks.mlp(latent_dim, 1, (self.width,) * self.depth)

    def companion_loss(
        self, companion: nn.Module, model: Model, x: Float[Tensor, "..."], reference: Tensor | None = None
    ) -> Float[Tensor, "*models"]:
        """Cross-entropy of the discriminator; z is drawn anew and detached, so that no gradient reaches the encoder.

        The permuted half is made from a second batch, drawn from the reference, or from x itself without one.
        """
        streams = stacking.streams(model)
        with torch.no_grad():
            like = model.prior().mean
            real = model.posterior(x.to(like)).rsample()
            other = x
            if reference is not None:
                other = reference[streams.normal((len(reference),), like).topk(min(real.shape[-2], len(reference))).indices]
            fake = model.posterior(other.to(like)).rsample()
            fake = fake.gather(-2, streams.normal(fake.shape[-2:], fake).argsort(-2).expand_as(fake))
        loss = nn.functional.softplus
        return 0.5 * (loss(-companion(real)).mean((-2, -1)) + loss(companion(fake)).mean((-2, -1)))

    def __call__(
        self,
        model: Model,
        x: Float[Tensor, "..."],
        step: int = 0,
        reference: Tensor | None = None,
        companion: nn.Module | None = None,
    ) -> Loss:
        draw = elbo.draw(model, x)
        if companion is None:
            log_q = elbo.log_q(model, draw, reference, "exact")
            correlation = (log_q.joint - log_q.latents.sum(-1)).mean(-1)
        else:
            correlation = companion(draw.z).mean((-2, -1))
        return Loss((draw.terms.distortion + draw.terms.rate).mean(-1) + self.gamma * correlation, draw.terms)


@dataclass(frozen=True)
class BetaTCVAE(_Weighted):
    """D + α② + β TC + γ DW (Chen et al. 2018, eq. 4).

    `estimator`: "weighted", as published, "stratified", "hfvae" or "exact". `alpha`, `beta`, `gamma` >= 0.
    The VAE, with its KL sampled: α = β = γ = 1.
    """

    alpha: float = 1.0
    beta: float = 6.0
    gamma: float = 1.0
    estimator: str = "weighted"
    weights: ClassVar = {"a": "α", "t": "β", "m": "γ"}
    formula: ClassVar = "D + α② + β TC + γ DW"
    reference: ClassVar = "Chen et al. (2018)"

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        return self._loss(model, x, reference, self.alpha, self.beta, self.gamma, 0.0, None)


@dataclass(frozen=True)
class HFVAE(_Weighted):
    """D + α② + β TC + γ(i) + (ii): TC between groups of latents, (i) the total correlation within each, (ii) = DW.

    (Esmaeili et al. 2019, eq. 7.) `groups`: lists of latents, each latent in exactly one; None makes each its own group.
    `alpha`, `beta`, `gamma` >= 0; `estimator`: "hfvae", as published, another of `aggregate.MINIBATCH`, or "exact".
    The VAE, with its KL sampled: α = β = γ = 1.
    """

    groups: tuple[tuple[int, ...], ...] | None = None
    alpha: float = 1.0
    beta: float = 6.0
    gamma: float = 2.0
    estimator: str = "hfvae"
    weights: ClassVar = {"a": "α", "t": "β between groups, γ within", "m": "1"}
    formula: ClassVar = "D + α② + β TC + γ TC within + DW"
    reference: ClassVar = "Esmaeili et al. (2019)"

    def __post_init__(self) -> None:
        if self.groups is not None:
            _set(self, "groups", aggregate.partition(self.groups))
        super().__post_init__()

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        return self._loss(model, x, reference, self.alpha, self.beta, 1.0, self.gamma, self.groups)


# The rows of the table, as classes: call one for an objective. Each has `weights` on ②, TC and DW, `formula` and `reference`.
TABLE = {
    "vae": VAE,
    "beta_vae": BetaVAE,
    "dip_vae_i": DIPVAEI,
    "dip_vae_ii": DIPVAEII,
    "info_vae": InfoVAE,
    "capacity": Capacity,
    "anchor_vae": AnchorVAE,
    "information_dropout": InformationDropout,
    "factor_vae": FactorVAE,
    "beta_tcvae": BetaTCVAE,
    "hfvae": HFVAE,
}


# All objectives that a run can be saved with, and a sweep be asked for by name.
NAMED = {**TABLE, "log_mse": LogMSE, "multi_beta": MultiBeta}


def _set(objective: object, name: str, value: object) -> None:
    object.__setattr__(objective, name, value)  # past the frozen dataclass


def _not_negative(objective: object, *names: str) -> None:
    for name in names:
        _set(objective, name, checks.not_negative(name, getattr(objective, name)))
