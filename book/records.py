"""The page of records: each study with its question, plan, provenance and convergence, and its rows as CSV.

It is written from `book/recorded`, and what it says is what the studies themselves say.
"""

import json
import re
from pathlib import Path
from typing import Any

NAME = "records"  # the page in book/executed
ABOUT = """# The records

What a chapter claims rests on a *study*: trainings that are longer than a page can wait for, made once. Here are all of them,
with their settings, the outcome of their checks of convergence, and what made them: commit, device and versions. The numbers
behind tables and figures are there as CSV, a row for each seed and quantity. `python -m studies NAME --record` makes a record
anew, and `python -m studies NAME --set dataset=mine.npz` runs the study on other data.
"""


def write(root: Path, replace: Any) -> None:
    """Write the page and its files under `root`, by `replace(file, text)`."""
    import studies
    from studies import record

    folder = root / "book" / "executed"
    recorded = root / "book" / "recorded"
    (folder / NAME).mkdir(parents=True, exist_ok=True)
    parts = [ABOUT]
    for name in studies.NAMES:
        module = studies.study(name)
        found = [each for dataset in module.DATASETS if (each := record.read(name, dataset, recorded))]
        parts += section(name, module, found)
        for each in found:
            replace(folder / NAME / _file(each), each.frame.to_csv(index=False, lineterminator="\n"))
    replace(folder / f"{NAME}.md", "\n".join(parts) + "\n")


def section(name: str, module: Any, found: list[Any]) -> list[str]:
    """What the page says of one study, in lines."""
    chapter = module.CHAPTER
    lines = [f"## {name}", "", f"{module.QUESTION} Read by [chapter {int(chapter[:2])}]({chapter}.ipynb).", ""]
    if not found:
        return [*lines, "Not recorded yet: chapters run its quick plan.", ""]
    lines += table(
        ("data", "recorded", "minutes", "seeds", "checks", "rows"),
        [
            (
                each.plan["dataset"],
                each.date,
                f"{each.seconds / 60:.0f}",
                str(len(each.plan["seeds"])),
                f"{sum(check.passed for check in each.checks)} of {len(each.checks)} passed",
                f"{{download}}`CSV <{NAME}/{_file(each)}>`",
            )
            for each in found
        ],
    )
    for each in found:
        lines += [f"````{{dropdown}} {name} on {each.plan['dataset']}: plan, checks, provenance", plain(each.said), ""]
        lines += table(("setting", "value"), [(f"`{key}`", f"`{json.dumps(value)}`") for key, value in each.plan.items()])
        lines += table(("check", "outcome", "found"), [map(plain, row) for row in each.convergence.itertuples(index=False)])
        lines += [_provenance(each), "````", ""]
    return lines


def _provenance(found: Any) -> str:
    """The sentence that says who made a record."""

    def every(key: str) -> list[str]:
        return sorted({str(note[key]) for note in found.notes})

    versions = sorted({f"{name} {version}" for note in found.notes for name, version in note["versions"].items()})
    return (
        f"Commit {', '.join(f'`{each[:10]}`' for each in every('commit'))}, on {', '.join(every('device'))}, with"
        f" {', '.join(versions)}. The data have the SHA-256 `{found.data[:16]}`…, the plan the hash `{found.hash}`."
    )


def table(head: tuple[str, ...], rows: Any) -> list[str]:
    lines = ["```{list-table}", ":header-rows: 1", ""]
    for row in (head, *rows):
        lines += [f"{'* -' if n == 0 else '  -'} {' '.join(str(cell).split())}" for n, cell in enumerate(row)]
    return [*lines, "```", ""]


def plain(words: str) -> str:
    """Words in which nothing is meant as markup."""
    return re.sub(r"([\\*_`$<>\[\]{}|~#])", r"\\\1", words)


def _file(found: Any) -> str:
    return f"{found.study}_{found.plan['dataset']}.csv"
