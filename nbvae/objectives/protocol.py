"""What objectives ask of a model, and the ELBO's terms at one draw of z, with gradients: what they are made of."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, distributions

from nbvae import checks
from nbvae._measuring import check_data, check_input, check_model, measured, measuring
from nbvae.posterior import check_reference, mean_and_std

__all__ = [
    "Loss",
    "Model",
    "Terms",
    "check_data",
    "check_input",
    "check_model",
    "elbo_terms",
    "measured",
    "measuring",
]


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
    """The scalar to minimise, averaged over the batch, and the terms of the ELBO at the same draw of z."""

    total: Float[Tensor, "*models"]
    terms: Terms


def elbo_terms(model: Model, x: Float[Tensor, "..."]) -> Terms:
    """Distortion −log p(x|z) at one draw z ~ q(z|x), and rate KL(q(z|x) ‖ p(z)) in closed form (Kingma & Welling 2013, eq. 3).

    x is (batch, *shape); it is moved to the model's device and precision.
    """
    return draw_terms(model, x).terms


class Draw(NamedTuple):
    posterior: distributions.Distribution
    z: Float[Tensor, "*models batch k"]
    terms: Terms


def draw_terms(model: Model, x: Tensor) -> Draw:
    prior = model.prior()
    x = x.to(prior.mean)
    posterior = model.posterior(x)
    z = posterior.rsample()
    distortion = -model.likelihood(z).log_prob(x)
    return Draw(posterior, z, Terms(distortion, distributions.kl_divergence(posterior, prior)))


def components(model: Model, draw: Draw, reference: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (*models, N, k) of the posteriors of the reference, of the batch without one."""
    if reference is None:
        return mean_and_std(draw.posterior)
    check_reference(reference)
    return mean_and_std(model.posterior(reference.to(draw.z)))


def set_field(objective: object, name: str, value: object) -> None:
    object.__setattr__(objective, name, value)  # past the frozen dataclass


def not_negative_fields(objective: object, *names: str) -> None:
    for name in names:
        set_field(objective, name, checks.not_negative(name, getattr(objective, name)))


class NeedsFixedCodes:
    """An objective whose exact terms, or whose companion, need the training set's codes, the same at every step."""

    estimator: str

    def check(self, model: Any, dataset: Any) -> None:
        """`ValueError` for data that are drawn anew in each batch."""
        if dataset.binarize == "dynamic" and self.estimator in ("exact", "discriminator"):
            raise ValueError(
                "binarize='dynamic' has no fixed set of codes for this objective: use binarize='static' or a minibatch "
                "estimator"
            )
