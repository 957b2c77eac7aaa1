"""The study of learned priors: what is saved, what is compared, and what is claimed."""

import numpy as np
import pandas as pd
import pytest
from errors import one_line

from studies import priors as study
from studies.priors import AGGREGATE, PRIOR, SCALED, Plan

RATES = {PRIOR: 10.0, SCALED: 9.0, "one Gaussian": 8.5, "mixture": 7.0, "flow": 6.0}


def frame_of(rates: dict[str, float], passes: int = 200, distances: dict[str, float] | None = None) -> pd.DataFrame:
    """Rates of three seeds, larger by the seed, and distances, by default as the rates are; at two βs."""
    near = rates if distances is None else distances
    table = [
        {"beta": beta, "seed": seed, "passes": passes, "sampler": name, "quantity": quantity, "value": value + seed * own}
        for beta in (0.1, 1.0)
        for seed in range(3)
        for quantity, values, own in (("rate", rates, 1.0), ("frechet", near, 0.0), ("kernel", near, 0.0))
        for name, value in values.items()
    ]
    images = [{**row, "sampler": AGGREGATE, "value": 1.0} for row in table if row["quantity"] != "rate"]  # it is no density
    return pd.DataFrame(table + images)


def test_what_is_saved_is_against_the_prior_of_the_same_model_and_seed():
    means = study.savings(frame_of(RATES)).groupby("sampler")["value"].agg(["mean", "std", "size"])
    assert means["mean"].to_dict() == {SCALED: 1.0, "one Gaussian": 1.5, "mixture": 3.0, "flow": 4.0}
    assert (means["std"] == 0).all()
    assert (means["size"] == 6).all()
    more = study.apart(frame_of(RATES)).groupby("sampler")["value"].mean()
    assert more.to_dict() == {SCALED: -2.0, "one Gaussian": -1.5, "flow": 1.0}
    fewer = {name: RATES[name] for name in (PRIOR, SCALED, "flow")}
    assert study.apart(frame_of(fewer)).groupby("sampler")["value"].mean().to_dict() == {"flow": 3.0}


def test_images_that_come_nearer_in_the_order_of_what_is_saved_have_a_rank_correlation_of_one():
    np.testing.assert_allclose(study.agreement(frame_of(RATES))["value"], 1.0)
    turned = {name: -value for name, value in RATES.items()}
    np.testing.assert_allclose(study.agreement(frame_of(RATES, distances=turned))["value"], -1.0)
    swapped = RATES | {"mixture": RATES["flow"], "flow": RATES["mixture"]}
    np.testing.assert_allclose(study.agreement(frame_of(RATES, distances=swapped))["value"], 0.9)


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"flow": 3.0}, True),  # more on the same side
        ({"flow": 7.5}, False),  # now behind the mixture
        ({PRIOR: 8.0, SCALED: 9.5}, False),  # what costs more than N(0, I) saves nothing
    ],
)
def test_twice_the_passes_leave_what_saves_and_what_saves_more(changes, passed):
    plan = Plan(betas=(0.1, 1.0))
    sides, errors = study._checks(plan, pd.concat([frame_of(RATES), frame_of(RATES | changes, 400)]))
    assert sides.passed == passed, sides.found
    assert errors.passed
    noisy = frame_of(RATES)
    noisy.loc[(noisy["sampler"] == "flow") & (noisy["seed"] == 0), "value"] += 9.0
    assert not study._checks(plan, pd.concat([noisy, frame_of(RATES, 400)]))[1].passed


def test_what_a_plan_does_not_claim_is_held_neither_to_a_side_nor_to_a_size():
    noisy = frame_of(RATES)
    noisy.loc[(noisy["sampler"] == "flow") & (noisy["seed"] == 0), "value"] += 9.0
    frame = pd.concat([noisy, frame_of(RATES | {"flow": 12.0}, 400)])
    plan = Plan(betas=(0.1, 1.0))
    assert [each.passed for each in study._checks(plan, frame)] != [True, True]
    some = plan.changed(unclaimed=("saving flow 0.1", "more than mixture flow 0.1"))
    every = plan.changed(unclaimed=("saving flow", "more than mixture flow"))
    assert [each.passed for each in study._checks(some, frame)] != [True, True]
    sides, errors = study._checks(every, frame)
    assert sides.passed
    assert errors.passed
    assert sides.found.endswith("not claimed are saving flow, more than mixture flow")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"betas": (0.0,)}, "betas must be different numbers > 0"),
        ({"kinds": ("mixture", "flows")}, "a kind must be one of"),
        ({"kinds": ("mixture",)}, "at least two kinds"),
        ({"seeds": (0,)}, "at least two seeds"),
        ({"effort": 0}, "effort must be"),
        ({"unclaimed": ("flow",)}, "must begin with one of saving"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan(**values), said)
