"""Runs that survive: whatever ends a training, the same call goes on, and ends as if nothing had happened."""

import contextlib
import functools
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
from errors import one_line
from torch import distributions, nn
from torch.nn.utils import prune

from nbvae import data, models, objectives, training
from nbvae.training import _checkpoint, _digest, _key, _loop, _sweep, _writing, stacking

CONFIG = training.TrainConfig(epochs=3, batch_size=8, lr=1e-2, device="cpu")


def dataset(binarize=None):
    """Images so few that an epoch is three steps, the last of an odd size."""
    x = torch.rand(21, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    binary = (x > 0.6).float()
    return data.Dataset("small", x if binarize == "dynamic" else binary, binary[:5], binary[5:9], binarize=binarize)


SMALL = dataset()


def vae(**options):
    return models.VAE((1, 4, 4), 3, hidden=(6,), **options)


PLAIN, PAIR = objectives.VAE(), (objectives.BetaVAE(0.5), objectives.BetaVAE(2.0))


def fit(store=None, objective=PLAIN, make=vae, dataset=SMALL, on_epoch=None, **changes):
    with training.seeded(0):
        model = make()
    return [training.fit(model, dataset, objective, replace(CONFIG, **changes), on_epoch, store)]


def sweep(store=None, objectives=PAIR, make=vae, dataset=SMALL, **changes):
    config = replace(CONFIG, **changes)
    return training.sweep(make, dataset, objectives=objectives, seeds=(0, 1), config=config, store=store)


def bits(run):
    """Weights, buffers and tensors in attributes, by name."""
    return {name: value.detach().numpy().tobytes() for name, value in stacking.held(run.model).items()}


def result(call, *arguments, **options):
    """Weights, buffers, attributes and history of each run, and what went wrong: equal if all are, bit by bit."""
    try:
        runs, problem = call(*arguments, **options), None
    except training.Diverged as error:
        runs, problem = error.runs, str(error)
    return [bits(run) for run in runs], [run.history for run in runs], problem


def stop_after(monkeypatch, steps):
    """Let a signal, which reaches the thread that trains, stop all before step number `steps` from where they began."""
    left = [steps]
    real = _checkpoint.Checkpoints.before_step

    def before_step(self, now):
        left[0] -= 1
        if left[0] == -1:
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        while left[0] < 0 and not self.stop.wished:  # until the main thread has handled it
            time.sleep(0.001)
        real(self, now)

    monkeypatch.setattr(_checkpoint.Checkpoints, "before_step", before_step)


class Killed(BaseException):
    """The process ends: no file is touched any more."""


def kill_after(monkeypatch, steps):
    """Let the process end before step number `steps` from where it began, without a checkpoint."""
    left = [steps]
    real = _checkpoint.Checkpoints.before_step

    def before_step(self, now):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(self, now)

    monkeypatch.setattr(_checkpoint.Checkpoints, "before_step", before_step)


def chain(store, call, monkeypatch, killed=False, **options):
    """The result of a training that was stopped before each of its steps but the first; and how often it was.

    Or `killed` before each epoch but the first, of three steps each.
    """
    for stops in range(1000):
        with monkeypatch.context() as patch:
            kill_after(patch, 3) if killed else stop_after(patch, 1)
            with contextlib.suppress(training.Interrupted, Killed):
                return result(call, store, **options), stops
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
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(3), persistent=False)

    def posterior(self, x):
        q, mean = super().posterior(x), getattr(self, "mean", torch.zeros(3))
        if self.training:
            self.mean = 0.5 * mean + 0.5 * q.mean.detach().mean(0)  # made by the first pass
            self.seen, self.last = self.seen + len(x), q.mean.detach().mean(0)
        return distributions.Independent(distributions.Normal(q.mean + 0.1 * mean * self.seen.clamp(max=1), q.stddev), 1)


class Counted(models.VAE):
    """A model that counts its passes in a buffer, those of measuring too."""

    def __init__(self):
        super().__init__((1, 4, 4), 3, hidden=(6,))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def posterior(self, x):
        self.passes += 1
        return super().posterior(x)


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
    "patience of two": {"lr": 0.3, "validate_every": 1, "patience": 2, "epochs": 7},
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
    "diverging after measuring": {"make": Counted, "objective": Breaks(2.0), "validate_every": 1},
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
    store = training.Store(tmp_path / "stopped", every=1)
    found, stops = chain(store, fit, monkeypatch, **options)
    assert found == whole
    assert stops >= len(whole[1][0]["loss"]) * 3 - 1
    assert len(store.runs()) == 1
    assert not left_behind(store)
    if name != "statistics":  # an objective whose statistics live on in this process
        found, stops = chain(training.Store(tmp_path / "killed", every=1), fit, monkeypatch, killed=True, **options)
        assert found == whole
        assert stops >= len(whole[1][0]["loss"]) - 1
    monkeypatch.setattr(_loop, "train", None)
    if name != "statistics":  # the objective's have been trained
        assert result(fit, store, **options) == whole


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_that_is_stopped_before_every_step_is_the_same_sweep(name, tmp_path, monkeypatch):
    whole = result(sweep, **SWEEPS[name])
    store = training.Store(tmp_path / "stopped", every=1)
    found, stops = chain(store, sweep, monkeypatch, **SWEEPS[name])
    assert found == whole
    assert stops >= 8
    assert len(store.runs()) == len(whole[0])
    found, stops = chain(training.Store(tmp_path / "killed", every=1), sweep, monkeypatch, killed=True, **SWEEPS[name])
    assert found == whole
    assert stops >= 2
    assert not left_behind(store)
    monkeypatch.setattr(_loop, "train", None)
    assert result(sweep, store, **SWEEPS[name]) == whole


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_stacks_that_are_trained_side_by_side_stop_and_go_on_together(tmp_path, monkeypatch):
    monkeypatch.setattr(_sweep, "_GROUP", 2 * sum(parameter.numel() for parameter in vae().parameters()))
    whole = result(sweep)
    store = training.Store(tmp_path, every=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(training.Interrupted, match=r"stopped after . of 3 epochs with 0 of 4 runs finished"):
            sweep(store)
    assert len(list((tmp_path / "unfinished").iterdir())) == 2
    assert result(sweep, store) == whole
    assert not left_behind(store)


# Killed while files are written.


def die_at(monkeypatch, turn):
    """Let the operation number `turn` on files be done half, and none behind it; return the list of those that were begun."""
    begun = []

    def dying(owner, name, half=lambda *_, **__: None):
        real = getattr(owner, name)

        def operation(*args, **options):
            begun.append(name)
            if len(begun) <= turn:
                return real(*args, **options)
            if len(begun) == turn + 1:
                half(*args)
            raise Killed

        monkeypatch.setattr(owner, name, operation)

    write = _writing._write
    dying(_writing, "_write", lambda path, *content: write(path, b"".join(content)[: sum(map(len, content)) // 2]))
    dying(shutil, "rmtree", lambda folder, **_: next((path.unlink() for path in Path(folder).glob("*.safetensors")), None))
    for owner, name in ((os, "replace"), (os, "rename"), (Path, "mkdir"), (Path, "unlink")):
        dying(owner, name)
    return begun


@pytest.mark.parametrize("every", [1, None])
@pytest.mark.parametrize("before", [None, 1])
@pytest.mark.parametrize("call", [fit, sweep])
def test_who_is_killed_in_any_operation_on_a_file_goes_on(call, before, every, tmp_path, monkeypatch):
    """Also where one run of the sweep was there before."""
    if call is fit and before:
        return
    call = functools.partial(sweep, epochs=2) if call is sweep else fit

    def begin(name):
        store = training.Store(tmp_path / name, every)
        if before is not None:
            fit(store, PAIR[before], epochs=2)
        return store

    whole = result(call, begin("whole"))
    seen = set()
    for turn in range(1000):
        store = begin(str(turn))
        with monkeypatch.context() as patch:
            begun = die_at(patch, turn)
            try:
                found = result(call, store)
            except Killed:
                found = None
        for folder in store.runs():
            training.load(folder)
        assert found in (None, whole)
        assert result(call, store) == whole
        assert not left_behind(store)
        assert len(store.runs()) == len(whole[0])
        seen |= set(begun)
        if found:
            break
    assert seen >= {"_write", "rmtree", "rename", "mkdir"} | ({"replace"} if every or call is not fit else set())
    assert turn > 5


def test_an_epoch_is_told_again_if_its_end_was_not_kept(tmp_path):
    store, told, whole = training.Store(tmp_path, every=1), [], result(fit)

    def dies(epoch, history):
        told.append(epoch)
        assert len(history["loss"]) == epoch + 1
        if told == [0, 1]:
            raise Killed

    with pytest.raises(Killed):
        fit(store, on_epoch=dies)
    assert result(fit, store, on_epoch=dies) == whole
    assert told == [0, 1, 1, 2]
    assert result(fit, store, on_epoch=dies) == whole
    assert told == [0, 1, 1, 2]


def test_an_epoch_is_over_when_the_one_before_is_on_the_disk(tmp_path, monkeypatch):
    write, told = _writing.write, []

    def slowly(path, *content):
        time.sleep(0.02)
        write(path, *content)

    def look(epoch, history):
        told.append(epoch)
        if epoch:
            [file] = tmp_path.rglob(_checkpoint.NAME)
            assert _checkpoint.read(file, file.parent.name)[1]["epoch"] == epoch

    monkeypatch.setattr(_writing, "write", slowly)
    fit(training.Store(tmp_path, every=1), on_epoch=look)
    assert told == [0, 1, 2]


def test_the_seconds_of_a_run_are_all_that_it_took(tmp_path, monkeypatch):
    file = stopped(tmp_path, monkeypatch)
    tensors, said = _checkpoint.read(file, file.parent.name)
    assert 0 < said["seconds"] < 60
    file.write_bytes(b"".join(_checkpoint.encode(said["key"], (tensors, said | {"seconds": 1000.0}))))
    store = training.Store(tmp_path)
    assert 1000 < fit(store)[0].seconds == fit(store)[0].seconds < 1060


def test_every_and_minutes_say_how_often(tmp_path, monkeypatch):
    written = []
    write = _writing.write

    def writing(path, *content):
        write(path, *content)
        written.append(
            safetensors.torch.load_file(path)["trainee.0.prior_mean"] is not None and _checkpoint.read(path, path.parent.name)
        )

    monkeypatch.setattr(_writing, "write", writing)
    for every, minutes, epochs in ((1, None, [1, 2, 3, 4, 5]), (2, None, [2, 4]), (7, None, []), (None, 60.0, [])):
        written.clear()
        fit(training.Store(tmp_path / f"{every}", every, minutes), epochs=5)
        assert [said["epoch"] for _, said in written] == epochs
    written.clear()
    fit(training.Store(tmp_path / "always", minutes=1e-9), epochs=2)
    assert [(said["epoch"], len(said.get("sizes", ()))) for _, said in written] == [(e, n) for e in (0, 1) for n in range(3)]
    written.clear()
    now = iter(float(i) for i in range(10**6))  # a clock that ticks at each look: a write costs few seconds, but not none
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    fit(training.Store(tmp_path / "seldom"), epochs=200)
    assert 1 <= len(written) <= 6


# Signals.


def test_a_signal_is_answered_with_one_line_and_the_model_is_as_it_was(tmp_path, monkeypatch):
    whole, store = result(fit), training.Store(tmp_path, every=1)
    with training.seeded(0):
        model = vae()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(SystemExit) as error:
            training.fit(model, SMALL, objectives.VAE(), CONFIG, store=store)
    assert isinstance(error.value, training.Interrupted)
    assert error.value.code == f"stopped after 1 of 3 epochs; the same call goes on from there: {tmp_path}"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert result(lambda: [training.fit(model, SMALL, objectives.VAE(), CONFIG, store=store)]) == whole
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_in_the_last_moment_ends_the_process_and_keeps_the_run(tmp_path, monkeypatch):
    whole, store = result(fit), training.Store(tmp_path, every=1)

    def last(epoch, history):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(training.Interrupted, match="stopped after 3 of 3 epochs; the same call goes on"):
        fit(store, on_epoch=last)
    monkeypatch.setattr(_loop, "train", None)
    assert result(fit, store) == whole


def test_a_second_interrupt_is_obeyed_at_once(tmp_path):
    def twice(epoch, history):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)  # in this thread: two that wait for another one become one

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would we
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(training.Store(tmp_path, every=1), on_epoch=twice)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_are_left_alone_where_they_are_not_ours(tmp_path, monkeypatch):
    """Ignored ones, those of a training without a store, and those of a thread that cannot receive any."""
    whole, seen = result(fit), []

    def look(epoch, history):
        seen.append(signal.getsignal(signal.SIGTERM))

    handler = signal.getsignal(signal.SIGTERM)
    fit(on_epoch=look)
    thread = threading.Thread(target=fit, args=(training.Store(tmp_path / "thread"),), kwargs={"on_epoch": look})
    thread.start()
    thread.join()
    assert seen == [handler] * 6
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        found = result(fit, training.Store(tmp_path), on_epoch=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert found == whole


def test_processes_that_are_killed_and_stopped_go_on(tmp_path, monkeypatch):
    """SIGKILL for a fit, and SIGTERM and SIGINT for two processes that share a sweep and a store."""
    cases = [
        ("fit", tmp_path / "fit", signal.SIGKILL),
        *[("sweep", tmp_path / "sweep", n) for n in (signal.SIGTERM, signal.SIGINT)],
    ]
    monkeypatch.setattr(kill, "EPOCHS", 8)
    command = (
        "import sys, kill, pathlib; kill.EPOCHS = 8; "
        "kill.child(sys.argv[1], pathlib.Path(sys.argv[2]), said=sys.argv[3], pause=0.1)"
    )
    processes = []
    for name, folder, number in cases:
        folder.mkdir(exist_ok=True)
        arguments = [sys.executable, "-c", command, name, str(folder), f"{number}.txt"]
        processes.append(subprocess.Popen(arguments, cwd=Path(__file__).parent))
    for (_, folder, number), process in zip(cases, processes, strict=True):
        while process.poll() is None and len(kill.epochs(folder)) < 2:
            time.sleep(0.01)
        process.send_signal(number)
    for (_, folder, number), process in zip(cases, processes, strict=True):
        status, said = process.wait(), (folder / f"{number}.txt").read_text().splitlines()
        if number == signal.SIGKILL:
            assert (status, said) == (-number, [])
        else:
            assert status == 1
            [line] = said
            assert line.startswith("stopped after ")
            assert line.endswith(f"the same call goes on from there: {folder / 'store'}")
    for name in ("fit", "sweep"):
        folder, whole = tmp_path / name, tmp_path / f"{name}, whole"
        whole.mkdir()
        assert kill.train(name, folder) == kill.train(name, whole)
        if name == "fit":  # two that share a store train all epochs twice
            assert kill.twice(folder) <= 1
        assert not kill.left_behind(folder)


# What else may end a training.


def test_a_callback_ends_a_training_which_then_is_not_over(tmp_path):
    whole, store, told = result(fit), training.Store(tmp_path), []
    assert len(fit(store, on_epoch=lambda epoch, _: epoch == 1)[0].history["loss"]) == 2
    assert store.runs() == []
    assert result(fit, store, on_epoch=lambda epoch, _: told.append(epoch)) == whole
    assert told == [2]
    assert len(store.runs()) == 1


def test_a_run_that_diverged_is_not_repeated(tmp_path, monkeypatch, caplog):
    store = training.Store(tmp_path)
    whole = result(fit, objective=Breaks(2.0))
    assert "step 4" in whole[2]
    assert result(fit, store, Breaks(2.0)) == whole
    monkeypatch.setattr(_loop, "train", None)
    assert result(fit, store, Breaks(2.0)) == whole
    training.load(store.runs()[0], objective=Breaks(2.0))
    assert "diverged" in caplog.text


def limit(size):
    """A limit of the system's for the size of files: what is written beyond it fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("call", [fit, sweep])
def test_a_full_disk_loses_neither_what_is_there_nor_what_is_trained(call, tmp_path, caplog):
    whole, store = result(call), training.Store(tmp_path, every=1)
    earlier = result(fit, store, objectives.BetaVAE(3.0))
    folders = store.runs()
    try:
        limit(500)
        assert result(call, store) == whole
        assert result(fit, store, objectives.BetaVAE(3.0)) == earlier
    finally:
        limit(resource.RLIM_INFINITY)
    assert [record.getMessage() for record in caplog.records if "large" in record.getMessage()] == [
        caplog.records[-1].getMessage()
    ]
    assert len(caplog.records) == 1
    assert "\n" not in caplog.records[0].getMessage()
    assert str(tmp_path) in caplog.text
    assert store.runs() == folders
    assert not left_behind(store)
    assert result(call, store) == whole
    assert len(store.runs()) == len(whole[0]) + 1


def test_a_signal_on_a_full_disk_is_answered_in_one_line(tmp_path, monkeypatch, caplog):
    store = training.Store(tmp_path, every=7)
    stop_after(monkeypatch, 4)
    try:
        limit(500)
        with pytest.raises(
            training.Interrupted, match=r"stopped after 1 of 3 epochs; no checkpoint was made \(File too large\)"
        ):
            fit(store)
    finally:
        limit(resource.RLIM_INFINITY)
    assert not caplog.records


def test_a_folder_that_cannot_be_written_to_is_told_before_training(tmp_path, monkeypatch):
    whole, store = result(fit), training.Store(tmp_path / "store")
    fit(store)
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(_loop, "train", None)
    for folder in (tmp_path / "file" / "deeper", tmp_path / ("x" * 300), "a\0b"):
        one_line(
            lambda folder=folder: fit(training.Store(folder)),
            match=r"no run can be kept in .*: give a folder that can be written to",
        )
    with pytest.raises(ValueError, match="folder must be the path of a folder"):
        training.Store(tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a file system that is mounted to be read
    assert result(fit, store) == whole
    for call in (lambda: fit(store, objectives.BetaVAE(2.0)), lambda: sweep(store)):
        with pytest.raises(ValueError, match=r"no run can be kept in .*: give a folder that can be written to"):
            call()


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ({"folder": None}, "folder must be"),
        ({"folder": 3}, "folder must be"),
        ({"every": 0}, "every must be a whole number >= 1"),
        ({"every": 1.5}, "every must be a whole number >= 1"),
        ({"every": True}, "every must be a whole number >= 1"),
        ({"minutes": 0}, "minutes must be a finite number > 0"),
        ({"minutes": float("inf")}, "minutes must be a finite number > 0"),
        ({"minutes": "5"}, "minutes must be a finite number > 0"),
    ],
)
def test_a_store_says_what_it_takes(tmp_path, arguments, allowed):
    one_line(lambda: training.Store(**({"folder": tmp_path} | arguments)), allowed)


def test_a_path_is_no_store(tmp_path):
    for call in (fit, sweep):
        with pytest.raises(ValueError, match=r"store must be a training\.Store, got .*: training\.Store\(folder\) makes one"):
            call(str(tmp_path))


# Two at once.


@pytest.mark.parametrize("call", [fit, sweep])
def test_two_that_train_the_same_do_no_harm(call, tmp_path, monkeypatch):
    """The second begins, and ends, in each pause of the first."""
    whole, real = result(call), _checkpoint.Checkpoints.before_step
    for pause in range(0, 9, 2):
        store, found, left = training.Store(tmp_path / str(pause), every=1), [], [pause]

        def before_step(self, now, store=store, found=found, left=left):
            left[0] -= 1
            if left[0] == -1:
                found.append(result(call, store))
            real(self, now)

        monkeypatch.setattr(_checkpoint.Checkpoints, "before_step", before_step)
        assert result(call, store) == whole
        assert found == [whole]
        assert not left_behind(store)
        assert len(store.runs()) == len(whole[0])


def test_writers_survive_who_clears_their_folder(tmp_path, monkeypatch):
    """Who begins to work in a folder removes what is being written there, once or thrice."""
    real, left = _writing._write, [0]

    def write(path, *content):
        real(path, *content)
        left[0] -= 1
        if left[0] >= 0:
            _writing.clear(tmp_path / "a")
            _writing.remove(tmp_path / "b")

    monkeypatch.setattr(_writing, "_write", write)
    for times in range(4):
        left[0] = times
        _writing.write(tmp_path / "a" / "file", b"%d" % times, b"!" * 100)
        assert (tmp_path / "a" / "file").read_bytes() == b"%d" % times + b"!" * 100
        for beside in ("a", "b"):
            left[0] = times
            folder = tmp_path / f"{times} by {beside}"
            _writing.write_folder(folder, {"one": b"1", "two": b"2"}, beside=tmp_path / beside)
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"one": b"1", "two": b"2"}
            _writing.write_folder(folder, {"one": b"3"}, beside=tmp_path / beside)  # who comes second changes nothing
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"one": b"1", "two": b"2"}
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_is_gone_before_anything_in_it_is(tmp_path, monkeypatch):
    """Or who finishes a run in it could be left with half of what was written."""
    real, seen = shutil.rmtree, []

    def rmtree(folder, **options):
        seen.append((sorted(path.name for path in Path(folder).iterdir()), [path.name for path in tmp_path.iterdir()]))
        real(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    for name in ("a", f"b{_writing.PART}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        _writing.remove(tmp_path / name) if name == "a" else _writing.clear(tmp_path)
        files, beside = seen.pop()
        assert files == ["file"]
        assert name not in beside
        assert not list(tmp_path.iterdir())
    _writing.remove(tmp_path / "none")


# What is damaged.


def stopped(folder, monkeypatch, **options):
    """The file of a checkpoint in the middle of an epoch."""
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(training.Interrupted):
            fit(training.Store(folder, every=1), **options)
    [file] = folder.rglob(_checkpoint.NAME)
    return file


def refused(call, *words):
    one_line(call, "damaged", "delete it", *map(str, words))


def test_a_damaged_checkpoint_is_never_used(tmp_path, monkeypatch):
    whole, store = result(fit), training.Store(tmp_path / "one", every=1)
    file, other = stopped(store.folder, monkeypatch), stopped(tmp_path / "other", monkeypatch, lr=3e-2)
    content, pick = file.read_bytes(), random.Random(0)
    length = 8 + int.from_bytes(content[:8], "little")
    damages = [b"", b"{}", content[:7], content[:8], content[:100], content[: len(content) // 2], content[:-1], content + b"\0"]
    damages += [content[:length], content[length:], other.read_bytes(), content.replace(b"epoch", b"Epoch", 1)]
    for place in (
        *range(8),
        *pick.sample(range(8, length), 40),
        *pick.sample(range(length, len(content)), 40),
        len(content) - 1,
    ):
        damages.append(content[:place] + bytes([content[place] ^ 1 << pick.randrange(8)]) + content[place + 1 :])
    foreign = safetensors.torch.load(content), json.loads(json.loads(content[8:length])["__metadata__"]["state"])
    damages.append(b"".join(_checkpoint.encode("0" * 64, foreign)))
    damages.append(safetensors.torch.save({"a": torch.zeros(3)}))
    monkeypatch.setattr(_loop, "losses", None)
    for damage in damages:
        assert damage != content
        file.write_bytes(damage)
        refused(lambda: fit(store), file)
        assert file.read_bytes() == damage
    file.unlink()
    file.mkdir()
    one_line(lambda: fit(store), "cannot be read")
    monkeypatch.undo()
    file.rmdir()
    file.write_bytes(content)
    assert result(fit, store) == whole


def test_a_damaged_checkpoint_of_a_mapped_stack_is_no_reason_to_train_one_by_one(tmp_path, monkeypatch):
    options, store = SWEEPS["mapped"], training.Store(tmp_path, every=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(training.Interrupted):
            sweep(store, **options)
    [file] = tmp_path.rglob(_checkpoint.NAME)
    file.write_bytes(file.read_bytes()[:-1])
    refused(lambda: sweep(store, **options), file)


def test_a_checkpoint_of_another_torch_is_left_and_the_run_begins_anew(tmp_path, monkeypatch, caplog):
    file = stopped(tmp_path, monkeypatch)
    state = _checkpoint.read(file, file.parent.name)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        content = b"".join(_checkpoint.encode(file.parent.name, state))
    file.write_bytes(content)
    assert result(fit, training.Store(tmp_path)) == result(fit)
    assert "was written with torch 1.0" in caplog.text


def test_a_damaged_run_is_neither_used_nor_trained_again(tmp_path, monkeypatch):
    whole, store = result(fit), training.Store(tmp_path)
    fit(store)
    [folder] = store.runs()
    fit(store, objectives.BetaVAE(2.0))
    [other] = {*store.runs()} - {folder}
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(files) == ["model.safetensors", "run.json"]
    damages = [(name, None) for name in files] + [(name, (other / name).read_bytes()) for name in files]
    for name, content in files.items():
        damages += [(name, content[:-2]), (name, b""), (name, content[:50] + bytes([content[50] ^ 1]) + content[51:])]
    damages.append(("run.json", files["run.json"].replace(b'"key"', b'"kay"')))
    monkeypatch.setattr(_loop, "train", None)
    for name, damage in damages:
        (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
        refused(lambda: fit(store), folder)
        refused(lambda: sweep(store, objectives=[objectives.VAE()]), folder)
        (folder / name).write_bytes(files[name])
    shutil.rmtree(folder)
    shutil.copytree(other, folder)  # whole, but another run
    refused(lambda: fit(store), folder)
    for path in folder.iterdir():
        path.unlink()
    refused(lambda: fit(store), folder)
    monkeypatch.undo()
    shutil.rmtree(folder)
    assert result(fit, store) == whole


# What is kept beside tensors.


TURNS = 0


class Counts:
    """A weight that follows how often the objective was called; from call number `since` on."""

    total = 0

    def __init__(self, way, since=0):
        self.way, self.since, self.calls, self.seen, self.stream = way, since, 0, [], random.Random(0)
        cell = 0

        def count():
            nonlocal cell
            cell += 1
            return cell

        self.count = count

    def weight(self):
        global TURNS
        if self.way == "number":
            self.calls += 1
            return self.calls
        if self.way == "list":
            self.seen.append(1.0)
            return len(self.seen)
        if self.way == "class":
            Counts.total += 1
            return Counts.total
        if self.way == "closure":
            return self.count()
        if self.way == "global":
            TURNS += 1
            return TURNS
        return 10 * self.stream.random()

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        weight = self.weight() if step >= self.since else 1
        return objectives.Loss(terms.distortion + weight / 10 * terms.rate, terms)


def anew(way, since=0):
    """As it is in a new process."""
    global TURNS
    TURNS = Counts.total = 0
    return Counts(way, since)


@pytest.mark.parametrize("way", ["number", "list", "class", "closure", "global", "stream"])
def test_what_keeps_state_begins_anew_and_says_so_once(way, tmp_path, monkeypatch, caplog):
    whole, store = result(fit, objective=anew(way)), training.Store(tmp_path, every=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(training.Interrupted, match=r"after 2 of 3 epochs; no checkpoint was made \(.* keeps state beside"):
            fit(store, anew(way))
    assert [record.getMessage() for record in caplog.records] == [
        f"no checkpoint after 1 epochs in {tmp_path}: training could not go on exactly: {stacking.STATE}; "
        "what is trained is kept at its end, if there is room"
    ]
    assert not list(tmp_path.rglob(_checkpoint.NAME))
    assert result(fit, store, anew(way)) == whole
    assert len(store.runs()) == 1
    monkeypatch.setattr(_loop, "train", None)
    assert result(fit, store, anew(way)) == whole


@pytest.mark.parametrize("way", ["number", "closure"])
def test_from_where_nothing_was_kept_yet_it_goes_on(way, tmp_path, monkeypatch):
    """State that begins in the third epoch: the checkpoint of the second is exact."""
    whole, store = result(fit, objective=anew(way, 6)), training.Store(tmp_path, every=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(training.Interrupted):
            fit(store, anew(way, 6))
    told = []
    assert result(fit, store, anew(way, 6), on_epoch=lambda epoch, _: told.append(epoch)) == whole
    assert told == [2]


class Late:
    """Something that cannot be mapped over models, or that draws numbers, from step 4 on."""

    def __init__(self, beta, way):
        self.beta, self.way = beta, way

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        noise = torch.rand(()) if step >= 4 and self.way == "draws" else 0.0
        if step >= 4 and self.way == "branches" and terms.rate.mean() < 0:
            noise = 1.0
        return objectives.Loss(terms.distortion + (self.beta + noise) * terms.rate, terms)


@pytest.mark.parametrize("way", ["draws", "branches"])
def test_a_stack_that_turns_out_to_be_none_is_not_tried_again(way, tmp_path, monkeypatch):
    options = {"objectives": [Late(0.5, way)]}
    whole, store = result(sweep, **options), training.Store(tmp_path, every=1)
    trained, real = [], _loop.train

    def train(trainee, *arguments):
        trained.append(type(trainee).__name__)
        return real(trainee, *arguments)

    monkeypatch.setattr(_loop, "train", train)
    found, _ = chain(store, sweep, monkeypatch, **options)
    assert found == whole
    assert not left_behind(store)
    kinds = "".join(name[0] for name in trained)
    assert kinds.rstrip("A") == "M" * kinds.count("M")  # once fitted alone, never again together


# Some of a sweep's runs.


def test_runs_that_are_there_are_loaded_and_the_others_trained_together(tmp_path, monkeypatch):
    store, trained, real = training.Store(tmp_path), [], _loop.train
    kinds = [objectives.BetaVAE(beta) for beta in (0.5, 1.0, 2.0)]
    [alone] = fit(store, kinds[1])

    def train(trainee, *arguments):
        trained.append(len(getattr(trainee, "members", [trainee])))
        return real(trainee, *arguments)

    monkeypatch.setattr(_loop, "train", train)
    runs = sweep(store, kinds)
    assert trained == [5]
    assert [(run.objective.beta, run.config.seed) for run in runs] == [(b, s) for b in (0.5, 1.0, 2.0) for s in (0, 1)]
    assert bits(runs[2]) == bits(alone)
    assert runs[2].seconds == alone.seconds
    assert [bits(run) for run in sweep(store, kinds)] == [bits(run) for run in runs]
    assert bits(fit(store, kinds[2])[0]) == bits(runs[4])
    sweep(store, [*kinds, objectives.BetaVAE(4.0)])
    assert trained == [5, 2]
    sweep(store, [*kinds, objectives.BetaVAE(8.0), objectives.FactorVAE(1.0, width=4)], epochs=3)
    assert trained == [5, 2, 2, 2]


def test_the_same_model_twice_in_a_sweep(tmp_path):
    store, twice = training.Store(tmp_path), [objectives.VAE(), objectives.VAE()]
    whole = result(sweep, objectives=twice)
    for _ in range(2):
        assert result(sweep, store, twice) == whole
    assert len(store.runs()) == 2


def test_looking_for_a_run_does_not_look_at_the_others(tmp_path, monkeypatch):
    store = training.Store(tmp_path)
    whole = result(fit, store)
    for name in ("listdir", "scandir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path=".", real=real: real(path) if Path(path) != tmp_path else 1 / 0)
    monkeypatch.setattr(_loop, "train", None)
    assert result(fit, store) == whole


# Keys.


def key(model=None, objective=PLAIN, dataset=SMALL, **changes):
    with training.seeded(0):
        model = vae() if model is None else model() if not isinstance(model, nn.Module) else model
    return _key.key_of(model, dataset, objective, replace(CONFIG, **changes))


def written(text, **names):
    """`mine`, as it would be in a module of this text."""
    namespace = {"objectives": objectives, "nn": nn, "torch": torch, **names}
    exec(text, namespace)
    return namespace["mine"]


FUNCTION = """
LEAST = 0.1

def clamped(rate):
    return rate.clamp(min=LEAST)

def mine(model, x, step=0, reference=None, weight=2.0):
    terms = objectives.elbo_terms(model, x)
    inner = lambda rate: weight * clamped(rate)
    return objectives.Loss(terms.distortion + inner(terms.rate), terms)
"""
CLASS = """
class Base:
    scale = 1.0

    def weigh(self, rate):
        return self.scale * rate

class Mine(Base):
    def __init__(self, beta):
        self.beta = beta

    @property
    def double(self):
        return 2 * self.beta

    @staticmethod
    def clamped(rate):
        return rate.clamp(min=0.1)

    def __call__(self, model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        return objectives.Loss(terms.distortion + self.double * self.clamped(self.weigh(terms.rate)), terms)

mine = Mine(1.0)
"""
NETWORK = """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.activation = nn.Linear(16, 6), torch.tanh

    def forward(self, x):
        return self.activation(self.layers(x.flatten(1))).chunk(2, -1)

mine = Encoder
"""
CLOSURE = """
def make(weight):
    def loss(model, x, step=0, reference=None):
        terms = objectives.elbo_terms(model, x)
        return objectives.Loss(terms.distortion + weight * terms.rate, terms)
    return loss

mine = make(1.0)
"""


@pytest.mark.parametrize(
    ("text", "edits"),
    [
        (
            FUNCTION,
            ["0.1->0.2", "2.0->3.0", "min=->max=", "+ inner->- inner", "weight *->-weight *", "reference=None->reference=0"],
        ),
        (
            CLASS,
            [
                "scale = 1.0->scale = 2.0",
                "self.scale *->self.scale +",
                "2 *->3 *",
                "min=0.1->min=0.2",
                "+ self->- self",
                "(1.0)->(3.0)",
            ],
        ),
        (CLOSURE, ["make(1.0)->make(2.0)", "+ weight->- weight"]),
    ],
    ids=["function", "class", "closure"],
)
def test_an_edited_objective_is_another_run(text, edits):
    first = key(objective=written(text))
    assert key(objective=written(text)) == first
    assert key(objective=written(text.replace("\n", "  # it is well known\n"))) == first
    assert key(objective=written("\n\n" + text + "\n\nunused = 3\n")) == first
    others = [key(objective=written(text.replace(*edit.split("->")))) for edit in edits]
    assert len({first, *others}) == 1 + len(edits)


def test_an_edited_network_is_another_run():
    def made(text):
        return key(lambda: vae(encoder=written(text)()))

    edits = ["(1))->(1) + 0)", "torch.tanh->torch.sigmoid", "self.activation(->torch.relu("]
    assert made(NETWORK) == made(NETWORK)
    assert len({made(NETWORK), *(made(NETWORK.replace(*edit.split("->"))) for edit in edits)}) == 1 + len(edits)


def test_a_module_of_ones_own_that_an_objective_names_counts(tmp_path, monkeypatch):
    text = "import {name}\ndef mine(model, x, step=0, reference=None):\n    return {name}.loss(model, x)\n"
    found = []
    for name, number in (("losses_of_mine", 1), ("losses_of_mine", 2), ("losses_of_mine", 1)):
        (tmp_path / f"{name}.py").write_text(
            f"def loss(model, x):\n    return helper(x, {number})\ndef helper(x, n):\n    return n\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop(name, None)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        found.append(key(objective=written(text.format(name=name))))
        sys.dont_write_bytecode = before
        (tmp_path / f"{name}.py").write_text("edited, and not loaded again")
    assert found[0] == found[2] != found[1]


def test_whatever_decides_a_run_is_in_its_key():
    def other(change):
        with training.seeded(0):
            model = vae()
        change(model)
        return model

    def half(model, x, step=0, reference=None, beta=0.5):
        return Mine(beta)(model, x)

    grey = dataset("dynamic")
    changed = replace(SMALL, test=1 - SMALL.test)
    keys = [
        key(),
        key(models.VAE((1, 4, 4), 3, hidden=(7,))),
        key(lambda: vae(likelihood="gaussian")),
        key(lambda: vae(likelihood="gaussian", sigma=0.3)),
        key(lambda: vae(likelihood="gaussian", sigma="optimal")),
        key(lambda: vae().double()),
        key(other(lambda model: model.decoder[0].weight.data[0, 0].add_(1e-6))),
        key(other(lambda model: model.prior_mean.add_(1e-6))),
        key(other(lambda model: model.decoder[0].weight.requires_grad_(False))),
        key(other(lambda model: model.decoder.__setitem__(1, nn.Tanh()))),
        key(other(lambda model: model.decoder.append(nn.Dropout(0.1)))),
        key(other(lambda model: model.decoder.append(nn.Dropout(0.2)))),
        key(other(lambda model: model.decoder.register_forward_hook(lambda *_: None))),
        key(other(lambda model: setattr(model, "check", len))),
        key(frozen_tied),
        key(objective=objectives.BetaVAE(1.0)),
        key(objective=objectives.BetaVAE(2.0)),
        key(objective=Mine(2.0)),
        key(objective=half),
        key(objective=functools.partial(half, beta=0.25)),
        key(objective=lambda model, x, step=0, reference=None: objectives.VAE()(model, x)),
        key(objective=lambda model, x, step=0, reference=None: objectives.VAE()(model, x, step)),
        key(objective=objectives.VAE().__call__),
        key(dataset=grey),
        key(dataset=changed),
        key(dataset=replace(SMALL, binarize="static")),
        *(key(**{name: value}) for name, value in {"epochs": 4, "batch_size": 9, "lr": 2e-2, "seed": 1, "clip": 1.0}.items()),
        *(key(**{name: value}) for name, value in {"schedule": "cosine", "optimizer": "sgd", "weight_decay": 0.1}.items()),
        key(validate_every=1),
        key(validate_every=1, patience=2),
    ]
    assert len({*keys}) == len(keys)
    assert all(len(each) == 64 for each in keys)
    assert keys[0] == key() == key(device="auto" if not torch.cuda.is_available() else "cpu")
    assert keys[0] == key(other(lambda model: model.eval()))
    assert keys[0] == key(dataset=replace(SMALL, name="another name"))


def test_the_order_of_a_set_is_none():
    """0 and 8 fall on one place of a small table: the one that came first is listed first."""
    one, other = set([0, 8]), set([8, 0])
    assert [*one] != [*other]
    digests = []
    for thing in (one, other, {0, 9}):
        digest = _digest.Digest()
        digest.add([thing])
        digests.append(digest.hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_what_cannot_be_told_from_others_has_no_key():
    sparse = torch.eye(3).to_sparse()

    def mine(model, x, step=0, reference=None):
        return Mine(sparse.sum())(model, x)

    for objective in (mine, functools.partial(Mine(1.0), reference=torch.ops.aten.relu)):
        one_line(
            lambda objective=objective: key(objective=objective),
            match=r"the objective holds a .*, of which no content is known",
        )
    model = vae()
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="dense tensors can be stored, and its sparse is none"):
        key(model)


def test_locks_and_logs_and_streams_do_no_harm():
    class Logs(Mine):
        log, lock = logging.getLogger("mine"), threading.Lock()

    def drawn(seed):
        class Draws(Mine):
            stream = np.random.default_rng(seed)

        return Draws(1.0)

    assert key(objective=Logs(1.0)) == key(objective=Logs(1.0)) != key(objective=Mine(1.0))
    assert len({key(objective=drawn(0)), key(objective=drawn(1)), key(objective=drawn(0))}) == 2
    assert len({key(objective=functools.partial(Mine(1.0), reference=deque([n]))) for n in (1, 2, 1)}) == 2


def test_the_key_holds_the_code_that_trains():
    """Every module that `training` needs, but those that only say what is wrong and what is on the disk."""
    import test_imports

    needed, left = set(), ["training"]
    while left:
        module = left.pop()
        if module not in needed:
            needed.add(module)
            left += [*test_imports.imported(module)]
    hashed = {name for name in needed if any(f"{name}.py".startswith(each) for each in _key.CODE)}
    assert {name.partition(".")[0] for name in needed - hashed} == {"checks", "data"}
