"""The study of objectives in two ways: that they are one, what is called the cost of draws, and how they are trained."""

import logging
from typing import Any, cast

import pandas as pd
import pytest
import torch

from nbvae import data, estimators, models, objectives, training
from studies import objectives as every
from studies import sampled as study
from studies.objectives import every_row, loss


@pytest.fixture(scope="module")
def trained():
    ds = data.load("digits")
    torch.manual_seed(0)
    model = models.VAE(ds.shape, latent_dim=3, hidden=(16,))
    training.fit(model, ds, objectives.VAE(), training.TrainConfig(20, 100, 1e-2))
    return model, ds.train[:400]


@pytest.mark.parametrize("name", study.WEIGHTS)
def test_both_ways_are_one_objective(trained, name):
    """Without the factor of four that weighs D + R wrongly: another weight would be seen."""
    model, x = trained
    closed, drawn = (loss(model, study.kind_of(name, way, 3), x, 100, 40) for way in (study.CLOSED, study.DRAWN))
    assert drawn == pytest.approx(closed, abs=0.05)
    other = study.Written(study.WEIGHTS[name] + 0.5, closed=True)
    assert abs(loss(model, other, x, 100, 10) - closed) > 0.2


@pytest.mark.parametrize("written", [study.CLOSED, study.DRAWN])
@pytest.mark.parametrize("name", study.WEIGHTS)
def test_they_are_the_objectives_of_the_study_of_objectives(trained, name, written):
    """The library's, of which "weight 2 on I" has all its terms from draws: at the same draws, and in the mean."""
    model, x = trained
    kind, settings = every_row(3)[name]
    same = objectives.NAMED[kind](**settings)
    own = study.kind_of(name, written, 3)
    alike = (written == study.CLOSED) == (name == "VAE")
    with torch.no_grad():
        values = []
        for each in (same, own):
            torch.manual_seed(1)
            values.append(each(model, x, reference=x).total.mean().item())
    if alike:
        assert values[0] == pytest.approx(values[1], abs=1e-3)
    assert loss(model, own, x, 100, 40) == pytest.approx(loss(model, same, x, 100, 40), abs=0.05)


def test_the_objective_is_weighed_information(trained):
    """Against the terms that the library measures, of another derivation."""
    model, x = trained
    found = loss(model, study.Written(3.0, closed=True), x, 400, 20) - loss(model, study.Written(1.0, closed=True), x, 400, 20)
    measured = estimators.decompose(model, x, n_samples=20)
    assert found == pytest.approx(2 * measured.mutual_information, rel=0.02)


@pytest.mark.parametrize("name", study.WEIGHTS)
def test_noise_has_no_mean_and_the_closed_rate_has_less_of_it(trained, name):
    """Of gradients on the same images: both ways have one mean, and that of the rate from draws varies more."""
    model, x = trained
    parameters = [each for each in model.parameters() if each.requires_grad]

    def gradients(written, count=300):
        found = []
        for seed in range(count):
            torch.manual_seed(seed)
            total = study.kind_of(name, written, 3)(model, x[:20], reference=x).total.mean()
            found.append(torch.cat([each.flatten() for each in torch.autograd.grad(total, parameters)]))
        return torch.stack(found)

    closed, drawn = gradients(study.CLOSED), gradients(study.DRAWN)
    apart = (drawn - closed).mean(0).norm() / ((drawn - closed).var(0).sum() / len(drawn)).sqrt()
    assert apart < 1.5  # the mean of as many noises without a mean has about this norm, 1
    assert drawn.var(0).sum() > 1.02 * closed.var(0).sum()


def test_it_is_trained_in_one_stack(caplog):
    """A sweep that cannot do so trains one model after the other, in five times the time."""
    ds = data.load("digits").first(100)
    with caplog.at_level(logging.WARNING):
        training.sweep(
            lambda: models.VAE(ds.shape, latent_dim=2, hidden=(8,)),
            ds,
            objectives=[study.Written(2.0, closed=True)],
            seeds=[0, 1],
            config=training.TrainConfig(1, 50, 1e-2),
        )
    assert "one after the other" not in caplog.text


def test_the_cost_is_what_is_lost_by_draws_in_pairs():
    """Under the objective of both alone, and of objectives that have both ways."""
    rows = [
        {"objective": name, "written": way, "under": under, "seed": seed, "quantity": "loss", "value": value, "stderr": None}
        for name, under, way, value in (
            ("VAE", "VAE", study.CLOSED, 5.0),
            ("VAE", "VAE", study.DRAWN, 5.25),
            ("VAE", "weight 2 on I", study.CLOSED, 1.0),
            ("VAE", "weight 2 on I", study.DRAWN, 9.0),
            ("DIP-VAE II", "DIP-VAE II", study.CLOSED, 3.0),
        )
        for seed in (0, 1, 2)
    ]
    for row in rows:
        row["value"] += row["seed"]
    found = study.costs(pd.DataFrame(rows))
    assert set(found["objective"]) == {"VAE"}
    assert found["value"].tolist() == pytest.approx([0.25] * 3)


@pytest.mark.parametrize("dataset", study.DATASETS)
def test_it_is_trained_as_the_objectives_are(dataset):
    same = study.all_objectives.plan(dataset, "full")
    plan = study.plan(dataset, "full")
    for name in ("binarize", "images", "passes", "against", "start", "hidden", "latent_dim", "batch", "lr"):
        assert getattr(plan, name) == getattr(same, name)
    assert set(same.seeds) <= set(plan.seeds)
    assert plan.margin == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"again": 1}, "at least two seeds"),
        ({"against": 3.0}, "against must be"),
        ({"start": -1.0}, "start"),
        ({"margin": 0.1}, "margin must be 0"),
        ({"largest_error": 0.0}, "largest_error"),
    ],
)
def test_a_bad_plan_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        study.Plan(**changes)


def test_what_is_not_clear_is_not_held_to_a_side(monkeypatch):
    """The side of a cost is checked where its 95 % interval is clear of zero, at both numbers of passes, and nowhere else."""
    plan = study.Plan(seeds=(0, 1, 2, 3), again=4, passes=2, rows=("VAE", "weight 2 on I", "DIP-VAE II"))

    class Found:
        store = None

        def __init__(self, costs):
            self.costs = costs

        def map(self, _, cells, what):
            def value(cell, under, seed):
                drawn = cell["written"] == study.DRAWN
                noise = (-1) ** seed * 0.001 if drawn else 0.0
                cost = self.costs[cell["passes"]] if drawn and cell["objective"] == "VAE" else 0.0
                return 5.0 + (cell["objective"] != under) + cost + noise

            return [
                {
                    "rows": [
                        {"objective": cell["objective"], "written": cell["written"], "split": "train", "quantity": "loss"}
                        | {"stderr": None, "n": 10, "under": under, "seed": seed, "value": value(cell, under, seed)}
                        for seed in cell["seeds"]
                        for under in cell["rows"]
                    ]
                }
                for cell in cells
            ]

    made = []
    monkeypatch.setattr(study.Record, "of", lambda *_, checks, **__: made.append([check.passed for check in checks]))
    for costs in ({2: 0.02, 4: 0.02}, {2: 0.02, 4: -0.02}, {2: 0.0, 4: 0.02}):
        study.run(plan, cast(Any, Found(costs)))
    assert made == [[True, True, True], [True, True, False], [True, True]]


@pytest.mark.parametrize("name", every.MOVED)
def test_a_row_with_its_rate_in_closed_form_is_the_same_objective_with_less_noise(trained, name):
    """At the same draws it differs from the library's by what R from draws is off, and its gradients have the same mean."""
    model, x = trained
    kind, settings = every_row(3)[name]
    library, own = objectives.NAMED[kind](**settings), every.Weighed(*every.MOVED[name])
    values = []
    for each in (own, library, study.Written(1.0, closed=True), study.Written(1.0, closed=False)):
        torch.manual_seed(3)
        values.append(each(model, x, reference=x).total.mean().item())
    assert values[0] - values[1] == pytest.approx(values[2] - values[3], abs=2e-5)  # at one draw only R is another
    assert abs(values[0] - values[2]) > 0.05  # and that would be seen of another weight
    parameters = [each for each in model.parameters() if each.requires_grad]
    found: dict[str, list] = {"own": [], "library": []}
    for seed in range(200):
        for which, objective in (("own", own), ("library", library)):
            torch.manual_seed(seed)
            total = objective(model, x[:20], reference=x).total.mean()
            found[which].append(torch.cat([each.flatten() for each in torch.autograd.grad(total, parameters)]))
    first, second = (torch.stack(each) for each in found.values())
    apart = (first - second).mean(0).norm() / ((first - second).var(0).sum() / len(first)).sqrt()
    assert apart < 1.5
    assert first.var(0).sum() < second.var(0).sum()


def test_weights_of_one_leave_the_elbo_and_a_weight_on_information_is_written_as_elsewhere(trained):
    model, x = trained
    values = []
    for each in (every.Weighed(1, 1, 1), objectives.VAE(), every.Weighed(2, 1, 1), study.Written(2.0, closed=True)):
        torch.manual_seed(3)
        values.append(each(model, x, reference=x).total.mean().item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[2] == pytest.approx(values[3], rel=1e-6)
