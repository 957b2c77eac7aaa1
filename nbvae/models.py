"""Variational autoencoders as three distributions: `posterior(x)`, `likelihood(z)`, `prior()`. No losses here."""

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

from nbvae import checks, likelihoods
from nbvae import nn as networks


class VAE(nn.Module):
    """Encoder q(z|x) = N(μ(x), diag σ²(x)), decoder p(x|z) and prior p(z) = N(0, I) (Kingma & Welling 2013).

    Parameters are drawn from torch's global stream: call `torch.manual_seed` first.

    - `shape`: shape of one example, `ds.shape`; `latent_dim`: k >= 1.
    - `network`: "linear" (mean and decoder linear, posterior variance constant), "mlp", or for images "conv" and "residual".
    - `likelihood`: "bernoulli" (0/1 data), "gaussian", "continuous_bernoulli" (values in [0, 1]), "discretized_gaussian" or
      "discretized_logistic" (`levels` grey values j/(levels − 1), 256 by default).
    - `sigma`, of the Gaussian and the discretised ones: a fixed standard deviation > 0 (default 1), or how it is learned:
      "global", "optimal" (Gaussian only), "z" or "z_diag". `nbvae.likelihoods` describes them.
    - `hidden`: widths of the hidden layers from the data inwards, the decoder's reversed; by default (128,) for up to 256
      inputs and (400, 400) above. Of "conv" and "residual" the channels after each halving of the image, by default (32, 64)
      and (64, 128, 256); with 32 latents on 28 × 28 these have 1.8 million weights.

    Raises `ValueError` with what is allowed for any other argument.
    """

    prior_mean: Tensor
    prior_std: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int = 8,
        network: str = "mlp",
        likelihood: str = "bernoulli",
        *,
        sigma: float | str | None = None,
        levels: int | None = None,
        hidden: Sequence[int] | None = None,
    ):
        super().__init__()
        if isinstance(shape, int | str) or not len(shape):
            raise ValueError(f"shape must be the shape of one example, such as (1, 8, 8); got {shape!r}")
        self.shape = tuple(checks.whole("shape", side) for side in shape)
        self.latent_dim = checks.whole("latent_dim", latent_dim)
        n = math.prod(self.shape)
        if hidden is None:
            hidden = networks.default_hidden(network, n)
        hidden = tuple(checks.whole("hidden", width) for width in hidden)
        self.pixels = likelihoods.make(likelihood, self.shape, sigma, levels)
        self.config = {
            "shape": self.shape,
            "latent_dim": self.latent_dim,
            "network": network,
            "likelihood": likelihood,
            "sigma": sigma if sigma is None or isinstance(sigma, str) else checks.positive("sigma", sigma),
            "levels": None if levels is None else int(levels),
            "hidden": hidden,
        }
        self._build(network, hidden)
        self.register_buffer("prior_mean", torch.zeros(self.latent_dim), persistent=False)
        self.register_buffer("prior_std", torch.ones(self.latent_dim), persistent=False)

    def posterior(self, x: Float[Tensor, "*batch"]) -> distributions.Independent:
        """q(z|x) for x (*batch, *shape): event shape (latent_dim,)."""
        mean, log_variance = self.encoder(self._flat(x))
        return _normal(mean, (0.5 * log_variance).exp())

    def likelihood(self, z: Float[Tensor, "*batch k"]) -> distributions.Independent:
        """p(x|z) for z (*batch, latent_dim): event shape `shape`; its `.mean` is the reconstruction."""
        return self.pixels(self.decoder(self._code(z)))

    def prior(self) -> distributions.Independent:
        """p(z) = N(0, I), event shape (latent_dim,)."""
        return _normal(self.prior_mean, self.prior_std)

    def linear_maps(self) -> dict[str, Float[np.ndarray, "..."]]:
        """The weights of a "linear" network under the names of `analytic.linear_elbo_terms`, which gives its exact R and MSE.

        encoder (k, n), encoder_bias (k,), variance (k,), decoder (n, k), decoder_bias (n,), in float64, x flattened to n
        dimensions. Raises `ValueError` for any other network.
        """
        if self.config["network"] != "linear":
            raise ValueError(f"only network='linear' has linear maps, this model's is {self.config['network']!r}")
        n = math.prod(self.shape)  # behind it σ(z) may follow
        state = {name: value.double().cpu().numpy() for name, value in self.state_dict().items()}
        return {
            "encoder": state["encoder.mean.weight"],
            "encoder_bias": state["encoder.mean.bias"],
            "variance": np.exp(state["encoder.log_variance"]),
            "decoder": state["decoder.0.weight"][:n],
            "decoder_bias": state["decoder.0.bias"][:n],
        }

    def _build(self, network: str, hidden: tuple[int, ...]) -> None:
        self.encoder: nn.Module = networks.encoder(network, self.shape, self.latent_dim, hidden)
        self.decoder: nn.Module = networks.decoder(network, self.latent_dim, self.shape, self.pixels.n_outputs, hidden)

    def _flat(self, x: Tensor) -> Tensor:
        if x.shape[-len(self.shape) :] != self.shape or x.dim() == len(self.shape):
            raise ValueError(f"x must have the shape (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        if not x.numel():
            raise ValueError(f"x must have at least one example, got the shape {tuple(x.shape)}")
        return x.flatten(-len(self.shape))

    def _code(self, z: Tensor) -> Tensor:
        if z.shape[-1:] != (self.latent_dim,):
            raise ValueError(f"z must have {self.latent_dim} latents in its last dimension, got {tuple(z.shape)}")
        return z

    def check(self, x: Float[Tensor, "*batch"]) -> None:
        """Raise `ValueError` unless x (batch, *shape) is data that this model's likelihood is a likelihood for."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"the model is for examples of shape {self.shape}, the data have {tuple(x.shape[1:])}")
        self.pixels.check(x)


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
            self.decoder = nn.Linear(self.latent_dim, self.pixels.n_outputs)
        else:
            encoder, decoder = networks.conditioned(network, self.shape, self.latent_dim, self.pixels.n_outputs, hidden)
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
            return _normal(mean, (0.5 * log_variance).exp().expand_as(mean))
        mean, v = self.encoder(flat, response).chunk(2, dim=-1)
        log_variance = v if self.conditioning == "gates" else functional.logsigmoid(v + log_beta)
        return _normal(mean, (0.5 * log_variance).exp())

    def decode(self, z: Float[Tensor, "*batch k"], condition: Condition) -> distributions.Independent:
        """p(x|z, β) for z (*batch, latent_dim)."""
        return self.pixels(self.outputs(z, condition))

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
        own = getattr(self.model.pixels, "mode", None) in ("fixed", "global")
        self.pixels = copy.deepcopy(self.model.pixels) if own else self.model.pixels
        self.prior, self.check = self.model.prior, self.model.check

    def posterior(self, x: Float[Tensor, "*batch"]) -> distributions.Independent:
        return self.model.posterior(x, self.beta)

    def likelihood(self, z: Float[Tensor, "*batch k"]) -> distributions.Independent:
        return self.pixels(self.model.outputs(z, self.model.condition(self.model.log_beta(self.beta))))

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


class Discretized:
    """A view of a Gaussian model whose likelihood is the mass in the bins of x's `levels` values: D becomes a code length.

    Posterior and prior are the model's own. Densities of σ's modes can be compared as densities; masses on the same values, in
    bits for each dimension, D/(n log 2), also with a likelihood that was discrete from the start.
    """

    def __init__(self, model: VAE, levels: int = 256):
        if type(getattr(model, "pixels", None)) is not likelihoods.Gaussian:
            raise ValueError("only a model with a gaussian likelihood can be discretized")
        if hasattr(model, "at"):
            raise ValueError("a model of many β has a likelihood at one β only: Discretized(model.at(beta))")
        self.model, self.levels = model, levels
        self.posterior, self.prior = model.posterior, model.prior
        self._bins = likelihoods.DiscretizedGaussian(model.shape, levels=levels)

    def likelihood(self, z: Float[Tensor, "*batch k"]) -> distributions.Independent:
        return likelihoods.discretized(self.model.likelihood(z), self.levels)

    def check(self, x: Float[Tensor, "batch *shape"]) -> None:
        """Raise `ValueError` unless x is made of the levels."""
        self.model.check(x)
        self._bins.check(x)


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


def _normal(mean: Tensor, std: Tensor) -> distributions.Independent:
    return distributions.Independent(distributions.Normal(mean, std, validate_args=False), 1, validate_args=False)
