"""Studies: plans, what records hold, the command; and the records of the book."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from errors import one_line

import studies
from nbvae import data, models, objectives, training
from studies import convergence, lab, record
from studies.__main__ import main
from studies.plan import Plan

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(Plan):
    passes: int = 3
    lr: float = 1e-2
    betas: tuple[float, ...] = (0.1, 1.0)
    network: str = "mlp"
    exact: bool = True
    limit: float | None = None


def test_a_plan_reads_texts_as_a_command_line_has_them():
    plan = Mine().changed(passes="7", lr="1e-3", betas="0.5,2", exact="false", limit="none", images="100", seeds="3,4")
    assert plan == Mine(passes=7, lr=1e-3, betas=(0.5, 2.0), exact=False, images=100, seeds=(3, 4))
    assert Mine().changed(limit="2").limit == 2.0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"passes": "many"}, "passes must be a whole number"),
        ({"passes": 1.5}, "passes must be a whole number"),
        ({"passes": True}, "passes must be a whole number"),
        ({"lr": "fast"}, "lr must be a number"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"betas": 1.0}, "betas must be a numbers with commas"),
        ({"betas": "1,x"}, "betas must be a number"),
        ({"exact": "yes"}, "exact must be true or false"),
        ({"network": 3}, "network must be a text"),
        ({"binarize": "half"}, "binarize must be"),
        ({"images": 0}, "images must be"),
        ({"seeds": ()}, "seeds must be different"),
        ({"seeds": (1, 1)}, "seeds must be different"),
        ({"seeds": "-1"}, "seeds must be different"),
        ({"epochs": 3}, "the plan has no field 'epochs'; it has dataset"),
    ],
)
def test_a_plan_refuses_in_one_line(values, said):
    one_line(lambda: Mine().changed(**values), said)


def test_plans_that_ask_for_the_same_have_the_same_hash_and_others_have_not():
    assert Mine(lr="0.01").hash == Mine().hash == Mine(betas=[0.1, 1]).hash
    others = {
        Mine().changed(**{name: value}).hash
        for name, value in (("passes", 4), ("lr", 2e-2), ("betas", (1.0, 0.1)), ("images", 5))
    }
    assert len(others | {Mine().hash}) == 5


def test_a_field_that_came_after_a_record_changes_its_hash_only_where_it_is_used():
    """Records were made before plans could be compared with half of their passes, or claim sides only."""
    plan = studies.study("failures").plan("digits", "full")
    later = {"against": 0.5, "sides": ("deep",), "unclaimed": ("gap",)}
    before = {name: value for name, value in plan.settings.items() if name not in later}
    known = hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:16]
    assert plan.hash == known
    assert len({known} | {plan.changed(**{name: value}).hash for name, value in later.items()}) == 4


@pytest.mark.parametrize("name", ["curve", "failures", "objectives", "sigma", "warm", "weights"])
@pytest.mark.parametrize(("passes", "against"), [(4, 3.0), (5, 0.5), (4, 1.0), (4, 0.0)])
def test_passes_are_compared_with_twice_or_half_as_many(name, passes, against):
    plan = studies.study(name).plan("digits", "smoke")
    one_line(lambda: plan.changed(passes=passes, against=against), "against must be 2 or, for an even number of passes, 0.5")


@pytest.mark.parametrize("name", [name for name in studies.NAMES if name != "spectra"])  # which trains nothing
def test_a_quick_plan_has_as_many_steps_on_a_small_file(name, tmp_path):
    """Passes are what is counted, and over a tenth of the examples each is a tenth of the steps."""
    examples = {}
    for rows in (300, 2500):
        path = str(tmp_path / f"{rows}.npz")
        values = np.random.default_rng(0).random((rows, 6)).astype("float32")
        np.savez(path, train=values, test=values[:50])
        mine = studies.study(name).plan(path, "quick")
        for passes in {"passes", "short", "pair_passes"} & set(mine.settings):
            examples.setdefault(passes, []).append(mine.settings[passes] * min(1000, len(data.load(path).train)))
    assert all(few == pytest.approx(many, rel=0.35) and few >= many for few, many in examples.values())


def test_the_first_images_are_used_with_their_labels():
    ds, whole = Plan(images=50).data(), Plan().data()
    assert (ds.train == whole.train[:50]).all()
    assert (ds.train_labels == whole.train_labels[:50]).all()
    assert len(ds.test) == len(whole.test)
    assert len(Plan(images=1201).data().train) == 1200


def a_record(**more) -> record.Record:
    frame = pd.DataFrame(
        {
            "objective": ["vae", "vae"],
            "seed": [0, 1],
            "quantity": "rate",
            "value": [0.1 + 0.2, np.nan],
            "stderr": np.nan,
            "n": [5, 5],
        }
    )
    note = dict.fromkeys(record.NOTE, None) | {"date": "2026-11-25T10:00:00+00:00", "seconds": 2.5}
    given = {
        "study": "mine",
        "plan": Mine().settings,
        "hash": Mine().hash,
        "frame": frame,
        "checks": [convergence.Check("all is well", True, "nothing moved")],
        "said": "It is so.",
        "data": "d" * 64,
        "code": "c",
        "notes": [note, note],
        "arrays": {"codes": np.arange(6.0).reshape(2, 3)},
    }
    return record.Record(**given | more)


def test_a_record_is_read_as_it_was_written(tmp_path):
    model = models.VAE((1, 8, 8), 2, hidden=(4,))
    run = training.Run(model, objectives.VAE(), training.TrainConfig(epochs=1), {"loss": [1.0]}, 0.1)
    record.write(a_record(runs={"vae": run}), tmp_path)
    record.write(a_record(plan=Mine(dataset="mnist").settings), tmp_path)
    found = record.read("mine", "digits", tmp_path)
    assert found is not None
    pd.testing.assert_frame_equal(found.frame, a_record().frame)
    assert (found.arrays["codes"] == a_record().arrays["codes"]).all()
    assert all((a == b).all() for a, b in zip(found.model("vae").parameters(), model.parameters(), strict=True))
    assert (found.passed, found.seconds, found.date, found.live) == (True, 5.0, "2026-11-25", False)
    assert found.note == "Recorded on 2026-11-25: digits, 3 seeds."
    assert record.recorded("mine", tmp_path) == ["digits", "mnist"]
    assert record.read("mine", "glyphs", tmp_path) is None
    assert record.read("other", "digits", tmp_path) is None
    with pytest.raises(ValueError, match="model must be"):
        found.model("nosuch")


def test_a_damaged_record_is_refused_in_one_line(tmp_path):
    record.write(a_record(), tmp_path)
    path, arrays = tmp_path / "mine.json", tmp_path / "mine_digits.npz"
    whole = path.read_text()
    for text in (
        whole.replace("0.30000000000000004", "0.30000000000000005e1"),
        whole.replace('"passed": true', '"passed": false'),
        whole[:-40],
        "[]",
    ):
        path.write_text(text)
        one_line(lambda: record.read("mine", "digits", tmp_path), "mine.json")
    path.write_text(whole)
    content = arrays.read_bytes()
    arrays.write_bytes(content[:-3])
    one_line(lambda: record.read("mine", "digits", tmp_path), "mine_digits.npz is missing or damaged")


def test_a_model_that_is_too_large_is_not_recorded(tmp_path):
    run = training.Run(models.VAE((1, 28, 28), 2), objectives.VAE(), training.TrainConfig(epochs=1), {"loss": [1.0]}, 0.1)
    with pytest.raises(ValueError, match="at most 1 are recorded"):
        record.write(a_record(runs={"large": run}), tmp_path)


# The studies themselves.


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Each study's plan of seconds, once, on the first of its data sets; on digits in the place of what must be downloaded."""
    here, first = lab.Lab(tmp_path_factory.mktemp("lab")), {name: studies.study(name).DATASETS[0] for name in studies.NAMES}
    of = {name: "digits" if dataset == "mnist" else dataset for name, dataset in first.items()}
    return {name: studies.load(name, dataset, budget="smoke", lab=here) for name, dataset in of.items()}


@pytest.mark.parametrize("name", studies.NAMES)
def test_a_study_runs_and_its_record_can_be_written(smoke, name, tmp_path):
    found, module = smoke[name], studies.study(name)
    assert found.study == name
    assert found.checks
    assert found.said
    assert found.live
    assert {"quantity", "value", "stderr", "n", "seed", "dataset", "study"} <= set(found.frame)
    assert set(found.frame["seed"]) == set(found.plan["seeds"])
    record.write(found, tmp_path)
    pd.testing.assert_frame_equal(record.read(name, found.plan["dataset"], tmp_path).frame, found.frame, check_dtype=False)
    assert (ROOT / "notebooks" / f"{module.CHAPTER}.ipynb").is_file()
    for dataset in module.DATASETS:
        plans = [module.plan(dataset, budget) for budget in studies.BUDGETS]
        assert len({plan.hash for plan in plans}) == len(plans)
        assert all(plan.dataset == dataset for plan in plans)


RECORDED = [(name, dataset) for name in studies.NAMES for dataset in record.recorded(name)]


@pytest.mark.parametrize(("name", "dataset"), RECORDED)
def test_a_committed_record_is_of_todays_full_plan_and_converged(name, dataset):
    found, module = record.read(name, dataset), studies.study(name)
    again = f"python -m studies {name} --record"
    assert found is not None
    assert found.hash == module.plan(dataset, "full").hash, f"the plan has changed: {again}"
    assert found.passed, f"{[check for check in found.checks if not check.passed]}: train longer, then {again}"
    assert dataset in module.DATASETS
    assert found.notes
    for note in found.notes:
        assert note.keys() >= record.NOTE
        assert note["commit"]
        assert note["modified"] is False, f"recorded from code that is in no commit: {again}"
        assert note["seconds"] >= 0
    assert re.fullmatch("[0-9a-f]{64}", found.data)
    for key in found.runs:
        assert found.model(key) is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "study must be one of"),
        (["objectives", "--set", "epochs=3"], "the plan has no field 'epochs'"),
        (["objectives", "--set", "passes=many"], "passes must be a whole number"),
        (["objectives", "--set", "passes"], "--set takes FIELD=VALUE"),
        (["objectives", "--set", "dataset=nosuch"], "dataset must be one of"),
        (["objectives", "--set", "dataset=nosuch.npz"], "no file nosuch.npz"),
        (["objectives", "--record", "--set", "passes=4"], "its full plan"),
        (["objectives", "--record", "--set", "dataset=patches"], "its full plan"),
        (["objectives", "--plan", "smoke", "--device", "gpu"], "device must be one of"),
        (["objectives", "--plan", "smoke", "--workers", "-1"], "workers must be"),
        (["objectives", "--plan", "smoke", "--store", "/dev/null/x"], "cannot be written"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments if "--workers" in arguments else [*arguments, "--workers", "0"])
    assert caught.value.code == 1
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert printed.startswith("studies: ")


def test_the_command_lists_the_studies(capsys):
    main([])
    printed = capsys.readouterr().out
    for name in studies.NAMES:
        assert studies.study(name).QUESTION in printed


def test_the_command_runs_a_study_on_a_readers_file_and_goes_on_where_it_was(tmp_path):
    mine = tmp_path / "mine.npz"
    pixels = (np.random.default_rng(0).random((300, 12)) < 0.3).astype("float32")
    np.savez(mine, train=pixels[:250], test=pixels[250:])
    command = [sys.executable, "-m", "studies", "objectives", "--plan", "smoke", "--workers", "0", "--set", f"dataset={mine}"]
    run = subprocess.run([*command, "--store", str(tmp_path / "lab")], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "objectives on" in run.stdout
    assert (
        len(list((tmp_path / "lab" / "results").iterdir()))
        == len({each.name for each in (tmp_path / "lab" / "results").iterdir()})
        > 5
    )


def test_a_chapter_gets_the_record_or_the_experiment_run_now(tmp_path, monkeypatch, smoke):
    plan = studies.study("objectives").plan("digits", "full")
    kept = dataclasses.replace(smoke["objectives"], plan=plan.settings, hash=plan.hash)
    record.write(kept, tmp_path)
    monkeypatch.setattr(studies, "read", lambda name, dataset: record.read(name, dataset, tmp_path))
    assert not studies.load("objectives").live
    assert not studies.load("objectives", seeds=plan.seeds).live
    now = studies.load("objectives", budget="smoke")
    assert now.live
    assert now.note.startswith("Computed now: digits, 2 seeds, too few and trained too briefly for a claim")
    with pytest.raises(ValueError, match="study must be one of"):
        studies.load("nosuch")
    with pytest.raises(ValueError, match="budget must be one of"):
        studies.load("objectives", budget="half")
    with pytest.raises(ValueError, match="no field"):
        studies.load("objectives", budget="smoke", epochs=3)
    json.dumps(now.plan)


def test_a_study_that_is_run_now_is_kept_in_the_current_folder_where_it_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "KEPT", ".studies")
    monkeypatch.chdir(tmp_path)
    first = studies.load("sampled", budget="smoke")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / ".studies" / "results").iterdir()}
    assert len(kept) == 10  # five ways of training, for two numbers of passes
    module = studies.study("sampled")
    monkeypatch.setattr(module, "sweep", None)  # what is kept is not trained again
    again = studies.load("sampled", budget="smoke")
    pd.testing.assert_frame_equal(first.frame, again.frame)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studies, "KEPT", "/dev/null/x")  # cannot be written
    assert studies.load("sampled", budget="smoke").live


def test_all_rows_of_a_study_can_be_had_as_a_table(tmp_path, capsys):
    to = tmp_path / "rows.csv"
    command = ["sampled", "--plan", "smoke", "--workers", "0", "--store", str(tmp_path / "lab"), "--csv"]
    main([*command, str(to)])
    rows = pd.read_csv(to)
    assert len(rows) == 30
    assert {"study", "dataset", "objective", "seed", "quantity", "value"} <= {*rows}
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "nosuch" / "rows.csv")])
    assert "cannot be written" in capsys.readouterr().err
    for wrong in (["all"], ["sampled", "--record"], []):
        with pytest.raises(SystemExit):
            main([*wrong, "--csv", str(to)])


@pytest.mark.parametrize("name", ["objectives", "weights"])
def test_objectives_begin_with_one_model_where_a_plan_says_so(name, monkeypatch):
    """The weights that the second of the two sweeps is given are those that the first one ended with, for every objective."""
    module, sweeps = studies.study(name), []
    sweep = module.sweep

    def flat(model):
        return torch.cat([value.detach().clone().flatten() for value in model.parameters()])

    def watched(make, *args, **settings):
        begun = []

        def noted():
            model = make()
            begun.append(flat(model))
            return model

        runs = sweep(noted, *args, **settings)
        sweeps.append((torch.stack(begun), torch.stack([flat(run.model) for run in runs])))
        return runs

    monkeypatch.setattr(module, "sweep", watched)
    monkeypatch.setattr(studies.study("objectives"), "sweep", watched)  # which makes what they begin with
    names = ["VAE", "β-VAE, β = 2"]
    common = {"dataset": "digits", "binarize": "default", "images": 100, "latent_dim": 2, "hidden": [8]}
    common |= {"batch": 50, "lr": 1e-2, "draws": 1, "passes": 1, "seeds": [0, 1], "store": None, "device": "cpu"}
    both = {one: ("beta_vae", {"beta": beta}) for one, beta in zip(names, (1.0, 2.0), strict=True)}
    # One objective in each call, or those in one call that differ in numbers only.
    calls = (
        [{"rows": both, "under": both}]
        if name == "weights"
        else [{"rows": names, "closed": [], "objective": one} for one in names]
    )
    monkeypatch.setattr(studies.study("objectives"), "APART", 60)
    rows = [row for own in calls for row in module.train(**common, **own, start=0.1, start_passes=2)["rows"]]
    assert {row["n"] for row in rows if row["quantity"] == "mutual_information"} == {60}
    assert {row["n"] for row in rows if row["quantity"] == "loss under VAE"} == {100}
    told = [(row["objective"], row["seed"]) for row in rows if row["quantity"] == "rate"]
    assert told == [(one, seed) for one in names for seed in (0, 1)]
    start = sweeps[0][1]
    begun, ended = (torch.cat(each) for each in zip(*sweeps[1::2], strict=True))
    assert torch.equal(begun, torch.cat([start, start]))
    assert not torch.equal(ended[:2], ended[2:])
    sweeps.clear()
    module.train(**common, **calls[0], start=0.0, start_passes=2)
    [(fresh, _)] = sweeps
    assert not torch.equal(fresh[:2], start)
