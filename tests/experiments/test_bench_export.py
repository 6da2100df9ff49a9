"""The benchmark of the export, with a model of 50 MB: what is wanted of a large one holds, and its table says so."""

from experiments.configs import bench_export
from experiments.export_cost import measured
from experiments.models.decoder import Sizes


def test_memory_is_under_three_times_the_model():
    found = measured(Sizes(layers=1), "w4/g32,a8/dynamic", "universal")
    assert found["model_bytes"] == 12 * 2**20 * 4
    assert 0 < found["memory_bytes"] < 3 * found["model_bytes"]
    assert found["stored_bytes"] < 0.65 * found["model_bytes"] / 4  # deflated: 5 bits a weight, not 8
    assert bench_export.table([found]).rows[0][:2] == ["w4/g32,a8/dynamic", "universal"]
