"""The study of holes: what is in one, the grid of log q(z), and what a page is given."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

import studies
from nbvae import models, posterior
from studies import hole as study
from studies import page_model
from studies.hole import BOUND, OF_CODES, SHARE, Plan


class Codes:
    """A model whose codes are its images, with one deviation."""

    def __init__(self, std: float):
        self.std = std

    def posterior(self, x: torch.Tensor) -> torch.distributions.Independent:
        return torch.distributions.Independent(torch.distributions.Normal(x, torch.full_like(x, self.std)), 1)

    def prior(self) -> torch.distributions.Independent:
        return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)


def draws(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def test_codes_that_follow_the_prior_leave_no_holes_and_half_a_plane_is_half_of_it():
    full = study.holes(Codes(0.1), draws(4000, 1), draws(1000, 2))
    assert full[SHARE].value < 0.02
    assert abs(full[BOUND].value) < 0.05
    half = [x[x[:, 0] > 0] for x in (draws(8000, 1), draws(2000, 2))]
    found = study.holes(Codes(0.02), *half)
    assert found[SHARE].value == pytest.approx(0.48, abs=0.04)  # the border is blurred
    assert found[OF_CODES].value < 0.01
    assert found[BOUND].value == pytest.approx(np.log(2), abs=0.1)


def test_blurring_widens_each_posterior_and_without_it_narrow_ones_leave_gaps():
    x, test = draws(2000, 1), draws(500, 2)
    gaps = [study.holes(Codes(0.01), x, test, blur=blur)[SHARE].value for blur in (0.0, 0.1)]
    assert gaps[0] > 0.5 > 0.1 > gaps[1]
    mean, std = study.blurred((x, torch.full_like(x, 0.3)), 0.4)
    assert torch.equal(mean, x.double())
    torch.testing.assert_close(std, torch.full_like(std, 0.5), rtol=1e-6, atol=0)


def test_the_grid_is_log_q_at_its_nodes_and_between_them_near_it():
    mean, std = draws(300, 3).double(), torch.full((300, 2), 0.3, dtype=torch.float64)
    axis = torch.linspace(-3, 3, 61, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    exact = posterior.log_density(grid.flatten(0, 1), mean, std).view(61, 61).numpy()
    kept = study.kept_density(exact)
    near = exact > study.LOWEST
    at_nodes = study.at(kept, grid.flatten(0, 1).numpy(), 3.0).reshape(61, 61)
    assert np.abs(at_nodes - exact)[near].max() <= study.STEP / 2 + 1e-9
    np.testing.assert_allclose(at_nodes[~near], study.LOWEST, rtol=1e-12)
    z = 0.7 * draws(200, 4).double().clamp(-4, 4)
    between = study.at(kept, z.numpy(), 3.0)
    assert np.abs(between - posterior.log_density(z, mean, std).numpy()).max() < 0.1
    far = np.array([[9.0, -9.0]])  # what is beyond the grid is its edge
    assert study.at(kept, far, 3.0) == study.LOWEST + study.STEP * float(kept[0, -1])


@pytest.fixture(scope="module")
def record():
    return studies.load("hole", "digits", budget="smoke", lab=studies.Lab(device="cpu"))


def test_the_record_has_the_codes_and_the_density_of_the_kept_model(record):
    plan, ds = study.plan("digits", "smoke"), study.plan("digits", "smoke").data()
    kept = {name: value for name, value in record.arrays.items()}
    model = page_model.unpacked(kept, ds.shape, (plan.low, plan.high))
    for index, beta in enumerate(plan.betas):
        view = model.at(beta)
        mean, std = posterior.encode(view, ds.test[: plan.shown])
        assert (np.abs(kept["codes"][index] - mean.numpy()) < 5 * std.numpy()).all()
        code = study.blurred(posterior.encode(view, ds.train[: plan.reference]), plan.blur)
        corner = torch.tensor([[-plan.reach, plan.reach]], dtype=torch.float64)
        exact = study.kept_density(posterior.log_density(corner, *code).numpy())
        assert kept["density"][index][-1, 0] == exact[0]
    assert (kept["labels"] == ds.test_labels[: plan.shown].numpy()).all()
    shares = record.frame[record.frame["quantity"] == SHARE]
    assert len(shares) == len(plan.betas) * len(plan.seeds)
    assert shares["value"].between(0, 1).all()


def test_a_page_is_given_all_that_decodes_and_no_matrix_of_the_encoder(record):
    arrays, told = study.in_page(record)
    assert not [name for name in arrays if name.startswith("encoder") and "weight" in name]
    assert {"encoder.layers.0.bias", "decoder.layers.0.weight", "decoder.layers.0.weight scale", "codes", "density"} <= set(
        arrays
    )
    assert {str(value.dtype) for value in arrays.values()} <= {"int8", "uint8", "float32"}
    assert told["lowest"] + 255 * told["step"] > 0


def test_the_full_plan_is_small_enough_for_a_page():
    plan = study.plan("mnist", "full")
    model = models.MultiBetaVAE((1, 28, 28), 2, hidden=plan.hidden, beta_range=(plan.low, plan.high))
    weights = sum(part.nbytes for part in page_model.packed(model).values())
    assert weights + len(plan.betas) * (plan.nodes**2 + 8 * plan.shown) < 500_000


def shares(move: float, passes: int, spread: float = 0.01) -> pd.DataFrame:
    rows = [
        {"beta": beta, "seed": seed, "passes": passes, "quantity": SHARE, "value": 0.2 / beta + spread * seed + move, "n": 9}
        for beta in (1.0, 2.0)
        for seed in (0, 1, 2)
    ]
    return pd.DataFrame(rows).assign(stderr=np.nan)


@pytest.mark.parametrize(
    ("move", "spread", "outcomes"), [(0.01, 0.01, [True, True]), (0.1, 0.01, [True, False]), (0.01, 0.2, [False, True])]
)
def test_shares_that_longer_training_moves_or_that_seeds_scatter_are_not_claimed(move, spread, outcomes):
    plan = Plan(betas=(1.0, 2.0), crossed=(1.0, 2.0), passes=4)
    checks = study._checks(plan, pd.concat([shares(0.0, 4, spread), shares(move, 2, spread)]))
    assert [check.passed for check in checks] == outcomes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latent_dim": 3}, "latent_dim must be 2"),
        ({"thin": 1.0}, "thin must be between 0 and 1"),
        ({"nodes": 1}, "nodes must be"),
        ({"reach": 0.0}, "reach must be"),
        ({"blur": -1.0}, "blur must be"),
    ],
)
def test_bad_plans_in_one_line(values, message):
    one_line(lambda: dataclasses.replace(Plan(), **values), message)
