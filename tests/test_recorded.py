"""Recorded results: each entry beside a note of how it was made, which a later run that finds the entry leaves alone."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import _record  # noqa: E402
import samplers  # noqa: E402
import third_axis  # noqa: E402

RECORDS = sorted((ROOT / "book" / "recorded").glob("*.json"))
NOTE = {"command", "commit", "modified", "date", "seconds", "device", "threads", "cores", "versions"}


def notes(known: dict) -> dict[tuple[str, ...], dict | None]:
    """The note of each entry, by the entry's path; `cost` is an entry itself, the other sections hold entries."""
    found = {}
    for section, entries in known.items():
        kept = known["provenance"].get(section, {})
        if section == "cost":
            found[section,] = kept
        elif section in ("runs", "races", "seeds", "models", "pairs"):
            found |= {(section, entry): kept.get(entry) for entry in entries}
    return found


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_recorded_entry_has_a_note_of_its_own(path):
    known = json.loads(path.read_text(encoding="utf-8"))
    assert set(known) - {"provenance", "plan", "budget"} == {path[0] for path in notes(known)}
    for entry, note in notes(known).items():
        assert note is not None, entry
        assert set(note) - {"recorded"} == NOTE, entry
        # The commit of the code, or, for entries from before it was noted, the one that stored them.
        assert note["commit"] or note["recorded"]["commit"], entry
    assert set(known["provenance"]) <= {path[0] for path in notes(known)} | {"accuracy", "real", "train"}


def write(folder: Path, command: str, **shared) -> _record.Record:
    return _record.Record(folder / "out.json", command, **{"plan": {"betas": (1.0, 2.0)}} | shared)


def test_what_is_known_is_not_made_again_and_keeps_its_note(tmp_path, monkeypatch):
    monkeypatch.setattr(_record, "code", lambda root: {"commit": "a" * 40, "modified": False})
    assert write(tmp_path, "first").entry(lambda: {"loss": 1.0}, "runs", "one") == {"loss": 1.0}
    before = json.loads((tmp_path / "out.json").read_text())["provenance"]["runs"]["one"]
    assert set(before) == NOTE
    assert (before["command"], before["commit"], before["modified"]) == ("first", "a" * 40, False)

    monkeypatch.setattr(_record, "code", lambda root: {"commit": "b" * 40, "modified": True})
    second = write(tmp_path, "second")
    assert second.entry(lambda: pytest.fail("made again"), "runs", "one") == {"loss": 1.0}
    second.entry(lambda: {"fit": 1.5}, "cost")
    known = json.loads((tmp_path / "out.json").read_text())
    assert known["runs"] == {"one": {"loss": 1.0}}
    assert known["cost"] == {"fit": 1.5}
    assert known["provenance"]["runs"]["one"] == before
    assert (known["provenance"]["cost"]["command"], known["provenance"]["cost"]["modified"]) == ("second", True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_table_made_anew_keeps_its_note_while_it_is_the_same(tmp_path):
    write(tmp_path, "first").put({"regret": [float("nan"), 1.0]}, "races", "equal steps")
    write(tmp_path, "second").put({"regret": (float("nan"), 1.0)}, "races", "equal steps")
    assert write(tmp_path, "third").provenance["races"]["equal steps"]["command"] == "first"
    write(tmp_path, "fourth").put({"regret": [float("nan"), 2.0]}, "races", "equal steps")
    assert write(tmp_path, "fifth").provenance["races"]["equal steps"]["command"] == "fourth"


def test_other_shared_values_are_refused_in_one_line(tmp_path):
    record = write(tmp_path, "first")
    record.share(record.provenance, accuracy=0.9)
    record.save()
    text = (tmp_path / "out.json").read_text()
    with pytest.raises(SystemExit, match=r"^\S+out.json was made with another plan: give another --out, or remove it$"):
        write(tmp_path, "second", plan={"betas": (1.0, 3.0)})
    other = write(tmp_path, "third")
    with pytest.raises(SystemExit, match="another accuracy"):
        other.share(other.provenance, accuracy=0.8)
    with pytest.raises(SystemExit, match="another accuracy"):
        other.share(other.provenance, accuracy=0.9000001)
    with pytest.raises(SystemExit, match="another accuracy"):
        other.share(other.provenance, 1e-4, accuracy=0.901)
    other.share(other.provenance, 1e-4, accuracy=0.9000001)
    assert (tmp_path / "out.json").read_text() == text


def test_the_commit_and_whether_the_code_was_modified(tmp_path):
    assert _record.code(tmp_path) == {"commit": None, "modified": None}
    git = functools.partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True, text=True)
    (tmp_path / "nbvae").mkdir()
    (tmp_path / "nbvae" / "a.py").write_text("a = 1\n")
    git(["git", "init", "-q"])
    git(["git", "add", "-A"])
    git(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"])
    commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
    (tmp_path / "out.json").write_text("{}")  # a result is no code
    assert _record.code(tmp_path) == {"commit": commit, "modified": False}
    (tmp_path / "nbvae" / "b.py").write_text("")
    assert _record.code(tmp_path) == {"commit": commit, "modified": True}


def sessions(path: Path) -> dict[tuple[str, ...], str]:
    return {entry: note["command"] for entry, note in notes(json.loads(path.read_text())).items()}


def test_resumed_samplers_keep_the_notes_of_what_they_do_not_run(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(samplers, "measure", lambda plan, dataset, extract, seed: calls.append(seed) or {"rate": seed})
    for seeds in (["0"], ["0", "1"]):
        monkeypatch.setattr(sys, "argv", ["samplers.py", "--seeds", *seeds, "--out", str(tmp_path / "out.json")])
        samplers.main()
    assert calls == [0, 1]
    assert sessions(tmp_path / "out.json") == {
        ("seeds", "0"): "benchmarks/samplers.py --budget digits --seeds 0",
        ("seeds", "1"): "benchmarks/samplers.py --budget digits --seeds 0 1",
    }


def test_a_resumed_study_keeps_the_notes_of_what_it_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(third_axis.Study, "measured", lambda study, model, setting, network: {"setting": setting})
    monkeypatch.setattr(_record, "machine", lambda: {"device": "first"})
    third_axis.Study(tmp_path / "out.json").family("one", lambda: [(None, "a", "a/0")])
    monkeypatch.setattr(_record, "machine", lambda: {"device": "second"})
    study = third_axis.Study(tmp_path / "out.json")
    study.family("one", lambda: pytest.fail("made again"))
    study.family("two", lambda: [(None, "b", "b/0")])
    assert {entry: note["device"] for entry, note in notes(study.record.known).items()} == {
        ("models", "one"): "first",
        ("models", "two"): "second",
    }
