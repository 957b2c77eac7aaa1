"""What objectives ask of a model, and the ELBO's terms at one draw of z, with gradients: what they are made of."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, distributions, nn

from nbvae import checks
from nbvae._measuring import check_data, check_event, check_input, check_model, closed_rate, measured, measuring
from nbvae.posterior import check_reference, mean_and_std

__all__ = [
    "Loss",
    "Model",
    "Objective",
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
    """What objectives, estimators and samplers need of a model: three distributions.

    - `posterior(x)`, q(z|x) of x (batch, *shape): its event is one z (k,).
    - `likelihood(z)`, p(x|z) of z (batch, k): its event is one example. Its `.mean` is the reconstruction.
    - `prior()`, p(z), with a mean of shape (k,).

    x and z always have exactly one leading dimension: whoever measures several draws for an example gives them as rows.

    Where a model has them, two more methods are used: `check(x)`, which raises `ValueError` for data that its likelihood is no
    likelihood for (without it x is compared with the support that torch knows), and `at(beta)`, the model of one β of a model
    of many.

    >>> from nbvae import models, objectives
    >>> isinstance(models.VAE((4,), 3), objectives.Model)
    True
    """

    def posterior(self, x: Tensor) -> distributions.Distribution:
        """q(z|x) for x (batch, *shape)."""
        ...

    def likelihood(self, z: Tensor) -> distributions.Distribution:
        """p(x|z) for z (batch, k)."""
        ...

    def prior(self) -> distributions.Distribution:
        """p(z)."""
        ...


class Terms(NamedTuple):
    """Per-example terms of −ELBO = distortion + rate, each (batch,), nats summed over dimensions.

    Leading dimensions, where there are any, are models that are trained together.

    >>> import torch
    >>> from nbvae import objectives
    >>> objectives.Terms(distortion=torch.tensor([40.0]), rate=torch.tensor([3.0])).rate
    tensor([3.])
    """

    distortion: Float[Tensor, "*models batch"]  # D = −log p(x|z) at one draw of z
    rate: Float[Tensor, "*models batch"]  # R = KL(q(z|x) ‖ p(z))


class Loss(NamedTuple):
    """What an objective returns: what is to be minimised, and the terms of the ELBO at the same draw of z.

    - `total`: one value for each example, (batch,), of which training takes the mean; or a scalar that is a mean already.
    - `terms`: distortion and rate of each example, for the history.

    >>> import torch
    >>> from nbvae import models, objectives
    >>> def beta_vae(model, x, step=0, reference=None):
    ...     terms = objectives.elbo_terms(model, x)
    ...     return objectives.Loss(terms.distortion + 4.0 * terms.rate, terms)
    >>> beta_vae(models.VAE((4,), 3), torch.ones(8, 4)).total.shape
    torch.Size([8])
    """

    total: Float[Tensor, "*models_or_batch"]
    terms: Terms


def elbo_terms(model: Model, x: Float[Tensor, "..."]) -> Terms:
    """Distortion −log p(x|z) at one draw z ~ q(z|x), and rate KL(q(z|x) ‖ p(z)) in closed form (Kingma & Welling 2013, eq. 3).

    x is (batch, *shape); it is moved to the device and precision of the `model`.

    >>> import torch
    >>> from nbvae import models, objectives
    >>> objectives.elbo_terms(models.VAE((4,), 3), torch.ones(8, 4)).distortion.shape
    torch.Size([8])
    """
    if not isinstance(x, Tensor) or not hasattr(model, "prior"):
        check_input(model, x)  # which says what is wrong
    return draw_terms(model, x).terms


class Draw(NamedTuple):
    posterior: distributions.Distribution
    z: Float[Tensor, "*models batch k"]
    terms: Terms


def draw_terms(model: Model, x: Tensor) -> Draw:
    prior = model.prior()
    x = x.to(prior.mean)
    posterior = model.posterior(x)
    if not posterior.has_rsample:
        raise ValueError(f"posterior(x) must have rsample, for gradients; {type(posterior).__name__} has not")
    z = posterior.rsample()
    likelihood = model.likelihood(z)
    check_event(likelihood, x.shape[max(1, x.dim() - len(likelihood.event_shape)) :])
    distortion = -likelihood.log_prob(x)
    return Draw(posterior, z, Terms(distortion, closed_rate(posterior, prior)))


def components(model: Model, draw: Draw, reference: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (*models, N, k) of the posteriors of the reference, of the batch without one."""
    if reference is None:
        return mean_and_std(draw.posterior)
    check_reference(reference)
    return mean_and_std(model.posterior(reference.to(draw.z)))


def weights_on(mutual_information: str, total_correlation: str, dimension_kl: str) -> dict[str, str]:
    """What a row of the table puts on ②, TC and DW, by the names that `estimators.decompose` gives them."""
    return {
        "mutual_information": mutual_information,
        "total_correlation": total_correlation,
        "dimension_kl": dimension_kl,
    }


def set_field(objective: object, name: str, value: object) -> None:
    object.__setattr__(objective, name, value)  # past the frozen dataclass


def not_negative_fields(objective: object, *names: str) -> None:
    for name in names:
        set_field(objective, name, checks.not_negative(name, getattr(objective, name)))


class Objective:
    """What training asks of an objective beside being called: as it is here, nothing. Rows override what they need.

    An objective is called as `objective(model, x, step=…, reference=…)`, with a batch x (batch, *shape), the number of steps
    before this one, and the whole training set `reference` (N, *shape), and returns a `Loss`. One's own need not inherit this
    class: `hook` takes from here what it lacks.

    >>> from nbvae import objectives
    >>> objectives.Objective().companion(latent_dim=8) is None
    True
    """

    def check(self, model: Any, dataset: Any) -> None:
        """Raise `ValueError` for a `model` or a `dataset` that the objective cannot be used with."""

    def companion(self, latent_dim: int) -> nn.Module | None:
        """A network that is trained beside a model of `latent_dim`, on `companion_loss` with Adam at `lr`; None for none."""

    def at_floor(self, model: Any, x: Tensor) -> float:
        """The share of the σs of the objective's own, for the examples x, that are on their floor."""
        return 0.0


def hook(objective: Any, name: str) -> Callable[..., Any]:
    """The method of this name of an objective, or `Objective`'s where it has none."""
    return getattr(objective, name, None) or functools.partial(getattr(Objective, name), objective)


class NeedsFixedCodes(Objective):
    """An objective whose exact terms, or whose companion, need the training set's codes, the same at every step."""

    estimator: str

    def check(self, model: Any, dataset: Any) -> None:
        """`ValueError` for data that are drawn anew in each batch."""
        if dataset.binarize == "dynamic" and self.estimator in ("exact", "discriminator"):
            raise ValueError(
                "binarize='dynamic' has no fixed set of codes for this objective: use binarize='static' or a minibatch "
                "estimator"
            )
