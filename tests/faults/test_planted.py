"""The faults still fit the tree. `make test-faults` plants them, which takes minutes."""

import ast
import collections
from pathlib import Path

import pytest

from tests.faults.__main__ import place
from tests.faults.planted import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits(fault):
    """Its text stands once in its file, what it becomes is Python, and its tests exist and are not slow ones alone."""
    ast.parse(place(fault, ROOT))
    for test in fault.tests:
        file, _, name = test.partition("[")[0].partition("::")
        functions = {
            node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in functions or not name


def test_every_name_is_its_own():
    assert max(collections.Counter(fault.name for fault in FAULTS).values()) == 1


def test_a_fault_that_no_longer_fits_is_named():
    with pytest.raises(ValueError, match="'gone': its text stands 0 times"):
        place(Fault("gone", "README.md", "no such " + "text", "", ()), ROOT)
