"""nbvae: the rate–distortion view of variational autoencoders, as a thin library over PyTorch."""

__version__ = "0.1.0"
