"""What comments and docstrings cite in backticks exists; and where it is kept, a variable is called by what it holds."""

import ast
import fnmatch
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.project import rules

ROOT = Path(__file__).resolve().parents[2]
_CITED = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)")
_WORD = re.compile(r"[A-Za-z_]\w*")
INSTRUCTIONS = {"vpdpbusd", "vpmaddubsw"}


def cited(text: str) -> Iterator[tuple[int, str]]:
    """Lines and names that comments and docstrings of Python code put in backticks, one pair each."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or _is_docstring(token):
            for found in _CITED.finditer(token.string):
                yield token.start[0] + token.string.count("\n", 0, found.start()), found.group(1)


def named(text: str) -> set[str]:
    """All identifiers of Python code, and the words of its short strings: paths of parameters, rules, options."""
    names = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            names.add(token.string)
        elif token.type == tokenize.STRING and not _is_docstring(token):
            names.update(_WORD.findall(token.string))
    return names


def _is_docstring(token: tokenize.TokenInfo) -> bool:
    return token.type == tokenize.STRING and token.string.lstrip("rRfF").startswith('"""')


def unknown(files: dict[str, str]) -> list[str]:
    """Citations of what no file names, by path and line; files that are not Python are read as words."""
    names = set(INSTRUCTIONS)
    for path, text in files.items():
        names.update(_WORD.findall(path))
        names.update(named(text) if path.endswith(".py") else _WORD.findall(text))
    return [
        f"{path}:{line}: `{name}` is named nowhere"
        for path, text in files.items()
        if path.endswith(".py")
        for line, name in cited(text)
        if not names.issuperset(name.split("."))
    ]


def test_what_is_cited_exists() -> None:
    paths = [path for path in rules.files(ROOT) if path.suffix in (".py", ".h", ".cpp", ".toml")]
    assert unknown({str(path.relative_to(ROOT)): path.read_text() for path in paths}) == []


def test_the_rule_finds_what_is_not_there() -> None:
    code = 'def f(x):\n    """Calls `g` of `lowbit.h`, and `f`."""\n    return x  # as `k` does, not ``m``\n'
    found = unknown({"lowbit/one.py": code, "lowbit/h.cpp": "int g;"})
    assert found == ["lowbit/one.py:3: `k` is named nowhere"]


OWNERS = {
    "Program": "lowbit/program/read.py",
    "Graph": "lowbit/export/onnx/graph.py",  # ONNX's own word
    "Row": "lowbit/plan/rows.py",
    "read": "lowbit/program/read.py",
    "write": "lowbit/export/*/write.py",
}
"""Words that were many things: where the one that is called so is. `matmul` is a word of the kernels, which are no part of lowbit."""


def owners(files: dict[str, str], names: Iterable[str]) -> dict[str, list[str]]:
    """The files that define a class, function or method of each name."""
    where: dict[str, list[str]] = {name: [] for name in names}
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in where:
                where[node.name].append(path)
    return where


def test_a_word_has_one_owner() -> None:
    paths = [path for path in rules.files(ROOT) if path.suffix == ".py"]
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in paths}
    files = {path: text for path, text in texts.items() if path.startswith(("lowbit/", "experiments/"))}
    strangers = {
        (name, path)
        for name, where in owners(files, (*OWNERS, "matmul")).items()
        for path in where
        if not fnmatch.fnmatch(path, OWNERS.get(name, ""))
    }
    assert strangers == set()
    code = {"a.py": "class Row:\n    def read(self): ...\n", "b.py": "def read(): ...\n"}
    assert owners(code, ["Row", "read"]) == {"Row": ["a.py"], "read": ["a.py", "b.py"]}


def saying_nothing(text: str) -> list[int]:
    """The lines of Python code that bind a variable named `found` or `made`."""
    tree = ast.parse(text)
    fields = {
        part.target
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for part in node.body
        if isinstance(part, ast.AnnAssign)
    }
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return sorted(node.lineno for node in names if node.id in ("found", "made") and node not in fields)


def test_variables_say_what_they_hold() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in rules.files(ROOT) if path.suffix == ".py"}
    own = {path: text for path, text in texts.items() if path.startswith("lowbit/")}
    assert len(own) > 400
    assert [f"{path}:{line}" for path in sorted(own) for line in saying_nothing(own[path])] == []
    assert saying_nothing("def f(found):\n    made = [found for found in found]\n    return made.found\n") == [2, 2]
