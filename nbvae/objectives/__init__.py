"""Training objectives as weights on the terms of the ELBO: stateless objects, called beside the training loop.

Minimised form: D + a·② + t·TC + m·DW, with D the distortion, ② = I(x; z), TC the total correlation of the aggregated
posterior and DW the sum of its dimension-wise KL divergences to the prior; the rate is R = ② + TC + DW. All in nats.

Every row is called as `objective(model, x, step=0, reference=None)`. `reference` is the training set (N, *shape): minibatch
estimators need its size, the estimator "exact" all of its codes; without it the batch x is taken for the whole data set.
"""

from nbvae.objectives.adversarial import FactorVAE
from nbvae.objectives.log_mse import LogMSE
from nbvae.objectives.multi_beta import MultiBeta
from nbvae.objectives.penalties import DIPVAEI, DIPVAEII, InfoVAE
from nbvae.objectives.protocol import Loss, Model, Objective, Terms, check_data, check_input, elbo_terms
from nbvae.objectives.weighted import HFVAE, VAE, AnchorVAE, BetaTCVAE, BetaVAE, Capacity, InformationDropout

__all__ = [
    "DIPVAEI",
    "DIPVAEII",
    "HFVAE",
    "NAMED",
    "TABLE",
    "VAE",
    "AnchorVAE",
    "BetaTCVAE",
    "BetaVAE",
    "Capacity",
    "FactorVAE",
    "InfoVAE",
    "InformationDropout",
    "LogMSE",
    "Loss",
    "Model",
    "MultiBeta",
    "Objective",
    "Terms",
    "check_data",
    "check_input",
    "elbo_terms",
]

# The rows of the table, as classes: call one for an objective. Each has `weights` on ②, TC and DW, `formula` and `reference`.
TABLE = {
    "vae": VAE,
    "beta_vae": BetaVAE,
    "dip_vae_i": DIPVAEI,
    "dip_vae_ii": DIPVAEII,
    "info_vae": InfoVAE,
    "capacity": Capacity,
    "anchor_vae": AnchorVAE,
    "information_dropout": InformationDropout,
    "factor_vae": FactorVAE,
    "beta_tcvae": BetaTCVAE,
    "hfvae": HFVAE,
}

# All objectives that a run can be saved with, and a sweep be asked for by name.
NAMED = {**TABLE, "log_mse": LogMSE, "multi_beta": MultiBeta}
