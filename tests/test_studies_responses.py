"""How networks respond to β, in the ways that the studies of many β compare."""

import math
from typing import Any

import pytest
import torch

from nbvae import data, models
from studies import multi_beta as study
from studies import responses

SHAPE = {"shape": (4,), "network": "mlp", "hidden": (5,), "latent_dim": 3}


def at_start(conditioning: str) -> models.MultiBetaVAE:
    torch.manual_seed(0)
    return responses.many(conditioning, SHAPE, (0.01, 100.0))


def test_without_the_response_a_new_model_has_one_variance_for_all_betas_and_film_has_not():
    x = torch.rand(6, 4)
    with torch.no_grad():
        for conditioning, same in (("free variance", True), ("film", False)):
            model = at_start(conditioning)
            first, second = (model.posterior(x, beta=beta) for beta in (0.1, 10.0))
            assert torch.equal(first.mean, second.mean)
            assert torch.equal(first.variance, second.variance) == same
            assert conditioning != "film" or (first.variance < second.variance).all()


def test_gains_scale_and_shift_each_latent_and_nothing_else():
    model: Any = at_start("gain")
    film, x, z = at_start("film"), torch.rand(6, 4), torch.randn(6, 3)
    with torch.no_grad():
        film.load_state_dict(model.state_dict(), strict=False)
        for beta in (0.1, 10.0):  # at first both are ordinary networks, but for the variance's response
            assert torch.equal(model.posterior(x, beta=beta).mean, film.posterior(x, beta=beta).mean)
            assert torch.equal(
                model.outputs(z, model.condition(model.log_beta(beta, (6,)))),
                film.outputs(z, film.condition(film.log_beta(beta, (6,)))),
            )
        for layer in (model.response.modulation, model.inverse):
            torch.nn.init.normal_(layer.weight)
        one, two = (model.posterior(x, beta=beta).mean for beta in (0.1, 10.0))
        slope = (two[1:] - two[:-1]) / (one[1:] - one[:-1])
        torch.testing.assert_close(slope, slope[:1].expand_as(slope), rtol=1e-3, atol=1e-4)  # one line for each latent
        assert (slope[0] - 1).abs().min() > 1e-2
        first, second = (model.condition(model.log_beta(beta)) for beta in (0.1, 10.0))
        ratio = model.scale(first.log_beta) / model.scale(second.log_beta)
        torch.testing.assert_close(model.outputs(z, first), model.outputs(z * ratio, second))


@pytest.mark.parametrize("conditioning", study.CONDITIONINGS)
def test_every_conditioning_is_trained_in_a_sweep_with_a_store_as_alone(conditioning, tmp_path):
    x = torch.bernoulli(torch.full((40, 4), 0.5))
    ds = data.Dataset("coins", x, x, x)
    settings = (ds, "mlp", [5], 3, 10, 0.01, 100.0, conditioning, [0.0])
    both = study.trained(*settings, 2, 1e-2, [0, 1], str(tmp_path), "cpu")
    for run in both:
        [alone] = study.trained(*settings, 2, 1e-2, [run.config.seed], None, "cpu")
        for name, value in alone.model.state_dict().items():
            torch.testing.assert_close(run.model.state_dict()[name], value)


def test_log_beta_alone_modulates_linearly_from_the_start_of_film():
    both: Any = [at_start(conditioning).response for conditioning in ("log β alone", "film")]

    def modulations(response: Any, beta: float) -> torch.Tensor:
        encoder, decoder = response(torch.tensor([math.log(beta)]))
        return torch.cat([*encoder, *decoder])

    for beta in (0.01, 1.0, 100.0):
        ours, theirs = (modulations(response, beta) for response in both)
        assert torch.equal(ours, theirs)  # scales 1 and shifts 0
    torch.nn.init.normal_(both[0].modulation.weight)
    low, middle, high = (modulations(both[0], beta) for beta in (0.01, 1.0, 100.0))
    torch.testing.assert_close(middle, (low + high) / 2)
    assert (low - high).abs().min() > 1e-4
    ends = torch.tensor([[math.log(0.01)], [math.log(100.0)]])
    torch.testing.assert_close(responses.straight((0.01, 100.0))(ends), torch.tensor([[-1.0], [1.0]]))
    x = torch.bernoulli(torch.full((20, 4), 0.5))
    ds = data.Dataset("coins", x, x, x)
    [run] = study.trained(ds, "mlp", [5], 3, 10, 0.01, 100.0, "log β alone", [0.0], 1, 1e-2, [0], None, "cpu")
    assert torch.equal(run.model.response.features.weight, responses.straight((0.01, 100.0)).weight)
    assert run.model.response.modulation.weight.any()
