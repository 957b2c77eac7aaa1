"""The study of one objective written in two ways: that it is one, and what is called its cost."""

import pandas as pd
import pytest
import torch

from nbvae import data, models, objectives, training
from studies import sampled as study
from studies.objectives import loss


def test_both_ways_are_one_objective():
    """The terms add up to log q(z|x) − log p(z), whose mean is the rate in closed form."""
    ds = data.load("digits")
    torch.manual_seed(0)
    model = models.VAE(ds.shape, latent_dim=3, hidden=(16,))
    training.fit(model, ds, objectives.VAE(), training.TrainConfig(20, 100, 1e-2))
    x, ways = ds.train[:400], study.ways()
    closed, from_draws = (loss(model, ways[name], x, 100, 40) for name in (study.CLOSED, study.DRAWN))
    assert from_draws == pytest.approx(closed, abs=0.05)
    for weights in ((2.0, 1.0, 1.0), (1.0, 40.0, 1.0)):  # the comparison would see another weight
        assert abs(loss(model, objectives.BetaTCVAE(*weights, estimator="exact"), x, 100, 4) - closed) > 0.2


def test_the_cost_is_what_is_lost_by_draws_in_pairs():
    rows = [
        {"objective": name, "seed": seed, "quantity": "loss", "value": value + seed, "stderr": None}
        for name, value in ((study.CLOSED, 5.0), (study.DRAWN, 5.25))
        for seed in (0, 1, 2)
    ]
    found = study.behind_of(study.cost(pd.DataFrame(rows)))
    assert found.value == pytest.approx(0.25)
    assert found.stderr == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dataset", study.DATASETS)
def test_it_is_trained_as_the_objectives_are(dataset):
    same = study.all_objectives.plan(dataset, "full")
    plan = study.plan(dataset, "full")
    for name in ("binarize", "images", "passes", "against", "start", "hidden", "latent_dim", "batch", "lr", "draws", "seeds"):
        assert getattr(plan, name) == getattr(same, name)
    assert plan.largest_error == 0.1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"again": 1}, "at least two seeds"),
        ({"against": 3.0}, "against must be"),
        ({"start": -1.0}, "start"),
        ({"draws": 0}, "draws"),
    ],
)
def test_a_bad_plan_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        study.Plan(**changes)
