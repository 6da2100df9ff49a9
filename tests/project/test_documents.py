"""Documents that can be wrong are run: the `python` blocks of README, CONTRIBUTING and the paper notes.

The blocks of one document run in order in one namespace and an empty folder, as a reader would type them. A block
with `>>>` prompts is checked as a doctest. A block that must not run is fenced with another word than `python`.
"""

import doctest
import json
import re
from pathlib import Path

import jax
import pytest

from experiments import (
    demo_table,
    matrix_table,
    mixed_table,
    models_table,
    post_training_language_table,
    post_training_table,
    whole_table,
)
from tests.project import rules

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [path for path in rules.sources(ROOT, ".md") if "CHANGELOG" not in path.name]

_BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(text: str) -> list[tuple[int, str]]:
    """The line number and source of every python block."""
    return [(text[: match.start(1)].count("\n"), match.group(1)) for match in _BLOCK.finditer(text)]


def run(text: str, name: str) -> int:
    """Runs every block of a document; returns how many there were. Raises where one fails."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    found = blocks(text)
    for line, source in found:
        if ">>> " in source:
            case = doctest.DocTestParser().get_doctest(source, namespace, name, name, line)
            doctest.DebugRunner(optionflags=_OPTIONS).run(case, clear_globs=False)
            namespace.update(case.globs)
        else:
            exec(compile("\n" * line + source, name, "exec"), namespace)
    return len(found)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # as in a reader's own process
        run(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_lead_somewhere(path: Path) -> None:
    missing = [link for link in _LINK.findall(path.read_text(encoding="utf-8")) if not (path.parent / link).exists()]
    assert not missing


def test_tables_are_what_was_measured() -> None:
    """Tables are rendered from the results of their runs, and nobody edits them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    other = (ROOT / "papers" / "allocation.md").read_text(encoding="utf-8")
    pages = [
        (made, text)
        for made in (matrix_table, demo_table, post_training_table, post_training_language_table, models_table)
    ]
    pages += [(mixed_table, other)]
    for made, where in pages:
        start, end = matrix_table.block(where, made.MARKS)
        assert where[start:end] == made.markdown(json.loads(made.RESULT.read_text()))
    start, end = matrix_table.block(text, whole_table.MARKS)
    assert text[start:end] == whole_table.markdown(whole_table.runs())
    with pytest.raises(ValueError, match="once each"):
        matrix_table.block(text.replace(matrix_table.MARKS[1], ""))


def test_a_wrong_block_fails() -> None:
    with pytest.raises(NameError):
        run("```python\nnothing_of_that_name\n```\n", "planted")
    with pytest.raises(doctest.DocTestFailure):
        run("```python\nx = 1\n```\n\n```python\n>>> x + 1\n3\n```\n", "planted")
    assert run("```python\nx = 1\n```\ntext\n```python\n>>> x + 1\n2\n```\n```text\nx +\n```\n", "planted") == 2
