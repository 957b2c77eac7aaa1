import pytest
import torch
from errors import one_line

from nbvae import models
from nbvae.models import networks

IMAGES = [(1, 4, 4), (2, 5, 7), (1, 1, 3)]


@pytest.mark.parametrize("network", networks.NETWORKS)
@pytest.mark.parametrize("shape", IMAGES)
def test_networks_act_on_the_last_dimension(network, shape):
    n = shape[0] * shape[1] * shape[2]
    encoder, decoder = networks.encoder(network, shape, 3, (5, 4)), networks.decoder(network, 3, shape, 2 * n, (5, 4))
    x = torch.randn(2, 7, n)
    mean, log_variance = encoder(x)
    assert mean.shape == log_variance.shape == (2, 7, 3)
    assert decoder(mean).shape == (2, 7, 2 * n)
    torch.testing.assert_close(encoder(x[1])[0], mean[1])
    torch.testing.assert_close(decoder(mean[1, 3]), decoder(mean)[1, 3])


def test_linear_networks_are_affine_with_a_constant_variance():
    encoder, decoder = networks.encoder("linear", (6,), 3, ()).double(), networks.decoder("linear", 3, (6,), 6, ()).double()
    x, y = torch.randn(2, 6, dtype=torch.float64)
    for f in (lambda v: encoder(v)[0], lambda v: decoder(encoder(v)[0])):
        torch.testing.assert_close(f(x + y) + f(torch.zeros_like(x)), f(x) + f(y))
    assert torch.equal(encoder(x)[1], encoder(y)[1])


@pytest.mark.parametrize("network", networks.BLOCKS)
def test_a_network_that_convolves_is_local(network):
    """Away from the borders, a pixel moves by two what the first convolution says of its surroundings, one place over."""
    encoder = networks.ConvEncoder((1, 16, 16), 6, (3, 4), networks.BLOCKS[network])
    seen = []
    encoder.down[0].register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.zeros(2, 16, 16)
    x[0, 7, 7] = x[1, 7, 9] = 1
    encoder(x.flatten(1))
    torch.testing.assert_close(seen[0][0, :, :, 2:5], seen[0][1, :, :, 3:6])
    assert ((seen[0][0] - seen[0][0, :, :1, :1]).abs() > 1e-6).any(0).sum() == 4  # an odd pixel is in 2 x 2 windows


def test_without_its_branches_a_residual_network_is_the_convolutional_one():
    shape = (1, 9, 6)
    residual = models.VAE(shape, 3, "residual", hidden=(4, 8))
    plain = models.VAE(shape, 3, "conv", hidden=(4, 8))
    plain.load_state_dict({name: value for name, value in residual.state_dict().items() if "blocks" not in name})
    x = torch.rand(5, *shape)
    assert not torch.allclose(plain.posterior(x).mean, residual.posterior(x).mean)
    with torch.no_grad():
        for block in [*residual.encoder.body.blocks, *residual.decoder.blocks]:
            block.outward.weight.zero_()
            block.outward.bias.zero_()
    torch.testing.assert_close(plain.posterior(x).mean, residual.posterior(x).mean)
    torch.testing.assert_close(plain.likelihood(torch.ones(2, 3)).mean, residual.likelihood(torch.ones(2, 3)).mean)


def test_the_residual_network_for_mnist_has_the_announced_size():
    count = sum(parameter.numel() for parameter in models.VAE((1, 28, 28), 32, "residual").parameters())
    assert 1.75e6 < count < 1.85e6


def test_what_a_network_refuses():
    for call, message in (
        (lambda: networks.encoder("transformer", (6,), 3, ()), "linear, mlp, conv, residual"),
        (lambda: models.VAE((6,), 3, "conv"), "needs images"),
        (lambda: models.VAE((1, 8, 8), 3, "residual", hidden=()), "channels after each halving"),
        (lambda: models.VAE((1, 8, 8), 3, "conv", "gaussian", sigma="z"), "sigma='z' needs"),
    ):
        one_line(call, message)
