"""The study of β-VAEs that begin as the one of the β before: how chains go on, their passes, what is chosen and compared."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

from nbvae import data, results, training
from studies import multi_beta
from studies import warm as study
from studies.searching import Choice
from studies.warm import DOWN, FRESH, ONE, UP, Plan

BETAS = [0.1, 1.0, 10.0]


@pytest.fixture(scope="module")
def coins():
    x = torch.bernoulli(torch.full((40, 4), 0.5), generator=torch.Generator().manual_seed(0))
    return data.Dataset("coins", x, x, x)


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().clone().flatten() for value in model.parameters()])


def runs_of(ds, conditioning, passes, members=(0.0,), seeds=(0, 1), store=None, lr=1e-2):
    shape = {"network": "mlp", "hidden": [5], "latent_dim": 2, "batch": 10}
    each = {"members": list(members), "passes": passes, "lr": lr, "seeds": list(seeds)}
    return study.trained(ds, BETAS, conditioning=conditioning, store=store, device="cpu", **shape, **each)


@pytest.fixture
def legs(monkeypatch):
    """What each sweep was given and left: β, passes, seeds, the weights that its models began with and ended with."""
    seen, sweep = [], study.sweep

    def watched(make, ds, betas, seeds, config, **settings):
        begun = []

        def noted():
            begun.append(flat(model := make()))
            return model

        runs = sweep(noted, ds, betas, seeds=seeds, config=config, **settings)
        ended = torch.stack([flat(run.model) for run in runs])
        seen.append((betas, config.epochs, list(seeds), torch.stack(begun), ended))
        return runs

    monkeypatch.setattr(study, "sweep", watched)
    return seen


@pytest.mark.parametrize(("conditioning", "order"), [(UP, BETAS), (DOWN, BETAS[::-1])])
def test_each_model_of_a_chain_begins_at_the_weights_that_the_one_before_ended_with(coins, legs, conditioning, order):
    runs = runs_of(coins, conditioning, 6)
    assert [leg[0] for leg in legs] == [[beta] for beta in order]
    for before, after in pairwise(legs):
        assert torch.equal(after[3], before[4])  # seed by seed
        assert not torch.equal(after[4], after[3])
    assert not torch.equal(legs[0][3][0], legs[0][3][1])
    # What is measured of a β is what was trained for it, and not what others made of it later.
    told = [(run.objective.beta, run.config.seed) for run in runs]
    assert told == [(beta, seed) for beta in order for seed in (0, 1)]
    assert torch.equal(torch.stack([flat(run.model) for run in runs]), torch.cat([leg[4] for leg in legs]))
    # The first one is the fresh model of its β.
    fresh = runs_of(coins, FRESH, 6, order[:1])
    assert torch.equal(flat(fresh[1].model), flat(runs[1].model))


def test_fresh_models_are_those_of_the_study_of_many_betas(coins, legs):
    runs = runs_of(coins, FRESH, 6, BETAS)
    assert all(torch.equal(leg[3], legs[0][3]) for leg in legs)
    theirs = multi_beta.trained(coins, "mlp", [5], 2, 10, 0.05, 15.0, FRESH, BETAS, 2, 1e-2, [0, 1], None, "cpu")
    for mine, other in zip(runs, theirs, strict=True):
        assert (mine.objective, mine.config) == (other.objective, other.config)
        torch.testing.assert_close(flat(mine.model), flat(other.model))
    some = runs_of(coins, FRESH, 6, [10.0, 0.1])
    assert [run.objective.beta for run in some] == [0.1, 0.1, 10.0, 10.0]
    torch.testing.assert_close(flat(some[-1].model), flat(runs[-1].model))


@pytest.mark.parametrize("conditioning", [FRESH, UP, DOWN])
@pytest.mark.parametrize("passes", [3, 4, 8, 9])
def test_the_passes_of_a_curve_are_what_is_claimed_whether_they_can_be_shared_equally_or_not(coins, legs, conditioning, passes):
    runs_of(coins, conditioning, passes, BETAS, seeds=[0])
    each = [leg[1] for leg in legs]
    assert sum(each) == passes
    assert len(each) == len(BETAS)
    assert max(each) - min(each) <= 1


@pytest.mark.parametrize("dataset", study.DATASETS)
def test_entrants_have_the_passes_of_a_beta_vae_at_each_beta_or_those_of_one_in_all(dataset):
    plan = study.plan(dataset, "full")
    one = multi_beta.plan(dataset, "full").passes // (2 if dataset == "glyphs" else 1)
    most = {each.name: each.passes for each in study.entrants(plan)}
    assert tuple(most) == study.NAMES
    count = len(plan.betas)
    assert {most[kind] for kind in (FRESH, UP, DOWN)} == {count * one}
    assert {most[kind + ONE] for kind in (FRESH, UP, DOWN)} == {one}
    assert study.shared(count * one, count) == [one] * count
    chain = Choice(UP, 0.0, one, 1e-3)
    assert sum(study.shared(study.times_as_long(chain, plan.against).passes, count)) == one / 2


def test_a_chain_goes_on_with_the_seeds_that_are_left_and_ends_where_none_is(coins, monkeypatch):
    sweep, lost = study.sweep, {1: [1], 2: [0, 2]}
    calls = []

    def some_diverge(make, ds, betas, seeds, config, **settings):
        runs = sweep(make, ds, betas, seeds=seeds, config=config, **settings)
        calls.append(list(seeds))
        left = [run for run in runs if run.config.seed not in lost.get(len(calls), [])]
        if len(left) < len(runs):
            raise training.Diverged("too large a step", left)
        return runs

    monkeypatch.setattr(study, "sweep", some_diverge)
    runs = runs_of(coins, UP, 6, seeds=[0, 1, 2])
    assert calls == [[0, 1, 2], [0, 2]]
    assert [(run.objective.beta, run.config.seed) for run in runs] == [(0.1, 0), (0.1, 2)]
    calls.clear()
    lost[2] = []
    runs = runs_of(coins, DOWN, 6, seeds=[0, 1, 2])
    assert calls == [[0, 1, 2], [0, 2], [0, 2]]
    calls.clear()
    runs = runs_of(coins, FRESH, 6, BETAS, seeds=[0, 1, 2])  # each is alone
    assert calls == [[0, 1, 2]] * 3
    assert len(runs) == 8


def test_what_is_in_a_store_is_the_same_chain(coins, tmp_path, legs):
    first = runs_of(coins, UP, 6, store=str(tmp_path))
    again = runs_of(coins, UP, 6, store=str(tmp_path))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(flat(one.model), flat(other.model))
        assert one.seconds == other.seconds  # loaded


class Known:
    """A lab in which trainings are not run. D = β + what is lost, R = 1 at each β; validation images lose as `validation` says.

    `lost(conditioning, beta, passes, lr)`: by how much a model is above the optimum, on all images but those. A seed adds a
    tenth, and of chains .04 of its square.
    """

    notes = ()

    def __init__(self, lost: Any, validation: Any = None):
        self.lost, self.validation, self.trained = lost, validation or lost, []

    def map(self, function: Any, cells: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
        assert function is study.train
        self.trained += [(cell["conditioning"], cell["passes"], cell["lr"], *cell["seeds"]) for cell in cells]
        return [{"rows": list(self.rows(**cell))} for cell in cells]

    def rows(self, conditioning: str, passes: int, lr: float, seeds: Any, members: Any, betas: Any, **settings: Any) -> Any:
        for beta, own in zip(betas, study.shared(passes, len(betas)), strict=True):
            if conditioning == FRESH and beta not in members:
                continue
            for seed in seeds:
                more = 0.1 * seed + (conditioning != FRESH) * 0.04 * seed**2
                row = {"conditioning": conditioning, "passes": passes, "lr": lr, "seed": seed, "beta": beta, "own passes": own}
                row |= {"member": beta if conditioning == FRESH else 0.0}
                row["validation loss"] = 2 * beta + self.validation(conditioning, beta, passes, lr)
                for split in ("test", "train"):
                    distortion = beta + more + self.lost(conditioning, beta, passes, lr)
                    row |= {f"{split} loss": distortion + beta, f"{split} rate": 1.0, f"{split} n": 9}
                    row[f"{split} distortion"] = distortion
                yield row


PLAN = Plan(betas=(0.5, 2.0), passes=8, lrs=(0.1, 0.2, 0.4), seeds=(0, 1, 2, 3), again=4, search=2)
LOST = {UP: 1.0, DOWN: 3.0, FRESH: 0.0}


def known(conditioning: str, beta: float, passes: int, lr: float) -> float:
    """Best at a rate of .2; chains lose more at β = 2; with 8 passes or fewer 1 more is lost, of fresh models 4."""
    more = LOST[conditioning] * (1 + (beta == 2.0)) + abs(np.log(lr / 0.2))
    return more + (passes <= 8) * (4.0 if conditioning == FRESH else 1.0)


def test_regrets_are_what_a_hand_finds():
    lab: Any = Known(known)
    record = study.run(PLAN, lab)
    each = multi_beta.regrets(record.frame).set_index(["split", "objective", "beta", "seed"])["value"]
    for split in ("train", "test"):
        for seed in PLAN.seeds:
            own = 0.04 * seed**2
            expected = {UP: (1.0, 2.0), DOWN: (3.0, 6.0), UP + ONE: (2.0, 3.0), DOWN + ONE: (4.0, 7.0)}
            for name, (small, large) in expected.items():
                found = [each[split, name, beta, seed] for beta in ("0.5", "2", "mean")]
                assert found == pytest.approx([small + own, large + own, (small + large) / 2 + own])
            assert each[split, FRESH + ONE, "mean", seed] == pytest.approx(4.0)
    sides = study.sides(record.frame).set_index(["quantity", "split", "objective", "beta", "seed"])["value"]
    assert sides[study.DIRECTION, "test", DOWN, "mean", 3] == pytest.approx(3.0)
    assert sides[study.DIRECTION, "train", DOWN + ONE, "mean", 1] == pytest.approx(3.0)
    assert sides[study.BEGUN, "train", UP + ONE, "mean", 2] == pytest.approx(2.5 + 0.16 - 4.0)
    assert sides[study.BEGUN, "test", DOWN + ONE, "mean", 0] == pytest.approx(5.5 - 4.0)
    assert ("regret", "train", UP, "2", 0) in sides.index
    assert ("regret", "train", UP + ONE, "2", 0) not in sides.index
    estimate = results.Estimate.over_runs(1.5 + 0.04 * np.arange(4) ** 2)
    assert f"{UP} {estimate:+} in 16 passes" in record.said
    assert f"{FRESH}{ONE} +4 ± 0 in 8 passes;" in record.said
    assert "(train, fresh ones in 16)" in record.said
    assert study.passes_of(record.frame)["train"].to_dict() == {name: 8 if name.endswith(ONE) else 16 for name in study.NAMES}


def test_all_that_is_compared_has_its_seeds_and_the_other_number_of_passes_the_rate_that_was_chosen():
    lab: Any = Known(known)
    frame: Any = study.run(PLAN, lab).frame
    assert frame.groupby(["split", "objective", "beta"])["seed"].agg(set).map(set(PLAN.seeds).__eq__).all()
    assert set(frame["lr"]) == {0.2}
    assert {each for each in lab.trained if each[1] not in (8, 16)} == {(kind, 4, 0.2, 0, 1, 2, 3) for kind in LOST}
    # Half of 16 is what curves at the compute of one have.
    found = [each for each in lab.trained if each[:3] == (UP, 8, 0.2)]
    assert found == [(UP, 8, 0.2, 0, 1), (UP, 8, 0.2, 2, 3)]
    assert len(lab.trained) == len(set(lab.trained))


def test_a_chain_has_one_learning_rate_and_a_fresh_model_that_of_its_beta_and_edges_are_gone_beyond():
    best = {0.5: 0.2, 2.0: 0.8}

    def lost(conditioning, beta, passes, lr):
        return (1.0 if beta == 0.5 else 3.0) * abs(np.log(lr / best[beta])) + known(conditioning, beta, passes, 0.2)

    frame: Any = study.run(PLAN, lab := Known(lost)).frame  # type: ignore[arg-type]
    rates = frame[frame["split"] == "train"].groupby(["objective", "beta"])["lr"].unique().map(list)
    assert (rates[FRESH, 0.5], rates[FRESH, 2.0]) == ([0.2], [0.8])
    assert rates[UP, 0.5] == rates[UP, 2.0] == [0.8]  # where the mean is lowest
    assert max(each[2] for each in lab.trained) == 1.6  # the first one beyond the best
    assert multi_beta.regrets(frame).query(f"objective == '{UP}' and beta == '0.5' and seed == 0")["value"].iloc[
        0
    ] == pytest.approx(1.0 + np.log(4))


def test_on_test_images_a_curve_may_have_fewer_passes_than_it_is_given():
    lab: Any = Known(known, lambda conditioning, beta, passes, lr: float(passes) + abs(np.log(lr / 0.2)))
    record = study.run(PLAN, lab)
    passes = study.passes_of(record.frame)
    assert (passes["train", UP], passes["train", FRESH]) == (16, 16)
    # Down to one at each β: the fewest were the best each time.
    assert set(passes["test"]) == {2}
    assert min(each[1] for each in lab.trained if len(each) == 5) == 2
    assert max(each[1] for each in lab.trained) == 16


def shifted(frame: Any, **by: float) -> Any:
    """The frame with the losses of chains at another level."""
    more = frame["objective"].map({{"up": UP, "down": DOWN}[name]: value for name, value in by.items()}).fillna(0.0)
    return frame.assign(value=frame["value"] + more * (frame["quantity"] == "loss"))


def test_what_turns_with_the_other_number_of_passes_fails_and_what_is_not_claimed_may():
    frame = study.run(PLAN, Known(known)).frame.drop(columns=["study", "dataset"])  # type: ignore[arg-type]
    both = {8: frame, 4: frame}
    assert all(check.passed for check in study._checks(PLAN, both))
    both[4] = shifted(frame, up=-1.6)  # the mean of 1.5, and 1 at β = .5
    errors, turned = study._checks(PLAN, both)
    assert errors.passed
    assert not turned.passed
    excused = PLAN.changed(unclaimed=(f"regret train {UP} 0.5", f"regret train {UP} mean", f"regret test {UP} mean"))
    found = study._checks(excused, both)[1]
    assert found.passed
    assert f"not claimed are regret train {UP} 0.5" in found.found
    both[4] = shifted(frame, up=2.6, down=-0.5)  # now the other direction is the better one
    assert not study._checks(PLAN, both)[1].passed
    noisy = frame.assign(value=frame["value"] + (frame["objective"] == UP) * (frame["seed"] % 2 * 6 - 3))
    assert not study._checks(PLAN, {8: noisy, 4: noisy})[0].passed


def test_a_chain_whose_first_model_is_passed_by_the_next_fails_its_cross_table():
    frame = study.run(PLAN, Known(known)).frame  # type: ignore[arg-type]
    rows = (frame["objective"] == UP) & (frame["split"] == "train")
    best = frame.assign(value=frame["value"].mask(rows & (frame["quantity"] == "rate") & (frame["beta"] == 0.5), 99.0))
    best.loc[rows & (frame["quantity"] == "distortion"), "value"] = np.where(
        best[rows & (frame["quantity"] == "distortion")]["beta"] == 0.5, 0.0, 100.0
    )
    assert study.crossed(PLAN, best, UP)[1].passed
    worse = best.assign(value=best["value"] + 60.0 * (rows & (best["quantity"] == "distortion") & (best["beta"] == 0.5)))
    assert not study.crossed(PLAN, worse, UP)[1].passed
    said = study._said(PLAN, worse)
    assert f"1 of 2 ({UP})" in said


def test_one_model_is_put_beside_at_the_same_betas_and_seeds():
    frame = study.run(PLAN, Known(known)).frame  # type: ignore[arg-type]
    fresh = frame[(frame["objective"] == FRESH)].drop(columns=["study", "dataset"])
    film = pd.concat([fresh.assign(objective="film p=0", value=fresh["value"] + 7), fresh.assign(value=0.0)])
    many = pd.concat([film, film.assign(seed=film["seed"] + 4), film.assign(beta=9.0)]).assign(study="multi_beta")
    each = multi_beta.regrets(study.beside(frame, many)).groupby(["objective", "beta"])["value"]
    assert each.agg(list)["film p=0", "mean"] == pytest.approx([7.0] * 8)  # two splits, four seeds
    assert ("film p=0", "9") not in each.groups
    assert each.mean()[UP, "0.5"] == pytest.approx(
        multi_beta.regrets(frame).query(f"objective == '{UP}' and beta == '0.5'")["value"].mean()
    )


@pytest.mark.parametrize("dataset", study.DATASETS)
def test_what_is_trained_is_what_the_study_of_many_betas_trains(dataset):
    theirs, plan = multi_beta.plan(dataset, "full"), study.plan(dataset, "full")
    for name in set(study.SHARED) - {"betas", "seeds", "again", "lrs", "passes"}:
        assert getattr(plan, name) == getattr(theirs, name)
    # On the glyphs, as many as the trainings have that those of many β are compared with.
    assert plan.passes == round(min(1.0, theirs.against) * theirs.passes)
    assert plan.seeds == theirs.seeds[: len(plan.seeds)]
    assert set(plan.betas) <= set(theirs.betas)
    assert (plan.betas[0], plan.betas[-1]) == (theirs.betas[0], theirs.betas[-1])
    assert len(plan.seeds) >= (5 if dataset == "digits" else 3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"betas": "1"}, "betas must be at least two numbers > 0"),
        ({"betas": "1,0.5"}, "betas must be at least two"),
        ({"betas": "0,0.5"}, "betas must be at least two"),
        ({"lrs": ()}, "lrs must be numbers > 0"),
        ({"lrs": "0.2,0.1"}, "lrs must be numbers"),
        ({"passes": 0}, "passes must be"),
        ({"passes": 8}, "passes must be at least 10"),
        ({"passes": 4, "against": 2.0}, "passes must be at least 5"),
        ({"unclaimed": ("regret all",)}, "must begin with one of regret train"),
        ({"against": 3.0}, "against must be"),
        ({"passes": 401}, "against must be"),
        ({"batch": 0}, "batch must be"),
        ({"draws": 0}, "draws must be"),
        ({"measured": 0}, "measured must be"),
        ({"largest_error": 0}, "largest_error must be"),
        ({"seeds": "0"}, "at least two seeds"),
        ({"again": 7}, "at least two seeds"),
        ({"search": 0}, "search must be"),
        ({"search": 7}, "search must be"),
        ({"crossed": "from the middle"}, "crossed must be one of"),
    ],
)
def test_a_bad_plan_is_refused_in_one_line(values, said):
    one_line(lambda: Plan().changed(**values), said)
