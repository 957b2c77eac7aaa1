"""The study of decoders: what is claimed from its rows, what its checks refuse, and the trainings that it shares."""

import numpy as np
import pandas as pd
import pytest
from errors import one_line

from nbvae import training
from studies import curve
from studies import decoders as study
from studies.decoders import BEST, LACKS, NEW, OTHER, OWN, Plan
from studies.lab import Lab


def rows(loss, seeds=(0, 1, 2), passes=(400,), steps=(200,), trained=(0.5, 2.0), betas=(0.5, 1.0, 2.0)):
    """A frame whose losses are `loss(objective, trained, beta, split, seed, passes, steps)`."""
    return pd.DataFrame(
        [
            {"objective": name, "trained": own, "beta": beta, "split": split, "seed": seed, "passes": many, "steps": count}
            | {"quantity": quantity, "value": value}
            for many in passes
            for count in steps
            for seed in seeds
            for split in study.SPLITS
            for name, own, beta in [
                *((OWN, beta, beta) for beta in betas),
                *((BEST, own, beta) for own in trained for beta in betas),
            ]
            for quantity, value in (("loss", loss(name, own, beta, split, seed, many, count)), ("rate", 7.0))
        ]
    )


def test_claims_are_differences_of_losses_on_the_same_images_with_the_same_seed():
    def loss(name, trained, beta, split, seed, passes, steps):
        return 100 * beta + seed + (10 if split == "test" else 3) * (name == OWN) + (trained != beta) * 1000

    found = study.effects(rows(loss, seeds=(0, 5))).set_index(["objective", "quantity", "seed"])["value"]
    for seed in (0, 5):
        assert found.xs(seed, level="seed").to_dict() == {
            ("β = 0.5, train", LACKS): 3,
            ("β = 0.5, test", LACKS): 10,
            ("β = 2, train", LACKS): 3,
            ("β = 2, test", LACKS): 10,
            ("β = 0.5", NEW): 7,
            ("β = 2", NEW): 7,
            ("β = 0.5 at β = 2, train", OTHER): 997,
            ("β = 0.5 at β = 2, test", OTHER): 990,
            ("β = 2 at β = 0.5, train", OTHER): 997,
            ("β = 2 at β = 0.5, test", OTHER): 990,
        }


def checked(passes=lambda many, steps: 0.0, gap=2.0, other=0.0, noise=0.01, seed_noise=0.0):
    """The outcome of the four checks for a gap that depends on passes and steps, and another decoder's excess."""
    rng = np.random.default_rng(0)
    plan = Plan(seeds=(0, 1, 2), again=3, betas=(0.5, 1.0, 2.0), decoders=(0.5, 2.0))

    def loss(name, trained, beta, split, seed, many, count):
        own = gap * (1.5 if split == "test" else 1.0) + passes(many, count)
        value = own * (name == OWN) + (trained != beta) * (other + own + seed_noise * (seed - 1))
        return value + noise * rng.standard_normal()

    frame = rows(loss, passes=(400, 800), steps=(200, 400))
    frame = frame[(frame["passes"] == 400) | (frame["steps"] == 200)]
    return [check.passed for check in study._checks(plan, study.effects(frame))]


def test_checks_pass_where_all_is_steady_and_each_fails_for_its_own_reason():
    assert checked() == [True] * 4
    assert checked(noise=1.0)[0] is False  # errors
    assert checked(gap=-2.0)[1] is False  # an optimum above what an encoder reaches is none
    assert checked(lambda many, steps: 1.0 * (steps == 400)) == [True, True, False, True]
    assert checked(lambda many, steps: 0.3 * (steps == 400)) == [True] * 4  # less than a quarter of the gap
    assert checked(lambda many, steps: 3.0 * (many == 800)) == [True] * 4  # larger, on its side
    assert checked(lambda many, steps: -4.0 * (many == 800)) == [True, True, True, False]


def test_another_decoder_is_claimed_only_where_its_excess_is_large():
    assert checked(other=0.5, seed_noise=0.5) == [True] * 4  # a nat and a half from seed to seed, and none is claimed
    assert checked(other=3.0, seed_noise=3.0)[0] is False
    assert checked(other=30.0, seed_noise=3.0) == [True] * 4


def test_what_a_plan_does_not_claim_is_in_no_check_and_is_named():
    frame = study.effects(rows(lambda name, trained, beta, *_: 40.0 * (trained != beta) + (name == OWN)))
    every = pd.concat([frame.assign(passes=many, steps=count) for many, count in ((400, 200), (400, 400), (800, 200))])
    plan = Plan(seeds=(0, 1, 2), again=3, betas=(0.5, 1.0, 2.0), decoders=(0.5, 2.0))
    found = [study._checks(each, every)[0].found for each in (plan, plan.changed(unclaimed=("β = 2 at β = 0.5, test",)))]
    assert found[0].startswith("of 10 claims")
    assert found[1].startswith("of 9 claims")
    assert found[1].endswith("not claimed are β = 2 at β = 0.5, test")


class Asked(Exception):
    pass


def first_call(module, function, dataset, monkeypatch):
    """What the sweep is given in the call of a study's function for the most images and the passes of the full plan."""
    plan, cells, asked = module.plan(dataset, "full"), [], []

    def sweep(make, ds, betas, objective, seeds, config, store):
        with training.seeded(0):
            asked.append((make(), ds, [objective(beta) for beta in betas], config))
        raise Asked

    def given(lab, function, found, what):
        cells.extend(found)
        raise Asked

    monkeypatch.setattr(Lab, "map", given)
    monkeypatch.setattr(module, "sweep", sweep)
    with pytest.raises(Asked):
        module.run(plan, Lab())
    most = max(each["images"] for each in cells)
    kind = curve.KINDS[0]
    [cell, *_] = [
        each for each in cells if (each["passes"], each["images"], each.get("kind", kind)) == (plan.passes, most, kind)
    ]
    with pytest.raises(Asked):
        function(**cell, store=None, device="cpu")
    return asked[0]


@pytest.mark.parametrize("dataset", ["digits", "glyphs"])
def test_the_vaes_are_those_of_the_study_of_the_curve(dataset, monkeypatch):
    """A store knows them by the same keys: nothing is trained twice."""
    theirs = first_call(curve, curve.train, dataset, monkeypatch)
    ours = first_call(study, study.measure, dataset, monkeypatch)
    known = {training._key.key_of(theirs[0], theirs[1], each, theirs[3]) for each in theirs[2]}
    keys = [training._key.key_of(ours[0], ours[1], each, ours[3]) for each in ours[2]]
    assert len(set(keys)) == len(study.plan(dataset, "full").betas)
    assert set(keys) <= known


def test_curves_are_means_over_seeds_of_the_plans_passes():
    frame = rows(lambda *place: 0.0, seeds=(0, 1), passes=(400, 800))
    value = (
        frame["seed"] + frame["trained"] + 10 * frame["beta"] + 100 * (frame["passes"] == 800) + (frame["objective"] == BEST)
    )
    frame = pd.concat(
        [frame[frame["quantity"] == "rate"].assign(value=value, quantity=name) for name in ("rate", "distortion")]
    )
    own, best = study.mean_curve(frame, "test"), study.mean_curve(frame, "train", 2.0)
    assert own.rates.tolist() == [0.5 + 0.5 + 5, 0.5 + 1 + 10, 0.5 + 2 + 20]
    assert best.rates.tolist() == [0.5 + 2 + 5 + 1, 0.5 + 2 + 10 + 1, 0.5 + 2 + 20 + 1]
    assert [run.seed for run in best[2.0].runs] == [0, 1]
    lowest = study.envelope([best, study.mean_curve(frame, "train", 0.5)])
    assert lowest.rates.tolist() == [0.5 + 0.5 + 5 + 1, 0.5 + 0.5 + 10 + 1, 0.5 + 0.5 + 20 + 1]


def test_the_summary_has_what_encoders_lack_and_by_how_much_test_images_are_worse():
    def loss(name, trained, beta, split, seed, passes, steps):
        return seed + (name == OWN) * {"test": 5.0, "train": 2.0}[split] * beta + (name == OWN) * (passes == 800)

    frame = rows(loss, seeds=(0, 1), passes=(400, 800))
    rates = frame[frame["quantity"] == "rate"].assign(value=0.0)
    losses = frame[frame["quantity"] == "loss"]
    found = study.summary(pd.concat([losses, losses.assign(quantity="distortion"), rates]))
    assert found.index.tolist() == ["β = 0.5", "β = 2"]
    assert found.map(float).to_numpy().tolist() == [[1.0, 2.5, 3.5, 1.5], [4.0, 10.0, 11.0, 6.0]]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"betas": (1.0, 0.2)}, "betas must be numbers > 0, from the smallest"),
        ({"decoders": ()}, "decoders must be numbers > 0"),
        ({"decoders": (0.9,)}, "decoders must be some of betas"),
        ({"again": 1}, "at least two seeds"),
        ({"measured": 1}, "measured must be a whole number >= 2"),
        ({"chains": 0}, "chains must be"),
        ({"steps": 0}, "steps must be"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan(**values), said)
