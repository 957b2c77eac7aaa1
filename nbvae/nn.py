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
        open_share = -torch.expm1(level.clamp(max=0.0))
        # The root's slope has no bound at 0: below 1e-4 the gate is closed.
        return torch.where(open_share > 1e-4, open_share.clamp(min=1e-4).sqrt(), 0.0), level.clamp(max=0.0)


class BetaFeatures(nn.Module):
    """Smooth features of log β over a range: its place in [−1, 1], and Gaussian bumps along it."""

    centres: Tensor

    def __init__(self, beta_range: tuple[float, float], n_bumps: int = 8):
        super().__init__()
        low, high = (math.log(beta) for beta in beta_range)
        self.middle, self.reach = (low + high) / 2, (high - low) / 2
        self.width = 2 / (n_bumps - 1)
        self.size = n_bumps + 1
        self.register_buffer("centres", torch.linspace(-1, 1, n_bumps), persistent=False)

    def forward(self, log_beta: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch features"]:
        place = (log_beta - self.middle) / self.reach
        bumps = (-0.5 * ((place - self.centres) / self.width).square()).exp()
        return torch.cat([place.expand(*bumps.shape[:-1], 1), bumps], -1)


class FiLM(nn.Module):
    """Scale and shift of a layer's outputs, linear in features of β (Perez et al. 2018).

    Both start at nothing: at first the layer is an ordinary one at every β.
    """

    def __init__(self, n_features: int, n_out: int):
        super().__init__()
        self.modulation = nn.Linear(n_features, 2 * n_out)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, y: Float[Tensor, "*batch m"], features: Float[Tensor, "*batch f"]) -> Float[Tensor, "*batch m"]:
        scale, shift = self.modulation(features).chunk(2, dim=-1)
        return y * (1 + scale) + shift


class MultiRateGate(nn.Module):
    """Gate on a layer's outputs, a function of w log β + b: sigmoid in the encoder, √(1 − eˣ)₊ in the decoder.

    The conditioning of the Multi-Rate VAE (Bae et al. 2023), to compare with.
    """

    def __init__(self, n_out: int, in_decoder: bool):
        super().__init__()
        self.in_decoder = in_decoder
        self.gate = nn.Linear(1, n_out)

    def forward(self, y: Float[Tensor, "*batch m"], log_beta: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch m"]:
        x = self.gate(log_beta)
        if not self.in_decoder:
            return y * x.sigmoid()
        open_share = -torch.expm1(x.clamp(max=0.0))
        return y * torch.where(open_share > 1e-6, open_share.clamp(min=1e-6).sqrt(), 0.0)


class ConditionedMLP(nn.Module):
    """`mlp` that also takes log β. "film" conditions every layer, "gates" the hidden ones."""

    def __init__(
        self, n_in: int, n_out: int, hidden: Sequence[int], conditioning: str, beta_range: tuple[float, float], in_decoder: bool
    ):
        super().__init__()
        checks.choice("conditioning", conditioning, CONDITIONINGS)
        widths = [n_in, *hidden, n_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        if conditioning == "film":
            self.features: nn.Module = BetaFeatures(beta_range)
            self.conditions = nn.ModuleList(FiLM(self.features.size, width) for width in widths[1:])
        else:
            self.features = nn.Identity()
            self.conditions = nn.ModuleList(MultiRateGate(width, in_decoder) for width in hidden)

    def forward(self, x: Float[Tensor, "*batch n"], log_beta: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch m"]:
        features = self.features(log_beta)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index < len(self.conditions):
                x = self.conditions[index](x, features)
            if index < len(self.layers) - 1:
                x = x.relu()
        return x
