"""Networks: tensor to tensor, no probability.

Every network acts on the last dimension and leaves the leading ones alone, so `(batch, d)` and `(models, batch, d)` both work.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbvae import checks

NETWORKS = ("linear", "mlp")


class LinearEncoder(nn.Module):
    """Mean linear in x, log-variance a free constant per latent: the encoder N(Vx + a, diag v) of the linear VAE.

    Lucas et al. (2019), eq. 6: the optimal posterior variance of a linear-Gaussian VAE does not depend on x.
    """

    def __init__(self, n_in: int, latent_dim: int):
        super().__init__()
        self.mean = nn.Linear(n_in, latent_dim)
        self.log_variance = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, x: Float[Tensor, "*batch n"]) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        mean = self.mean(x)
        return mean, self.log_variance.expand_as(mean)


class MLPEncoder(nn.Module):
    """Fully connected network with one output head for the mean and one for the log-variance, neither clamped."""

    def __init__(self, n_in: int, latent_dim: int, hidden: Sequence[int]):
        super().__init__()
        self.body = mlp(n_in, 2 * latent_dim, hidden)

    def forward(self, x: Float[Tensor, "*batch n"]) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        mean, log_variance = self.body(x).chunk(2, dim=-1)
        return mean, log_variance


def mlp(n_in: int, n_out: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear layers of the widths `hidden` with ReLU between them, no activation at the end."""
    layers: list[nn.Module] = []
    widths = [n_in, *hidden, n_out]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def encoder(network: str, n_in: int, latent_dim: int, hidden: Sequence[int]) -> nn.Module:
    """Network (*batch, n_in) -> mean and log-variance, each (*batch, latent_dim). `network` is one of `NETWORKS`."""
    checks.choice("network", network, NETWORKS)
    return LinearEncoder(n_in, latent_dim) if network == "linear" else MLPEncoder(n_in, latent_dim, hidden)


def decoder(network: str, latent_dim: int, n_out: int, hidden: Sequence[int]) -> nn.Module:
    """Network (*batch, latent_dim) -> (*batch, n_out). `network` is one of `NETWORKS`."""
    checks.choice("network", network, NETWORKS)
    return mlp(latent_dim, n_out, () if network == "linear" else hidden)
