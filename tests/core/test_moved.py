"""Names that have moved: the same object, and one warning a name and process."""

import warnings

import pytest

from lowbit.core.moved import moved
from lowbit.core.rounding import nearest_even
from lowbit.targets import table, target


def test_an_old_name_warns_once_with_the_new_one():
    old = moved("lowbit.core.sums", {"nearest_even": "lowbit.core.rounding"})
    with pytest.warns(
        DeprecationWarning, match=r"^lowbit\.core\.sums\.nearest_even is now lowbit\.core\.rounding\.nearest_even$"
    ):
        assert old("nearest_even") is nearest_even
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert old("nearest_even") is nearest_even
        assert "INLINED_BYTES" not in vars(table)
    with pytest.warns(DeprecationWarning, match=r"is now lowbit\.targets\.target\.INLINED_BYTES"):
        assert table.INLINED_BYTES == target.INLINED_BYTES


def test_a_name_that_never_was_is_none():
    old = moved("lowbit.core.sums", {"nearest_even": "lowbit.core.rounding"})
    with pytest.raises(AttributeError, match=r"module 'lowbit\.core\.sums' has no attribute 'nearest'"):
        old("nearest")
