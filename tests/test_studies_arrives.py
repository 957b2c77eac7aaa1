"""The study of pictures that sharpen as codes arrive: its numbers are those of the ladder, and its model is the page's."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

import studies
from nbvae import estimators, models, samplers
from studies import arrives as study
from studies import page_model
from studies.arrives import ALONE, BEGINNING, DISTORTION, NATS, Plan
from studies.record import read


@pytest.fixture(scope="module")
def chain() -> samplers.Chain:
    torch.manual_seed(0)
    many = models.MultiBetaVAE((1, 2, 3), 2, hidden=(5,), beta_range=(0.1, 40.0))
    x = (torch.rand(200, 1, 2, 3, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    return samplers.Chain(many, x, betas=[4.0, 1.0, 0.25], n_components=1, draws=1, coupling="channel")


def test_pictures_are_decoded_from_the_ladders_codes_and_begin_with_the_mean(chain):
    x = (torch.rand(3, 1, 2, 3, generator=torch.Generator().manual_seed(2)) < 0.4).float()
    mean = torch.full((1, 2, 3), 0.4)
    found = study.pictured(chain, x, mean, pictures=2, priced=50)
    assert found["pictures"].shape == (3, 2, 4, 6)
    assert (found["pictures"][:, :, 0] == 102).all()
    for draw in range(2):
        for stage, (view, z) in enumerate(zip(chain.views, chain.encode(x, draw), strict=True)):
            with torch.no_grad():
                white = view.likelihood(z).mean.flatten(1).numpy()
            np.testing.assert_allclose(found["pictures"][:, draw, stage + 1] / 255, white, atol=0.5 / 255 + 1e-6)
    for i in range(3):
        np.testing.assert_allclose(found["nats"][i, 1:], chain.rates(x[i : i + 1], 50).cumsum(0), rtol=1e-5)
        left = [estimators.evaluate(view, x[i : i + 1], n_samples=50).distortion for view in chain.views]
        np.testing.assert_allclose(found["distortion"][i, 1:], left, rtol=1e-5)
    entropy = -(x * np.log(0.4) + (1 - x) * np.log(0.6)).sum((1, 2, 3))
    np.testing.assert_allclose(found["distortion"][:, 0], entropy, rtol=1e-5)
    assert (found["nats"][:, 0] == 0).all()


@pytest.fixture(scope="module")
def record():
    return studies.load("arrives", "digits", budget="smoke", lab=studies.Lab(device="cpu"))


def test_the_page_has_the_means_of_the_record(record):
    arrays, told = study.in_page(record)
    assert "model" not in arrays
    own = record.frame.groupby(["quantity", "beta"], dropna=False)["value"].mean()
    assert [point["nats"] for point in told["curve"]] == [0.0, *(own[NATS, beta] for beta in record.plan["ladder"])]
    assert told["curve"][0]["distortion"] == own[BEGINNING].iloc[0]
    assert [point["nats"] for point in told["alone"]] == [own[ALONE, beta] for beta in record.plan["ladder"]]
    assert told["alone"][1]["distortion"] == told["curve"][2]["distortion"] == own[DISTORTION, record.plan["ladder"][1]]
    assert len(arrays["pictures"]) == len(arrays["images"]) == len(arrays["nats"]) == 2


def test_a_record_is_of_the_model_that_is_recorded():
    """Who records the page's model anew records the pictures of its codes, too."""
    found, of = read("arrives", "mnist"), read("page_model", "mnist")
    if found is None or of is None:
        pytest.skip("the two are not both recorded")
    model = page_model.unpacked(of.arrays, (1, 28, 28), (of.plan["low"], of.plan["high"]))
    assert (found.arrays["model"] == study.fingerprint(model)).all(), "python -m studies arrives --record --again"


def test_a_fingerprint_is_that_of_the_weights():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    before = study.fingerprint(model)
    assert (study.fingerprint(model) == before).all()
    with torch.no_grad():
        model.weight[0, 0] += 1e-3
    assert (study.fingerprint(model) != before).any()


def test_without_a_recorded_model_it_says_so_in_one_line():
    one_line(lambda: study.one_model("digits", "default", "recorded", None, "cpu"), "there is no recorded model of digits")


def priced(overhead: float, draws: int, spread: float = 0.001) -> pd.DataFrame:
    """Ladders of three seeds that cost the same overhead after each of two codes."""
    rows = [
        {"beta": beta, "seed": seed, "draws": draws, "quantity": name, "value": value}
        for beta in (2.0, 1.0)
        for seed in (0, 1, 2)
        for name, value in ((ALONE, 10 / beta), (NATS, (1 + overhead + spread * seed) * 10 / beta), (DISTORTION, 5.0))
    ]
    return pd.DataFrame(rows).assign(stderr=np.nan)


def test_an_overhead_is_what_the_ladder_costs_more_than_its_last_code():
    found = study.overheads(pd.concat([priced(0.05, 2, 0.0), priced(0.04, 4, 0.0)]))
    np.testing.assert_allclose(found["value"], np.where(found["draws"] == 2, 0.05, 0.04))
    assert len(found) == 12


@pytest.mark.parametrize(
    ("later", "spread", "outcomes"), [(0.04, 0.001, [True, True]), (0.02, 0.001, [False, True]), (0.05, 0.1, [False, False])]
)
def test_overheads_that_more_pairs_move_or_that_seeds_scatter_are_not_claimed(later, spread, outcomes):
    plan = Plan(ladder=(2.0, 1.0))
    checks = study._checks(plan, pd.concat([priced(0.05, 2, spread), priced(later, 4, -spread)]))
    assert [check.passed for check in checks] == outcomes
    assert checks[0].name.startswith("4 pairs of codes an image")
    assert "the nats themselves fall by" in checks[0].found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ladder": (1.0, 2.0)}, "ladder must be at least two βs that fall"),
        ({"ladder": (80.0, 2.0)}, "lowest and highest must be the ends"),
        ({"model": "mine"}, "model must be one of"),
        ({"pictures": 0}, "pictures must be"),
        ({"seeds": (0,)}, "errors need at least two seeds"),
    ],
)
def test_bad_plans_in_one_line(values, message):
    one_line(lambda: dataclasses.replace(Plan(), **values), message)
