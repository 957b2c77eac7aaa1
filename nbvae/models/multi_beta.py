"""One model for all β of a range, and its view at one β."""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.optimize import brentq
from torch import Tensor, distributions, nn
from torch.nn import functional

from nbvae import _measuring, _tensors, checks
from nbvae.models import networks
from nbvae.models.vae import VAE, normal


class Condition(NamedTuple):
    """log β (*some, 1), and what encoder and decoder are to make of it.

    `encoder` and `decoder` are lists of modulations (*some, width); of a linear network the gate, and the posterior
    log-variance, each (*some, k).
    """

    log_beta: Tensor
    encoder: Any
    decoder: Any


class MultiBetaVAE(VAE):
    """One VAE for all β of a range, q(z|x, β) and p(x|z, β), trained by `objectives.MultiBeta`.

    `shape`, `latent_dim`, `network`, `likelihood`, `sigma`, `levels` and `hidden` are those of `VAE`, and besides there are

    - `beta_range`: the smallest and the largest β, 0 < low < high.
    - `conditioning`: "film", scale and shift of every layer (of every channel) as functions of log β, and a posterior
      log-variance −softplus(−(v + log β)), a smooth form of the linear optimum's min(0, log s/λ); or "gates", those of the
      Multi-Rate VAE (Bae et al. 2023). A "linear" network responds to β as the linear VAE's optimum does at fixed σ
      (`networks.WaterLevel`), whatever is given here.

    `at(beta)` is a VAE for one β. `sigma="optimal"` is refused, as the best σ depends on β: fix it in training, and calibrate
    what `at` returns.

    >>> model = MultiBetaVAE((1, 8, 8), latent_dim=2, beta_range=(0.1, 10.0))
    >>> x = torch.rand(5, 1, 8, 8)
    >>> tuple(model.posterior(x, beta=torch.tensor([0.1, 0.5, 1.0, 5.0, 10.0])).mean.shape)
    (5, 2)
    >>> bool((model.at(0.1).posterior(x).mean == model.posterior(x, beta=0.1).mean).all())
    True
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int = 8,
        network: str | None = None,
        likelihood: str = "bernoulli",
        *,
        beta_range: tuple[float, float] = (1e-2, 1e1),
        conditioning: str = "film",
        sigma: float | str | None = None,
        levels: int | None = None,
        hidden: Sequence[int] | None = None,
    ):
        if sigma == "optimal":
            raise ValueError(
                'sigma="optimal" is one number and the best sigma depends on β: fix it, and calibrate model.at(beta)'
            )
        checks.choice("conditioning", conditioning, networks.CONDITIONINGS)
        self.beta_range, self.conditioning = checks.pair("beta_range", beta_range), conditioning
        super().__init__(shape, latent_dim, network, likelihood, sigma=sigma, levels=levels, hidden=hidden)
        self.config = {**(self.config or {}), "beta_range": self.beta_range, "conditioning": conditioning}

    def _build(self, network: str, hidden: tuple[int, ...], **own: nn.Module) -> None:
        if network == "linear":
            self.response: nn.Module = networks.WaterLevel(self.latent_dim, self.beta_range[1])
            self.encoder = nn.Linear(math.prod(self.shape), self.latent_dim)
            self.decoder = nn.Linear(self.latent_dim, self.observation.n_outputs)
        else:
            encoder, decoder = networks.conditioned(network, self.shape, self.latent_dim, self.observation.n_outputs, hidden)
            self.response = networks.Conditioning(self.conditioning, self.beta_range, encoder.widths, decoder.widths)
            self.encoder, self.decoder = encoder, decoder

    def condition(self, log_beta: Float[Tensor, "*some 1"]) -> Condition:
        """What `encode` and `decode` need of `log_beta`; its range is not checked: training reads nothing from the device."""
        return Condition(log_beta, *self.response(log_beta))

    def encode(self, x: Shaped[Tensor, "*batch"], condition: Condition) -> distributions.Independent:
        """q(z|x, β) for x (*batch, *shape) under the `condition` that stands for β."""
        flat, (log_beta, response, log_variance) = self._flat(x), condition
        if self.network == "linear":
            mean = response * self.encoder(flat)
            return normal(mean, (0.5 * log_variance).exp().expand_as(mean))
        mean, v = self.encoder(flat, response).chunk(2, dim=-1)
        log_variance = v if self.conditioning == "gates" else functional.logsigmoid(v + log_beta)
        return normal(mean, (0.5 * log_variance).exp())

    def decode(self, z: Shaped[Tensor, "*batch k"], condition: Condition) -> distributions.Independent:
        """p(x|z, β) for z (*batch, latent_dim) under the `condition` that stands for β."""
        return self.observation(self.outputs(z, condition))

    def outputs(self, z: Shaped[Tensor, "*batch k"], condition: Condition) -> Float[Tensor, "*batch m"]:
        """What the decoder network says of z under a `condition`, before the likelihood makes a distribution of it."""
        z = self._code(z)
        if self.network == "linear":
            return self.decoder(condition.encoder * z)
        return self.decoder(z, condition.decoder)

    def posterior(self, x: Shaped[Tensor, "*batch"], beta: Any = None) -> distributions.Independent:
        """q(z|x, β) for x (*batch, *shape) at a number β in `beta_range`, or at one for each example (batch,)."""
        x = self._data(x)
        return self.encode(x, self.condition(self.log_beta(beta, x.shape[: -len(self.shape)])))

    def likelihood(self, z: Shaped[Tensor, "*batch k"], beta: Any = None) -> distributions.Independent:
        """p(x|z, β) for z (*batch, latent_dim) at a number β in `beta_range`, or at one for each example (batch,)."""
        z = self._code(z)
        return self.decode(z, self.condition(self.log_beta(beta, z.shape[:-1])))

    def at(self, beta: float | None = None, *, rate: float | None = None, x: Float[Tensor, "..."] | None = None) -> "AtBeta":
        """A plain VAE of one β, for every estimator and sampler.

        - `beta`: the β, within `beta_range`; or in its place
        - `rate`: the rate in nats that the VAE is to have, as the mean of KL(q(z|x) ‖ p(z)) over the examples `x`, and
        - `x`: these examples, (N, *shape): those that the choice may be made on.

        Networks are shared, a fixed or global σ is a copy of what it is now, which `calibration.calibrate` may change: make
        views after training and after moving the model. The β of a rate is found by bracketing, to the precision of the rate;
        where the rate does not fall with β throughout, several may have it.

        Raises `ValueError` for a β outside the range, a rate outside what x has at its two ends, and for neither or both.

        >>> model, x = MultiBetaVAE((4,), latent_dim=2, likelihood="gaussian"), torch.randn(50, 4)
        >>> view = model.at(1.0)
        >>> rate = distributions.kl_divergence(view.posterior(x), view.prior()).mean().item()
        >>> round(model.at(rate=rate, x=x).beta, 3)
        1.0
        """
        if (beta is None) == (rate is None) or (rate is None) != (x is None):
            raise ValueError(
                "at() takes one beta, or a rate (nats) with the examples x to have it on: at(1.0), at(rate=20.0, x=x)"
            )
        one: Any = beta if rate is None else self._beta_at(rate, x)
        if isinstance(one, bool | str) or np.ndim(getattr(one, "detach", lambda: one)()):
            raise ValueError(f"at() takes one beta, a number; got {checks.short(one)}")
        self.log_beta(one)
        return AtBeta(self, float(one))

    def _beta_at(self, rate: Any, x: Any) -> float:
        """The β at which the mean rate on x is `rate`."""
        rate, (low, high) = checks.not_negative("rate", rate), self.beta_range
        _measuring.check_input(AtBeta(self, low), x)

        def rate_at(log_beta: float) -> float:
            view = AtBeta(self, min(max(math.exp(log_beta), low), high))
            prior = self.prior()
            each = [_measuring.rate_of(view.posterior(part), prior, len(part)) for part in _tensors.parts(x.to(prior.mean))]
            return torch.cat(each).cpu().double().mean().item()

        with _measuring.measuring(self):
            ends = [rate_at(math.log(end)) for end in (low, high)]
            rounding = 1e-6 * max(ends)  # a rate that was measured at an end is within reach
            if not min(ends) - rounding <= rate <= max(ends) + rounding:
                reach = f"{ends[0]:.6g} nats at beta = {low:g} to {ends[1]:.6g} at {high:g}"
                raise ValueError(f"rate must be within what the model has on x, {reach}; got {rate:g}")
            rate = min(max(rate, min(ends)), max(ends))
            log_beta: Any = brentq(lambda each: rate_at(each) - rate, math.log(low), math.log(high), xtol=1e-9)
        return min(max(math.exp(log_beta), low), high)

    def log_beta(self, beta: Any, batch: Sequence[int] = ()) -> Float[Tensor, "*some 1"]:
        """log β, (1,) of a number, (batch, 1) of a tensor (batch,).

        - `beta`: a number, or one for each example.
        - `batch`: the leading dimensions of x or z, of which the last counts the examples.

        Raises `ValueError` outside `beta_range`, with the range, and for another shape.
        """
        if beta is None:
            raise ValueError("a model of many β needs one: pass model.at(beta) in its place, or beta to its methods")
        low, high = self.beta_range
        try:
            value = torch.as_tensor(beta, dtype=self.prior_mean.dtype, device=self.prior_mean.device)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ValueError(f"beta must be a number or one for each example, got {checks.short(beta)}") from None
        if value.dim() > 1 or (value.dim() and value.shape != tuple(batch[-1:])):
            raise ValueError(
                f"beta must be a number or one for each example, {tuple(batch[-1:])}; got the shape {tuple(value.shape)}"
            )
        # A float32 of the range's end may be a rounding error beyond it.
        if not ((value >= low * (1 - 1e-6)) & (value <= high * (1 + 1e-6))).all():
            ends = [f"{end.item():g}" for end in (value.min(), value.max())]
            given = " to ".join(dict.fromkeys(ends))
            raise ValueError(f"beta must be in the range that the model was made for, {low:g} to {high:g}; got {given}")
        return self._log(value)

    def _log(self, beta: Tensor) -> Float[Tensor, "*some 1"]:
        return beta.clamp(*self.beta_range).log().unsqueeze(-1)

    def linear_maps(self) -> dict[str, Float[np.ndarray, "..."]]:
        """`ValueError`: take those of one β, `at(beta).linear_maps()`."""
        raise ValueError("a multi-β model has linear maps at one β only: at(beta).linear_maps()")

    @classmethod
    def from_linear(cls, **maps: Any) -> Self:
        """`ValueError`: `maps` are those of one β, `VAE.from_linear`."""
        raise ValueError("linear maps are those of one β: VAE.from_linear(...)")


class AtBeta(nn.Module):
    """A `MultiBetaVAE` at one β: posterior, likelihood and prior of a plain VAE. `MultiBetaVAE.at` makes it.

    The view holds the model itself: moving or training one does so to the other. Its `observation` is the model's, but of a σ
    that is one number a copy, so that it can be calibrated for this β alone.

    - `model`: the model of many β.
    - `beta`: a number in its range.

    Raises `ValueError` for another β.

    >>> view = AtBeta(MultiBetaVAE((4,), latent_dim=2, beta_range=(0.1, 10.0)), 0.5)
    >>> view.beta, tuple(view.posterior(torch.zeros(3, 4)).mean.shape)
    (0.5, (3, 2))
    """

    def __init__(self, model: MultiBetaVAE, beta: float):
        super().__init__()
        model.log_beta(beta)
        self.model, self.beta = model, float(beta)
        self.shape, self.latent_dim, self.network = model.shape, model.latent_dim, model.network
        self.config = {**(model.config or {}), "beta": self.beta}
        own = getattr(model.observation, "mode", None) in ("fixed", "global")
        self.observation = copy.deepcopy(model.observation) if own else model.observation

    def posterior(self, x: Shaped[Tensor, "*batch"]) -> distributions.Independent:
        """q(z|x, β) for x (*batch, *shape): event shape (latent_dim,)."""
        return self.model.encode(x, self._condition())

    def likelihood(self, z: Shaped[Tensor, "*batch k"]) -> distributions.Independent:
        """p(x|z, β) for z (*batch, latent_dim): event shape `shape`."""
        output = self.model.outputs(z, self._condition())
        return self.observation.to(output)(output)  # the copy follows a model that was moved after the view was made

    def prior(self) -> distributions.Independent:
        """p(z) = N(0, I), event shape (latent_dim,)."""
        return self.model.prior()

    def check(self, x: Shaped[Tensor, "*batch"]) -> None:
        """`VAE.check` of the model, for x (batch, *shape)."""
        self.model.check(x)

    def linear_maps(self) -> dict[str, Float[np.ndarray, "..."]]:
        """`VAE.linear_maps` of a "linear" network at this β."""
        if self.network != "linear":
            raise ValueError(f"only network='linear' has linear maps, this model's is {self.network!r}")
        with torch.no_grad():
            gate, log_variance = (part.double().cpu().numpy() for part in self._condition()[1:])
        n = math.prod(self.shape)
        state = {name: value.double().cpu().numpy() for name, value in self.model.state_dict().items()}
        return {
            "encoder": gate[:, None] * state["encoder.weight"],
            "encoder_bias": gate * state["encoder.bias"],
            "variance": np.exp(log_variance),
            "decoder": state["decoder.weight"][:n] * gate,
            "decoder_bias": state["decoder.bias"][:n],
        }

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}"

    def _condition(self) -> Condition:
        """That of β, which was checked once: nothing is read from the device here."""
        return self.model.condition(self.model._log(self.model.prior_mean.new_full((), self.beta)))
