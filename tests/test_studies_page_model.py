"""The model that pages run: its weights in eight bits, and what is claimed of them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

import studies
from nbvae import models
from studies import page_model as study
from studies.page_model import EXACT, KEPT, Plan


def model(seed: int = 0) -> models.MultiBetaVAE:
    torch.manual_seed(seed)
    made = models.MultiBetaVAE((1, 3, 4), 2, hidden=(7, 5), beta_range=(0.1, 40.0))
    with torch.no_grad():
        for value in made.parameters():  # modulations begin at 0 and 1
            value += 0.3 * torch.randn_like(value)
    return made


def test_each_weight_is_kept_within_half_a_step_of_its_row_and_vectors_as_they_are():
    exact = model()
    with torch.no_grad():
        exact.decoder.layers[0].weight[2] = 0.0  # a row of zeros has no largest weight
    kept = study.packed(exact)
    again = study.unpacked(kept, (1, 3, 4), exact.beta_range)
    for name, value in exact.state_dict().items():
        other = again.state_dict()[name]
        if value.dim() == 2:
            half = value.abs().max(1, keepdim=True).values / (2 * 127)
            assert ((value - other).abs() <= half * (1 + 1e-4)).all(), name
            assert kept[name].dtype == np.int8
            assert np.abs(kept[name].astype(int)).max() == 127
        else:
            assert torch.equal(value, other), name
    assert (again.latent_dim, again.shape, again.beta_range) == (2, (1, 3, 4), exact.beta_range)


def test_kept_weights_are_a_fixed_point():
    kept = study.packed(model())
    twice = study.packed(study.unpacked(kept, (1, 3, 4)))
    for name, value in kept.items():
        np.testing.assert_allclose(twice[name], value, rtol=1e-6)


def test_the_model_of_the_page_has_fewer_than_a_million_bytes():
    plan = study.plan("mnist", "full")
    full = models.MultiBetaVAE((1, 28, 28), plan.latent_dim, hidden=plan.hidden, beta_range=(plan.low, plan.high))
    assert sum(part.nbytes for part in study.packed(full).values()) < 1_000_000


def rows(passes: int, cost: float = 0.02, wrong: float = 0.0) -> pd.DataFrame:
    """Views on D = −log R, each at R = 1/β, the best rate under its own objective; `wrong` moves one of them off it."""
    table = []
    for seed in range(3):
        for kind in (EXACT, KEPT):
            for split in ("train", "test"):
                for beta in (0.1, 1.0, 10.0):
                    rate = np.exp(wrong * (beta == 1.0)) / beta
                    distortion = 5 - np.log(rate) + 0.01 * seed + (cost * (1 + 0.1 * seed) if kind == KEPT else 0.0)
                    values = {"rate": rate, "distortion": distortion, "loss": distortion + beta * rate}
                    place = {"objective": kind, "beta": beta, "seed": seed, "split": split, "passes": passes}
                    place |= {"stderr": None, "n": 4}
                    table += [place | {"quantity": name, "value": value} for name, value in values.items()]
    return pd.DataFrame(table)


PLAN = Plan(betas=(0.1, 1.0, 10.0), crossed=(0.1, 1.0, 10.0), passes=4, seeds=(0, 1, 2), again=3)


def test_what_eight_bits_cost_is_the_difference_on_test_images_in_pairs_of_seeds():
    found = study.rounding(rows(4).drop(columns="passes")).set_index("beta")["value"]
    assert [each.value for each in found] == pytest.approx([0.022] * 3)
    assert [each.stderr for each in found] == pytest.approx([0.002 / np.sqrt(3)] * 3)


@pytest.mark.parametrize(
    ("longer", "outcomes"),
    [
        (rows(2), [True, True, True]),
        (rows(2, cost=0.3), [True, True, False]),  # the cost is other after fewer passes
    ],
)
def test_checks(longer, outcomes):
    assert [check.passed for check in study.converged(PLAN, pd.concat([rows(4), longer]))] == outcomes


def test_a_view_that_is_not_the_best_under_its_own_objective_fails():
    frame = pd.concat([rows(4, wrong=3.0), rows(2)])
    assert not study.converged(PLAN, frame)[0].passed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crossed": (0.3, 1.0)}, "crossed must be at least two of betas"),
        ({"betas": (1.0, 0.1)}, "betas must be at least two numbers"),
        ({"high": 5.0}, "low and high must have all of betas"),
        ({"passes": 3}, "against must be 2 or"),
        ({"again": 1}, "errors need at least two seeds"),
    ],
)
def test_bad_plans_in_one_line(values, message):
    one_line(lambda: dataclasses.replace(PLAN, against=0.5, **values), message)


def test_grey_images_are_refused_in_one_line():
    one_line(lambda: studies.load("page_model", "digits", "smoke", binarize="none"), "for pixels of 0 and 1")
