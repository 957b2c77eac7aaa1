"""Measurement: what a trained model is worth on data that it is shown, without gradients, with standard errors. Nats."""

from nbvae.estimators._moments import ActiveUnits, Moments, active_units, moments
from nbvae.estimators.decoder import decoder_curve
from nbvae.estimators.decomposition import CrossTerms, Decomposition, MinibatchTerms, decompose, minibatch_terms
from nbvae.estimators.evidence import ais, gap, iwae
from nbvae.estimators.rd import empirical_entropy, evaluate, rd_curve
from nbvae.results import Estimate

__all__ = [
    "ActiveUnits",
    "CrossTerms",
    "Decomposition",
    "Estimate",
    "MinibatchTerms",
    "Moments",
    "active_units",
    "ais",
    "decoder_curve",
    "decompose",
    "empirical_entropy",
    "evaluate",
    "gap",
    "iwae",
    "minibatch_terms",
    "moments",
    "rd_curve",
]
