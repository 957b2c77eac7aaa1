"""Results recorded before there were studies, which chapters still read: each entry has a note of how it was made."""

import json
from pathlib import Path

import pytest

import studies

RECORDED = Path(__file__).resolve().parent.parent / "book" / "recorded"
RECORDS = sorted(path for path in RECORDED.glob("*.json") if path.stem not in studies.NAMES)
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
