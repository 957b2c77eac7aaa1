"""The study of limits: its sources, the parts of a VAE's distance from a codebook, and what its checks refuse."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

from nbvae import data, models, samplers, training
from studies import limits as study
from studies import replacements
from studies.limits import CODEBOOK, GAP, GAUSSIAN, LOWER, MANY, PARTS, VAE, Plan

STAGES = (
    "with its own encoder",
    "with the best Gaussians",
    "with the best encoder",
    "with the best encoder and the mixture",
)


def test_sources_are_principal_components_of_the_training_images_in_one_unit():
    ds = data.load("digits", None)
    few, many, whole = (study.source("digits", None, 1000, dim, 16) for dim in (8, 16, 0))
    cov = torch.cov(many.ds.train.T, correction=0)
    torch.testing.assert_close(cov, cov.diagonal().diag(), atol=1e-4, rtol=0)
    assert float(cov.diagonal().mean()) == pytest.approx(1.0, abs=1e-4)
    assert (cov.diagonal().diff() < 0).all()
    torch.testing.assert_close(few.ds.test.abs(), many.ds.test[:, :8].abs())
    # Turning takes nothing away: of whole images the variances are those in pixels, in the same unit.
    pixels = ds.train[:1000].flatten(1)
    shares = [each.ds.train.var(0).sum() / whole.ds.train.var(0).sum() for each in (few, many)]
    values = torch.linalg.eigvalsh(torch.cov(pixels.T)).flip(0)
    assert [float(each) for each in shares] == pytest.approx(
        [float(values[:n].sum() / values.sum()) for n in (8, 16)], abs=1e-4
    )
    # What nothing was fitted to: validation and test images, and training images that are not used.
    assert [len(each.draws) for each in (few, whole)] == [200 + 200 + 397] * 2
    torch.testing.assert_close(whole.draws[-397:], whole.ds.test)
    one_line(lambda: study.source("digits", None, 20, 8, 30), "dims must be at most 19")


def test_the_mixture_takes_the_priors_place_as_the_sampler_prices_it():
    ds = data.load("digits", None)
    with training.seeded(0):
        model = models.VAE(ds.shape, 3, "mlp", "gaussian", sigma=0.5, hidden=(8,))
    mixture = samplers.Mixture(model, ds.train, 4)
    z = torch.randn(7, 3)
    own = replacements.WithPrior(model, mixture)
    torch.testing.assert_close(own.prior().log_prob(z).double(), mixture._log_prob(z), rtol=1e-4, atol=1e-4)
    assert own.prior().sample((5,)).shape == (5, 3)


def test_the_parts_of_a_linear_model_at_its_optimum_are_nothing_and_one_that_is_not_lacks_where_it_should():
    """Of N(0, diag λ) the linear VAE at σ² = β/2 is the optimum: no encoder is better, and no prior or code much."""
    torch.manual_seed(0)
    values, beta = torch.tensor([3.0, 1.5, 0.8]), 0.6
    x = torch.randn(4000, 3) * values.sqrt()
    level = beta / 2
    best = {
        "encoder": torch.diag((values - level).sqrt() / values),
        "variance": level / values,
        "decoder": torch.diag((values - level).sqrt()),
    }
    exact = float(0.5 * (values / level).log().sum()) + 3 * level / beta
    setting = {"components": 1, "samples": 200, "steps": 40, "draws": 50}
    model = models.VAE.from_linear(**best, likelihood="gaussian", sigma=math.sqrt(0.5)).float()
    found = replacements.measured(model, x[:2000], x[2000:2400], beta, 1, 0, **setting)
    expected = exact + float(((x[2000:2400].square() / values).sum(1) / 2).mean() - 1.5)  # of these examples
    for name in STAGES:
        assert found[name].value == pytest.approx(expected, abs=0.06), name
    assert found[replacements.SAVED].value == pytest.approx(0.0, abs=0.03)
    wide = models.VAE.from_linear(
        **(best | {"variance": 4 * level / values}), likelihood="gaussian", sigma=math.sqrt(0.5)
    ).float()
    worse = replacements.measured(wide, x[:2000], x[2000:2400], beta, 1, 0, **setting)
    assert worse["with its own encoder"].value - worse["with the best Gaussians"].value == pytest.approx(
        3 * (4 - 1 - math.log(4)) / 2, abs=0.2
    )  # KL of variances that are four times as large
    assert worse["with the best encoder"].value == pytest.approx(expected, abs=0.1)


# ---------------------------------------------------------------- checks, on frames that are made


def rows(change=lambda quantity, objective, seed, passes: 0.0, noise=0.001):
    """A frame of one source at two βs: a VAE with parts of .4, .3, .2 and .1 nats above the codebook, one model .5 above it."""
    rng = np.random.default_rng(0)
    quantities = {"with its own encoder": 6.0, "with the best Gaussians": 5.6, "with the best encoder": 5.3}
    quantities |= {"with the best encoder and the mixture": 5.1, "nats": 6.0}
    nats = {MANY: 5.5, CODEBOOK: 5.0, LOWER: 4.0, GAUSSIAN: 7.0}
    table = [(VAE, name, value) for name, value in quantities.items()] + [(name, "nats", value) for name, value in nats.items()]
    return pd.DataFrame(
        [
            {
                "objective": objective,
                "quantity": quantity,
                "source": "8 components",
                "beta": beta,
                "seed": seed,
                "split": "test",
            }
            | {"passes": passes, "stderr": 0.05}
            | {"value": value + noise * rng.standard_normal() + change(quantity, objective, seed, passes)}
            for passes in (200, 400)
            for seed in (0, 1, 2)
            for beta in (0.5, 1.0)
            for objective, quantity, value in table
        ]
    )


def checked(**how):
    frame = rows(**how)
    frame = pd.concat([frame, study._gaps(frame)], ignore_index=True)
    return [check.passed for check in study._checks(Plan(passes=200, betas=(0.5, 1.0)), frame)]


def test_the_gap_and_its_parts_are_differences_of_one_seed():
    found = study._gaps(rows(noise=0.0, change=lambda quantity, objective, seed, passes: float(seed)))
    means = found[found["passes"] == 200].groupby("quantity")["value"].agg(["mean", "std"])
    assert means["mean"].round(9).to_dict() == {
        **{GAP: 1.0, "amortisation": 0.4, "family": 0.3},
        **{"prior": 0.2, "decoder": 0.1},
    }
    assert (means["std"] < 1e-12).all()
    above = study.excesses(rows(noise=0.0))
    assert above.groupby("objective")["value"].mean().round(9).to_dict() == {VAE: 1.0, MANY: 0.5}


def test_checks_pass_where_all_is_steady_and_each_fails_for_its_own_reason():
    assert checked() == [True] * 5
    assert checked(noise=1.0)[0] is False
    # twice the effort: what is claimed has moved
    longer = checked(change=lambda quantity, objective, seed, passes: -0.3 * (objective == VAE) * (passes == 400))
    assert longer == [True, False, True, True, True]
    # a lower bound above the codebook by many errors
    assert checked(change=lambda quantity, objective, seed, passes: 1.3 * (objective == LOWER)) == [
        True,
        True,
        False,
        True,
        True,
    ]
    # within two errors of it
    assert checked(change=lambda quantity, objective, seed, passes: 1.05 * (objective == LOWER)) == [True] * 5
    # the gap was measured otherwise than its parts
    own = checked(change=lambda quantity, objective, seed, passes: 0.1 * (objective == VAE and quantity == "nats"))
    assert own == [True, True, True, False, True]
    # the best Gaussians are worse than the encoder's
    worse = checked(change=lambda quantity, objective, seed, passes: 0.5 * (quantity == "with the best Gaussians"))
    assert worse == [True, True, True, True, False]


def test_what_a_plan_does_not_claim_is_named_and_in_no_check_of_sizes():
    frame = rows(change=lambda quantity, objective, seed, passes: -0.3 * (objective == VAE) * (passes == 400))
    frame = pd.concat([frame, study._gaps(frame)], ignore_index=True)
    plan = Plan(passes=200, betas=(0.5, 1.0), unclaimed=("above the codebook VAE", "decoder VAE 8 components"))
    errors, twice, *_ = study._checks(plan, frame)
    assert errors.found.endswith("not claimed are above the codebook VAE, decoder VAE 8 components")
    assert twice.passed


def test_the_sandwich_has_the_error_of_draws_that_all_seeds_share():
    table = study.sandwich(rows()[lambda each: each["passes"] == 200])
    row = table.loc[("8 components", 0.5)]
    assert (row[LOWER].stderr, row[CODEBOOK].stderr < 0.01) == (pytest.approx(0.05), True)
    assert row[LOWER].value < row[CODEBOOK].value < row[MANY].value < row[VAE].value


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dims": ()}, "dims must be different whole numbers"),
        ({"dims": (8, 8)}, "dims must be different"),
        ({"betas": (1.0, 0.5)}, "betas must be numbers > 0, from the smallest"),
        ({"low": 0.5}, "low and high must have all of betas"),
        ({"points": ()}, "points must be"),
        ({"samples": 0}, "samples must be"),
        ({"measured": 1}, "measured must be"),
        ({"seeds": (0,)}, "at least two seeds"),
        ({"unclaimed": ("gap",)}, "must begin with one of above the codebook"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan(**values), said)


def test_the_parts_are_named_in_the_order_in_which_they_are_taken():
    assert tuple(replacements.STAGES) == PARTS
    ends = [after for _, after in replacements.STAGES.values()]
    assert [before for before, _ in replacements.STAGES.values()][1:] == ends[:-1]
