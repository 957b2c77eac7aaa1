"""The study of single weights: what is trained, the line of β-VAEs at equal information, and the costs of estimates."""

import numpy as np
import pandas as pd
import pytest
from errors import one_line

from nbvae import objectives
from studies import weights as study
from studies.objectives import TERMS
from studies.weights import Plan


def frame_of(values: dict[str, dict[str, float]], seeds: tuple[int, ...] = (0, 1)) -> pd.DataFrame:
    """A frame of these quantities for each objective, larger by a tenth of the seed."""
    return pd.DataFrame(
        [
            {"objective": objective, "seed": seed, "quantity": name, "value": value + seed / 10}
            for objective, each in values.items()
            for name, value in each.items()
            for seed in seeds
        ]
    )


def terms(information: float, **others: float) -> dict[str, float]:
    return dict.fromkeys(TERMS, 0.0) | {"mutual_information": information} | others


@pytest.mark.parametrize("dataset", study.DATASETS)
def test_every_row_is_an_objective_whose_weights_are_those_of_its_name(dataset):
    plan = study.plan(dataset, "full").changed(dimension=(4.0,))
    rows = {name: objectives.NAMED[kind](**settings) for name, (kind, settings) in study.rows_of(plan).items()}
    assert rows["VAE"] == objectives.BetaVAE(1.0)
    assert rows["β = 2"] == objectives.BetaVAE(2.0)
    assert rows["2 on information"] == objectives.BetaTCVAE(2.0, 1.0, 1.0, estimator="exact")
    assert rows["6 on correlation"] == objectives.BetaTCVAE(1.0, 6.0, 1.0, estimator="exact")
    assert rows["4 on dimension"] == objectives.BetaTCVAE(1.0, 1.0, 4.0, estimator="exact")
    assert rows["6 on correlation, weighted"] == objectives.BetaTCVAE(1.0, 6.0, 1.0, estimator="weighted")
    assert rows["6 on correlation, discriminator"] == objectives.FactorVAE(gamma=5.0)
    assert len(rows) == len(plan.betas) + len(plan.information) + len(plan.correlation) + len(plan.dimension) + 4


def test_models_are_held_against_beta_vaes_of_the_same_information_and_not_beyond_them():
    values = {
        "VAE": terms(5.0, total_correlation=3.0, distortion=10.0),
        "β = 2": terms(3.0, total_correlation=1.0, distortion=14.0),
        "6 on correlation": terms(4.0, total_correlation=0.5, distortion=13.0),
        "2 on information": terms(5.0, total_correlation=3.0, distortion=10.0),
        "4 on dimension": terms(6.0),
    }
    found = study.beside_the_line(frame_of(values)).set_index(["objective", "quantity", "seed"])["value"]
    for seed in (0, 1):
        assert found["6 on correlation", "total_correlation", seed] == pytest.approx(0.5 - 2.0)
        assert found["6 on correlation", "distortion", seed] == pytest.approx(13.0 - 12.0)
        assert found["2 on information", "total_correlation", seed] == pytest.approx(0.0)
    assert set(found.index.get_level_values("objective")) == {"6 on correlation", "2 on information"}


def test_the_line_of_beta_vaes_is_bent_where_its_points_are():
    """Where the terms of β-VAEs grow like exp(I) a model on that curve has no less of them, though it is below the chords."""
    line = {
        f"β = {beta:g}": terms(each, total_correlation=np.exp(each)) for beta, each in zip((4, 3, 2), (1, 2, 3), strict=True)
    }
    values = line | {
        "VAE": terms(4.0, total_correlation=np.exp(4.0)),
        "6 on correlation": terms(2.5, total_correlation=np.exp(2.5)),
    }
    found = study.beside_the_line(frame_of(values, seeds=(0,))).set_index("quantity")["value"]["total_correlation"]
    chord = np.exp(2.5) - (np.exp(2) + np.exp(3)) / 2
    assert abs(found) < 0.35 * abs(chord)


def test_what_an_estimate_costs_is_the_loss_under_the_exact_objective_beyond_the_exact_terms():
    own = "loss under 6 on correlation"
    frame = frame_of(
        {
            "6 on correlation": {own: 20.0, "loss under VAE": 15.0, "rate": 3.0},
            "6 on correlation, hfvae": {own: 20.5, "loss under VAE": 14.0, "rate": 3.5},
            "2 on correlation": {own: 21.0, "loss under VAE": 14.0, "rate": 3.5},
        }
    )
    found = study.costs(frame, 6.0)
    assert found["value"].tolist() == pytest.approx([0.5, 0.5])
    assert set(found["objective"]) == {"6 on correlation, hfvae"}
    assert set(found["quantity"]) == {"cost"}


@pytest.mark.parametrize(("later", "passed"), [(23.6, True), (23.0, False), (29.0, False)])
def test_what_is_claimed_at_equal_information_must_not_move_after_twice_the_passes(later, passed):
    """What moves is the line beside the model, by less than matters to what β does. And a model without a line is no claim."""

    def after(middle: float, passes: int) -> pd.DataFrame:
        own = {"loss under 6 on correlation": 1.0}
        line = {"VAE": terms(5.0, total_correlation=30.0), "β = 2": terms(3.0, total_correlation=2 * middle - 30.0)}
        others = {"6 on correlation": terms(4.0, total_correlation=27.5) | own, "2 on information": terms(6.0, distortion=2.0)}
        return frame_of(line | others).assign(passes=passes, split="train", stderr=np.nan, n=10)

    plan, both = Plan(seeds=(0, 1), again=2, passes=4), pd.concat([after(24.0, 4), after(later, 8)])
    [check] = study._compared(plan, both)
    assert check.passed == passed, check.found
    assert passed or "at equal information, total_correlation 6 on correlation: " in check.found
    # Claimed by its side alone it may grow, and must not turn.
    sizes, sides = study._compared(plan.changed(sides=("6 on correlation",)), both)
    assert "6 on correlation" not in sizes.found
    assert sides.passed == ((27.5 - later) * (27.5 - 24.0) > 0), sides.found


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"betas": (2.0, 3.0)}, "betas must have 1"),
        ({"betas": (1.0, 1.0)}, "betas must be different numbers > 0"),
        ({"information": (-1.0,)}, "information must be different numbers > 0"),
        ({"correlation": (1.0, 6.0)}, "must not have 1, which is the VAE"),
        ({"estimated": 5.0}, "estimated must be one of correlation"),
        ({"estimators": ("exactly",)}, "an estimator must be one of"),
        ({"again": 1}, "at least two seeds"),
        ({"margin": -0.1}, "margin must be"),
        ({"sides": ("6 on corelation",)}, "one of sides must be one of"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan(**values), said)
