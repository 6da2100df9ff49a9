"""The arithmetic of a study, and what it writes."""

import dataclasses
import json

import matplotlib.image
import numpy as np
import pytest

from lowbit.run import study
from lowbit.run.folder import RunFolder
from lowbit.run.results import Measured, Results
from tests.run import tiny

FLOAT = [0.935, 0.940, 0.930]


def row(name: str, *accuracies: float) -> Measured:
    return Measured(name, {i: {"metric": {"execute": 100 * a}, "seconds": 2.0} for i, a in enumerate(accuracies)}, {})


ROWS = [
    row("float", *FLOAT),
    row("ptq_w2a2", 0.10, 0.12, 0.14),
    row("lsq_plus_w2a2", 0.90, 0.91, 0.92),
    row("rtn_w2a2", 0.88, 0.893, 0.90),
    row("lsq_plus_binary", 0.80, 0.90, 0.85),
]


def test_interval_is_students():
    # n = 3: t(0.975, 2) = 4.302653, deviation 1, so 4.302653 / sqrt(3); a normal interval would be 1.96 / sqrt(3)
    found = study.interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.302652730 / np.sqrt(3), rel=1e-9)
    assert study.interval([5.0]) == (5.0, None)
    assert study.interval([5.0]).text == "5.00"


def test_order_pairs_the_seeds():
    """Two methods that move together over seeds are told apart where their own intervals overlap."""
    base = np.array([80.0, 85.0, 90.0])
    paired = {"a": base + np.array([1.0, 1.1, 0.9]), "b": base}
    assert study.interval(paired["b"].tolist()).half > 1.0
    assert study.order({name: values.tolist() for name, values in paired.items()}) == "a > b"
    assert study.order({"a": [81.0, 85.0, 92.0], "b": [85.0, 80.0, 90.0]}) == "a ~ b"


def test_grid_and_table():
    found = study.grid(ROWS)
    assert list(found) == ["w2a2", "binary"]
    assert list(found["w2a2"]) == ["ptq", "lsq_plus", "rtn"]
    table = study.table(ROWS, "t")
    lines = {line[0]: line[1:] for line in table.rows}
    assert lines["STE, absmax"] == ["89.10 ± 2.52", "-"]
    assert set(lines["float"]) == {"93.50 ± 1.24"}


def test_writes_table_record_and_plot(tmp_path):
    folder = RunFolder(tmp_path, tiny.config)
    config = dataclasses.replace(tiny.config, seeds=(0, 1, 2))
    study.compared(Results(config, folder, tuple(ROWS), "bumps", None, 1.0))
    record = json.loads((tmp_path / "study.json").read_text())
    assert record["minutes"] == 0.5  # 15 pieces of 2 seconds
    assert record["rows"]["lsq_plus_binary"]["values"] == [80.0, 90.0, 85.0]
    assert record["order"]["w2a2"] == "lsq_plus > rtn > ptq"
    assert {"commit", "dirty", "versions", "device", "seeds", "command"} <= set(record)
    assert "lsq_plus > rtn > ptq" in (tmp_path / "table.txt").read_text()
    image = matplotlib.image.imread(tmp_path / "study.png")
    assert min(image.shape[:2]) > 200
    assert image[..., :3].min() < 0.2  # something is drawn
    assert (tmp_path / "study.png").stat().st_size < 200_000


def test_a_study_without_float_says_so(tmp_path):
    results = Results(
        dataclasses.replace(tiny.config, seeds=(0, 1, 2)),
        RunFolder(tmp_path, tiny.config),
        tuple(ROWS[1:]),
        "bumps",
        None,
        1.0,
    )
    with pytest.raises(ValueError, match="beside float"):
        study.compared(results)
