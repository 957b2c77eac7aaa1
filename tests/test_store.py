"""Runs on disk: what is saved is what is loaded, or is refused in one line that names the folder."""

import contextlib
import functools
import json
import logging
import math
import os
import random
import struct
import types
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import one_line
from torch import nn

import nbvae
from nbvae import data, models, objectives, training

CONFIG = training.TrainConfig(epochs=2, seed=3, device="cpu")
HISTORY = {
    "loss": [44.15, math.nan, 1 / 3],
    "distortion": [math.inf, 5e-324, 1e300],
    "rate": [-0.0, 0.1 + 0.2, 7.0],
}


def small(seed=0, **options):
    """A model of a few weights, none of them where they start."""
    with training.seeded(seed):
        options = {"likelihood": "gaussian", "sigma": "global", "hidden": (3,)} | options
        return jolt(models.VAE((4,), 2, **options))


def jolt(model):
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, dtype=torch.float64).to(value.dtype))
    return model


def run_of(model=None, objective=None, **changes):
    model = small() if model is None else model
    run = training.Run(model, objective or objectives.BetaVAE(0.7), CONFIG, HISTORY, 1.25)
    return replace(run, **changes)


def bits(model):
    """Every tensor of a model, buffers that are not persistent too, as bytes that tell NaNs and zeros apart."""
    tensors = model.state_dict() | dict(model.named_buffers())
    return {
        name: (value.dtype, value.shape, value.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
        for name, value in tensors.items()
    }


def same(a, b):
    """Whether two runs are one: weights by their bits, numbers by their digits."""
    return (
        type(a.model) is type(b.model)
        and getattr(a.model, "config", None) == getattr(b.model, "config", None)
        and bits(a.model) == bits(b.model)
        and repr((a.objective, a.config, a.history, a.seconds)) == repr((b.objective, b.config, b.history, b.seconds))
    )


def refused(folder, *words, error=ValueError, **given):
    """`load` raises one line that names the folder and has the words in it."""
    return str(one_line(lambda: training.load(folder, **given), str(folder), *words, error=error))


def edit(folder, change, signed=False):
    """Change the record on disk; `signed` as the library itself would have written it."""
    path = folder / "run.json"
    record = json.loads(path.read_text())
    record = change(record) or record
    if signed:
        record["sha256"] = training._record._digest(record)
    path.write_text(json.dumps(record))


# What is saved is loaded.


def test_a_run_comes_back_bit_for_bit_and_twice(tmp_path):
    run = run_of()
    folder = run.save(tmp_path / "deep" / "run")
    before = torch.random.get_rng_state()
    first, second = training.load(folder), training.load(str(folder))
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing was drawn from the reader's stream
    assert same(first, run)
    assert same(second, run)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "run.json"]
    x = torch.rand(5, 4)
    assert torch.equal(first.model.posterior(x).mean, run.model.posterior(x).mean)


def test_a_trained_run_comes_back(tmp_path):
    x = torch.rand(20, 4)
    run = training.fit(small(sigma=0.3).double(), data.Dataset("four", x, x, x), objectives.BetaVAE(0.7), CONFIG)
    assert same(training.load(run.save(tmp_path)), run)


def test_numpy_numbers_are_numbers(tmp_path):
    config = training.TrainConfig(epochs=np.int64(1), batch_size=np.int32(600), lr=np.float32(1e-3), seed=np.int64(2))
    history = {"loss": [np.float32(0.1), torch.tensor(2.5), 3]}
    run = run_of(small(sigma=np.float32(0.5)), objectives.BetaVAE(np.float64(2)), config=config, history=history)
    loaded = training.load(run.save(tmp_path))
    assert (loaded.config, loaded.objective, loaded.model.config) == (config, run.objective, run.model.config)
    assert loaded.history == {"loss": [float(np.float32(0.1)), 2.5, 3.0]}


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [small, lambda: jolt(models.MultiBetaVAE((4,), 2, hidden=(3,)))], ids=["vae", "multi_beta"])
def test_every_precision_and_mixed_ones_come_back(tmp_path, build, kind):
    model = build().to(kind)
    assert same(training.load(run_of(model).save(tmp_path / "one")), run_of(model))
    model.decoder.double()
    assert same(training.load(run_of(model).save(tmp_path / "mixed")), run_of(model))


def test_what_is_made_in_float64_is_not_rounded(tmp_path):
    """The centres of a multi-β model's features are no part of its state dict; in float32 they are others."""
    torch.set_default_dtype(torch.float64)
    try:
        model = models.MultiBetaVAE((4,), 2, hidden=(3,))
    finally:
        torch.set_default_dtype(torch.float32)
    centres = model.response.features.centres
    assert not torch.equal(centres, centres.float().double())
    assert same(training.load(run_of(model).save(tmp_path)), run_of(model))


def test_a_diverged_run_with_weights_that_are_no_numbers_comes_back(tmp_path):
    model = small()
    with torch.no_grad():
        model.decoder[0].weight[0, 0] = math.nan
        model.decoder[0].weight[1, 0] = -0.0
    assert same(training.load(run_of(model).save(tmp_path)), run_of(model))


@pytest.mark.parametrize("name", objectives.NAMED)
def test_every_objective_of_the_library_comes_back(tmp_path, name):
    run = run_of(objective=objectives.NAMED[name]())
    assert training.load(run.save(tmp_path)).objective == run.objective


def test_mode_and_frozen_weights_are_those_of_a_new_model(tmp_path):
    model = small().eval().requires_grad_(False)
    loaded = training.load(run_of(model).save(tmp_path)).model
    assert loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    given = training.load(tmp_path, make=lambda: small(1).eval().requires_grad_(False)).model
    assert not given.training
    assert not any(parameter.requires_grad for parameter in given.parameters())


def test_a_model_on_disk_is_trained_on_like_any_other(tmp_path):
    x = torch.rand(20, 4)
    ds = data.Dataset("four", x, x, x)
    run = training.fit(small(sigma=0.5), ds, objectives.VAE(), CONFIG)
    again = training.fit(training.load(run.save(tmp_path)).model, ds, objectives.VAE(), CONFIG)
    assert again.history == training.fit(run.model, ds, objectives.VAE(), CONFIG).history


def test_the_weights_file_alone_is_a_state_dict(tmp_path):
    from safetensors.torch import load_file

    model = small()
    run_of(model).save(tmp_path)
    twin = small(1)
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert bits(twin) == bits(model)


# Where the run was trained is not where it is read.


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_a_run_of_another_machine_is_loaded(tmp_path, device):
    config = training.TrainConfig.recorded(epochs=1, device=device)
    run = run_of(config=config)
    for edited in (False, True):
        if edited:
            run_of().save(tmp_path)
            edit(tmp_path, lambda record: record["config"].update(device=device, epochs=2))
            config = training.TrainConfig.recorded(epochs=2, seed=3, device=device)
        else:
            run.save(tmp_path)
        loaded = training.load(tmp_path)
        assert loaded.config == config
        assert {tensor.device.type for tensor in loaded.model.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("device", ["gpu", "cpu:", "cuda:x", "cuda:-1", "cuda:01", "auto:1", "", None, 3, ["cpu"]])
def test_a_device_that_is_none_is_refused(tmp_path, device):
    run_of().save(tmp_path)
    edit(tmp_path, lambda record: record["config"].update(device=device))
    refused(tmp_path, "auto, cpu, cuda, mps")


def test_who_trains_is_told_at_once_that_a_device_is_not_here():
    absent = [
        name for name, here in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if not here
    ]
    recorded = training.TrainConfig.recorded(device=absent[0])
    for make in (lambda: training.TrainConfig(device=absent[0]), lambda: training.device(absent[0]), lambda: replace(recorded)):
        with pytest.raises(ValueError, match="not on this machine, which has: cpu"):
            make()
    assert replace(recorded, device="cpu") == training.TrainConfig(device="cpu")


# Damage.


def damaged(pick, kind, files, other):
    """The files of a run with one of the two damaged at random; some ways leave it as it was."""
    name = pick.choice(["run.json", "model.safetensors"])
    if kind == "weights":
        name = "model.safetensors"
    elif kind in KINDS_OF_RECORD:
        name = "run.json"
    content = bytearray(files[name])
    start, length = pick.randrange(len(content)), pick.choice([1, 2, 8, 64])
    if kind == "flip":
        for _ in range(pick.choice([1, 1, 1, 5])):
            content[pick.randrange(len(content))] ^= 1 << pick.randrange(8)
    elif kind == "zeros":
        content[start : start + length] = bytes(len(content[start : start + length]))
    elif kind == "cut":
        del content[start:]
    elif kind == "missing":
        del content[start : start + length]
    elif kind == "inserted":
        content[start:start] = pick.randbytes(length)
    elif kind == "trailing":
        content += pick.choice([b"\0", b" ", b"\n", b"}", b"{}", pick.randbytes(length)])
    elif kind == "moved":
        content[start : start + length] = content[start : start + length][::-1]
    elif kind == "swapped":
        content = other[name]
    elif kind == "weights":  # the header is whole, a number behind it is another
        begin = 8 + struct.unpack("<Q", content[:8])[0]
        content[pick.randrange(begin, len(content))] ^= pick.randrange(1, 256)
    elif kind in KINDS_OF_RECORD:
        content = damaged_record(pick, kind, content.decode()).encode()
    kept = {} if kind == "deleted" else {name: bytes(content)}
    return {each: files[each] for each in files if each != name} | kept


def damaged_record(pick, kind, text):
    if kind == "digit":
        place = pick.choice([index for index, each in enumerate(text) if each.isdigit()])
        return text[:place] + pick.choice("0123456789") + text[place + 1 :]
    record = json.loads(text)
    part = pick.choice([record, *(each for each in record.values() if isinstance(each, dict) and each)])
    key = pick.choice(list(part))
    if kind == "removed":
        del part[key]
    elif kind == "unhashed":  # made to look like a record of the time before hashes
        for name in pick.sample(["format", "weights", "modules", "sha256"], pick.randrange(1, 5)):
            del record[name]
        record["dtype"] = "float32"
    elif kind == "renamed":
        part[pick.choice([key + "s", " " + key, "_" + key.title()])] = part.pop(key)
    elif kind == "value":
        part[key] = pick.choice([None, True, 0, 1, -1, 1e9, "", "cpu", [], {}, [1.0], {"loss": [1.0]}])
    elif kind == "doubled":
        value = pick.choice([part[key], None, 3])
        whole = json.dumps(record)
        return whole.replace(json.dumps(key) + ":", f"{json.dumps(key)}: {json.dumps(value)}, {json.dumps(key)}:", 1)
    return json.dumps(record, indent=pick.choice([None, 1]))


KINDS_OF_RECORD = ["digit", "removed", "unhashed", "renamed", "value", "doubled"]
KINDS = ["flip", "zeros", "cut", "missing", "inserted", "trailing", "moved", "swapped", "deleted", "weights", *KINDS_OF_RECORD]


def test_no_damage_is_loaded_without_a_word(tmp_path):
    """1,200 damaged folders: each is refused in one line, or is loaded as exactly the run that was saved."""
    run, other = run_of(), run_of(small(1), objectives.BetaVAE(0.3), history={"loss": [1.0]})
    whole = [
        {path.name: path.read_bytes() for path in each.save(tmp_path / str(each.objective)).iterdir()} for each in (run, other)
    ]
    pick = random.Random(0)
    silent, loaded = [], dict.fromkeys(KINDS, 0)
    for turn in range(1200):
        kind = KINDS[turn % len(KINDS)]
        folder = tmp_path / str(turn)
        folder.mkdir()
        for name, content in damaged(pick, kind, *whole).items():
            (folder / name).write_bytes(content)
        try:
            found = training.load(folder)
            loaded[kind] += 1
            silent += [] if same(found, run) else [(turn, kind)]
        except (ValueError, FileNotFoundError) as error:
            silent += [] if str(folder) in str(error) and len(str(error).splitlines()) == 1 else [(turn, kind, error)]
    assert silent == []
    # What is read says the same: space around a record, a digit or a byte in the place of its like.
    assert sum(loaded.values()) < 1200 / 20
    assert not any(loaded[kind] for kind in ("weights", "swapped", "deleted", "removed", "unhashed", "renamed", "doubled"))


def test_no_bit_of_the_weights_can_change(tmp_path):
    run = run_of(models.VAE((1,), 1, "linear"))
    folder = run.save(tmp_path)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for index in range(0, 8 * len(content), 29):
        changed = bytearray(content)
        changed[index // 8] ^= 1 << index % 8
        path.write_bytes(changed)
        refused(folder, "damaged run", "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["history"]["loss"].__setitem__(0, 44.16),
        lambda record: record["history"]["rate"].__setitem__(0, 0.0),
        lambda record: record["config"].update(seed=4),
        lambda record: record["objective"].update(beta=0.8),
        lambda record: record["model"].update(sigma="z"),
        lambda record: record.update(seconds=2.25),
        lambda record: record.update(torch="1.0"),
        lambda record: record["modules"].clear(),
    ],
)
def test_a_record_that_says_something_else_is_refused(tmp_path, change):
    run_of().save(tmp_path)
    edit(tmp_path, change)
    refused(tmp_path, "damaged run", "run.json was changed", "restore")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"run"', "{}", "[" * 10**5, '{"a": ' * 10**5, "9" * 5000, "\ufeff{}", '{"a":1,"a":1}']
)
def test_what_is_no_record_is_refused(tmp_path, text):
    run_of().save(tmp_path)
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    refused(tmp_path, "damaged run", "run.json", "restore")


def test_a_record_may_be_laid_out_otherwise(tmp_path):
    run = run_of()
    run.save(tmp_path)
    edit(tmp_path, lambda record: dict(reversed(record.items())))
    assert same(training.load(tmp_path), run)


def test_where_no_run_is(tmp_path):
    refused(tmp_path, "run.json is missing", error=FileNotFoundError)
    refused(tmp_path / "none", "run.json is missing", error=FileNotFoundError)
    folder = run_of().save(tmp_path / "run")
    refused(folder / "run.json", "run.json is missing", error=FileNotFoundError)
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors is missing", error=FileNotFoundError)
    for folder in (None, 3, run_of()):
        with pytest.raises(ValueError, match="folder must be the path"):
            training.load(folder)
    with pytest.raises(ValueError, match="null byte"):
        training.load("a\0b")


def test_a_message_is_one_line_wherever_the_folder_is(tmp_path):
    folder = run_of().save(tmp_path / "two\nlines")
    edit(folder, lambda record: record.update(nbvae="9\n.\u20280"))
    one_line(lambda: training.load(folder), "holds a run written by nbvae 9 . 0")


# Other versions.


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record["config"].update(warmup=3), ["config setting 'warmup'"]),
        (lambda record: record["objective"].update(name="new_vae"), ["objective 'new_vae'"]),
        (lambda record: record["objective"].update(temper=3), ["objective setting 'temper'"]),
        (lambda record: record["model"].update({"class": "NewVAE"}), ["model 'NewVAE'"]),
        (lambda record: record["model"].update({"class": "likelihoods"}), ["model 'likelihoods'"]),
        (lambda record: record["model"].update({"class": ["VAE"]}), ["model ['VAE']"]),
        (lambda record: record["model"].update(flow=3), ["model setting 'flow'"]),
        (lambda record: record.update(notes=3, more=4), ["not known here: 'more', 'notes'"]),
        (lambda record: record.update(format=3), ["format 3 is not known"]),
        (lambda record: record["config"].update(schedule="linear"), []),
        (lambda record: record["model"].update(network="transformer"), []),
        (lambda record: record["model"].update(latent_dim=3), []),
        (lambda record: record["objective"].update(beta=-1.0), []),
    ],
)
def test_a_newer_run_is_said_to_be_one(tmp_path, change, words, signed):
    run_of().save(tmp_path)
    edit(tmp_path, change, signed)
    if not signed:
        refused(tmp_path, *words)
    edit(tmp_path, lambda record: record.update(nbvae="9.0"), signed)
    refused(tmp_path, f"holds a run written by nbvae 9.0, this is {nbvae.__version__}: ", "load it with nbvae 9.0", *words)


def test_a_newer_run_of_which_all_is_known_is_loaded(tmp_path):
    run = run_of()
    run.save(tmp_path)
    edit(tmp_path, lambda record: record.update(nbvae="9.0", torch="9.0"), signed=True)
    assert same(training.load(tmp_path), run)


def test_a_newer_objective_can_be_given(tmp_path):
    run_of(objective=Annealed(0.5)).save(tmp_path)
    edit(tmp_path, lambda record: record.update(nbvae="9.0"), signed=True)
    assert training.load(tmp_path, objective=Annealed(0.5)).objective == Annealed(0.5)


def early(folder, run):
    """A run as it was saved before there were hashes."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    old = {name.replace("observation.", "pixels."): value for name, value in run.model.state_dict().items()}
    save_file(old, folder / "model.safetensors")
    record = {
        "nbvae": "0.1.0",
        "torch": "2.8.0",
        "model": {"class": type(run.model).__name__, **run.model.config},
        "dtype": str(next(run.model.parameters()).dtype).removeprefix("torch."),
        "objective": {"name": "beta_vae", "beta": run.objective.beta},
        "config": {"epochs": 2, "seed": 3, "device": "cpu"},
        "history": run.history,
        "seconds": run.seconds,
    }
    (folder / "run.json").write_text(json.dumps(record, indent=1) + "\n")
    return folder


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_run_of_the_time_before_hashes_is_loaded_with_a_word(tmp_path, caplog, kind):
    run = run_of(small().to(kind))
    early(tmp_path, run)
    with caplog.at_level(logging.WARNING, "nbvae"):
        assert same(training.load(tmp_path), run)
    assert "damage to it cannot be found" in caplog.text
    assert str(tmp_path) in caplog.text
    # What can be seen without a hash is seen.
    edit(tmp_path, lambda record: record["model"].update(latent_dim=3))
    refused(tmp_path, "damaged run", "(3, 3)", "(3, 2)")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:100])
    refused(tmp_path, "damaged run", "model.safetensors")


def test_a_damaged_run_of_that_time_is_loaded_or_refused_in_one_line(tmp_path):
    """What has no hash may be loaded changed; it is never a traceback of the inside."""
    runs = [run_of(), run_of(small(1), objectives.BetaVAE(0.3))]
    whole = [{path.name: path.read_bytes() for path in early(tmp_path / str(run.objective), run).iterdir()} for run in runs]
    pick, kinds = random.Random(1), [kind for kind in KINDS if kind != "unhashed"]
    for turn in range(450):
        folder = tmp_path / str(turn)
        folder.mkdir()
        for name, content in damaged(pick, kinds[turn % len(kinds)], *whole).items():
            (folder / name).write_bytes(content)
        for given in ({}, {"make": small, "objective": objectives.BetaVAE(0.7)}):
            try:
                training.load(folder, **given)
                said = str(folder)
            except (ValueError, FileNotFoundError) as error:
                said = str(error)
            assert str(folder) in said
            assert len(said.splitlines()) == 1


# Writing.


class Killed(BaseException):
    """The process ends: no file is touched any more."""


def kill_at(monkeypatch, turn):
    """Let the file operation number `turn` fail half way, and all behind it; return the list of those that were begun."""
    begun = []

    def dying(real, half=None):
        def operation(*args, **options):
            begun.append(real.__name__)
            if len(begun) <= turn:
                return real(*args, **options)
            if half is not None and len(begun) == turn + 1:
                half(*args)
            raise Killed

        return operation

    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", dying(write, lambda path, content: write(path, content[: len(content) // 2])))
    monkeypatch.setattr(Path, "unlink", dying(Path.unlink))
    monkeypatch.setattr(os, "replace", dying(os.replace))
    return begun


def test_an_interrupted_save_leaves_the_old_run_or_the_new_one(tmp_path, monkeypatch):
    """Killed at each file operation in turn, and then again in the save that follows."""
    runs = [run_of(small(seed), objectives.BetaVAE(seed + 1.0)) for seed in range(3)]
    with monkeypatch.context() as patch:
        begun = kill_at(patch, 1000)
        runs[0].save(tmp_path / "whole")
    assert {"write_bytes", "replace"} <= set(begun)
    found = set()
    for first in range(len(begun) + 1):
        for second in range(len(begun) + 1):
            folder = runs[0].save(tmp_path / f"{first} {second}")
            before = 0
            for index, turn in ((1, first), (2, second)):
                with monkeypatch.context() as patch:
                    kill_at(patch, turn)
                    done = False
                    with contextlib.suppress(Killed):
                        runs[index].save(folder)
                        done = True
                loaded = training.load(folder)
                assert same(loaded, runs[index]) or (same(loaded, runs[before]) and not done)
                before = index if same(loaded, runs[index]) else before
                found.add((index, before))
            runs[0].save(folder)
            assert same(training.load(folder), runs[0])
            assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "run.json"]
    assert found == {(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}


def test_who_reads_while_a_run_is_saved_gets_one_that_is_whole(tmp_path, monkeypatch):
    old, new = run_of(small(0)), run_of(small(1))
    old.save(tmp_path)
    read, waiting = Path.read_bytes, [new]

    def reading(path):
        content = read(path)
        if path.name == "run.json" and waiting:
            waiting.pop().save(tmp_path)
        return content

    monkeypatch.setattr(Path, "read_bytes", reading)
    assert same(training.load(tmp_path), new)


def test_a_run_is_replaced_and_a_stray_file_is_not(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for seed in (0, 1, 1):
        assert same(training.load(run_of(small(seed)).save(tmp_path)), run_of(small(seed)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "notes.txt", "run.json"]


def test_a_damaged_run_is_replaced(tmp_path):
    run_of().save(tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert same(training.load(run_of(small(1)).save(tmp_path)), run_of(small(1)))


def test_where_nothing_can_be_saved(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper", tmp_path / ("x" * 300), "a\0b"):
        one_line(
            lambda folder=folder: run_of().save(folder),
            match=r"no run can be saved in .*: give a folder that can be written to",
        )
    assert (tmp_path / "file").read_text() == "mine"
    for folder in (None, 3):
        with pytest.raises(ValueError, match="folder must be the path"):
            run_of().save(folder)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    folder = run_of().save(tmp_path / "run")
    for module, name in ((Path, "write_bytes"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            with pytest.raises(ValueError, match=r"no run can be saved in .* \(Permission denied\)"):
                run_of(small(1)).save(folder)
        assert same(training.load(folder), run_of())


# One's own models and objectives.


class Plain(nn.Module):
    """A VAE-like module, with batch norm, a tied pair, and buffers of both kinds."""

    def __init__(self, width=3, activation=nn.ReLU, tied=True, seen=0):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), activation(), nn.Dropout(0.1))
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)
        if tied:
            self.right.weight = self.left.weight
        self.register_buffer("seen", torch.tensor(seen))
        self.register_buffer("projection", torch.randn(2, 2), persistent=False)
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x):
        return self.right(self.left(self.first(x))) @ torch.ones(3, 2) @ self.projection


class Other(Plain):
    pass


class Own(models.VAE):
    def posterior(self, x):
        return super().posterior(x + 1)


class Range(models.MultiBetaVAE):
    pass


@dataclass(frozen=True)
class Annealed:
    beta: float
    table: object = None

    def __call__(self, model, x, step=0, reference=None):
        return objectives.BetaVAE(self.beta)(model, x)


class Weighted:
    def __init__(self, beta=1.0):
        self.beta, self.calls = beta, 0

    def __call__(self, model, x, step=0, reference=None):
        self.calls += 1
        return objectives.BetaVAE(self.beta)(model, x)


class Capped(objectives.BetaVAE):
    pass


def by_hand(model, x, step=0, reference=None):
    return objectives.VAE()(model, x)


def test_a_model_of_ones_own_comes_back(tmp_path):
    model = jolt(Plain(seen=7)).eval()
    model.register_buffer("cache", torch.ones(5), persistent=False)
    run = run_of(model)
    folder = run.save(tmp_path)
    refused(folder, "make=", "Plain")
    loaded = training.load(folder, make=Plain)
    expected, found = bits(model), bits(loaded.model)
    del expected["cache"]  # made in use, and not there in a new model
    assert found == expected
    assert loaded.model.right.weight is loaded.model.left.weight
    x = torch.rand(5, 4)
    assert torch.equal(loaded.model.eval()(x), model(x))
    assert same(replace(loaded, model=run.model), run)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Plain(width=4), ["first.0.bias is (4,)", "the saved one (3,)"]),
        (lambda: Plain().double(), ["torch.float64", "torch.float32"]),
        (lambda: Plain(activation=nn.GELU), ["first.2 is GELU(", "ReLU()"]),
        (lambda: nn.Sequential(nn.Linear(2, 2)), ["0.bias was not saved"]),
        (lambda: Plain().first, ["0.bias was not saved"]),
        (lambda: nn.Sequential(nn.LazyLinear(2)), []),
        (Other, ["class is Other", "Plain"]),
        (lambda: None, ["NoneType"]),
        (lambda: Plain, ["type"]),
        (dict, ["dict"]),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path, make, words):
    run_of(jolt(Plain())).save(tmp_path)
    one_line(lambda: training.load(tmp_path, make=make), *words, match=r"^make must return a new")


def test_weights_that_were_apart_are_not_tied(tmp_path):
    run_of(jolt(Plain(tied=False))).save(tmp_path)
    refused(tmp_path, "tied", make=Plain)
    assert training.load(tmp_path, make=lambda: Plain(tied=False))


@pytest.mark.parametrize("make", [Plain(), 3, "Plain", lambda width: Plain(width), nn.Linear, models.VAE])
def test_what_makes_no_model_is_refused(tmp_path, make):
    run_of(Plain()).save(tmp_path)
    one_line(lambda: training.load(tmp_path, make=make), "make must be a function without arguments")


def test_an_error_in_make_is_the_makers_own(tmp_path):
    run_of(Plain()).save(tmp_path)

    def broken():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        training.load(tmp_path, make=broken)


def test_a_subclass_is_not_mistaken_for_its_class(tmp_path):
    build = functools.partial(Own, (4,), 2, hidden=(3,))
    model = jolt(build())
    run_of(model).save(tmp_path)
    refused(tmp_path, "make=", "Own")
    refused(tmp_path, "class is VAE", "Own", make=lambda: models.VAE((4,), 2, hidden=(3,)))
    assert same(training.load(tmp_path, make=build), run_of(model))


def test_a_model_that_its_config_does_not_rebuild(tmp_path):
    model = small()
    model.config = None
    run_of(model).save(tmp_path / "none")
    refused(tmp_path / "none", "make=", "nbvae.models.vae.VAE")
    model = small(likelihood="bernoulli", sigma=None)
    model.encoder.body[1] = nn.GELU()  # the same weights, another function
    run_of(model).save(tmp_path / "replaced")
    refused(tmp_path / "replaced", "encoder.body.1 is ReLU()", "GELU(", "make=")
    model.decoder = nn.Linear(2, 4)
    run_of(model).save(tmp_path / "decoder")
    refused(tmp_path / "decoder", "decoder", "make=")

    def make():
        new = small(1, likelihood="bernoulli", sigma=None)
        new.encoder.body[1], new.decoder = nn.GELU(), nn.Linear(2, 4)
        return new

    assert same(training.load(tmp_path / "decoder", make=make), run_of(model))


def test_a_model_of_the_library_can_be_given(tmp_path):
    run_of(small()).save(tmp_path)
    assert same(training.load(tmp_path, make=lambda: small(5)), run_of(small()))


@pytest.mark.parametrize("kind", [models.MultiBetaVAE, Range])
def test_a_setting_that_no_weight_tells_is_compared(tmp_path, kind):
    build = functools.partial(kind, (4,), 2, hidden=(3,))
    model = jolt(build(beta_range=(0.5, 2.0)))
    run_of(model).save(tmp_path)
    refused(tmp_path, "beta_range is [0.5, 4.0], the saved one's is [0.5, 2.0]", make=lambda: build(beta_range=(0.5, 4.0)))
    assert same(training.load(tmp_path, make=lambda: build(beta_range=(0.5, 2.0))), run_of(model))


@pytest.mark.parametrize(
    ("objective", "same_kind", "others"),
    [
        (Annealed(0.5), Annealed(0.5), [Annealed(0.6), Weighted(), by_hand, objectives.BetaVAE(0.5)]),
        (Annealed(math.nan, object()), Annealed(math.nan, object()), [Annealed(0.5)]),
        (Weighted(0.5), Weighted(0.5), [Annealed(0.5), by_hand]),
        (Capped(0.5), Capped(0.5), [Capped(0.6), objectives.BetaVAE(0.5)]),
        (by_hand, by_hand, [Weighted(), refused]),
        (lambda model, x: None, lambda model, x: None, [by_hand]),
        (functools.partial(by_hand, step=1), functools.partial(by_hand, step=1), [by_hand, functools.partial(by_hand, step=2)]),
        (Weighted().__call__, Weighted().__call__, [by_hand]),
    ],
)
def test_an_objective_of_ones_own_is_named_and_asked_for(tmp_path, objective, same_kind, others):
    if isinstance(objective, Weighted):
        objective.calls = 300  # what an object counts is not what it is
    run_of(objective=objective).save(tmp_path)
    kind = objective if hasattr(objective, "__qualname__") else getattr(objective, "func", type(objective))
    refused(tmp_path, "objective=", kind.__qualname__)
    assert training.load(tmp_path, objective=same_kind).objective is same_kind
    for other in others:
        refused(tmp_path, "objective must be the one that", objective=other)
    for none in (3, "vae", Weighted):
        with pytest.raises(ValueError, match="objective must be what the run was trained on"):
            training.load(tmp_path, objective=none)


def test_an_objective_of_the_library_may_be_given_if_it_is_the_runs(tmp_path):
    run_of().save(tmp_path)
    assert same(training.load(tmp_path, objective=objectives.BetaVAE(0.7)), run_of())
    refused(tmp_path, "beta_vae(beta=0.7)", "beta_vae(beta=0.8)", objective=objectives.BetaVAE(0.8))


def test_all_that_is_needed_is_said_at_once(tmp_path):
    run_of(Plain(), Annealed(0.5)).save(tmp_path)
    refused(tmp_path, "make=", "Plain", "objective=", "Annealed(beta=0.5, table=None)")
    refused(tmp_path, "objective=", make=Plain)
    refused(tmp_path, "make=", objective=Annealed(0.5))
    assert training.load(tmp_path, make=Plain, objective=Annealed(0.5))


def test_nothing_that_a_record_names_is_imported(tmp_path):
    run_of(Plain(), Annealed(0.5)).save(tmp_path)

    def change(record):
        record["model"] |= {"module": "antigravity_of_mine", "class": "System"}
        record["objective"] |= {"module": "os", "name": "system"}

    edit(tmp_path, change, signed=True)
    refused(tmp_path, "antigravity_of_mine.System", "os.system")


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"model": small().decoder.forward}, "only a torch module can be saved"),
        ({"model": nn.LazyLinear(3)}, "dense tensors"),
        ({"model": nn.Linear(2, 2, device="meta")}, "dense tensors"),
        ({"model": nn.Linear(2, 2, dtype=torch.complex128)}, "dense tensors"),
        ({"objective": None}, "objective must be"),
        ({"config": {"epochs": 3}}, "training.TrainConfig"),
        ({"history": [1.0]}, "list of numbers"),
        ({"history": {"loss": ["a"]}}, "list of numbers"),
        ({"seconds": None}, "numbers"),
    ],
)
def test_what_is_no_run_is_not_saved(tmp_path, changes, allowed):
    one_line(lambda: replace(run_of(), **changes).save(tmp_path / "run"), allowed)
    assert not (tmp_path / "run").exists()


def test_a_model_without_weights_is_saved(tmp_path):
    run_of(nn.Identity()).save(tmp_path)
    assert isinstance(training.load(tmp_path, make=nn.Identity).model, nn.Identity)


def test_another_number_of_a_plain_class_is_said(tmp_path, caplog):
    """It may be state that the objective kept, which is no reason to refuse it."""
    run_of(objective=Weighted(0.5)).save(tmp_path)
    training.load(tmp_path, objective=Weighted(0.5))
    assert not caplog.records
    training.load(tmp_path, objective=Weighted(0.7))
    assert "is loaded with" in caplog.text


@pytest.mark.parametrize(
    ("saved", "made"),
    [
        ({"likelihood": "bernoulli"}, {"likelihood": "continuous_bernoulli"}),
        ({"likelihood": "discretized_gaussian", "levels": 2}, {"likelihood": "discretized_gaussian", "levels": 3}),
        ({"likelihood": "discretized_gaussian", "levels": 2}, {"likelihood": "discretized_logistic", "levels": 2}),
    ],
)
def test_another_likelihood_around_networks_of_ones_own_is_refused(tmp_path, saved, made):
    def build(**options):
        return models.VAE((4,), 2, encoder=nn.Linear(4, 4), hidden=(3,), **options)

    run_of(build(**saved)).save(tmp_path)
    refused(tmp_path, "its observation is", make=lambda: build(**made))
    assert training.load(tmp_path, make=lambda: build(**saved))


def with_hook(model):
    model.decoder[0].register_forward_hook(lambda layer, given, output: 0.1 * output)
    return model


def with_method(model):
    model.likelihood = types.MethodType(lambda self, z: models.VAE.likelihood(self, 3 * z), model)
    return model


@pytest.mark.parametrize("alter", [with_hook, with_method])
def test_a_model_with_a_hook_or_a_method_of_its_own_is_asked_for(tmp_path, alter):
    run = run_of(alter(small()))
    run.save(tmp_path)
    with pytest.raises(ValueError, match="call load with make="):
        training.load(tmp_path)
    z = torch.ones(3, 2)
    again = training.load(tmp_path, make=lambda: alter(small(1))).model
    assert torch.equal(again.likelihood(z).mean, run.model.likelihood(z).mean)


def test_a_users_files_stay(tmp_path):
    own = tmp_path / "notes.pending"
    own.write_text("mine")
    run_of().save(tmp_path)
    assert own.read_text() == "mine"


def test_fields_are_compared_as_numbers_and_arrays_too(tmp_path):
    for index, (saved, equal, other) in enumerate(
        (
            (Annealed(1), Annealed(1.0), Annealed(2)),
            (Annealed(np.float32(2.0)), Annealed(2.0), Annealed(np.float32(5.0))),
            (Annealed(torch.tensor([1.0, 2.0])), Annealed([1.0, 2.0]), Annealed(torch.tensor([1.0, 3.0]))),
            (Annealed(math.nan), Annealed(math.nan), Annealed(1.0)),
            (Annealed(1), Annealed(1), Annealed(True)),
        )
    ):
        folder = tmp_path / str(index)
        run_of(objective=saved).save(folder)
        assert training.load(folder, objective=equal).objective is equal
        with pytest.raises(ValueError, match="objective must be the one that"):
            training.load(folder, objective=other)


def test_the_class_of_an_objective_is_made_with_its_fields(tmp_path):
    run_of(objective=Annealed(0.25)).save(tmp_path)
    assert training.load(tmp_path, objective=Annealed).objective == Annealed(0.25)
    one_line(lambda: training.load(tmp_path, objective=Unlike), "cannot be made with what")


@dataclass(frozen=True)
class Unlike:
    gamma: float

    def __call__(self, model, x, step=0, reference=None):
        raise AssertionError("not called")
