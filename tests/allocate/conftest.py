"""What all tests of this folder need."""

import pytest

from lowbit.allocate import timetable


@pytest.fixture(autouse=True)
def own_table_of_times(tmp_path_factory, monkeypatch):
    """Times measured in tests stay out of the table of whoever runs them."""
    monkeypatch.setenv(timetable.VARIABLE, str(tmp_path_factory.mktemp("times")))
