"""Networks: tensor to tensor, no probability.

Every network acts on the last dimension and leaves the leading ones alone, so `(batch, d)` and `(models, batch, d)` both work.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbvae import checks

NETWORKS = ("linear", "mlp")
CONDITIONINGS = ("film", "gates")


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


class WaterLevel(nn.Module):
    """The response of the linear VAE's optimum to β at fixed σ: a gate for each latent, and its posterior log-variance.

    With s = βσ² and λ_i the eigenvalue of latent i, decoder column and encoder row of the optimum are those of β → 0 times
    g_i = √(1 − s/λ_i)₊, and the posterior variance is min(1, s/λ_i) (Lucas et al. 2019, at every β). One number
    ℓ_i = log(λ_i/σ²) for each latent is all that has to be learned. At first ℓ_i is the largest log β + 1: no gate is closed.
    """

    def __init__(self, latent_dim: int, highest: float):
        super().__init__()
        self.log_ratio = nn.Parameter(torch.full((latent_dim,), math.log(highest) + 1.0))

    def forward(self, log_beta: Float[Tensor, "*batch 1"]) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Gate and posterior log-variance."""
        level = log_beta - self.log_ratio  # log s/λ
        return _root_gate(level), level.clamp(max=0.0)


class BetaFeatures(nn.Module):
    """Smooth features of log β: Gaussian bumps, evenly along the logarithm of the range."""

    centres: Tensor

    def __init__(self, beta_range: tuple[float, float], size: int = 16):
        super().__init__()
        low, high = (math.log(beta) for beta in beta_range)
        self.size, self.sharpness = size, math.sqrt(0.5) * (size - 1) / (high - low)
        self.register_buffer("centres", torch.linspace(low, high, size), persistent=False)

    def forward(self, log_beta: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch features"]:
        return ((log_beta - self.centres) * self.sharpness).square().neg().exp()


class Conditioning(nn.Module):
    """Functions of log β that modulate the layers of an encoder and a decoder `ConditionedMLP`, in one matrix product.

    - "film": the outputs y of every layer become y (1 + a) + b, with a and b linear in `BetaFeatures` (Perez et al. 2018). Both
      start at nothing: at first the networks are ordinary ones at every β, and no unit is dead for all.
    - "gates": those of every hidden layer are multiplied by a function of w log β + v, a sigmoid in the encoder and √(1 − eˣ)₊
      in the decoder: the Multi-Rate VAE (Bae et al. 2023), to compare with.
    """

    def __init__(self, kind: str, beta_range: tuple[float, float], encoder: Sequence[int], decoder: Sequence[int]):
        super().__init__()
        self.film = checks.choice("conditioning", kind, CONDITIONINGS) == "film"
        # Of each layer's width two parts, or of each hidden one's.
        encoder, decoder = (
            [w for w in widths for _ in "ab"] if self.film else list(widths[:-1]) for widths in (encoder, decoder)
        )
        self.sizes, self.cut = [*encoder, *decoder], len(encoder)
        features = BetaFeatures(beta_range) if self.film else None
        self.features = features
        self.modulation = nn.Linear(features.size if features else 1, sum(self.sizes))
        if self.film:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, log_beta: Float[Tensor, "*some 1"]) -> tuple[list[Tensor], list[Tensor]]:
        """Modulations (*some, width) of the encoder, and of the decoder."""
        parts = self.modulation(log_beta if self.features is None else self.features(log_beta)).split(self.sizes, dim=-1)
        encoder, decoder = list(parts[: self.cut]), list(parts[self.cut :])
        if self.film:
            return encoder, decoder
        return [part.sigmoid() for part in encoder], [_root_gate(part) for part in decoder]


class ConditionedMLP(nn.Module):
    """`mlp` whose layers are modulated by what `Conditioning` makes of log β."""

    def __init__(self, n_in: int, n_out: int, hidden: Sequence[int]):
        super().__init__()
        self.widths = (*hidden, n_out)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise([n_in, *self.widths]))

    def forward(self, x: Float[Tensor, "*batch n"], parts: Sequence[Tensor]) -> Float[Tensor, "*batch m"]:
        film = len(parts) == 2 * len(self.layers)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if film:
                x = torch.addcmul(x + parts[2 * index + 1], x, parts[2 * index])
            elif index < len(parts):
                x = x * parts[index]
            if index < len(self.layers) - 1:
                x = x.relu()
        return x


def _root_gate(x: Tensor) -> Tensor:
    open_share = -torch.expm1(x.clamp(max=0.0))
    # The root's slope has no bound at 0: near it the gate is closed.
    return torch.where(open_share > 1e-4, open_share.clamp(min=1e-4).sqrt(), 0.0)
