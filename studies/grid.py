"""A notebook run over a grid of parameters, in processes or on a Dask cluster: what has finished is not run again.

    python -m studies.grid notebooks/03_rate_distortion.ipynb --grid seed=0,1,2 dataset=digits,mine.npz --out runs

Each combination is executed by papermill into `OUT/NAME_seed=0_dataset=digits.ipynb`. A list as one value is written in
brackets: betas=[0.1,1]. One that ends in an error leaves its notebook as far as it came, and is said at the end.
"""

import argparse
import hashlib
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from nbvae import checks
from studies.lab import Lab, dask, processes


def execute(
    notebook: str, content: str, parameters: dict[str, Any], dataset: Any, output: str, store: str | None, device: str
) -> dict[str, Any]:
    """Run a notebook with these parameters into `output`; `content` and `dataset` are what the lab knows it by.

    Raises `ValueError`, in one line, with what went wrong in it.
    """
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(notebook, output, parameters, kernel_name="python3", progress_bar=False)
    except PapermillExecutionError as error:
        raise ValueError(f"{output}: {error.ename}: {checks.line(error.evalue)}") from None
    return {"output": output}


def cells(notebook: Path, grid: list[str], out: Path) -> list[dict[str, Any]]:
    """The runs of a grid: every combination of the values of each NAME=VALUE,VALUE."""
    if not notebook.is_file():
        raise ValueError(f"no notebook {notebook}")
    known = papermill.inspect_notebook(str(notebook))
    axes: dict[str, list[Any]] = {}
    for each in grid:
        name, equals, values = each.partition("=")
        if not equals or not values:
            raise ValueError(f"--grid takes NAME=VALUE,VALUE, got {each!r}")
        if name not in known:
            raise ValueError(f"{notebook.name} has no parameter {name!r}; it has {', '.join(known)}")
        parts = re.findall(r"\[[^\]]*\]|[^,\[\]]+", values)
        axes[name] = [yaml.safe_load(part) for part in parts]
    content = hashlib.sha256(notebook.read_bytes()).hexdigest()
    found = []
    for values in itertools.product(*axes.values()):
        parameters = dict(zip(axes, values, strict=True))
        given = parameters.get("dataset")
        if isinstance(given, str) and given.lower().endswith(".npz"):
            given = parameters["dataset"] = str(Path(given).expanduser().resolve())
        label = "_".join(
            f"{name}={Path(str(value)).stem if name == 'dataset' else value}" for name, value in parameters.items()
        )
        output = out / f"{notebook.stem}_{re.sub(r'[^-=.,_A-Za-z0-9]', '', label.replace(' ', ''))}.ipynb"
        found.append(
            {"notebook": str(notebook.resolve()), "content": content, "parameters": parameters}
            | {"dataset": given, "output": str(output.resolve())}
        )
    if len({each["output"] for each in found}) < len(found):
        raise ValueError("two runs of the grid would have one name: values that differ, please")
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.grid", description="Run a notebook over a grid of parameters.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--grid", nargs="+", required=True, metavar="NAME=VALUE,VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the executed notebooks")
    parser.add_argument("--workers", type=int, default=None, help="processes, by default one for each core")
    parser.add_argument("--dask", metavar="ADDRESS", help="the scheduler of a Dask cluster to run on")
    options = parser.parse_args(arguments)
    try:
        pool = dask(options.dask) if options.dask else processes(options.workers)
        runs = cells(options.notebook, options.grid, options.out)
        lab = Lab(options.out / ".kept", pool, watched=sys.stderr.isatty())
        lab.forget(execute, [each for each in runs if not Path(each["output"]).exists()])
        for each in lab.map(execute, runs, options.notebook.stem):
            print(each["output"])
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        print(f"grid: {checks.line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"grid: stopped; the same command goes on from what is in {options.out}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
