"""`python -m studies`: list the book's experiments, run them, record them."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import studies
from nbvae import checks
from studies import record
from studies.lab import Lab, dask, processes, seconds
from studies.plan import BUDGETS


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        if options.name is None:
            return table()
        names = studies.NAMES if options.name == "all" else [options.name]
        for name in names:
            studies.study(name)
        pool = dask(options.dask) if options.dask else processes(options.workers) if options.workers != 0 else None
        lab_of = lambda: Lab(options.store, pool, options.device, sys.stderr.isatty())  # noqa: E731
        for name in sorted(names, key=cost, reverse=True):  # the longest first
            for plan in plans(name, options):
                run(name, plan, lab_of(), options)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        stop(f"studies: {checks.line(error)}")
    except BrokenPipeError:  # who reads has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        stop(f"studies: stopped; the same command goes on from what is in {options.store}", 130)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m studies",
        description="The book's experiments: without a name they are listed, with one it is run.",
    )
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(studies.NAMES)}, or all")
    parser.add_argument("--plan", choices=BUDGETS, default=None, help="how long to train; full with --record, else quick")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of the plan: dataset=mine.npz seeds=0,1"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all rows that were found to this file")
    parser.add_argument("--record", action="store_true", help="write book/recorded/NAME.json, unless it is there for this plan")
    parser.add_argument("--again", action="store_true", help="with --record: also where the plan is the recorded one")
    parser.add_argument(
        "--workers", type=int, default=None, help="processes, one for each core by default; 0: none beside this"
    )
    parser.add_argument("--dask", metavar="ADDRESS", help="the scheduler of a Dask cluster to run on")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--store", type=Path, default=Path(studies.KEPT), help="folder of finished results and checkpoints")
    options = parser.parse_args(arguments)
    options.plan = options.plan or ("full" if options.record else "quick")
    if options.csv and (options.name in (None, "all") or options.record):
        parser.error("--csv goes with one study, and without --record")
    if options.record and options.plan != "full":
        parser.error("what is recorded is the full plan: leave --plan out")
    return options


def plans(name: str, options: argparse.Namespace) -> list[Any]:
    """The plans that are asked for: one for each of the study's data sets, or the one that is set."""
    module, settings = studies.study(name), {}
    for pair in options.set:
        field, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, got {pair!r}")
        settings[field] = value
    chosen = settings.pop("dataset", None)
    names = module.DATASETS if chosen is None and options.record else [chosen or module.DATASETS[0]]
    found = [module.plan(each, options.plan).changed(**settings) for each in names]
    if options.record:
        for plan, each in zip(found, names, strict=True):
            if each not in module.DATASETS or plan.hash != module.plan(each, "full").hash:
                raise ValueError(f"what is recorded of {name} is its full plan on {', '.join(module.DATASETS)}, and no other")
    return found


def run(name: str, plan: Any, lab: Lab, options: argparse.Namespace) -> None:
    """Run one plan, print what was found, record it if that is asked."""
    known = record.read(name, plan.dataset) if options.record and not options.again else None
    if known is not None and known.hash == plan.hash and known.passed:
        return print(f"{name} on {plan.dataset} is recorded ({known.date}): --again runs it all the same")
    if options.csv:  # refused before anything is trained
        _writable(options.csv)
    found = studies.study(name).run(plan, lab)
    if options.csv:
        found.frame.to_csv(options.csv, index=False)
    print(f"{name} on {plan.dataset}, {options.plan} plan, {seconds(found.notes):.0f} s of compute")
    print(found.said)
    for check in found.checks:
        print(f"{'passed' if check.passed else 'FAILED'}: {check.name} ({check.found})")
    if options.plan != "full":
        print(f"The {options.plan} plan shows how it is done; what is claimed rests on the full one.")
    if options.record:
        record.write(found)
        print(f"recorded in {os.path.relpath(record.RECORDED / f'{name}.json')}")


def _writable(path: Path) -> None:
    """Refuse a file that cannot be written."""
    try:
        path.open("a").close()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {checks.line(error.strerror)}") from None


def table() -> None:
    """List the studies and their records."""
    for name in studies.NAMES:
        module = studies.study(name)
        print(f"{name}: {module.QUESTION} ({module.CHAPTER})")
        for dataset in module.DATASETS:
            known = record.read(name, dataset)
            if known is None:
                print(f"  {dataset:14s} not recorded: python -m studies {name} --record")
                continue
            state = "passed" if known.passed else "FAILED: " + "; ".join(c.name for c in known.checks if not c.passed)
            state += "" if known.hash == module.plan(dataset, "full").hash else ", of another plan than today's"
            print(
                f"  {dataset:14s} {known.date}  {known.seconds / 60:6.1f} min of compute  {len(known.checks)} checks: {state}"
            )
    sys.stdout.flush()


def cost(name: str) -> float:
    """Seconds of the records of a study, those that there are."""
    return sum(found.seconds for each in record.recorded(name) if (found := record.read(name, each)))


def stop(text: str, status: int = 1) -> NoReturn:
    print(text, file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as ^C does: what has finished is kept
    main()
