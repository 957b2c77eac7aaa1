"""Training objectives as weights on the terms of the ELBO: stateless objects, called beside the training loop.

Minimised form: D + a·② + t·Ⓐ + m·Ⓑ, with D the distortion, ② = I(x; z), Ⓐ the total correlation of the aggregated
posterior and Ⓑ the sum of its dimension-wise KL divergences to the prior; the rate is R = ② + Ⓐ + Ⓑ. All in nats.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, distributions

from nbvae import checks


@runtime_checkable
class Model(Protocol):
    """What objectives, estimators and samplers need of a model."""

    def posterior(self, x: Tensor) -> distributions.Distribution: ...

    def likelihood(self, z: Tensor) -> distributions.Distribution: ...

    def prior(self) -> distributions.Distribution: ...


class Terms(NamedTuple):
    """Per-example terms of −ELBO = distortion + rate, each (batch,), nats summed over dimensions.

    Leading dimensions, where there are any, are models that are trained together.
    """

    distortion: Float[Tensor, "*models batch"]
    rate: Float[Tensor, "*models batch"]


class Loss(NamedTuple):
    """The scalar to minimise, averaged over the batch, and the terms that it was made of."""

    total: Float[Tensor, "*models"]
    terms: Terms


def elbo_terms(model: Model, x: Float[Tensor, "..."]) -> Terms:
    """Distortion −log p(x|z) at one draw z ~ q(z|x), and rate KL(q(z|x) ‖ p(z)) in closed form (Kingma & Welling 2013, eq. 3).

    x is (batch, *shape); it is moved to the model's device and precision.
    """
    prior = model.prior()
    x = x.to(prior.mean)
    posterior = model.posterior(x)
    distortion = -model.likelihood(posterior.rsample()).log_prob(x)
    return Terms(distortion, distributions.kl_divergence(posterior, prior))


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

    `beta` > 0; `ValueError` otherwise. β = 1 is the VAE.
    """

    beta: float = 1.0
    weights: ClassVar = {"a": "β", "t": "β", "m": "β"}
    formula: ClassVar = "D + βR"
    reference: ClassVar = "Higgins et al. (2017)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", checks.positive("beta", self.beta))

    def __call__(self, model: Model, x: Float[Tensor, "..."], step: int = 0, reference: Tensor | None = None) -> Loss:
        terms = elbo_terms(model, x)
        return Loss(terms.distortion.mean(-1) + self.beta * terms.rate.mean(-1), terms)


TABLE = {"vae": VAE, "beta_vae": BetaVAE}
