"""Where studies run: what a lab keeps, makes again and refuses."""

import os
import subprocess
import sys
import time
from pathlib import Path

import labwork
import numpy as np
import pytest
from errors import one_line

import studies
from studies import lab, record

ROOT = Path(__file__).resolve().parents[1]


def cells(tmp_path, count=4, **more):
    return [{"n": n, "log": str(tmp_path / "log")} | more for n in range(count)]


def calls(tmp_path) -> list[int]:
    return sorted(map(int, (tmp_path / "log").read_text().split()))


def same(found: list[dict], count: int) -> bool:
    return [each["value"] for each in found] == [n * n for n in range(count)] and all(
        (each["many"] == np.arange(n) / 3).all() and each["many"].dtype == float for n, each in enumerate(found)
    )


def test_what_a_lab_has_it_does_not_make_again(tmp_path):
    assert same(lab.Lab(tmp_path / "lab").map(labwork.square, cells(tmp_path, 3), "squares"), 3)
    again = lab.Lab(tmp_path / "lab")
    assert same(again.map(labwork.square, cells(tmp_path, 5), "squares"), 5)
    assert calls(tmp_path) == [0, 1, 2, 3, 4]
    assert len(again.notes) == 5
    assert all(note.keys() >= record.NOTE for note in again.notes)


def test_a_damaged_result_is_made_again_and_a_setting_a_file_and_the_code_are_other_keys(tmp_path, monkeypatch):
    def kept():
        return len(list((tmp_path / "lab" / "results").glob("*.npz")))

    def make(**more):
        lab.Lab(tmp_path / "lab").map(labwork.square, cells(tmp_path, 2, **more), "squares")
        return kept()

    assert make() == 2
    for file in (tmp_path / "lab" / "results").glob("*.npz"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert make() == 2
    assert calls(tmp_path) == [0, 0, 1, 1]
    mine = tmp_path / "mine.npz"
    np.savez(mine, train=np.ones((3, 2)))
    assert make(dataset=str(mine)) == 4
    np.savez(mine, train=np.zeros((3, 2)))
    assert make(dataset=str(mine)) == 6
    assert make(dataset=str(mine)) == 6
    monkeypatch.setattr(lab.provenance, "code", lambda module, function: "edited")
    assert make() == 8


def test_a_result_of_code_that_was_committed_later_takes_that_commit(tmp_path, monkeypatch):
    def notes(commit: str, modified: bool | None, count: int):
        monkeypatch.setattr(lab.provenance, "commit", lambda: {"commit": commit, "modified": modified})
        made = lab.Lab(tmp_path / "lab")
        made.map(labwork.square, cells(tmp_path, count), "squares")
        return [(note["commit"], note["modified"]) for note in made.notes]

    assert notes("first", True, 1) == [("first", True)]
    assert notes("second", True, 1) == [("first", True)]  # still in no commit
    assert notes("none", None, 1) == [("first", True)]
    assert notes("third", False, 2) == [("third", False), ("third", False)]
    assert notes("fourth", False, 2) == [("third", False), ("third", False)]  # and keeps it
    assert calls(tmp_path) == [0, 1]


def test_the_code_of_a_call_is_what_its_function_needs_and_the_library_without_comments(tmp_path, monkeypatch):
    file = tmp_path / "mystudy.py"
    monkeypatch.syspath_prepend(tmp_path)

    def code(source: str, function: str = "train") -> str:
        file.write_text(source)
        lab.provenance.code.cache_clear()
        __import__("mystudy")
        return lab.provenance.code("mystudy", function)

    rest = "def helper():\n    return SIZE\ndef train():\n    return helper()\ndef check(): return 1\n"
    first = code('"""About."""\nSIZE = 1\n' + rest)
    assert first == code("# why\nSIZE = 1\n" + rest.replace("return SIZE", '"""What."""\n    return SIZE  # here'))
    assert first == code("SIZE = 1\n" + rest.replace("return 1", "return 2"))  # nothing that trains needs it
    hides = "def train(check=1):\n    return check\ndef check(): return 1\n"  # a name of its own
    assert code(hides) == code(hides.replace("return 1", "return 2")) != code(hides.replace("check=1", "check=2"))
    loops = "def train():\n    return [check for check in (1, 2)]\ndef check(): return 1\n"
    assert code(loops) == code(loops.replace("return 1", "return 2")) != code(loops.replace("(1, 2)", "(1, 3)"))
    assert first != code("SIZE = 2\n" + rest)
    assert first != code("SIZE = 1\n" + rest.replace("return SIZE", "return SIZE + 1"))
    assert first != code("SIZE: int = 1\n" + rest, "check")
    lab.provenance.code.cache_clear()


def test_the_code_of_a_call_has_what_it_takes_from_other_studies():
    module = studies.study("samplers")
    needed = set(lab.provenance._needed(module.__name__, "draw"))
    assert {"studies.samplers._rate", "studies.samplers.MANY", "studies.objectives.likelihood"} <= needed
    assert {
        "studies.third_axis.Rescaled",
        "studies.third_axis._centre_and_scale",
        "studies.plan.load",
        "studies.lab.sweep",
    } <= needed
    assert not {"studies.samplers._doubled", "studies.samplers.Plan", "studies.third_axis.run"} & needed
    whole = studies.study("coupled")  # reads from a study that it imports whole
    needed = set(lab.provenance._needed(whole.__name__, "measure"))
    assert "studies.ladder.ALONE" in needed
    assert "studies.ladder.run" not in needed


def test_the_seconds_of_trainings_that_were_there_count(tmp_path):
    """A study that failed its checks and is run again costs what both cost that it needs."""
    results = []
    for _ in range(2):
        here = lab.Lab(tmp_path / "lab")
        results += here.map(labwork.trains, cells(tmp_path, 1), "trainings")
        assert here.notes[0]["seconds"] >= round(results[-1]["trained"], 2) > 0
        here.forget(labwork.trains, cells(tmp_path, 1))
    assert results[0] == results[1]  # with its seconds: it was loaded
    assert calls(tmp_path) == [0, 0]


@pytest.mark.parametrize("function", [labwork.fails_once, labwork.dies_once, labwork.stops_once])
def test_lost_and_failed_calls_are_made_again_and_finished_ones_are_not(tmp_path, function):
    more = {"deadly": 2} if function is labwork.dies_once else {}
    pool = None if function is labwork.fails_once else lab.processes(2)
    assert same(lab.Lab(tmp_path / "lab", pool).map(function, cells(tmp_path, 4, **more), "squares"), 4)
    # Of a pool that breaks, calls that ran beside the killed one are lost too.
    assert set(calls(tmp_path)) == {0, 1, 2, 3}
    if not more:
        assert sorted(calls(tmp_path)) == [0, 1, 2, 3]


@pytest.mark.parametrize("function", ["sleeps", "sleeps_as_a_training"])
def test_a_study_that_is_told_to_stop_does_not_wait_for_its_calls(tmp_path, function):
    log = tmp_path / "log"
    code = f"""
import signal, labwork
from studies import lab
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cells = [{{"n": n, "log": {str(log)!r}}} for n in range(4)]
        lab.Lab({str(tmp_path / "lab")!r}, lab.processes(1)).map(labwork.{function}, cells, "sleep")
    except KeyboardInterrupt:
        print("stopped")
"""
    (tmp_path / "run.py").write_text(code)
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, "run.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    while not (log.exists() and log.read_text()) and process.poll() is None:
        time.sleep(0.1)
    process.terminate()
    assert process.communicate(timeout=100)[0] == "stopped\n"
    assert log.read_text() == "0\n"  # those that were handed out already were not begun


def test_a_call_that_always_fails_is_named_in_one_line_and_loses_nothing(tmp_path):
    said = r'labwork: squares failed 3 times for \{"n": 2,.*OSError: two is broken; the 2 others are kept in'
    for _ in range(2):
        one_line(
            lambda: lab.Lab(tmp_path / "lab").map(labwork.fails, cells(tmp_path, 3), "squares"), match=said, error=RuntimeError
        )
        assert calls(tmp_path) == [0, 1]
    one_line(
        lambda: lab.Lab(tmp_path / "lab").map(labwork.fails, cells(tmp_path, 4)[::-1], "squares"),
        "three is not allowed; the 2 others are kept in",
    )


def test_a_grid_on_a_cluster_survives_the_loss_of_a_worker(tmp_path):
    """Twelve calls, two workers, one killed: twelve results, equal to the serial ones; what had finished is not made again."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        here = lab.Lab(tmp_path / "lab", lab.dask(cluster.scheduler_address))
        assert same(here.map(labwork.dies_once, cells(tmp_path, 12, deadly=7), "squares"), 12)
    assert (tmp_path / "log.killed").exists()
    before = calls(tmp_path)
    assert set(before) == set(range(12))
    assert same(lab.Lab(tmp_path / "lab").map(labwork.dies_once, cells(tmp_path, 12, deadly=7), "squares"), 12)
    assert calls(tmp_path) == before


def test_a_lab_refuses_in_one_line(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for make in (
        lambda: lab.Lab(file),
        lambda: lab.Lab(device="gpu"),
        lambda: lab.processes(0),
        lambda: lab.dask("tcp://127.0.0.1:9"),
    ):
        one_line(make)
