"""nbvae: the rate–distortion view of variational autoencoders, as a thin library over PyTorch.

The rooms and what each offers, from the ones that know least to the ones that know most. A room is loaded on first use:
`import nbvae; nbvae.models.VAE`. `help(nbvae.models.VAE)` says more, with an example.

- `data`: named data sets and a reader's own, with fixed splits.
  BINARIZE, SPECTRUM, SPLITS, Dataset, Factors, gaussian_covariance, load
- `results`: what is measured: estimates with their errors, tidy frames, means over seeds, paired differences.
  COLUMNS, Estimate, Quantities, frame_of, over_seeds, paired, row_of, tidy
- `curves`: rate–distortion points and curves as records, and comparisons of them.
  RDPoint, Regret, Envelope, RDCurve
- `analytic`: closed forms to hold everything else to.
  Numbers, Solution, LinearGaussian, linear_elbo_terms, GaussianTerms, linear_four_terms, linear_evidence,
  calibrated_distortion, gaussian_rd, gaussian_rate_distortion, gaussian_distortion_rate, SampledRD, sampled_rd,
  DiscreteRD, blahut_arimoto
- `limits`: R(D) of finite sources, and bounds on that of data from both sides.
  DiscreteLimit, LowerBound, UpperBound, blahut_arimoto, lower_bound, upper_bound
- `models`: VAEs as three distributions, `posterior(x)`, `likelihood(z)`, `prior()`.
  VAE, AtBeta, Discretized, MultiBetaVAE
- `posterior`: the aggregated posterior q(z) of a data set.
  KINDS, MINIBATCH, Coupling, Kind, LogDensities, check_reference, encode, leave_one_out, log_densities, log_density,
  log_weights, mean_and_std, mix, mmd, pairwise, partition, sample_mmd
- `objectives`: the published losses as weights on the terms of the ELBO.
  DIPVAEI, DIPVAEII, HFVAE, NAMED, TABLE, VAE, AnchorVAE, BetaTCVAE, BetaVAE, Capacity, FactorVAE, InfoVAE,
  InformationDropout, LogMSE, Loss, Model, MultiBeta, Objective, Terms, elbo_terms
- `training`: `fit` for one model, `sweep` for many, runs on disk.
  DEVICES, OPTIMIZERS, SCHEDULES, Diverged, Interrupted, Run, Store, TrainConfig, calibration, device, fit, load, seeded,
  sweep, watched
- `estimators`: rate, distortion, the four terms, log p(x), each with its standard error.
  ActiveUnits, CrossTerms, Decomposition, Estimate, MinibatchTerms, Moments, active_units, ais, decoder_curve,
  decompose, empirical_entropy, evaluate, gap, iwae, minibatch_terms, moments, rd_curve
- `metrics`: distances between sets of images, the alignment of latents, and whether they stand for known factors.
  Alignment, Classifier, Coverage, Importances, InformationGap, Measured, alignment, classifier, coverage, frechet_distance,
  frechet_gaussians, importances, inception, information_gap, kernel_distance
- `samplers`: ways to draw from a trained model.
  Aggregate, Chain, Density, Diffusion, Flow, Mixture, Prior, Recursive, Sampler, SecondStage, VampPrior
- `coding`: images as bytes and back, by a trained model.
  Embedded, Embedding, Report, Rung, compress, decompress, report
- `plotting`: figures of records.
  rd_plane, phase_diagram, envelope, image_grid, four_terms
- `notebook`: what chapters need of a notebook.
  begin, glue, Table, table, slider, Live, live, check_parameters
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "analytic",
    "coding",
    "curves",
    "data",
    "estimators",
    "limits",
    "metrics",
    "models",
    "notebook",
    "objectives",
    "plotting",
    "posterior",
    "results",
    "samplers",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"nbvae.{name}")
    raise AttributeError(f"module 'nbvae' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
