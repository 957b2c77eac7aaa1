import pytest
import torch

from nbvae import objectives
from nbvae.models import networks
from nbvae.training import stacking


@pytest.mark.parametrize("network", ["linear", "mlp"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_stack_computes_what_its_members_compute(network, shared):
    members = [networks.encoder(network, (6,), 3, (5, 4)).double() for _ in range(3)]
    for member in members:  # distinct own parameters, which are zero at first
        for parameter in member.parameters():
            parameter.data.add_(torch.randn_like(parameter))
    x = torch.randn(7, 6, dtype=torch.float64) if shared else torch.randn(3, 7, 6, dtype=torch.float64)
    mean, log_variance = stacking.stack(members)(x)
    for index, member in enumerate(members):
        one_mean, one_log_variance = member(x if shared else x[index])
        torch.testing.assert_close(mean[index], one_mean)
        torch.testing.assert_close(log_variance[index].expand_as(one_mean), one_log_variance)


def test_unstack_writes_back_every_value():
    members = [networks.encoder("linear", (6,), 3, ()) for _ in range(3)]
    stacked = stacking.stack(members)
    with torch.no_grad():
        for parameter in stacked.parameters():
            parameter.mul_(2).add_(1)
    before = [[parameter.detach().clone() for parameter in member.parameters()] for member in members]
    stacking.unstack(stacked, members)
    for member, old in zip(members, before, strict=True):
        for parameter, value in zip(member.parameters(), old, strict=True):
            assert torch.equal(parameter, 2 * value + 1)


def test_what_cannot_be_stacked_is_refused():
    with pytest.raises(ValueError, match="one architecture"):
        stacking.stack([networks.encoder("mlp", (6,), 3, (5,)), networks.encoder("mlp", (6,), 3, (4,))])
    with pytest.raises(ValueError, match="BatchNorm1d"):
        stacking.stack([torch.nn.Sequential(torch.nn.BatchNorm1d(3)) for _ in range(2)])
    with pytest.raises(ValueError, match="Conv2d"):
        stacking.stack([networks.encoder("residual", (1, 8, 8), 3, (4,)) for _ in range(2)])
    with pytest.raises(ValueError, match="bias"):
        stacking.stack([torch.nn.Linear(3, 2, bias=False) for _ in range(2)])


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        ((objectives.Capacity(ramp_steps=1), objectives.Capacity(ramp_steps=2)), "ramp_steps"),
        ((objectives.AnchorVAE(anchors=(0,)), objectives.AnchorVAE(anchors=(1,))), "anchors"),
        ((objectives.BetaTCVAE(), objectives.BetaTCVAE(estimator="hfvae")), "estimator"),
        ((objectives.FactorVAE(lr=1e-3), objectives.FactorVAE(lr=1e-2)), "lr"),
    ],
)
def test_settings_that_cannot_differ_within_a_stack(pair, name):
    with pytest.raises(ValueError, match=f"must have the same {name}") as error:
        stacking.stack_numbers(pair, torch.zeros(()))
    assert "\n" not in str(error.value)
