"""Chains from the prior through f_t(z) = p(z) p(x|z)^t, t from 0 upwards: their temperatures, moves and weights."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from nbvae import objectives
from nbvae._measuring import log_likelihood, modules
from nbvae._randomness import seeded
from nbvae._tensors import parts


def check_gradients(model: objectives.Model) -> None:
    """Raise `ValueError` for a model through which there are no gradients in z."""
    if any(each.is_inference() for module in modules(model) for each in module.parameters(recurse=False)):
        raise ValueError("annealing needs gradients in z, which a model made in torch.inference_mode has not: make it outside")


def temperatures(n_steps: int, reached: Sequence[float] = (1.0,)) -> list[float]:
    """t from 0 to the largest of `reached`, with each of these among them.

    Up to 1 there are `n_steps` steps on a sigmoid schedule, and beyond it as many equal factors for each factor of ten.
    """
    ramp = torch.linspace(-4, 4, n_steps + 1, dtype=torch.float64).sigmoid()
    below = ((ramp - ramp[0]) / (ramp[-1] - ramp[0])).tolist()
    last = max(reached)
    factors = math.ceil(n_steps * math.log10(last)) if last > 1 else 0
    beyond = [last ** (i / factors) for i in range(1, factors)]
    return sorted({t for t in (*below, *beyond) if t < last} | {*reached})


def over_parts(
    model: objectives.Model,
    x: Tensor,
    times: Sequence[float],
    n_chains: int,
    n_leapfrog: int,
    seed: int,
    run: Callable[["Path", list[Tensor], slice], Tensor],
) -> Tensor:
    """What `run(path, sizes, rows)` gives (..., rows) for parts of x, one after the other: (..., batch).

    `path` is that of the part, `sizes` what its pilot found, and `rows` says which examples of x they are.
    """
    prior = model.prior()
    values, done = [], 0
    # The moves take gradients in z, also where the caller has switched gradients off; copies are no inference tensors.
    with seeded(seed, prior.mean.device), torch.inference_mode(False), torch.no_grad():
        for part in parts(x, prior.mean, n_chains * x[0].numel()):
            path = Path(model, part.clone(), n_leapfrog)
            values.append(run(path, path.pilot(times, n_chains), slice(done, done + len(part))))
            done += len(part)
    return torch.cat(values, -1)


class Path:
    """The annealing path of one batch x (batch, *shape): states z (chains, batch, k), log weights (chains, batch)."""

    def __init__(self, model: objectives.Model, x: Tensor, n_leapfrog: int):
        self.model, self.x, self.n_leapfrog = model, x, n_leapfrog

    def start(self, n_chains: int) -> Tensor:
        """States drawn from the prior."""
        return self.model.prior().sample((n_chains, len(self.x)))

    def pilot(self, times: Sequence[float], n_chains: int) -> list[Tensor]:
        """Step sizes (batch, 1) for each temperature, from one adaptive forward run with random numbers of its own."""
        z = self.start(n_chains)
        size = torch.full_like(z[0, :, :1], 0.3)
        sizes = []
        for t in times[1:]:
            z, accepted = self.move(z, t, size)
            size = size * (0.15 * (accepted.mean(0).unsqueeze(-1) - 0.65)).exp()
            sizes.append(size)
        return sizes

    def forward(self, times: Sequence[float], n_chains: int, sizes: Sequence[Tensor]) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Each t after the first, with the log weights there and log p(x|z) of the states (chains, batch).

        The weights w are those of the states: E w = Z_t, and E w f(z) = Z_t E f under f_t/Z_t (Neal 2001).
        """
        z = self.start(n_chains)
        weight, likely = torch.zeros(z.shape[:-1], dtype=torch.float64), self.log_likelihood(z)
        for (before, t), size in zip(itertools.pairwise(times), sizes, strict=True):
            weight = weight + (t - before) * likely
            z, _ = self.move(z, t, size)
            likely = self.log_likelihood(z)
            yield t, weight, likely

    def backward(self, times: Sequence[float], z: Tensor, sizes: Sequence[Tensor]) -> Tensor:
        """The log weights of the forward run in reverse, from z: each Hamiltonian move is its own reverse."""
        weight = torch.zeros(z.shape[:-1], dtype=torch.float64)
        for (before, t), size in reversed(list(zip(itertools.pairwise(times), sizes, strict=True))):
            z, _ = self.move(z, t, size)
            weight += (t - before) * self.log_likelihood(z)
        return weight

    @torch.no_grad()
    def log_likelihood(self, z: Tensor) -> Tensor:
        """log p(x|z) of the states, on the CPU in double precision."""
        return log_likelihood(self.model, z, self.x).cpu().double()

    def energy(self, z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """−log f_t(z) (chains, batch) and its gradient."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = -self.model.prior().log_prob(z) - t * log_likelihood(self.model, z, self.x)
            return value.detach(), torch.autograd.grad(value.sum(), z)[0]

    def move(self, z: Tensor, t: float, size: Tensor) -> tuple[Tensor, Tensor]:
        """One Hamiltonian move that leaves f_t in place: the new state and the acceptance probability (chains, batch)."""
        momentum = torch.randn_like(z)
        start, gradient = self.energy(z, t)
        start = start + 0.5 * momentum.square().sum(-1)
        new, end, momentum = z, start, momentum - 0.5 * size * gradient
        for step in range(self.n_leapfrog):
            new = new + size * momentum
            end, gradient = self.energy(new, t)
            momentum = momentum - (0.5 if step == self.n_leapfrog - 1 else 1.0) * size * gradient
        end = end + 0.5 * momentum.square().sum(-1)
        accepted = (start - end).exp().clamp(max=1).nan_to_num(0.0)
        keep = torch.rand_like(accepted) < accepted
        return torch.where(keep.unsqueeze(-1), new, z), accepted
