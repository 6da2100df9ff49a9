"""The benchmark of the numerics runs, small, and writes what its table says."""

import dataclasses
import json

import pytest

from experiments.configs import bench_numerics


@pytest.mark.slow
def test_it_writes_numbers_beside_float(tmp_path, capsys):
    small = dataclasses.replace(bench_numerics.config, weights=8192, batch=8, depth=3, rounds=1, width=16)
    bench_numerics.run(small, tmp_path)
    found = json.loads((tmp_path / "numerics.json").read_text())
    assert {"commit", "versions", "device", "encode", "step", "trace"} <= set(found)
    assert found["encode"]["int4/g32"]["bits_per_weight"] == 5.0
    for part in (*found["step"].values(), *found["trace"].values()):
        assert {"float", "lowbit"} <= set(part)
        assert all(0 < times["min"] <= times["median"] for times in part.values())
    lines = capsys.readouterr().out
    assert "of float" in lines
    assert "step, conv" in lines
