"""The benchmark of the export, with a model of 50 MB: its memory follows the model's size, and its table says so."""

import pytest

from experiments.configs import bench_export
from experiments.export_cost import measured
from experiments.models.decoder import Sizes

COMPILERS = 64 * 2**20
"""Bytes that programs and their compilers take, whatever the model's size."""
VECTORS = 4 * 16 * 2**20
"""Bytes of the test vectors, 16 MB at most: as arrays of each call, stacked, encoded and joined."""


@pytest.mark.slow
def test_memory_follows_the_model():
    found = measured(Sizes(layers=1), "w4/g32,a8/dynamic", "universal")
    assert found["model_bytes"] == 12 * 2**20 * 4
    assert 0 < found["memory_bytes"] < 2.25 * found["model_bytes"] + COMPILERS + VECTORS
    assert found["stored_bytes"] < 0.65 * found["model_bytes"] / 4  # deflated: 5 bits a weight, not 8
    assert bench_export.table([found]).rows[0][:2] == ["w4/g32,a8/dynamic", "universal"]
