import pytest
import torch

from nbvae import nn as networks


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_networks_act_on_the_last_dimension(network):
    encoder, decoder = networks.encoder(network, 6, 3, (5,)), networks.decoder(network, 3, 6, (5,))
    x = torch.randn(2, 7, 6)
    mean, log_variance = encoder(x)
    assert mean.shape == log_variance.shape == (2, 7, 3)
    assert decoder(mean).shape == (2, 7, 6)
    torch.testing.assert_close(encoder(x[1])[0], mean[1])


def test_linear_networks_are_affine_with_a_constant_variance():
    encoder, decoder = networks.encoder("linear", 6, 3, ()).double(), networks.decoder("linear", 3, 6, ()).double()
    x, y = torch.randn(2, 6, dtype=torch.float64)
    for f in (lambda v: encoder(v)[0], lambda v: decoder(encoder(v)[0])):
        torch.testing.assert_close(f(x + y) + f(torch.zeros_like(x)), f(x) + f(y))
    assert torch.equal(encoder(x)[1], encoder(y)[1])


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match="linear, mlp"):
        networks.encoder("transformer", 6, 3, ())
