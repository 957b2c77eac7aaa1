"""The study of the curve: what is claimed from its rows, equal steps for all sizes, and the linear optimum."""

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

from nbvae import data, models
from studies import curve as study
from studies.curve import Plan
from studies.lab import Lab


def test_claims_are_differences_of_losses_and_excesses_of_the_most_images():
    keys = ["objective", "images", "beta", "seed", "split", "quantity", "value"]
    rows = [
        ("densities", images, 2.0, 0, split, quantity, value)
        for images, split, quantity, value in (
            *(
                (100, "train", "loss", 4.0),
                (100, "test", "loss", 7.0),
                (100, "test", "excess", 9.0),
                (100, "train", "excess", 9.0),
            ),
            *(
                (200, "train", "loss", 5.0),
                (200, "test", "loss", 6.5),
                (200, "test", "excess", 1.0),
                (200, "train", "excess", -2.0),
                (200, "test", "linear", 3.0),
                (200, "train", "linear", 0.0),
            ),
        )
    ]
    found = study.effects(pd.DataFrame(rows, columns=pd.Index(keys))).set_index(["objective", "quantity"])["value"].to_dict()
    assert found == {
        ("densities, 100 images, β = 2", "test less training"): 1.5,
        ("densities, 200 images, β = 2", "test less training"): 0.75,
        ("densities, 100 images, β = 2", "the same, less that from the most images"): 0.75,
        ("densities, 200 images, β = 2", "excess, test"): -2.0,
        ("densities, 200 images, β = 2", "excess, train"): -2.0,
    }


class Asked(Exception):
    pass


@pytest.mark.parametrize("dataset", ["digits", "glyphs"])
def test_few_images_are_gone_through_more_often(dataset, monkeypatch):
    """All sizes have as many steps; densities have grey values, probabilities black and white."""
    plan, seen = study.plan(dataset, "full").changed(again=2), []
    monkeypatch.setattr(Lab, "map", lambda lab, function, cells, what: seen.extend(cells) or (_ for _ in ()).throw(Asked))
    with pytest.raises(Asked):
        study.run(plan, Lab())
    steps = {(cell["images"] * cell["passes"], cell["seeds"] == plan.seeds) for cell in seen}
    most = min(plan.sizes[-1], len(plan.data().train))
    assert {round(one / most / plan.passes, 2) for one, every in steps if every} == {1}
    assert {round(one / most / plan.passes, 2) for one, every in steps if not every} == {plan.against}
    assert all((cell["binarize"] is None) == (cell["kind"] == "densities") for cell in seen)
    assert data.load(dataset, None).is_binary is False


def test_what_is_told_is_of_the_plans_passes_whichever_of_the_two_is_longer():
    plan = study.plan("digits", "smoke").changed(passes=2, images=60, sizes=(30, 60), measured=40)
    assert plan.again == len(plan.seeds)
    longer, shorter = (study.run(plan.changed(against=against), Lab()) for against in (0.5, 2.0))
    other = study.run(plan.changed(passes=4), Lab())
    for name in study.PICTURES:
        np.testing.assert_array_equal(longer.arrays[name], shorter.arrays[name])
    assert not np.array_equal(longer.arrays["rebuilt"], other.arrays["rebuilt"])
    pd.testing.assert_frame_equal(longer.frame, shorter.frame)


def test_pictures_are_those_of_the_models_from_one_noise_for_all():
    """A decoder of one image rebuilds every image and every draw to it; equal models make equal pictures."""
    ds = data.load("digits")
    torch.manual_seed(0)
    model = models.VAE(ds.shape, 2, hidden=[4])
    found = study.pictures([model, model], ds.test[:3])
    assert {name: value.shape for name, value in found.items()} == {
        "images": (3, 1, 8, 8),
        "rebuilt": (2, 3, 1, 8, 8),
        "drawn": (2, 3, 1, 8, 8),
    }
    np.testing.assert_array_equal(found["rebuilt"][0], found["rebuilt"][1])
    np.testing.assert_array_equal(found["drawn"][0], found["drawn"][1])
    assert not (found["rebuilt"][0, 0] == found["drawn"][0, 0]).all()


def test_a_curve_is_that_of_one_kind_split_and_number_of_images():
    rows = [
        {"objective": kind, "split": split, "images": images, "beta": beta, "seed": seed, "quantity": name, "value": value}
        for number, (kind, split, images) in enumerate(
            (kind, split, images) for kind in study.KINDS for split in ("train", "test") for images in (100, 200)
        )
        for beta in (0.5, 2.0)
        for seed in (0, 1)
        for name, value in (("rate", number + 1 / beta + seed), ("distortion", beta))
    ]
    curve = study.drawn_curve(pd.DataFrame(rows), "densities", "test")
    assert curve.betas.tolist() == [0.5, 2.0]
    assert curve.rates.tolist() == [7 + 2 + 0.5, 7 + 0.5 + 0.5]
    assert [run.rate for run in curve[0.5].runs] == [9.0, 10.0]
    assert study.drawn_curve(pd.DataFrame(rows), "probabilities", "train", 100).rates.tolist() == [2.5, 1.0]


def test_a_linear_network_trained_long_enough_has_no_excess():
    """Gaussian data, a linear VAE: R + MSE/2s of the training examples is that of the optimum, and never below it."""
    common = {"network": "linear", "hidden": [], "batch": 500, "draws": 20, "measured": None, "latent_dim": 4}
    cell = {
        "dataset": "gaussian",
        "binarize": None,
        "images": 2000,
        "most": 2000,
        "places": [0.1, 0.5],
        "seeds": [0],
        "pictured": 0,
    }
    found = study.train(**common, **cell, kind="densities", lr=0.05, passes=60, store=None, device="cpu")["rows"]
    excess = [row["value"] for row in found if row["quantity"] == "excess" and row["split"] == "train"]
    np.testing.assert_allclose(excess, 0.0, atol=0.05)
    # On new examples, too, it is the best linear code of the training examples, whatever that has there.
    plan = Plan(dataset="gaussian", binarize=None, images=2000, kinds=("densities",), latent_dim=4)
    rows = pd.DataFrame(found)
    known = study.yardsticks(plan, rows)
    both = study.excesses(pd.concat([rows, known]))
    assert set(both["split"]) == {"train", "test"}
    np.testing.assert_allclose(both["value"], 0.0, atol=0.05)
    assert known.query("quantity == 'linear' and split == 'train'")["value"].abs().max() < 1e-9
    assert known.query("quantity == 'linear' and split == 'test'")["value"].abs().max() > 0.01
    # A code that says nothing has the whole variance for its error.
    silent = known.query("quantity == 'no code' and split == 'train'")
    x = data.load("gaussian").first(2000).train.double()
    variance = (x - x.mean(0)).square().sum(1).mean().item()
    np.testing.assert_allclose(silent["value"] * 2 * silent["level"] / silent["beta"], variance, rtol=1e-6)
    levels = sorted({row["level"] for row in found})
    whole = data.load("gaussian").train[:2000].double()
    assert levels == pytest.approx([share * np.linalg.eigvalsh(np.cov(whole.T, bias=True))[-1] for share in (0.1, 0.5)])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kinds": ("counts",)}, "a kind must be one of"),
        ({"betas": (1.0, 0.5)}, "betas must be numbers > 0, from the smallest"),
        ({"levels": (0.5, 1.5)}, "levels must be below 1"),
        ({"sizes": ()}, "sizes must be numbers > 0"),
        ({"lrs": (0.1,)}, "lrs must be two numbers > 0"),
        ({"again": 9}, "at least two seeds"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan(**values), said)
