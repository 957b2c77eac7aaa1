"""What of a source decides a result: its code, not its comments and layout; the cells that run; the records that it names."""

import ast
import functools
import glob
import io
import json
import tokenize
from collections.abc import Iterable
from pathlib import Path

import nbformat

# The tags that papermill and nbclient go by. All others say how a page looks.
EXECUTION_TAGS = {"parameters", "injected-parameters", "raises-exception", "skip-execution"}


@functools.cache
def meaning(code: str, documented: bool = True) -> str:
    """The same for pieces of Python that do the same: comments, blank lines and layout are left out.

    Without `documented`, docstrings are left out too. A cell needs them: the string that ends it is shown.
    Code that is not plain Python, such as a cell with a magic, stands for itself.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return code
    if not documented:
        for node in ast.walk(tree):
            for block in ("body", "orelse", "finalbody"):
                if isinstance(statements := getattr(node, block, None), list):
                    setattr(node, block, [statement for statement in statements if not _is_string(statement)])
    return f"{ast.dump(tree)}{' silent' if _is_silent(code) else ''}"


def _is_string(statement: ast.AST) -> bool:
    """Whether a statement is a string and nothing more: without effect, but for the documentation."""
    return (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    )


def _is_silent(code: str) -> bool:
    """Whether code ends with a semicolon, by which Jupyter shows no result; the syntax tree does not tell."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token.string for token in tokenize.generate_tokens(io.StringIO(code).readline) if token.type not in layout]
    return tokens[-1:] == [";"]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_meaning(cell: nbformat.NotebookNode) -> str:
    """What a code cell does when it is run."""
    return json.dumps([meaning(cell.source), sorted(EXECUTION_TAGS & set(cell.metadata.get("tags", [])))])


def package_meaning(folder: Path) -> list[str]:
    """What each file of a package does, by its place in it: Python without its documentation, other files as they are."""
    found = []
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder.parent)
        if file.is_file() and not any(part.startswith((".", "__pycache__")) for part in place.parts):
            text = meaning(file.read_text(encoding="utf-8"), False) if file.suffix == ".py" else file.read_bytes().hex()
            found.append(f"{place.as_posix()} {text}")
    return found


def plain(code: str) -> str:
    """A cell's code with its lines of magic left blank."""
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in code.splitlines())


def records(cells: Iterable[str], folder: Path) -> list[Path]:
    """The files of `folder`, recorded results, that code reads by name: those of `recorded("NAME")` and `studies.load("NAME")`.

    Where a name is known only by running the code, each file counts: a run too many does no harm.
    """
    patterns: set[str] = set()
    trees = []
    for code in cells:
        try:
            trees.append(ast.parse(plain(code)))
        except SyntaxError:
            patterns |= {"**/*"} if "recorded" in code or "studies" in code else set()
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imports = [node for node in nodes if isinstance(node, ast.Import)]
    modules = [(alias.asname, alias.name.split(".")[0]) for node in imports for alias in node.names]
    studies = {name or module for name, module in modules if module == "studies"}
    named = {id(node.func): _first(node) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        match node:
            case ast.Attribute(attr="recorded") | ast.Name(id="recorded"):
                patterns.add(f"{name}.json" if (name := named.get(id(node))) else "**/*")
            case ast.Attribute(value=ast.Name(id=base)) if base in studies:
                name = named.get(id(node))
                patterns |= {f"{name}.*", f"{name}_*", f"{name}/**/*"} if name else {"**/*"}
            case ast.ImportFrom(module=module, names=names):
                other = any(alias.name == "recorded" and alias.asname for alias in names)
                patterns |= {"**/*"} if other or (module or "").split(".")[0] == "studies" else set()
            case ast.Constant(value=str(text)) if text == "recorded" or "recorded/" in text:
                patterns.add("**/*")
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _first(call: ast.Call) -> str:
    """The first argument of a call, where it is a text written out."""
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "name")][:1]
    match given:
        case [ast.Constant(value=str(text))]:
            return glob.escape(text)
    return ""
