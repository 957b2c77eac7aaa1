"""First mistakes with the public functions: each is answered in one line that says what is allowed."""

import numpy as np
import pytest
import torch
from errors import one_line
from torch import nn

from nbvae import curves, data, estimators, models, objectives, posterior, results, training

A, T = np.ones((3, 2)), torch.ones(3, 2)
DIGITS = data.load("digits")
SHORT = training.TrainConfig(epochs=1)
CURVE = curves.RDCurve([curves.RDPoint(1.0, rate=2.0, distortion=1.0), curves.RDPoint(2.0, rate=1.0, distortion=2.0)])


def vae(**options):
    return models.VAE(DIGITS.shape, 2, hidden=(8,), **options)


def run(objective=None):
    return training.Run(vae(), objective or objectives.VAE(), SHORT, {"loss": [1.0]}, 0.1)


class Gamma:
    def __init__(self, gamma):
        self.gamma = gamma

    def __call__(self, model, x, step=0, reference=None):
        raise AssertionError("not called")


def detached(model, x, step=0, reference=None):
    terms = objectives.elbo_terms(model, x)
    return objectives.Loss((terms.distortion + terms.rate).detach(), terms)


def without_gradients(mode):
    with mode():
        training.fit(vae(), DIGITS, "vae", SHORT)


MISTAKES = {
    "a run in place of its model": (lambda: objectives.elbo_terms(run(), DIGITS.test), "model"),
    "a data set in place of x": (lambda: objectives.elbo_terms(vae(), DIGITS), "x must be a torch tensor"),
    "an array in place of x": (lambda: objectives.elbo_terms(vae(), A), "x must be a torch tensor"),
    "a class in place of make": (lambda: training.sweep(models.VAE, DIGITS, [1.0]), r"make is called as make\(\)"),
    "make without sigma": (
        lambda: training.sweep(lambda: vae(), DIGITS, [1.0], sigmas=[1.0]),
        r"make is called as make\(sigma=…\)",
    ),
    "a function of a list": (lambda: training.sweep(vae, DIGITS, [1.0], objective=len), "makes no objective"),
    "a model in place of an objective": (
        lambda: training.sweep(vae, DIGITS, [1.0], objective=vae()),
        "objective must be a name",
    ),
    "no gradients": (lambda: without_gradients(torch.no_grad), "training needs gradients"),
    "inference mode": (lambda: without_gradients(torch.inference_mode), "training needs gradients"),
    "a detached loss": (lambda: training.fit(vae(), DIGITS, detached, SHORT), "no gradient"),
    "a decoder of another latent": (
        lambda: training.fit(models.VAE(DIGITS.shape, 8, decoder=nn.Linear(4, 64)), DIGITS, "vae", SHORT),
        r"likelihood\(z\) of z \(2, 8\) fails",
    ),
    "an objective without a β": (lambda: estimators.rd_curve(run(Gamma(2.0)), DIGITS.test), "give it an attribute beta"),
    "arrays in mmd": (lambda: posterior.mmd(A, A), "mean must be a torch tensor"),
    "arrays in log_density": (lambda: posterior.log_density(A, A, A), "z must be a torch tensor"),
    "arrays in leave_one_out": (lambda: posterior.leave_one_out(A, A, A, A), "z must be a torch tensor"),
    "arrays in pairwise": (lambda: posterior.pairwise(T, A, T), "must be torch tensors"),
    "a list in place of axes": (lambda: results.tidy(A, ["a", "b"], "q"), "axes must be a dictionary"),
    "no rows": (lambda: results.frame_of(None), "rows must be mappings"),
    "rows without a quantity": (lambda: results.frame_of([{"value": 1.0}]), "rows must be mappings"),
    "a tensor of points": (lambda: curves.RDCurve(torch.ones(())), "a curve needs at least one point"),
    "an array as a device": (lambda: training.device(A), "device must be one of"),
    "a model as a device": (lambda: training.TrainConfig(device=vae()), "device must be one of"),
    "an array of groups": (lambda: objectives.HFVAE(groups=A), "groups must be lists"),
    "an array as a rate": (lambda: curves.RDPoint(1.0, rate=A, distortion=1.0), "rate must be a finite number"),
    "a number beyond the floats": (lambda: results.Estimate(10**400), "value must be a number"),
    "a rate beyond the floats": (lambda: curves.RDPoint(1.0, rate=10**400, distortion=1.0), "rate must be a finite number"),
    "a β beyond the floats": (lambda: models.MultiBetaVAE(DIGITS.shape, 2, hidden=(8,)).at(10**400), "beta must be a number"),
    "several rates": (lambda: CURVE.beta_at([1.2, 1.5]), "rate must be one number"),
    "a rate beyond the floats in beta_at": (lambda: CURVE.beta_at(10**400), "rate must be one number"),
    "a rate beyond the floats in interpolate": (lambda: CURVE.interpolate(10**400), "rate must be within"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_first_mistake_is_answered_in_one_line(mistake):
    make, said = MISTAKES[mistake]
    assert len(str(one_line(make, match=said))) < 260


def test_one_number_for_each_example_is_an_example_too():
    assert estimators.empirical_entropy(torch.tensor([1.0, 2.0, 1.0, 2.0])) == pytest.approx(np.log(2))


@pytest.mark.parametrize("measure", [estimators.iwae, estimators.decompose, estimators.evaluate])
def test_examples_on_another_scale_than_the_training_data_are_named(measure):
    model = models.VAE(DIGITS.shape, 8, likelihood="gaussian", sigma=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
    one_line(lambda: measure(model, 255 * DIGITS.test[:50]), "not on the scale of the training data, or the model has diverged")
