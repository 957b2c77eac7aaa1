"""Closed forms that everything else is measured against: the linear-Gaussian VAE and Shannon's Gaussian R(D).

Rates and distortions are in nats, MSE is the squared error summed over the n dimensions of an example, and all are
exact expectations over the data. Nothing here is fitted or sampled. Arrays may be lists, numpy arrays or CPU tensors.
"""

from nbvae.analytic.finite import SampledRD, sampled_rd
from nbvae.analytic.linear import (
    GaussianTerms,
    LinearGaussian,
    Solution,
    calibrated_distortion,
    linear_elbo_terms,
    linear_evidence,
    linear_four_terms,
)
from nbvae.analytic.shannon import DiscreteRD, blahut_arimoto, gaussian_distortion_rate, gaussian_rate_distortion, gaussian_rd

__all__ = [
    "DiscreteRD",
    "GaussianTerms",
    "LinearGaussian",
    "SampledRD",
    "Solution",
    "blahut_arimoto",
    "calibrated_distortion",
    "gaussian_distortion_rate",
    "gaussian_rate_distortion",
    "gaussian_rd",
    "linear_elbo_terms",
    "linear_evidence",
    "linear_four_terms",
    "sampled_rd",
]
