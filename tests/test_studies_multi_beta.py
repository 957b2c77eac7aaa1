"""The study of one model of many β: what is searched, chosen, paired and kept."""

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from errors import one_line

import studies
from nbvae import estimators, results
from studies import multi_beta as study
from studies import responses, searching
from studies.multi_beta import Plan
from studies.searching import Choice, Entrant

BY = "validation loss"
SHAPE = {"shape": (4,), "network": "mlp", "hidden": (5,), "latent_dim": 3}


def rows(losses: dict, member: float = 1.0, passes: int = 8, seed: int = 0, conditioning: str = "film") -> pd.DataFrame:
    """What was trained: the loss on the validation images of each learning rate, or of each and β."""
    each = {key if isinstance(key, tuple) else (key, 1.0): value for key, value in losses.items()}
    place = {"conditioning": conditioning, "member": member, "passes": passes, "seed": seed}
    return pd.DataFrame([place | {"lr": lr, "beta": beta, BY: value} for (lr, beta), value in each.items()])


MOST = {("film", member): 16 for member in (0.5, 1.0, 2.0, 3.0)}


@pytest.mark.parametrize(
    ("losses", "lrs"),
    [
        ({0.01: 3.0, 0.02: 2.0, 0.04: 1.0}, [0.08]),  # the best is the largest
        ({0.01: 1.0, 0.03: 2.0, 0.09: 3.0}, [0.0033]),  # the smallest
        ({0.01: 2.0, 0.02: 1.0, 0.04: 2.0}, []),
        ({0.01: 1.05, 0.02: 1.02, 0.04: 1.0}, []),  # no better than may be left
        ({0.01: 2.0}, []),  # one is no search
        ({0.01: 2.0, 0.02: 1.0, 0.04: math.nan}, []),  # the largest diverged
        ({0.01: math.nan, 0.02: math.nan}, []),
    ],
)
def test_the_search_goes_on_while_the_best_learning_rate_is_an_edge(losses, lrs):
    assert searching.further(rows(losses), MOST, 0.1, BY) == [Choice("film", 1.0, 8, lr) for lr in lrs]


def test_each_member_and_number_of_passes_is_searched_by_its_mean_over_seeds_and_betas():
    up, down, flat = {0.01: 2.0, 0.02: 1.0}, {0.01: 1.0, 0.02: 2.0}, {0.01: 1.5, 0.02: 1.5}
    every = pd.concat([rows(up, 0.5), rows(down, 0.5, passes=4), rows(up, 2.0), rows(down, 2.0, seed=1), rows(flat, 3.0)])
    assert searching.further(every, MOST, 0.1, BY) == [Choice("film", 0.5, 4, 0.005), Choice("film", 0.5, 8, 0.04)]
    two = {(0.01, 0.1): 5.0, (0.02, 0.1): 3.0, (0.01, 1.0): 1.0, (0.02, 1.0): 2.0}
    assert searching.further(rows(two), MOST, 0.1, BY) == [Choice("film", 1.0, 8, 0.04)]
    # A training that lacks a seed diverged before its first epoch.
    lacking = pd.concat([rows({0.01: 2.0, 0.02: 1.0}), rows({0.01: 2.0}, seed=1)])
    assert searching.further(lacking, MOST, 0.1, BY) == [Choice("film", 1.0, 8, 0.005)]


def test_a_finer_search_is_between_the_best_rate_and_the_better_of_its_neighbours():
    plan = study.Plan(betas=(0.3, 1.0), finer=(1.0,), passes=8, search=1, again=2)
    losses = {0.01: 3.0, 0.02: 1.0, 0.04: 2.0}
    tried = [rows(losses, passes=8), rows({0.01: 1.0, 0.04: 2.0, 0.16: 3.0}, passes=16), rows(losses, 0.3, passes=8)]
    every = pd.concat(tried).assign(conditioning=study.DEDICATED)
    every = every.assign(**{name: every[BY] for name in searching.CHOSEN_BY.values()})
    expected = [Choice(study.DEDICATED, 1.0, 8, 0.028), Choice(study.DEDICATED, 1.0, 16, 0.02)]
    assert study.in_between(plan, every) == expected
    # What the other loss would choose is tried as well.
    other = every.assign(**{searching.CHOSEN_BY["train"]: -every[BY]})
    assert set(expected) < set(study.in_between(plan, other))
    assert study.in_between(plan.changed(finer=()), every) == []
    with pytest.raises(ValueError, match="finer must be some of betas"):
        plan.changed(finer=(2.0,))


@pytest.mark.parametrize(
    ("few", "many", "found"),
    [
        (3.0, 2.0, [(16, 0.01), (16, 0.02)]),  # longer is better: the best rate, and the next smaller one
        (2.0, 3.0, [(2, 0.02), (2, 0.04)]),
        (2.0, 2.05, []),
        (2.0, math.inf, [(2, 0.02), (2, 0.04)]),
    ],
)
def test_the_search_goes_on_while_the_best_number_of_passes_is_an_edge(few, many, found):
    def every(few, many):
        return [
            rows({0.01: least + 0.5, 0.02: least, 0.04: least + 0.5}, passes=passes) for passes, least in ((4, few), (8, many))
        ]

    assert searching.further(pd.concat(every(few, many)), MOST, 0.1, BY) == [Choice("film", 1.0, *each) for each in found]
    # Not beyond what is allowed, but up to it; not below one pass, and not before the learning rates are found.
    for allowed, passes in ((15, [15, 15]), (8, [])):
        more = searching.further(pd.concat(every(3.0, 2.0)), {("film", 1.0): allowed}, 0.1, BY)
        assert [each.passes for each in more] == passes
    shorter = [rows({0.01: loss}, passes=passes) for passes, loss in ((1, 1.0), (2, 2.0))]
    assert searching.further(pd.concat(shorter), MOST, 0.1, BY) == []
    edge = [*every(3.0, 2.0), rows({0.08: 1.0}, passes=8)]
    assert searching.further(pd.concat(edge), MOST, 0.1, BY) == [Choice("film", 1.0, 8, 0.16)]


@pytest.mark.parametrize(("passes", "against"), [(75, 2.0), (1, 2.0), (2, 0.5), (8, 0.5), (64, 2.0)])
def test_what_is_compared_can_be_reached_by_the_search(passes, against):
    """Where more passes are always better, both numbers are trained, odd ones and single passes too."""
    plan = Plan(passes=passes, against=against, points=(4,), price=1.0, sweep_price=1.0)
    most = study.limits(plan)
    for key in (("β-VAE", 0.1), ("film", 0.0)):
        tried = set(plan.begin)
        for _ in range(20):
            known = [rows({0.01: 9 / n + 0.5, 0.02: 9 / n, 0.04: 9 / n + 0.5}, passes=n) for n in tried]
            known = pd.concat(known).assign(conditioning=key[0], member=key[1])
            tried |= {each.passes for each in searching.further(known, most, 0.0, BY)}
        fewer, more = sorted((passes, round(against * passes)))
        assert [each for each in tried if fewer < each <= more]
        assert fewer in tried
        assert 0.95 * most[key] < max(tried) <= most[key]


def test_the_best_training_is_chosen_on_the_seeds_of_the_search_and_within_the_passes():
    plan = Plan(seeds=(0, 1), again=2, search=1, passes=8)
    every = pd.concat(
        [
            rows({0.01: 5.0, 0.02: 4.0}, passes=4),
            rows({0.01: 3.0, 0.02: 3.5}, passes=8),
            rows({0.01: 2.0, 0.02: 2.5}, passes=16),
            rows({0.02: 0.0}, passes=4, seed=1),
            rows({0.02: 0.0}, passes=4, member=0.0),
            rows({0.02: 0.0}, passes=4, conditioning="gates"),
        ]
    )
    one = Entrant("one", "film", (1.0,), 8)
    assert searching.choose(plan, every, one, 1, BY) == [Choice("film", 1.0, 8, 0.01)]
    assert searching.choose(plan, every, one, 2, BY) == [Choice("film", 1.0, 16, 0.01)]
    assert searching.choose(plan, every, one._replace(passes=4), 1, BY) == [Choice("film", 1.0, 4, 0.02)]
    both = one._replace(members=(0.0, 1.0))
    assert searching.choose(plan, every, both, 1, BY) == [Choice("film", 0.0, 4, 0.02), Choice("film", 1.0, 8, 0.01)]
    with pytest.raises(RuntimeError, match="every training of one diverged"):
        searching.choose(plan, rows({0.01: math.inf, 0.02: math.nan}), one, 1, BY)


def test_one_model_never_has_more_compute_than_the_beta_vaes():
    for price in (0.5, 1.0, 1.5, 3.0, 4.0):
        plan = Plan(passes=64, price=price, sweep_price=1.0)
        for points in plan.points:
            most = plan.worth(points, price)
            assert most * price <= points * 64 < 2 * most * price
            assert most / 64 in (0.5, 1, 2, 4, 8, 16)
            assert study.limits(plan)["film", 0.0] >= 2 * most  # its check has twice as many
    assert study.limits(plan)["β-VAE", 0.1] == study.limits(plan)["gates", 0.0] == 128


def test_what_is_compared_with_half_its_passes_is_searched_as_what_is_compared_with_twice_as_many():
    """The longer trainings are reported instead of the shorter ones: what is trained is the same."""
    shorter, longer = Plan(passes=64), Plan(passes=128, against=0.5)
    assert shorter.begin == longer.begin == [32, 64]
    limits, more = study.limits(shorter), study.limits(longer)
    assert limits["β-VAE", 0.1] == more["β-VAE", 0.1] == 128
    assert limits == more
    losses = rows({0.01: 3.0, 0.02: 2.0}, passes=64), rows({0.01: 1.0, 0.02: 1.5}, passes=128)
    one, both = Entrant("one", "film", (1.0,), 128), pd.concat(losses)
    longer = longer.changed(seeds=(0, 1), again=2, search=1)
    assert searching.choose(longer, both, one, 1.0, BY) == [Choice("film", 1.0, 128, 0.01)]
    assert searching.choose(longer, both, one, longer.against, BY) == [Choice("film", 1.0, 64, 0.02)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kinds": ()}, "kinds must be different"),
        ({"kinds": ("film p=0.5", "film p=.5")}, "kinds must be different"),
        ({"kinds": "film"}, "kinds must be like 'film p=0.25', got 'film'"),
        ({"kinds": "film p=x"}, "kinds must be like"),
        ({"kinds": "film p=-1"}, "kinds must be like"),
        ({"kinds": "filn p=1"}, "a conditioning must be one of"),
        ({"betas": "1,0.5"}, "betas must be at least two numbers > 0"),
        ({"betas": "0,0.5"}, "betas must be at least two numbers > 0"),
        ({"betas": "1"}, "betas must be at least two numbers > 0"),
        ({"unclaimed": "nonsense"}, "must begin with one of regret train"),
        ({"betas": "1,20"}, "low and high must have all of betas between them"),
        ({"low": 0.2}, "low and high"),
        ({"lrs": ()}, "lrs must be"),
        ({"points": "4,4"}, "points must be different"),
        ({"points": 0}, "points must be"),
        ({"points": ()}, "points must be"),
        ({"price": 0}, "price must be"),
        ({"sweep_price": 9}, "price, sweep_price and points leave"),
        ({"passes": 0}, "passes must be"),
        ({"measured": 0}, "measured must be"),
        ({"seeds": "0"}, "at least two seeds"),
        ({"again": 7}, "at least two seeds"),
        ({"against": 1.0}, "against must be 2 or"),
        ({"passes": 7, "against": 0.5}, "against must be 2 or"),
        ({"search": 0}, "search must be"),
    ],
)
def test_the_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan().changed(**values), said)


def frame(losses: dict[str, dict[tuple[float, int], float]]) -> pd.DataFrame:
    """What is compared: the loss of each objective at each β with each seed; on training images twice that of test images."""
    return pd.DataFrame(
        {"objective": name, "beta": beta, "seed": seed, "split": split, "passes": len(name), "lr": 1.0}
        | {"quantity": "loss", "value": times * value, "stderr": math.nan, "n": 5}
        for split, times in (("test", 1), ("train", 2))
        for name, each in losses.items()
        for (beta, seed), value in each.items()
    )


def test_regrets_are_differences_in_pairs_of_seeds_at_each_beta_and_their_mean():
    plain = {(0.5, 0): 10.0, (0.5, 1): 20.0, (2.0, 0): 30.0, (2.0, 1): 50.0}
    shift = {(0.5, 0): 1.0, (0.5, 1): 1.0, (2.0, 0): 2.0, (2.0, 1): 4.0}
    given = frame({"β-VAE": plain, "film p=0": {at: plain[at] + more for at, more in shift.items()}, "gates p=0": plain})
    plan = Plan(kinds=("film p=0", "gates p=0"), betas=(0.5, 2.0))
    each = results.over_seeds(study.regrets(given), by=["split", "objective", "beta"])
    assert {at: (regret.value, regret.stderr) for at, regret in each["train"]["film p=0"].items()} == {
        "mean": pytest.approx((4.0, 1.0)),
        "0.5": pytest.approx((2.0, 0.0)),
        "2": pytest.approx((6.0, 2.0)),
    }
    assert each["test", "film p=0", "mean"].value == pytest.approx(2.0)
    assert each["train", "gates p=0", "mean"].value == 0.0
    # The size of FiLM's means alone is claimed.
    claims = study.claims_of(plan, given)
    assert {key: (claim.value, claim.stderr) for key, claim in claims.items()} == {
        ("train", "film p=0"): pytest.approx((4.0, 1.0)),
        ("test", "film p=0"): pytest.approx((2.0, 0.5)),
    }
    longer = frame({"β-VAE": plain, "film p=0": {at: plain[at] + 2 * more for at, more in shift.items()}})
    said = study._said(plan, given, longer)
    assert "means over βs: film p=0 +4.0 ± 1.0 (train). film p=0 +2.0 ± 0.5 (test)." in said
    assert "of film p=0 on training images are +4 ± 0 at β = 0.5, +12 ± 4 at β = 2." in said


def test_sizes_are_claimed_of_the_kinds_whose_layers_are_free_to_follow_beta_whatever_their_weights_and_variance():
    plan = Plan()
    losses = {(beta, seed): float(seed) for beta in plan.betas for seed in plan.seeds}
    claims = study.claims_of(plan, frame(dict.fromkeys(["β-VAE", *plan.kinds], losses)))
    sized = {"film p=0", "film p=0.25", "free variance p=0"}
    assert set(claims.index) == {(split, kind) for split in ("train", "test") for kind in sized}


def test_sides_are_of_all_means_and_on_training_images_of_the_first_kind_at_each_beta_and_of_what_the_others_lose_beyond_it():
    plain = {(beta, seed): 10.0 * beta for beta in (0.5, 2.0) for seed in (0, 1)}
    more = {name: {at: value + shift for at, value in plain.items()} for name, shift in (("film p=0", 1.0), ("gates p=0", 4.0))}
    more["film p=0, compute of 4 β-VAEs"] = {at: value - 0.5 for at, value in plain.items()}
    plan = Plan(kinds=("film p=0", "gates p=0"), betas=(0.5, 2.0))
    sides = study.sides(plan, frame({"β-VAE": plain, **more}))
    found = sides.groupby(["quantity", "split", "objective", "beta"])["value"].agg(list)
    assert found.to_dict() == {
        ("regret", "test", "film p=0", "mean"): [1.0, 1.0],
        ("regret", "test", "gates p=0", "mean"): [4.0, 4.0],
        ("regret", "train", "film p=0", "mean"): [2.0, 2.0],
        ("regret", "train", "film p=0", "0.5"): [2.0, 2.0],
        ("regret", "train", "film p=0", "2"): [2.0, 2.0],
        ("regret", "train", "gates p=0", "mean"): [8.0, 8.0],
        (study.ABOVE, "train", "gates p=0", "mean"): [6.0, 6.0],
        (study.ABOVE, "train", "film p=0, compute of 4 β-VAEs", "mean"): [-3.0, -3.0],
    }


CHECKED = Plan(kinds=("film p=0", "film p=0.25", "gates p=0"), betas=(0.5, 2.0), seeds=(0, 1, 2, 3), again=3)
FIRST = {"film p=0": 1.0, "film p=0.25": 1.0, "gates p=0": 4.0, "film p=0, compute of 4 β-VAEs": 0.5}


def shifted(shifts: dict[str, float], barely: tuple[float, ...] = (0.02, 0.03, 0.05, 0.04)) -> pd.DataFrame:
    """What is compared, where each objective loses so much at every β, with a little noise.

    - `barely`: by how much "film p=0.25" loses more, with each seed: its mean is 1.7 halves of its interval from zero.
    """
    noise = {seed: 0.01 * (-1) ** seed for seed in CHECKED.seeds}
    own = {name: noise for name in shifts} | {"film p=0.25": {seed: noise[seed] + barely[seed] for seed in CHECKED.seeds}}
    plain = {(beta, seed): 10.0 * beta + seed for beta in CHECKED.betas for seed in CHECKED.seeds}
    names = {name: {at: loss + shift + own[name][at[1]] for at, loss in plain.items()} for name, shift in shifts.items()}
    return frame({"β-VAE": plain, **names})


@pytest.mark.parametrize(
    ("later", "passed"),
    [
        ({}, [True, True, True]),
        ({"film p=0": 1.24}, [True, True, True]),
        ({"film p=0": 1.3}, [True, False, True]),  # a size, by more than a quarter
        ({"gates p=0": 1.1}, [True, True, True]),  # of the others sides alone
        ({"gates p=0": 0.9}, [True, True, False]),  # now better than FiLM
        ({"gates p=0": 1.0}, [True, True, False]),  # no worse than FiLM: what was clear may not become unclear
        ({"film p=0, compute of 4 β-VAEs": 1.2}, [True, True, False]),
    ],
)
def test_twice_the_passes_may_move_the_sizes_of_the_others_and_no_side(later, passed):
    first, longer = shifted(FIRST), shifted(FIRST | later)
    checks = study._checks(CHECKED, {400: first, 800: longer[longer["seed"] < 3]})
    assert [check.passed for check in checks] == passed
    # Sides of three kinds' means on both splits; of the first at two βs; and of two entrants against the first.
    assert "of 4 claims" in checks[1].found
    assert "of 10 claims" in checks[2].found


def test_a_side_that_turns_is_a_failure_unless_the_plan_says_that_it_is_not_claimed():
    low = FIRST | {"film p=0, compute of 4 β-VAEs": 0.1}
    first, longer = shifted(low), shifted(low)
    mine = (longer["split"] == "train") & (longer["objective"] == "film p=0") & (longer["beta"] == 2.0)
    longer.loc[mine, "value"] -= 2.5
    frames = {400: first, 800: longer[longer["seed"] < 3]}
    turned = study._checks(CHECKED, frames)[2]
    assert not turned.passed
    assert "of 10 claims the nearest to zero is regret train film p=0 2:" in turned.found
    assert not study._checks(CHECKED.changed(unclaimed=("regret train film p=0 0.5",)), frames)[2].passed
    left_out = study._checks(CHECKED.changed(unclaimed=("regret train film p=0 2",)), frames)[2]
    assert left_out.passed
    assert "of 9 claims" in left_out.found
    assert "not claimed are regret train film p=0 2" in left_out.found


def test_a_size_that_moves_is_a_failure_unless_the_plan_says_that_it_is_not_claimed():
    first, longer = shifted(FIRST), shifted(FIRST)
    mine = (longer["split"] == "test") & (longer["objective"] == "film p=0")
    longer.loc[mine, "value"] += 0.5
    frames = {400: first, 800: longer[longer["seed"] < 3]}
    assert [check.passed for check in study._checks(CHECKED, frames)] == [True, False, True]
    sizes = study._checks(CHECKED.changed(unclaimed=("regret test film p=0 mean",)), frames)
    assert all(check.passed for check in sizes)
    assert "of 3 claims" in sizes[0].found
    assert "of 3 claims" in sizes[1].found
    said = study._said(CHECKED.changed(unclaimed=("regret test film p=0 mean",)), first, longer)
    assert "film p=0 +1.000" in said.partition("(train)")[2]  # it is told all the same


def test_what_is_not_clear_of_zero_is_no_claim_and_may_vanish():
    first, longer = shifted(FIRST), shifted(FIRST, barely=(0.0, 0.0, 0.0, 0.0))
    checks = study._checks(CHECKED, {400: first, 800: longer[longer["seed"] < 3]})
    assert all(check.passed for check in checks)


def test_errors_on_new_images_must_be_small_enough_too():
    noisy = shifted(FIRST)
    mine = (noisy["split"] == "test") & (noisy["objective"] == "film p=0")
    noisy.loc[mine, "value"] += noisy.loc[mine, "seed"].map({0: -1.0, 1: 1.0, 2: -1.0, 3: 1.0})
    errors, _, _ = study._checks(CHECKED, {400: noisy, 800: noisy[noisy["seed"] < 3]})
    assert not errors.passed
    assert "film p=0, test" in errors.found


def test_a_side_must_be_seen_by_the_seeds_that_were_trained_for_both():
    """Two seeds whose mean is of the size of their spread do not show a side, though all four and the longer trainings do."""
    plan = dataclasses.replace(CHECKED, kinds=("film p=0",), seeds=tuple(range(6)), again=2, search=1)
    plain = {(beta, seed): 10.0 * beta for beta in plan.betas for seed in plan.seeds}
    lost = dict(zip(plan.seeds, (4.0, 5.0, 4.5, 4.5, 4.5, 4.5), strict=True))
    first = frame({"β-VAE": plain, "film p=0": {at: loss + lost[at[1]] for at, loss in plain.items()}})
    longer = frame({"β-VAE": plain, "film p=0": {at: loss + 4.5 for at, loss in plain.items()}})
    for again, passed in ((2, False), (6, True)):
        frames = {400: first, 800: longer[longer["seed"] < again]}
        assert study._checks(dataclasses.replace(plan, again=again), frames)[2].passed == passed


def test_learning_rates_are_chosen_by_the_training_loss_for_training_images_and_by_the_validation_loss_for_test_images():
    """The longer training is the better on training images, the shorter on others."""
    plan = Plan(kinds=("film p=0",), betas=(0.5, 1.0), points=(4,), seeds=(0, 1), again=2, search=1, passes=8)
    rows = []
    for conditioning, members in (("β-VAE", (0.5, 1.0)), ("film", (0.0,))):
        for member in members:
            for passes in (4, 8):
                for beta in plan.betas if conditioning == "film" else [member]:
                    place = {"conditioning": conditioning, "member": member, "passes": passes, "lr": 0.1, "beta": beta}
                    each = {
                        f"{split} {name}": value
                        for split, value in (("train", 9.0 - passes), ("test", 1.0 * passes))
                        for name in ("loss", "rate", "distortion", "n")
                    }
                    rows += [place | each | {"validation loss": 1.0 * passes, "seed": seed} for seed in plan.seeds]
    found: Any = study.compared(plan, pd.DataFrame(rows), 1, plan.seeds)
    assert found.groupby("split")["passes"].unique().map(list).to_dict() == {"train": [8], "test": [4]}
    assert found.groupby("split")["value"].unique().map(list).to_dict() == {"train": [1.0], "test": [4.0]}
    again: Any = study.compared(plan, pd.DataFrame(rows).assign(passes=lambda each: 2 * each["passes"]), 2, plan.seeds)
    assert again.groupby("split")["passes"].unique().map(list).to_dict() == {"train": [16], "test": [8]}


class Known:
    """A lab in which trainings are not run: their losses are known, and lowest at a learning rate of .2.

    A β-VAE's optimum has R = 3 − log β and D = β. `lost` is by how much a conditioning is above it for a number of passes.
    """

    notes = ()

    def __init__(self, lost: Any):
        self.lost, self.trained = lost, []

    def map(self, function: Any, cells: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
        self.trained += [(cell["conditioning"], cell["passes"], seed) for cell in cells for seed in cell["seeds"]]
        return [{"rows": list(self.rows(**cell))} for cell in cells]

    def rows(self, conditioning: str, passes: int, lr: float, seeds: Any, members: Any, betas: Any, **settings: Any) -> Any:
        for member in members:
            for beta in [member] if conditioning == "β-VAE" else betas:
                for seed in seeds:
                    rate, more = 3 - math.log(beta), abs(math.log(lr / 0.2)) + 1 / passes + 0.01 * seed**2
                    more += 0.0 if conditioning == "β-VAE" else self.lost(conditioning, passes) + 0.01 * seed
                    row = {
                        "conditioning": conditioning,
                        "passes": passes,
                        "lr": lr,
                        "seed": seed,
                        "member": member,
                        "beta": beta,
                    }
                    row["validation loss"] = beta + more + beta * rate
                    for split in ("test", "train"):
                        row |= {f"{split} loss": row["validation loss"], f"{split} rate": rate, f"{split} n": 9}
                        row[f"{split} distortion"] = beta + more
                    yield row


@pytest.mark.parametrize(
    ("film", "gates", "passed"),
    [
        (1.0, 4.0, [True, True]),
        (1.0, 1.5, [True, True]),  # a size of which nothing is said
        (1.0, 0.5, [True, False]),  # now less than FiLM
        (0.5, 4.0, [False, True]),  # FiLM loses half as much
    ],
)
def test_what_turns_after_the_passes_of_the_plan_fails_the_study(film, gates, passed):
    """`film` and `gates`: what each loses after twice as many."""
    plan = Plan(
        kinds=("film p=0", "gates p=0"),
        betas=(0.5, 2.0),
        points=(2,),
        passes=8,
        lrs=(0.1, 0.2, 0.4),
        seeds=(0, 1, 2, 3, 4),
        again=4,
        search=2,
        price=1.5,
        sweep_price=1.5,
    )
    lab: Any = Known(
        lambda name, passes: {"film": 1.0, "gates": 4.0}[name] if passes <= 8 else {"film": film, "gates": gates}[name]
    )
    record = study.run(plan, lab)
    *others, sizes, sides = record.checks
    assert [sizes.passed, sides.passed] == passed
    assert all(check.passed for check in others)
    # All that is compared has all seeds, after twice the passes those that are trained again.
    regrets = study.regrets(record.frame)
    assert regrets.groupby(["split", "objective", "beta"])["seed"].agg(set).map(set(plan.seeds).__eq__).all()
    for conditioning in ("β-VAE", "film", "gates"):
        seeds = {seed for name, passes, seed in lab.trained if (name, passes) == (conditioning, 16)}
        assert seeds == {0, 1, 2, 3}
    assert not [each for each in lab.trained if each[1] > 16]
    # Seed by seed .01, .02, … above that; after twice the passes of the first four.
    assert f"film p=0 {results.Estimate.over_runs(1 + 0.01 * np.arange(5)):+} (train)" in record.said
    after = f"{results.Estimate.over_runs(film + 0.01 * np.arange(4)):+}"
    assert f"of film p=0 on training images are {after} at β = 0.5, {after} at β = 2." in record.said


def test_delta_rates_compare_curves_seed_by_seed_whatever_their_betas():
    lines = {"β-VAE": 0.0, "same curve, other βs": 0.0, "a nat more, the second seed two": 1.0, "far off": 0.0}
    rows = []
    for name, more in lines.items():
        for beta, rate in ((0.5, 6.0), (1.0, 4.0), (2.0, 1.0)):
            for seed in (0, 1):
                own = rate - (beta < 2) * (name.startswith("same") or seed)  # other points of R = 9 − D
                values = {"rate": own + more * (1 + seed), "distortion": 9 - own + 90 * (name == "far off")}
                place = {"objective": name, "beta": beta, "seed": seed, "split": "test"}
                rows += [place | {"quantity": quantity, "value": value} for quantity, value in values.items()]
    found = study.delta_rates(pd.DataFrame(rows))
    rows += [row | {"split": "train", "value": 7.0} for row in rows]  # are not looked at
    assert study.delta_rates(pd.DataFrame(rows)).equals(found)
    assert found["objective"].unique().tolist() == [name for name in lines if name not in ("β-VAE", "far off")]
    np.testing.assert_allclose(found["value"], [0.0, 0.0, 1.0, 2.0], atol=1e-12)
    assert found["seed"].tolist() == [0, 1, 0, 1]
    curve = study.curve_of(pd.DataFrame(rows), "β-VAE")
    assert (curve[0.5].rate, curve[0.5].distortion, len(curve[0.5].runs)) == (5.5, 3.5, 2)


def test_points_of_a_convex_curve_pass_the_cross_table_and_swapped_ones_do_not():
    """Where D(R) = e^−R, the best rate for β is −log β, and every other is worse under β."""
    betas = (0.1, 0.5, 0.9)

    def passed(rates: tuple[float, ...]) -> bool:
        points = [
            {"objective": "β-VAE", "beta": beta, "seed": seed, "split": "train", "quantity": name, "value": value}
            for beta, rate in zip(betas, rates, strict=True)
            for seed in (0, 1)
            for name, value in (("rate", rate), ("distortion", math.exp(-rate)))
        ]
        return study._crossed(Plan(betas=betas), pd.DataFrame(points), "β-VAE", "all").passed

    best = tuple(-math.log(beta) for beta in betas)
    assert passed(best)
    assert not passed((best[1], best[0], best[2]))
    assert not passed((best[0], best[2], best[1]))


def test_what_is_kept_is_the_model_that_was_measured():
    found = studies.load("multi_beta", budget="smoke")
    frame: Any = found.frame
    plan, [key] = found.plan, list(found.runs)
    own = frame[(frame["objective"] == plan["kinds"][0]) & (frame["quantity"] == "loss")]
    losses = own.set_index(["split", "beta", "seed"])["value"]
    images = study.plan("digits", "smoke").data()
    for beta in plan["betas"]:
        for split, x in (("test", images.test), ("train", images.train)):
            again = estimators.evaluate(found.model(key).at(beta), x[: plan["measured"]], beta, plan["draws"]).loss()
            assert again == pytest.approx(losses[split, beta, 0], abs=1e-3)
            assert again != pytest.approx(losses[split, beta, 1], abs=1e-3)
    assert found.runs[key].config.epochs == own["passes"].iloc[0]
    loss, rate, distortion = (frame[frame["quantity"] == each]["value"].to_numpy() for each in ("loss", "rate", "distortion"))
    beta = frame[frame["quantity"] == "loss"]["beta"].to_numpy()
    np.testing.assert_allclose(loss, distortion + beta * rate, rtol=1e-6)


def test_the_full_plan_of_digits_keeps_a_model_under_the_size_that_is_recorded(tmp_path):
    plan = study.plan("digits", "full")
    assert plan.keep
    assert not study.plan("mnist", "full").keep
    kind = study.Kind.of(plan.kinds[0])
    shape = {"shape": (1, 8, 8), "network": plan.network, "hidden": plan.hidden, "latent_dim": plan.latent_dim}
    model = responses.many(kind.conditioning, shape, (plan.low, plan.high))
    assert sum(value.numel() for value in model.state_dict().values()) * 4 < 900_000
    assert dataclasses.replace(plan, keep=False).hash != plan.hash
