"""Names that have moved: the same object, and one warning a name and process."""

import warnings

import pytest

from lowbit.core.moved import moved
from lowbit.core.rounding import nearest_even
from lowbit.export import bundle, reading
from lowbit.targets import table, target


def test_an_old_name_warns_once_with_the_new_one():
    old = moved("lowbit.core.sums", {"nearest_even": "lowbit.core.rounding.nearest_even"})
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
    with pytest.warns(DeprecationWarning, match=r"bundle\.read is now lowbit\.export\.reading\.read_bundle$"):
        assert bundle.read is reading.read_bundle


def test_a_name_that_never_was_is_none():
    old = moved("lowbit.core.sums", {"nearest_even": "lowbit.core.rounding.nearest_even"})
    with pytest.raises(AttributeError, match=r"module 'lowbit\.core\.sums' has no attribute 'nearest'"):
        old("nearest")
