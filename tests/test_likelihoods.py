import math

import pytest
import torch

from nbvae import likelihoods


@pytest.mark.parametrize("logit", [-30.0, -2.0, 0.0, 0.7, 12.0])
def test_bernoulli_sums_to_one_over_its_support(logit):
    p = likelihoods.make("bernoulli", (1,))(torch.full((1, 1), logit, dtype=torch.float64))
    total = sum(p.log_prob(torch.full((1, 1), value, dtype=torch.float64)).exp().item() for value in (0.0, 1.0))
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_gaussian_integrates_to_one(sigma):
    grid = torch.linspace(-30 * sigma, 30 * sigma, 20001, dtype=torch.float64)
    p = likelihoods.make("gaussian", (1,), sigma).double()(torch.full((1,), 0.4 * sigma, dtype=torch.float64))
    assert torch.trapezoid(p.log_prob(grid[:, None]).exp(), grid).item() == pytest.approx(1, abs=1e-9)


def test_log_prob_sums_over_dimensions_in_nats():
    x = torch.rand(5, 1, 4, 4, dtype=torch.float64)
    output = torch.randn(5, 16, dtype=torch.float64)
    gaussian = likelihoods.make("gaussian", (1, 4, 4), 0.3).double()(output).log_prob(x)
    mse = (x.flatten(1) - output).square().sum(-1)
    for value, squared in zip(gaussian, mse, strict=True):  # 0.3 is not exact in the float32 buffer
        assert -value.item() == pytest.approx(likelihoods.gaussian_distortion(squared.item(), 0.09, 16), rel=1e-6)
    bits = (x > 0.5).double()
    by_hand = (bits.flatten(1) * output - torch.log1p(output.exp())).sum(-1)
    torch.testing.assert_close(likelihoods.make("bernoulli", (1, 4, 4))(output).log_prob(bits), by_hand)


def test_gaussian_distortion_is_least_at_sigma2_of_mse_over_n():
    best = likelihoods.gaussian_distortion(3.2, 0.2, 16)
    assert best == pytest.approx(8 * (math.log(2 * math.pi * 0.2) + 1))
    assert best < min(likelihoods.gaussian_distortion(3.2, s, 16) for s in (0.19, 0.21))


def test_support():
    bernoulli, gaussian = likelihoods.make("bernoulli", (2,)), likelihoods.make("gaussian", (2,), 1.0)
    bernoulli.check(torch.tensor([[0.0, 1.0]]))
    for bad in ([[0.5, 1.0]], [[0.0, 2.0]], [[math.nan, 1.0]]):
        with pytest.raises(ValueError, match="binarize"):
            bernoulli.check(torch.tensor(bad))
    gaussian.check(torch.tensor([[0.5, -3.0]]))
    with pytest.raises(ValueError, match="finite"):
        gaussian.check(torch.tensor([[math.inf, 0.0]]))


@pytest.mark.parametrize(
    ("name", "sigma", "message"),
    [
        ("poisson", None, "bernoulli, gaussian"),
        ("gaussian", 0.0, "sigma must be"),
        ("gaussian", -1.0, "sigma must be"),
        ("gaussian", math.inf, "sigma must be"),
        ("gaussian", "wide", "sigma must be"),
        ("bernoulli", 0.3, "has none"),
    ],
)
def test_bad_input(name, sigma, message):
    with pytest.raises(ValueError, match=message) as error:
        likelihoods.make(name, (2,), sigma)
    assert "\n" not in str(error.value)
