"""A sweep over each row of the table: the numbers of the model at b, for models of three latents."""

GROUPS = ((0, 2), (1,))

PER_RUN = {
    "vae": lambda b: {},
    "beta_vae": lambda b: {"beta": b},
    "dip_vae_i": lambda b: {"off_diagonal": b, "diagonal": 2 * b},
    "dip_vae_ii": lambda b: {"off_diagonal": b, "diagonal": 2 * b},
    "info_vae": lambda b: {"alpha": 1 - b, "lam": 3 * b},
    "capacity": lambda b: {"gamma": b, "capacity": 4 * b, "ramp_steps": 4},
    "anchor_vae": lambda b: {"anchors": (2, 0), "lam": b / 2},
    "information_dropout": lambda b: {"beta": b, "gamma": 2 * b, "dimension": b / 2},
    "factor_vae": lambda b: {"gamma": 3 * b, "width": 8, "depth": 2},
    "beta_tcvae": lambda b: {"alpha": b, "beta": 3 * b, "gamma": 1 + b},
    "hfvae": lambda b: {"groups": GROUPS, "alpha": b, "beta": 3 * b, "gamma": 1 + b},
}
