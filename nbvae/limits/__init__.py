"""Bounds on R(D), the least rate at which any code keeps a distortion: exact for finite sources, from both sides for data.

They are compared in nats at equal slope: whatever D/β + R the best code has, `upper_bound(...).nats` is above it and
`lower_bound(...).nats` below, up to their errors. Shannon's R(D) of a Gaussian, above that of any source with its covariance,
is `analytic.gaussian_rate_distortion`.
"""

from nbvae.limits.codebook import UpperBound, upper_bound
from nbvae.limits.discrete import DiscreteLimit, blahut_arimoto
from nbvae.limits.dual import LowerBound, lower_bound

__all__ = ["DiscreteLimit", "LowerBound", "UpperBound", "blahut_arimoto", "lower_bound", "upper_bound"]
