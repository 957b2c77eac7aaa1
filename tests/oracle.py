"""The example that the tests of the closed forms share: eight eigenvalues, and the linear VAE of four latents on them."""

import numpy as np

from nbvae import analytic

SPECTRUM = np.array([5, 3, 1.5, 0.8, 0.4, 0.2, 0.1, 0.05])
ORACLE = analytic.LinearGaussian(SPECTRUM, latent_dim=4)


def covariance(spectrum, seed):
    """A dense covariance with the given spectrum."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum))))
    return (q * spectrum) @ q.T
