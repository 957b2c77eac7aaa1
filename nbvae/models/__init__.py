"""Variational autoencoders as three distributions: `posterior(x)`, `likelihood(z)`, `prior()`. No losses here."""

from nbvae.models.multi_beta import AtBeta, MultiBetaVAE
from nbvae.models.vae import VAE, Discretized

__all__ = ["VAE", "AtBeta", "Discretized", "MultiBetaVAE"]
