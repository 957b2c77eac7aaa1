"""Variational autoencoders as three distributions: `posterior(x)`, `likelihood(z)`, `prior()`. No losses here."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, distributions, nn

from nbvae import checks
from nbvae.models import likelihoods, networks


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
        self.observation = likelihoods.make(likelihood, self.shape, sigma, levels)
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
        return normal(mean, (0.5 * log_variance).exp())

    def likelihood(self, z: Float[Tensor, "*batch k"]) -> distributions.Independent:
        """p(x|z) for z (*batch, latent_dim): event shape `shape`; its `.mean` is the reconstruction."""
        return self.observation(self.decoder(self._code(z)))

    def prior(self) -> distributions.Independent:
        """p(z) = N(0, I), event shape (latent_dim,)."""
        return normal(self.prior_mean, self.prior_std)

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
        self.decoder: nn.Module = networks.decoder(network, self.latent_dim, self.shape, self.observation.n_outputs, hidden)

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
        self.observation.check(x)


class Discretized:
    """A view of a Gaussian model whose likelihood is the mass in the bins of x's `levels` values: D becomes a code length.

    Posterior and prior are the model's own. Densities of σ's modes can be compared as densities; masses on the same values, in
    bits for each dimension, D/(n log 2), also with a likelihood that was discrete from the start.
    """

    def __init__(self, model: VAE, levels: int = 256):
        if type(getattr(model, "observation", None)) is not likelihoods.Gaussian:
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


def normal(mean: Tensor, std: Tensor) -> distributions.Independent:
    return distributions.Independent(distributions.Normal(mean, std, validate_args=False), 1, validate_args=False)
