"""The benchmark of the export, with a model of 50 MB: its memory follows the model's size, and its table says so."""

import dataclasses
import functools

import pytest

from experiments import decoding
from experiments.configs import bench_export
from experiments.models.decoder import Sizes
from lowbit.run import export_cost, run

COMPILERS = 64 * 2**20
"""Bytes that programs and their compilers take, whatever the model's size."""
VECTORS = 4 * 16 * 2**20
"""Bytes of the test vectors, 16 MB at most: as arrays of each call, stacked, encoded and joined."""


@pytest.mark.slow
def test_memory_follows_the_model(tmp_path):
    sizes = Sizes(layers=1)
    small = dataclasses.replace(
        bench_export.config,
        data=functools.partial(decoding.token, sizes),
        model=functools.partial(decoding.model, sizes),
        methods=bench_export.config.methods[1:],
        evals=(export_cost("universal"),),
    )
    results = run(small, tmp_path)
    assert results.failed == {}
    found = results.rows[1].results[0]["export_cost"]["universal"]
    assert found["model_bytes"] == 12 * 2**20 * 4
    assert 0 < found["memory_bytes"] < 2.25 * found["model_bytes"] + COMPILERS + VECTORS
    assert found["stored_bytes"] < 0.65 * found["model_bytes"] / 4  # deflated: 5 bits a weight, not 8
    assert "universal memory/model" in (tmp_path / "table.txt").read_text()
