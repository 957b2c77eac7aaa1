"""One model for all β of a range, and its view at one β."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, distributions, nn
from torch.nn import functional

from nbvae import checks
from nbvae.models import networks
from nbvae.models.vae import VAE, normal


class Condition(NamedTuple):
    """log β (*some, 1), and what encoder and decoder make of it: modulations, or a linear network's gate and log-variance."""

    log_beta: Tensor
    encoder: Any
    decoder: Any


class MultiBetaVAE(VAE):
    """One VAE for all β of a range, q(z|x, β) and p(x|z, β), trained by `objectives.MultiBeta`.

    Arguments are those of `VAE`, and

    - `beta_range`: the smallest and the largest β, 0 < low < high;
    - `conditioning`: "film", scale and shift of every layer (of every channel) as functions of log β, and a posterior
      log-variance −softplus(−(v + log β)), a smooth form of the linear optimum's min(0, log s/λ); or "gates", those of the
      Multi-Rate VAE (Bae et al. 2023). A "linear" network responds to β as the linear VAE's optimum does at fixed σ
      (`nn.WaterLevel`), whatever is given here.

    `at(beta)` is a VAE for one β. `sigma="optimal"` is refused, as the best σ depends on β: fix it in training, and calibrate
    what `at` returns.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int = 8,
        network: str = "mlp",
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
        self.beta_range, self.conditioning = _range(beta_range), conditioning
        super().__init__(shape, latent_dim, network, likelihood, sigma=sigma, levels=levels, hidden=hidden)
        self.config |= {"beta_range": self.beta_range, "conditioning": conditioning}

    def _build(self, network: str, hidden: tuple[int, ...]) -> None:
        if checks.choice("network", network, networks.NETWORKS) == "linear":
            self.response: nn.Module = networks.WaterLevel(self.latent_dim, self.beta_range[1])
            self.encoder = nn.Linear(math.prod(self.shape), self.latent_dim)
            self.decoder = nn.Linear(self.latent_dim, self.observation.n_outputs)
        else:
            encoder, decoder = networks.conditioned(network, self.shape, self.latent_dim, self.observation.n_outputs, hidden)
            self.response = networks.Conditioning(self.conditioning, self.beta_range, encoder.widths, decoder.widths)
            self.encoder, self.decoder = encoder, decoder

    def condition(self, log_beta: Float[Tensor, "*some 1"]) -> Condition:
        """What `encode` and `decode` need of log β; its range is not checked, as training reads nothing from the device."""
        return Condition(log_beta, *self.response(log_beta))

    def encode(self, x: Float[Tensor, "*batch"], condition: Condition) -> distributions.Independent:
        """q(z|x, β) for x (*batch, *shape)."""
        flat, (log_beta, response, log_variance) = self._flat(x), condition
        if self.config["network"] == "linear":
            mean = response * self.encoder(flat)
            return normal(mean, (0.5 * log_variance).exp().expand_as(mean))
        mean, v = self.encoder(flat, response).chunk(2, dim=-1)
        log_variance = v if self.conditioning == "gates" else functional.logsigmoid(v + log_beta)
        return normal(mean, (0.5 * log_variance).exp())

    def decode(self, z: Float[Tensor, "*batch k"], condition: Condition) -> distributions.Independent:
        """p(x|z, β) for z (*batch, latent_dim)."""
        return self.observation(self.outputs(z, condition))

    def outputs(self, z: Float[Tensor, "*batch k"], condition: Condition) -> Float[Tensor, "*batch m"]:
        """What the decoder network says of z, before the likelihood makes a distribution of it."""
        z = self._code(z)
        if self.config["network"] == "linear":
            return self.decoder(condition.encoder * z)
        return self.decoder(z, condition.decoder)

    def posterior(self, x: Float[Tensor, "*batch"], beta: Any = None) -> distributions.Independent:
        """q(z|x, β) for x (*batch, *shape) at a number β in `beta_range`, or at one for each example (batch,)."""
        return self.encode(x, self.condition(self.log_beta(beta, x.shape[: -len(self.shape)])))

    def likelihood(self, z: Float[Tensor, "*batch k"], beta: Any = None) -> distributions.Independent:
        """p(x|z, β) for z (*batch, latent_dim) at a number β in `beta_range`, or at one for each example (batch,)."""
        return self.decode(z, self.condition(self.log_beta(beta, z.shape[:-1])))

    def at(self, beta: float) -> "AtBeta":
        """A plain VAE of one β, for every estimator and sampler.

        Networks are shared, a fixed or global σ is a copy of what it is now, which `calibration.calibrate` may change: make
        views after training and after moving the model.
        """
        if isinstance(beta, bool | str) or np.ndim(getattr(beta, "detach", lambda: beta)()):
            raise ValueError(f"at() takes one beta, a number; got {beta!r}")
        self.log_beta(beta)
        return AtBeta(self, float(beta))

    def log_beta(self, beta: Any, batch: Sequence[int] = ()) -> Float[Tensor, "*some 1"]:
        """log β (1,) of a number, (batch, 1) of a tensor (batch,). `ValueError` outside `beta_range`, with the range."""
        if beta is None:
            raise ValueError("a model of many β needs one: pass model.at(beta) in its place, or beta to its methods")
        low, high = self.beta_range
        try:
            value = torch.as_tensor(beta, dtype=self.prior_mean.dtype, device=self.prior_mean.device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"beta must be a number or one for each example, got {beta!r}") from None
        if value.dim() > 1 or (value.dim() and value.shape != tuple(batch[-1:])):
            raise ValueError(
                f"beta must be a number or one for each example, {tuple(batch[-1:])}; got the shape {tuple(value.shape)}"
            )
        # A float32 of the range's end may be a rounding error beyond it.
        if not ((value >= low * (1 - 1e-6)) & (value <= high * (1 + 1e-6))).all():
            ends = [f"{end.item():g}" for end in (value.min(), value.max())]
            given = " to ".join(dict.fromkeys(ends))
            raise ValueError(f"beta must be in the range that the model was made for, {low:g} to {high:g}; got {given}")
        return value.clamp(low, high).log().unsqueeze(-1)

    def linear_maps(self) -> dict[str, Float[np.ndarray, "..."]]:
        """`ValueError`: take those of one β, `at(beta).linear_maps()`."""
        raise ValueError("a multi-β model has linear maps at one β only: at(beta).linear_maps()")


@dataclass(eq=False)
class AtBeta:
    """A `MultiBetaVAE` at one β: posterior, likelihood and prior of a plain VAE. `MultiBetaVAE.at` makes it."""

    model: MultiBetaVAE = field(repr=False)
    beta: float

    def __post_init__(self) -> None:
        self.shape, self.latent_dim = self.model.shape, self.model.latent_dim
        self.config = self.model.config | {"beta": self.beta}
        # A copy of a σ that is one number, so that it can be calibrated for this β alone.
        own = getattr(self.model.observation, "mode", None) in ("fixed", "global")
        self.observation = copy.deepcopy(self.model.observation) if own else self.model.observation
        self.prior, self.check = self.model.prior, self.model.check

    def posterior(self, x: Float[Tensor, "*batch"]) -> distributions.Independent:
        return self.model.posterior(x, self.beta)

    def likelihood(self, z: Float[Tensor, "*batch k"]) -> distributions.Independent:
        return self.observation(self.model.outputs(z, self.model.condition(self.model.log_beta(self.beta))))

    def linear_maps(self) -> dict[str, Float[np.ndarray, "..."]]:
        """`VAE.linear_maps` of a "linear" network at this β."""
        if self.config["network"] != "linear":
            raise ValueError(f"only network='linear' has linear maps, this model's is {self.config['network']!r}")
        with torch.no_grad():
            condition = self.model.condition(self.model.log_beta(self.beta))
            gate, log_variance = (part.double().cpu().numpy() for part in condition[1:])
        n = math.prod(self.shape)
        state = {name: value.double().cpu().numpy() for name, value in self.model.state_dict().items()}
        return {
            "encoder": gate[:, None] * state["encoder.weight"],
            "encoder_bias": gate * state["encoder.bias"],
            "variance": np.exp(log_variance),
            "decoder": state["decoder.weight"][:n] * gate,
            "decoder_bias": state["decoder.bias"][:n],
        }


def _range(beta_range: Any) -> tuple[float, float]:
    try:
        low, high = (checks.positive("beta_range", beta) for beta in beta_range)
    except TypeError:
        low, high = math.nan, math.nan
    except ValueError as error:
        if "unpack" not in str(error):
            raise
        low, high = math.nan, math.nan
    if not low < high:
        raise ValueError(f"beta_range must be two numbers, 0 < low < high; got {beta_range!r}")
    return low, high
