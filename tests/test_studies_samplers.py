"""The study of samplers: what is compared with what, and what is claimed."""

import pandas as pd
import pytest

from studies import samplers as study
from studies.samplers import ALONE, BASE, FLOOR, MANY, NONE, Plan


def rows(values: dict[tuple[str, str], float], passes: int = 4) -> pd.DataFrame:
    """Fréchet distances of three seeds, which shift all by as much."""
    table = [
        {"objective": objective, "sampler": sampler, "beta": 0.1, "seed": seed, "passes": passes, "quantity": "frechet"}
        | {"value": value + 10 * seed, "stderr": 1.0, "n": 5}
        for seed in range(3)
        for (objective, sampler), value in values.items()
    ]
    return pd.DataFrame(table)


VALUES = {(MANY, BASE): 2.0, (MANY, "prior"): 7.0, (MANY, "chain"): 2.5, (ALONE, BASE): 3.0, (NONE, FLOOR): 0.5}


def test_samplers_are_compared_with_the_mixture_of_the_same_seed():
    apart = study._apart(rows(VALUES))
    means = apart.groupby(["objective", "sampler"])["value"].agg(["mean", "std"])
    assert means["mean"].to_dict() == {(MANY, "prior"): 5.0, (MANY, "chain"): 0.5, (ALONE, BASE): 1.0, (NONE, FLOOR): -1.5}
    assert (means["std"] == 0).all()


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({(MANY, "prior"): 12.0}, True),  # farther on the same side
        ({(MANY, "prior"): 1.9}, False),
        ({(MANY, "chain"): 1.9}, False),
        ({(NONE, FLOOR): 9.0}, True),  # nothing was trained
    ],
)
def test_twice_the_passes_bring_no_sampler_to_the_other_side_of_the_mixture(changes, passed):
    plan = Plan(passes=4, seeds=(0, 1, 2), again=3)
    frame = pd.concat([rows(VALUES, 4), rows(VALUES | changes, 8)])
    assert study._doubled(plan, frame).passed == passed


def test_what_the_seeds_do_not_agree_on_is_not_claimed():
    plan = Plan(passes=4, seeds=(0, 1, 2), again=3)
    table = rows(VALUES)
    table.loc[table["sampler"] == "chain", "value"] += [1.0, -1.0, 0.0]
    check = study._doubled(plan, pd.concat([table, rows(VALUES | {(MANY, "chain"): 9.0}, 8)]))
    assert check.passed
    assert "of 2 claims" in check.found


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
    with pytest.raises(ValueError, match=said) as caught:
        Plan(**changes)
    assert "\n" not in str(caught.value)
