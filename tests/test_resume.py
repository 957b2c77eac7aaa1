"""Runs that survive: whatever ends a training, the same call goes on, and ends as if nothing had happened."""

import errno
import functools
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import kill
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import distributions, nn
from torch.nn.utils import prune

from nbvae import data, models, objectives, training
from nbvae.training import _checkpoint, _keeping, _key, _loop, _sweep, _writing, stacking

CONFIG = training.TrainConfig(epochs=3, batch_size=8, lr=1e-2, device="cpu")


def dataset(binarize=None):
    """Images so few that an epoch is three steps, the last of an odd size."""
    x = torch.rand(21, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    binary = (x > 0.6).float()
    return data.Dataset("small", x if binarize == "dynamic" else binary, binary[:5], binary[5:9], binarize=binarize)


SMALL = dataset()


def vae(**options):
    return models.VAE((1, 4, 4), 3, hidden=(6,), **options)


def fit(store=None, objective=objectives.VAE(), make=vae, dataset=SMALL, on_epoch=None, **changes):
    with training.seeded(0):
        model = make()
    return [training.fit(model, dataset, objective, replace(CONFIG, **changes), on_epoch, store)]


def sweep(store=None, objectives=(objectives.BetaVAE(0.5), objectives.BetaVAE(2.0)), make=vae, dataset=SMALL, **changes):
    config = replace(CONFIG, **changes)
    return training.sweep(make, dataset, objectives=objectives, seeds=(0, 1), config=config, store=store)


def result(call, *arguments, **options):
    """Weights, buffers, attributes and history of each run, and what went wrong: equal if all are, bit by bit."""
    try:
        runs, problem = call(*arguments, **options), None
    except training.Diverged as error:
        runs, problem = error.runs, str(error)
    bits = [{name: value.detach().numpy().tobytes() for name, value in stacking.held(run.model).items()} for run in runs]
    return bits, [run.history for run in runs], problem


def stop_after(monkeypatch, steps):
    """Let each training, of those in this thread, be stopped by a signal before step number `steps` from where it began."""
    left = [steps]
    real = _checkpoint.Checkpoints.before_step

    def before_step(self, now):
        left[0] -= 1
        if left[0] == -1:
            os.kill(os.getpid(), signal.SIGTERM)
        while left[0] < 0 and not self.stop.wished:  # until the handler has run
            time.sleep(0)
        real(self, now)

    monkeypatch.setattr(_checkpoint.Checkpoints, "before_step", before_step)


def chain(store, call, monkeypatch, **options):
    """The result of a training that was stopped before each of its steps but the first; and how often it was."""
    for stops in range(1000):
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            try:
                return result(call, store, **options), stops
            except training.Interrupted as error:
                assert str(store.folder) in str(error)
                assert len(str(error).splitlines()) == 1
    raise AssertionError("the training does not get on")


def left_behind(store):
    """What there is in a store beside finished runs."""
    return [
        path.relative_to(store.folder)
        for path in store.folder.rglob("*")
        if path.is_file() and (path.parent.parent != store.folder or path.name not in ("run.json", "model.safetensors"))
    ]


# Models and objectives of one's own.


@dataclass(frozen=True)
class Mine:
    beta: float

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        return objectives.Loss(terms.distortion + self.beta * terms.rate, terms)


class Breaks(objectives.BetaVAE):
    """A β-VAE whose loss is not finite in step 4, of the second epoch, for β above 1."""

    def __call__(self, model, x, step=0, reference=None):
        loss = super().__call__(model, x)
        bad = torch.as_tensor(self.beta) > 1
        return loss._replace(total=torch.where(bad & torch.tensor(step == 4), torch.nan, loss.total))


class Balanced(nn.Module):
    """An objective with statistics of its own, in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rate", torch.ones(()))

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        self.rate.lerp_(terms.rate.detach().mean(), 0.3)
        return objectives.Loss(terms.distortion + terms.rate / self.rate, terms)


class Remembers(models.VAE):
    """A model that keeps tensors where a parameter or a buffer cannot be found, and replaces a buffer."""

    def __init__(self):
        super().__init__((1, 4, 4), 3, hidden=(6,))
        self.mean = torch.zeros(3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(3), persistent=False)

    def posterior(self, x):
        q = super().posterior(x)
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * q.mean.detach().mean(0)
            self.seen, self.last = self.seen + len(x), q.mean.detach().mean(0)
        return distributions.Independent(distributions.Normal(q.mean + 0.1 * self.mean * self.seen.clamp(max=1), q.stddev), 1)


def dropout():
    model = vae()
    model.encoder = nn.Sequential(nn.Dropout(0.5), model.encoder)
    return model


def batch_norm():
    model = vae()
    model.encoder = nn.Sequential(nn.BatchNorm1d(16), model.encoder)
    return model


def recurrent():
    """Layers that list their weights once more, and one weight that lies in memory as the transpose of another did."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.heads = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 6)
            self.heads.weight = nn.Parameter(torch.randn(5, 6).T)

        def forward(self, x):
            return self.heads(self.gru(x.squeeze(1))[1][0])

    return vae(encoder=Encoder())


def pruned():
    model = vae()
    prune.random_unstructured(model.decoder[2], "weight", amount=0.5)
    return model


def frozen_tied():
    model = models.VAE((1, 4, 4), 3, hidden=(6, 6))
    model.encoder.body[2].weight = model.decoder[2].weight
    model.encoder.body[0].bias.requires_grad_(False)
    return model


def gaussian(sigma):
    return functools.partial(vae, likelihood="gaussian", sigma=sigma)


def multi_beta():
    return models.MultiBetaVAE((1, 4, 4), 3, hidden=(6,))


FITS = {
    "plain": {},
    "one cycle": {"schedule": "one_cycle"},
    "cosine, adamw, clipped": {"schedule": "cosine", "optimizer": "adamw", "weight_decay": 0.1, "clip": 0.5},
    "sgd": {"optimizer": "sgd", "lr": 1e-3},
    "patience": {"lr": 0.3, "validate_every": 1, "patience": 1, "epochs": 5},
    "validated": {"validate_every": 2, "make": Remembers},
    "a companion": {"objective": objectives.FactorVAE(3.0, width=8, depth=2), "schedule": "one_cycle"},
    "drawn anew": {"dataset": dataset("dynamic")},
    "optimal": {"make": gaussian("optimal")},
    "global": {"make": gaussian("global")},
    "log mse": {"make": gaussian(1.0), "objective": objectives.LogMSE()},
    "many beta": {"make": multi_beta, "objective": objectives.MultiBeta()},
    "dropout": {"make": dropout},
    "batch norm": {"make": batch_norm, "objective": Mine(2.0)},
    "recurrent": {"make": recurrent},
    "pruned": {"make": pruned},
    "frozen, tied": {"make": frozen_tied},
    "float64": {"make": lambda: vae().double()},
    "statistics": {"make": Remembers, "objective": Balanced()},
    "diverging": {"objective": Breaks(2.0)},
}
SWEEPS = {
    "broadcast": {},
    "companions": {"objectives": [objectives.FactorVAE(g, width=8, depth=2) for g in (1.0, 3.0)], "schedule": "one_cycle"},
    "mapped": {"objectives": [Mine(0.5), Mine(2.0)], "make": batch_norm},
    "patience": {"lr": 0.3, "validate_every": 1, "patience": 1},
    "drawn anew": {"dataset": dataset("dynamic")},
    "optimal": {"make": gaussian("optimal"), "clip": 0.5},
    "many beta": {"make": multi_beta, "objectives": [objectives.MultiBeta()]},
    "one diverges": {"objectives": [Breaks(0.5), Breaks(2.0)]},
    "several kinds": {"objectives": [objectives.BetaVAE(2.0), Mine(2.0)]},
    "one by one": {"make": dropout, "epochs": 1},
}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_that_is_stopped_before_every_step_is_the_same_fit(name, tmp_path, monkeypatch):
    options = FITS[name]
    whole = result(fit, **options | ({"objective": Balanced()} if name == "statistics" else {}))
    store = training.Store(tmp_path, every=1)
    found, stops = chain(store, fit, monkeypatch, **options)
    assert found == whole
    assert stops >= len(whole[1][0]["loss"]) * 3 - 1
    assert len(store.runs()) == 1
    assert not left_behind(store)
    monkeypatch.setattr(_loop, "train", None)
    if name != "statistics":  # the objective's have been trained
        assert result(fit, store, **options) == whole


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_that_is_stopped_before_every_step_is_the_same_sweep(name, tmp_path, monkeypatch):
    whole = result(sweep, **SWEEPS[name])
    store = training.Store(tmp_path, every=1)
    found, stops = chain(store, sweep, monkeypatch, **SWEEPS[name])
    assert found == whole
    assert stops >= 8
    assert len(store.runs()) == len(whole[0])
    assert not left_behind(store)
    monkeypatch.setattr(_loop, "train", None)
    assert result(sweep, store, **SWEEPS[name]) == whole
