"""The study of samplers: what is compared with what, and what is claimed."""

import math

import pandas as pd
import pytest
from errors import one_line

from studies import samplers as study
from studies.samplers import ALONE, BASE, DRAWN, FLOOR, MANY, NONE, PRIOR, Plan


def rows(values: dict[tuple[str, str], float], passes: int = 4) -> pd.DataFrame:
    """Fréchet distances of three seeds, which multiply all by as much."""
    table = [
        {"objective": objective, "sampler": sampler, "beta": 0.1, "seed": seed, "passes": passes, "quantity": "frechet"}
        | {"value": value * (1 + seed), "stderr": 1.0, "n": 5}
        for seed in range(3)
        for (objective, sampler), value in values.items()
    ]
    return pd.DataFrame(table)


VALUES = {(MANY, BASE): 2.0, (MANY, "prior"): 7.0, (MANY, "chain"): 2.5, (ALONE, BASE): 3.0, (NONE, FLOOR): 0.5}


def test_samplers_are_compared_with_the_mixture_of_the_same_seed_and_the_recursion_that_draws_x_with_the_prior():
    apart = study.sides(rows(VALUES | {(MANY, DRAWN): 6.0, (MANY, "recursive"): 8.0, (ALONE, "prior"): 9.0}))
    means = apart.groupby(study.PLACE)["value"].agg(["mean", "std"])
    assert means["mean"].to_dict() == {
        (BASE, MANY, "prior"): pytest.approx(math.log(7 / 2)),
        (BASE, MANY, "chain"): pytest.approx(math.log(2.5 / 2)),
        (BASE, MANY, DRAWN): pytest.approx(math.log(6 / 2)),
        (BASE, MANY, "recursive"): pytest.approx(math.log(8 / 2)),
        (BASE, ALONE, "prior"): pytest.approx(math.log(9 / 2)),
        (BASE, ALONE, BASE): pytest.approx(math.log(3 / 2)),
        (BASE, NONE, FLOOR): pytest.approx(math.log(0.5 / 2)),
        (PRIOR, MANY, DRAWN): pytest.approx(math.log(6 / 7)),
    }
    assert (means["std"] < 1e-12).all()


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({(MANY, "prior"): 12.0}, True),  # farther on the same side
        ({(MANY, "prior"): 1.9}, False),
        ({(MANY, "chain"): 1.9}, False),
        ({(MANY, DRAWN): 6.5}, True),
        ({(MANY, DRAWN): 7.5}, False),  # now farther than the prior
        ({(NONE, FLOOR): 9.0}, True),  # nothing was trained
    ],
)
def test_twice_the_passes_bring_no_sampler_to_the_other_side_of_the_mixture_and_no_recursion_to_that_of_the_prior(
    changes, passed
):
    plan, values = Plan(passes=4, seeds=(0, 1, 2), again=3), VALUES | {(MANY, DRAWN): 6.0}
    frame = pd.concat([rows(values, 4), rows(values | changes, 8)])
    assert study._doubled(plan, frame).passed == passed


def test_what_the_seeds_do_not_agree_on_is_not_claimed():
    plan = Plan(passes=4, seeds=(0, 1, 2), again=3)
    table = rows(VALUES)
    table.loc[table["sampler"] == "chain", "value"] *= [2.0, 0.5, 1.0]
    check = study._doubled(plan, pd.concat([table, rows(VALUES | {(MANY, "chain"): 9.0}, 8)]))
    assert check.passed
    assert "of 2 claims" in check.found
    assert set(study.claimed(study.sides(table.drop(columns="passes")))["sampler"]) == {"prior", BASE}  # this of the β-VAE


def test_a_difference_of_less_than_a_tenth_is_not_claimed_however_sure():
    values = {(MANY, BASE): 2.0, (MANY, "prior"): 2.1, (MANY, "chain"): 1.7}
    assert set(study.claimed(study.sides(rows(values).drop(columns="passes")))["sampler"]) == {"chain"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ladder": (1.0,)}, "at least two βs that fall"),
        ({"ladder": (0.1, 1.0)}, "at least two βs that fall"),
        ({"lowest": 0.1}, "the whole ladder"),
        ({"highest": 1.0}, "the whole ladder"),
        ({"again": 1}, "at least two seeds"),
    ],
)
def test_a_plan_refuses_in_one_line(changes, said):
    one_line(lambda: Plan(**changes), said)
