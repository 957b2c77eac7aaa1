"""What chapters need of a notebook: parameters checked, errors in one line, SVG figures, numbers for the text, a slider."""

import ast
import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def begin(cells: Sequence[str]) -> None:
    """Open a chapter: `notebook.begin(In)` in the cell after the parameters, where they are also validated by use.

    - Parameters that papermill injected but the notebook does not have raise `ValueError`, with the names it has.
    - An error in this cell is shown as one line. Later cells show whole tracebacks.
    - Figures become SVG with stable identifiers, so that equal results give equal bytes.

    `cells` holds the source of the cells run so far, as IPython's `In` does.
    """
    import matplotlib as mpl
    from IPython.core.getipython import get_ipython
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    shell = get_ipython()
    if shell is not None:
        set_matplotlib_formats("svg")
        shell.InteractiveTB.set_mode(mode="Minimal")
        shell.events.register("post_run_cell", _whole_tracebacks)
    mpl.rcParams.update(
        {
            "svg.hashsalt": "nbvae",
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )
    check_parameters(cells)


def glue(name: str, value: object) -> None:
    """Keep `value` under `name` for the text, where {glue:text}`name` stands for it; nothing is shown.

    What myst_nb.glue(name, value, display=False) writes into the notebook, without the seconds that importing nbformat takes.
    """
    from IPython.core.formatters import format_display_data
    from IPython.display import display

    prefix = "application/papermill.record/"
    data, metadata = format_display_data(value)
    metadata["scrapbook"] = {"name": name, "mime_prefix": prefix}
    display({prefix + kind: each for kind, each in data.items()}, raw=True, metadata=metadata)


def recorded(name: str) -> dict[str, Any]:
    """What book/recorded/NAME.json keeps of a benchmark; `FileNotFoundError` outside a copy of the repository."""
    path = Path(__file__).parents[1] / "book" / "recorded" / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: recorded results are part of the repository, not of the installed library")
    return json.loads(path.read_text())


def slider(frames: Mapping[str, Any], label: str, describe: str) -> Any:
    """matplotlib figures under a slider that needs no kernel and no network; they are closed.

    `frames`: the figure for each value of what `label` names; `describe`: what they show, for those who cannot see them.
    """
    import matplotlib.pyplot as plt
    from IPython.display import HTML

    pictures = []
    for value, figure in frames.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        source = base64.b64encode(buffer.getvalue()).decode()
        alt = html.escape(f"{describe} {label} = {value}.", quote=True)
        hidden = " hidden" if pictures else ""
        pictures.append(f'<img src="data:image/png;base64,{source}" alt="{alt}" style="max-width:100%"{hidden}>')
    values = html.escape(json.dumps(list(frames)), quote=True)
    move = (
        "const f=this.closest('figure'),v=JSON.parse(this.dataset.values);"
        "f.querySelectorAll('img').forEach((e,i)=>e.hidden=i!=this.value);"
        "f.querySelector('output').value=v[this.value];this.setAttribute('aria-valuetext',v[this.value])"
    )
    first = html.escape(next(iter(frames)))
    return HTML(
        f'<figure style="margin:0"><label>{html.escape(label)} = <output>{first}</output><br>'
        f'<input type="range" min="0" max="{len(frames) - 1}" value="0" style="width:min(100%,28em)" aria-valuetext="{first}" '
        f'data-values="{values}" oninput="{html.escape(move, quote=True)}"></label>{"".join(pictures)}</figure>'
    )


def check_parameters(cells: Sequence[str]) -> None:
    """Raise `ValueError` if papermill's injected cell sets a name that no cell before it sets."""
    declared: set[str] = set()
    for source in cells:
        names = _assigned(source)
        if source.startswith("# Parameters"):  # papermill's mark on the cell that it injects
            unknown = sorted(names - declared)
            if unknown:
                raise ValueError(f"unknown parameter {', '.join(unknown)}; this notebook has: {', '.join(sorted(declared))}")
        declared |= names


def _whole_tracebacks(_result: object) -> None:
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is not None:
        shell.InteractiveTB.set_mode(mode="Context")
        shell.events.unregister("post_run_cell", _whole_tracebacks)


def _assigned(source: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # magics
        return set()
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}
