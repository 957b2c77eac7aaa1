"""Distances between sets of images in the features of a classifier, and the alignment of two models' latents."""

from nbvae.metrics._alignment import Alignment, alignment
from nbvae.metrics.distances import Coverage, Measured, coverage, frechet_distance, frechet_gaussians, kernel_distance
from nbvae.metrics.features import Classifier, classifier, inception

__all__ = [
    "Alignment",
    "Classifier",
    "Coverage",
    "Measured",
    "alignment",
    "classifier",
    "coverage",
    "frechet_distance",
    "frechet_gaussians",
    "inception",
    "kernel_distance",
]
