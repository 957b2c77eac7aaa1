"""Distances between sets of images in the features of a classifier; latents beside another model's, and known factors."""

from nbvae.metrics._alignment import Alignment, alignment
from nbvae.metrics._disentanglement import Importances, InformationGap, importances, information_gap
from nbvae.metrics.distances import Coverage, Measured, coverage, frechet_distance, frechet_gaussians, kernel_distance
from nbvae.metrics.features import Classifier, classifier, inception

__all__ = [
    "Alignment",
    "Classifier",
    "Coverage",
    "Importances",
    "InformationGap",
    "Measured",
    "alignment",
    "classifier",
    "coverage",
    "frechet_distance",
    "frechet_gaussians",
    "importances",
    "inception",
    "information_gap",
    "kernel_distance",
]
