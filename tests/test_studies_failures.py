"""The study of failures: the threshold of collapse, the objectives that it trains with, the gap, the noise, what is claimed."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

from nbvae import analytic, data, models, objectives, training
from studies import failures as study
from studies import inside
from studies.failures import Plan
from studies.lab import Lab


def dataset_of(x: torch.Tensor) -> data.Dataset:
    return data.Dataset("mine", train=x, validation=x[:2], test=x)


def bits(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


# The threshold of collapse ----------------------------------------------------------------------------------------


def test_the_threshold_counts_what_pixels_have_in_common():
    """d equal pixels: d. Independent ones: 1, but for the sample's correlations. Constant ones change nothing."""
    one = bits(4000, 1)
    assert study.threshold(dataset_of(one)) == pytest.approx(1.0)
    assert study.threshold(dataset_of(one.repeat(1, 6))) == pytest.approx(6.0)
    assert study.threshold(dataset_of(torch.cat([one.repeat(1, 6), torch.ones(4000, 3)], 1))) == pytest.approx(6.0)
    assert 1.0 <= study.threshold(dataset_of(bits(4000, 5))) < 1.1


def test_of_a_gaussian_decoder_the_threshold_is_that_of_the_linear_optimum():
    ds = data.load("gaussian")
    sigma = study.likelihood(ds)["sigma"]
    oracle = analytic.LinearGaussian(torch.cov(ds.train.double().T, correction=0).numpy(), 4)
    assert study.threshold(ds) == pytest.approx(oracle.collapse_beta(sigma**2), rel=1e-6)


@pytest.mark.parametrize(("share", "falls"), [(0.9, True), (1.1, False)])
def test_next_to_collapse_the_loss_falls_below_the_threshold_and_rises_above_it(share, falls):
    """Quadrature of D + βR of Bernoulli pixels along the direction that the derivation names; no sampling, no training."""
    x = bits(500, 3).double()
    x = torch.cat([x, (x[:, :1] + bits(500, 2, seed=1).double()).clamp(max=1)], 1)
    limit = study.threshold(dataset_of(x.float()))
    mean, width = x.mean(0), x.std(0, correction=0)
    values, vectors = torch.linalg.eigh(torch.corrcoef(x.T))
    assert values[-1].item() == pytest.approx(limit, rel=1e-5)
    beta, step = share * limit, 0.05
    read = step * vectors[:, -1] / width  # the decoder's logits are log p/(1 − p) + z·read
    code = (x - mean) @ read / beta  # the posterior is N(code, 1/(1 + ‖read·width‖²/β))
    variance = 1 / (1 + (read * width).square().sum() / beta)
    points, weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(20))
    z = code[:, None] + variance.sqrt() * points
    logits = mean.logit() + z[..., None] * read
    distortion = (torch.nn.functional.softplus(logits) - x[:, None] * logits).sum(-1) @ weights / math.sqrt(2 * math.pi)
    rate = 0.5 * (code**2 + variance - 1 - variance.log())
    collapsed = -(torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean)).sum()
    assert ((distortion + beta * rate).mean() < collapsed) == falls


def test_without_a_code_the_loss_is_that_of_a_decoder_that_says_the_mean():
    x = bits(500, 5)
    share = x.mean(0).double()
    entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)).sum().item()
    assert study.without_a_code(dataset_of(x), x) == pytest.approx(entropy, rel=1e-6)
    ds = data.load("gaussian")
    sigma = study.likelihood(ds)["sigma"]
    variance = ds.train.double().var(0, correction=0).sum().item()
    expected = variance / (2 * sigma**2) + 4 * math.log(2 * math.pi * sigma**2)  # eight dimensions
    assert study.without_a_code(ds, ds.train) == pytest.approx(expected, rel=1e-6)


# What is trained ---------------------------------------------------------------------------------------------------


def test_a_growing_weight_begins_small_never_falls_and_is_its_own_after_its_steps():
    grown = study.Grown(beta=4.0, start=0.25, steps=100)
    weights = [grown.at(step) for step in range(0, 300, 10)]
    assert weights[0] == pytest.approx(0.25)
    assert grown.at(50) == pytest.approx(1.0)  # equal factors
    assert weights == sorted(weights)
    assert set(weights[10:]) == {4.0}


def test_several_draws_average_the_distortion_and_one_is_the_vae():
    torch.manual_seed(0)
    model, x = models.VAE((4,), 3, hidden=(8,)), bits(50, 4)
    with training.seeded(1):
        vae = objectives.VAE()(model, x).total
    with training.seeded(1):
        torch.testing.assert_close(study.Draws(1)(model, x).total, vae)
    with torch.no_grad(), training.seeded(2):
        one, four = (torch.stack([study.Draws(n)(model, x).total for _ in range(400)]) for n in (1, 4))
    assert one.mean() == pytest.approx(four.mean().item(), abs=5 * (one.var() / 400).sqrt().item())
    assert (one.var() / four.var()).item() == pytest.approx(4.0, rel=0.35)


def test_an_autoencoder_has_no_noise_and_no_rate():
    torch.manual_seed(0)
    model, x = models.VAE((4,), 3, hidden=(8,)), bits(50, 4)
    loss = study.Autoencoder()(model, x)
    loss.total.backward()
    assert not loss.terms.rate.any()
    heads = dict(model.encoder.named_parameters())
    last = [value for name, value in heads.items() if name.endswith("weight")][-1]
    assert last.grad is not None
    assert last.grad[:3].any()
    assert not last.grad[3:].any()  # log-variances are not read
    assert study.at_the_mean(model, x) == pytest.approx(loss.total.item())


def exact(turned: bool = False) -> tuple[models.VAE, torch.Tensor]:
    """A linear model that is its own true posterior; or the same p(x), and a diagonal q that is the best of its family."""
    best = analytic.LinearGaussian([3.0, 1.2, 0.6, 0.5], 2).solve(beta=1.0, sigma2=0.3)
    turn = np.array([[1, -1], [1, 1]]) / np.sqrt(2) if turned else np.eye(2)
    decoder = best.decoder @ turn
    precision = decoder.T @ decoder / 0.3 + np.eye(2)
    maps = {"encoder": np.linalg.inv(precision) @ decoder.T / 0.3, "variance": 1 / np.diag(precision), "decoder": decoder}
    torch.manual_seed(0)
    x = torch.randn(60, 4, dtype=torch.float64) * torch.tensor([3.0, 1.2, 0.6, 0.5], dtype=torch.float64).sqrt()
    return models.VAE.from_linear(**maps, sigma=0.3**0.5), x


def test_at_the_true_posterior_sticking_the_landing_has_no_noise():
    """Roeder et al. (2017): the gradient in the encoder's weights is zero at every draw, the other estimates are not."""
    model, x = exact()
    with training.seeded(0):
        found = inside.gradients(model, x, 5)
    assert found[inside.STICKING].abs().max() < 1e-10
    assert found["reparametrised"].abs().max() > 1e-3
    loss = inside.StickingTheLanding()(model, x).total
    assert all(each.abs().max() < 1e-10 for each in torch.autograd.grad(loss, list(model.encoder.parameters())))


def test_all_estimates_of_a_gradient_agree_on_average():
    ds = data.load("digits").first(400)
    torch.manual_seed(0)
    model = models.VAE(ds.shape, 3, hidden=(8,))
    found = inside.gradient_noise(model, ds, 40, 10, 60, seed=0)
    for kind in inside.GRADIENTS:
        if kind != "reparametrised":
            assert 0.5 < found[kind, "agreement"] < 1.6
        assert found[kind, "to the gradient"] > 0
    assert found["score function", "to the gradient"] > found["score function, baseline", "to the gradient"]


# The gap -----------------------------------------------------------------------------------------------------------


def test_the_true_posterior_leaves_no_gap_and_a_turned_one_what_the_closed_form_says():
    model, x = exact()
    parts = inside.gap_parts(model, x, 50, 50, 0)
    assert all(abs(parts[name].value) < 0.05 for name in ("gap", "amortisation", "approximation"))
    turned, x = exact(turned=True)
    parts = inside.gap_parts(turned, x, 2000, 100, 0)
    decoder = turned.linear_maps()["decoder"]
    precision = decoder.T @ decoder / 0.3 + np.eye(2)
    left = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert left > 0.09
    assert parts["approximation"].value == pytest.approx(left, abs=0.03)
    assert parts["amortisation"].value == pytest.approx(0.0, abs=0.03)
    truth = analytic.linear_evidence(x, decoder, 0.3)[0]
    assert parts["IWAE"].value == pytest.approx(truth.mean(), abs=0.02)


def test_the_parts_of_the_gap_are_the_gap_and_a_spoilt_encoder_pays_amortisation():
    model, x = exact(turned=True)
    with torch.no_grad():
        model.encoder.log_variance += 1.0
    parts = inside.gap_parts(model, x, 500, 200, 0)
    assert parts["amortisation"].value + parts["approximation"].value == pytest.approx(parts["gap"].value)
    assert parts["amortisation"].value > 0.2
    below, width = inside.bracket(model, 60, 500, 100, 0)
    assert math.isfinite(below.value)
    assert -3 * width.stderr < width.value < 0.5


# Images -------------------------------------------------------------------------------------------------------------


def test_distances_count_pixels_and_are_zero_to_the_same_images():
    x = bits(30, 9)
    assert study.distances(x, x, x, x) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert study.distances(1 - x[:1], x[:1], x[:1], 1 - x[:1]) == pytest.approx((9.0, 9.0))


def test_a_collapsed_decoder_keeps_nothing_and_covers_badly():
    x = torch.cat([bits(200, 16), 1 - bits(200, 16, seed=1)])
    torch.manual_seed(0)
    model = models.VAE((16,), 2, hidden=(8,))
    with torch.no_grad():
        for each in model.decoder.parameters():
            each.zero_()
    found = study.pictures(model, x, x, (1.0, 1.0), seed=0)
    for name in ("reconstructions", "prior samples"):
        assert found[f"kept, {name}"] == pytest.approx(0.0, abs=1e-9)
    assert found["cover, prior samples"] == pytest.approx(x.sum(1).mean().item(), rel=1e-5)  # p = .5 is shown as 0


# What is claimed ----------------------------------------------------------------------------------------------------


def rows_of(values: list[tuple]) -> pd.DataFrame:
    keys = ["objective", "beta", "seed", "split", "quantity", "value"]
    return pd.DataFrame(values, columns=pd.Index(keys))


def test_claims_are_differences_at_one_beta_and_one_seed():
    rows = [
        ("shallow", 0.1, 0, "train", "distortion", 5.0),
        ("shallow", 0.1, 0, "train", "distortion at the mean", 4.75),
        ("shallow", 1.0, 0, "train", "distortion", 9.0),
        ("shallow", 1.0, 0, "test", "distortion", 99.0),
        ("shallow", 1.0, 0, "train", "loss", 12.0),
        ("shallow, grown", 1.0, 0, "train", "loss", 11.5),
        ("deep", 1.0, 0, "train", "loss", 20.0),
        ("deep, grown", 1.0, 0, "train", "loss", 14.0),
        ("autoencoder", 1.0, 0, "train", "distortion", 4.0),
        ("4 draws", 1.0, 0, "train", "loss", 11.75),
        ("gap", 1.0, 0, "test", "gap", 0.5),
        ("gap", 1.0, 0, "test", "AIS", -30.0),
        ("shallow", 0.1, 0, "test", "near, prior samples", 3.0),
        ("shallow", 1.0, 0, "test", "near, prior samples", 1.5),
    ]
    found = study.effects(rows_of(rows)).set_index(["objective", "quantity"])["value"].to_dict()
    assert found == {
        ("β = 1", "near, prior samples"): 1.5,
        ("β = 0.1", "cost of the noise"): 0.25,
        ("β = 0.1", "D beyond the autoencoder"): 1.0,
        ("shallow, grown less cold, β = 1", "loss"): -0.5,
        ("deep, grown less cold, β = 1", "loss"): -6.0,
        ("4 draws", "loss less the VAE's"): -0.25,
        ("gap, test", "gap"): 0.5,
    }


def test_of_sizes_that_go_on_growing_the_side_is_claimed_where_it_is_clear_and_what_is_not_claimed_is_named():
    plan = study.plan("digits", "smoke").changed(passes=4, largest_error=0.5, sides=("deep",), unclaimed=("far",))
    after = {  # by name, values of three seeds after two and after four passes
        "deep, clear": ([-5.0, -5.1, -4.9], [-8.0, -8.1, -7.9]),
        "deep, unclear": ([-5.0, -1.0, -3.0], [-5.0, -1.0, -30.0]),
        "deep, nearly clear": ([-14.0, -15.0, -16.0], [-11.0, -18.0, -18.0]),  # 1.56 halves of its interval from zero
        "deep, small": ([-0.5, -0.51, -0.49], [-0.6, -0.61, -0.59]),
        "shallow": ([-5.0, -5.1, -4.9], [-5.0, -5.1, -4.9]),
        "far": ([-5.0, -5.1, -4.9], [-9.0, -9.1, -8.9]),
    }
    rows = [
        {"objective": name, "quantity": "loss", "passes": passes, "seed": seed, "value": value}
        for name, each in after.items()
        for passes, values in zip((2, 4), each, strict=True)
        for seed, value in enumerate(values)
    ]
    by_side, by_size, silent = study._by_side(plan, pd.DataFrame(rows))
    assert set(by_side["objective"]) == {"deep, clear"}
    assert set(by_size["objective"]) == {"deep, small", "shallow"}
    assert silent == ["deep, unclear: loss", "deep, nearly clear: loss", "far: loss"]
    for frame in (by_side, by_size):
        assert (frame.groupby("objective").size() == 6).all()
    by_side, by_size, silent = study._by_side(plan.changed(sides=(), unclaimed=()), pd.DataFrame(rows))
    assert by_side.empty
    assert len(by_size) == len(rows)
    assert not silent


def frame_of(later: dict[str, float], many: int = 4) -> pd.DataFrame:
    """Rows of a study whose deep starts differ by 8 nats, the gaps by 1, with changes to some after twice the passes."""
    rows = []
    for passes in (2, many):
        change = later if passes == many else {}
        for seed in (0, 1, 2):
            noise = 0.01 * (seed - 1) + 0.001 * passes
            for family in ("shallow", "shallow, grown", "deep", "deep, grown"):
                for beta in (0.01, 1.0, 10.0):
                    loss = 100 + 2 * beta - 8 * (family == "deep, grown") + change.get(family, 0.0) + noise
                    rate = 5 - 4 * math.log10(beta)
                    values = {"loss": loss, "rate": rate, "distortion": loss - beta * rate, "distortion at the mean": loss - 30}
                    rows += [(family, beta, seed, "train", name, value, passes) for name, value in values.items()]
            for split, size in (("train", 1.0), ("test", 2.0 + change.get("gap", 0.0))):
                for name, value in (("gap", size + 0.5), ("amortisation", size), ("approximation", 0.5)):
                    rows.append(("gap", 1.0, seed, split, name, value + noise, passes))
    return pd.DataFrame(rows, columns=pd.Index(["objective", "beta", "seed", "split", "quantity", "value", "passes"]))


@pytest.mark.parametrize(
    ("later", "sides", "passed"),
    [
        ({}, (), (True, True)),
        ({"deep, grown": -4.0}, (), (False, True)),  # a size that moves
        ({"deep, grown": -4.0}, ("deep, grown less cold",), (True, True)),  # and its side does not
        ({"deep, grown": 9.0}, ("deep, grown less cold",), (True, False)),  # its side was another
        ({"shallow, grown": 3.0}, ("deep, grown less cold",), (False, True)),
        ({"gap": 5.0}, (), (True, True)),
        ({"gap": -1.5}, (), (True, False)),
    ],
)
def test_sizes_and_sides_fail_each_in_the_check_that_they_are_in(later, sides, passed):
    plan = study.plan("digits", "smoke").changed(passes=2, seeds=(0, 1, 2), again=3, largest_error=0.5, sides=sides)
    frame = frame_of(later)
    *_, sizes, on_side = study._checks(plan, frame, frame[frame["passes"] == 2].drop(columns="passes"))
    assert (sizes.passed, on_side.passed) == passed
    assert "not claimed are" not in sizes.found
    silent = plan.changed(unclaimed=("shallow, grown less cold, β = 1:",))
    *_, sizes, _ = study._checks(silent, frame, frame[frame["passes"] == 2].drop(columns="passes"))
    assert sizes.found.endswith("not claimed are shallow, grown less cold, β = 1: loss")


def test_the_longer_of_two_trainings_may_be_what_is_reported():
    plan = study.plan("digits", "smoke").changed(passes=4, against=0.5)
    found = study.run(plan, Lab())
    rows = found.frame
    plain = rows[rows["objective"] == study.AUTOENCODER]
    assert set(plain["quantity"]) == {"distortion", "distortion, half the passes"}
    assert {note["cell"]["passes"] for note in found.notes} == {2, 4}
    names = [check.name for check in found.checks]
    assert "4 passes move nothing that is claimed after 2" in names


def test_losses_under_another_beta_weigh_the_same_rate():
    rows = [
        ("deep", beta, 0, "train", name, value)
        for beta, terms in ((1.0, (10.0, 3.0)), (2.0, (12.0, 1.0)))
        for name, value in zip(("distortion", "rate"), terms, strict=True)
    ]
    found = study.cross(rows_of(rows), "deep").set_index(["objective", "under"])["value"].to_dict()
    assert found == {("β = 1", "β = 1"): 13.0, ("β = 1", "β = 2"): 16.0, ("β = 2", "β = 1"): 13.0, ("β = 2", "β = 2"): 14.0}


@pytest.mark.parametrize(("train", "test"), [(19, 30), (30, 2)])
def test_too_few_examples_are_refused_before_training(train, test):
    ds = data.Dataset("mine", train=bits(train, 4), validation=bits(2, 4), test=bits(test, 4))
    with pytest.raises(ValueError, match=f"at least 20 training and 3 test examples are needed, got {train} and {test}"):
        study.accept(ds)
    study.accept(dataset_of(bits(20, 4)))
    with pytest.raises(ValueError, match="all values of the training examples are the same"):
        study.accept(dataset_of(torch.ones(30, 4)))


class Asked(Exception):
    pass


def test_both_starts_have_the_same_networks_steps_seeds_and_weights_at_the_end(monkeypatch):
    plan, seen = study.plan("digits", "full"), []
    monkeypatch.setattr(Lab, "map", lambda lab, function, cells, what: seen.extend(cells) or (_ for _ in ()).throw(Asked))
    with pytest.raises(Asked):
        study.run(plan, Lab())
    by_name = {(cell["family"], cell["passes"]): cell for cell in seen}
    for family in ("shallow", "deep"):
        for passes in (plan.passes, 2 * plan.passes):
            cold, grown = by_name[family, passes], by_name[f"{family}, grown", passes]
            assert cold["start"] is None
            assert 0 < grown["start"] < min(cold["betas"][-len(plan.shares) :])
            assert set(grown["betas"]) <= set(cold["betas"])
            assert all(cold[name] == grown[name] for name in ("hidden", "seeds", "lr", "batch"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"betas": (0.1, 0.5)}, "betas must have 1"),
        ({"betas": (1.0, 0.1)}, "betas must be numbers > 0, from the smallest"),
        ({"betas": (1.0,)}, "betas must have 1, the VAE, and at least one that is smaller"),
        ({"shares": (0.4, 0.9)}, "the last of shares must be above 1"),
        ({"grown_from": 0.5}, "grown_from must be above 0 and below"),
        ({"noise_draws": 1}, "noise_draws must be a whole number >= 2"),
        ({"again": 9}, "at least two seeds"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Plan(**values), said)
