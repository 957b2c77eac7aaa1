"""The aggregated posterior q(z) = (1/N) Σ_i q(z|x_i), exact over a data set or from a batch; two posteriors drawn together."""

from nbvae.posterior._mmd import mmd, sample_mmd
from nbvae.posterior.coupling import KINDS, Coupling, Kind
from nbvae.posterior.minibatch import MINIBATCH, LogDensities, log_densities, log_weights, mix, pairwise, partition
from nbvae.posterior.mixture import check_reference, encode, leave_one_out, log_density, mean_and_std

__all__ = [
    "KINDS",
    "MINIBATCH",
    "Coupling",
    "Kind",
    "LogDensities",
    "check_reference",
    "encode",
    "leave_one_out",
    "log_densities",
    "log_density",
    "log_weights",
    "mean_and_std",
    "mix",
    "mmd",
    "pairwise",
    "partition",
    "sample_mmd",
]
