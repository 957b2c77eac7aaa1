"""What log q(z) costs: 10,000 draws against 60,000 posteriors, 16 latents, float32, beside the arithmetic that it needs.

    python benchmarks/posterior.py [--rounds 5] [--threads 2]

The yardstick is two matrix products (z² and z against all posteriors) and the exponentials of the result, in blocks of the
same size. Two yardsticks: exponents as they come, most of them so negative that their exponentials are denormal, which a CPU
computes many times more slowly; and exponents cut off above that. Prints ratios of medians over interleaved rounds, the
extra memory at its peak, and the largest error against float64. Last, what training on exact terms costs: gradients of the
density and of those of the latents, with all pairs at once and in tiles.
"""

import argparse
import functools
import math
import os
import resource
from collections.abc import Callable

import torch
from speed import report

from nbvae import posterior
from nbvae.posterior import mixture

M, N, K = 10_000, 60_000, 16


def needed(z: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, cut: float) -> None:
    """Both matrix products and the exponentials, no more."""
    a, b = (-0.5 / std**2).T.contiguous(), (mean / std**2).T.contiguous()
    squares, columns = z**2, mixture._BLOCK // 512
    for top in range(0, M, 512):
        for left in range(0, N, columns):
            block = squares[top : top + 512] @ a[:, left : left + columns]
            block += z[top : top + 512] @ b[:, left : left + columns]
            block.clamp_(min=cut).exp_()


def naive(z: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """log q(z) in float64 from differences, a few rows at a time."""
    z, mean, std = z.double(), mean.double(), std.double()
    constant = std.log().sum(1) + 0.5 * K * math.log(2 * math.pi) + math.log(N)
    return torch.stack([(-0.5 * ((row - mean) / std).square().sum(1) - constant).logsumexp(0) for row in z])


def peak() -> float:
    """Most memory that this process has held, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the exact log q(z) against the arithmetic that it needs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    mean = torch.randn(N, K)
    print(f"{options.threads} threads of {os.cpu_count()}, median of {options.rounds} interleaved rounds [least, most]")
    for width in (1.0, 0.3, 0.03):
        std = width * (0.5 + torch.rand(N, K))
        z = (mean + std * torch.randn(N, K))[:M]
        before = peak()
        found = posterior.log_density(z, mean, std)
        extra = peak() - before
        error = (found[:200] - naive(z[:200], mean, std)).abs().max()
        print(f"posterior widths around {width}: extra memory {extra:.2f} GiB, largest error {error:.1e} nats of 200")
        exact = functools.partial(posterior.log_density, z, mean, std)
        report("log q(z) / products and exponentials as they come", exact,
               functools.partial(needed, z, mean, std, -math.inf), options.rounds)  # fmt: skip
        report("log q(z) / products and exponentials, no denormals", exact,
               functools.partial(needed, z, mean, std, -80.0), options.rounds)  # fmt: skip
    codes = [torch.randn(5, 100, 10), torch.randn(5, 3000, 10), 0.1 + torch.rand(5, 3000, 10)]
    codes = [part.requires_grad_() for part in codes]
    weight = torch.full((3000,), -math.log(3000))

    def gradients(densities: Callable[..., posterior.LogDensities]) -> None:
        found = densities(*codes)
        torch.autograd.grad((found.joint.sum() + found.latents.sum()) / 100, codes)

    report("gradients of TC, 5 models, 100 × 3,000 pairs: all at once / in tiles",
           lambda: gradients(lambda z, mean, std: posterior.mix(posterior.pairwise(z, mean, std), weight)),
           lambda: gradients(lambda z, mean, std: posterior.log_densities(z, mean, std, -math.log(3000))),
           options.rounds)  # fmt: skip


if __name__ == "__main__":
    main()
