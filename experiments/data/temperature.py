"""Hourly outdoor temperatures: a typical meteorological year of two stations, as windows to forecast from.

The files ``723170TYA.CSV`` (Greensboro, North Carolina) and ``703165TY.csv`` (Sand Point, Alaska) are NREL's TMY3 (Wilcox
and Marion, Users manual for TMY3 data sets, NREL/TP-581-43156, 2008; public data), shipped by ``pvlib`` (BSD-3). They are
read by path: pvlib is not imported, ``pip install --no-deps pvlib`` is enough. Greensboro is measured throughout; of Sand
Point's hours the file marks 15 % as interpolated and 18 % as estimated. So both are for training and Greensboro alone is
for testing.

A typical year is twelve months, each from another year, so no window crosses the end of a month. The first `TRAINING_DAYS`
days of every month are for training, the rest for testing, and no hour is in both: a window lies in one of the two.
Windows begin at every hour, so neighbours overlap.
"""

import csv

import numpy as np

from experiments.data.dataset import DataError, package_file, sha256
from lowbit.run import Dataset, Split

CONTEXT, HORIZON = 72, 24
TRAINING_DAYS = 20
CENTRE, SCALE = 10.0, 10.0
"""A sample is ``(degrees Celsius - CENTRE) / SCALE``: constants, so that a device needs no statistics."""
COLUMN = "Dry-bulb (C)"
TESTED = "723170TYA.CSV"
STATIONS = {
    TESTED: "1e96f84638ce98e6b29002bc45a27aa69bb29b0ed0368d3b52b7b1f81610c6c9",
    "703165TY.csv": "f0333a68a116f5ae92f1285a2ab8784d8e00e52a367445658ac88d72d93d8ca4",
}
INSTALL = "pip install --no-deps pvlib==0.16.1"


def load() -> Dataset:
    """Returns windows ``[batch, 72, 1]`` and, as labels, the 24 hours that follow ``[batch, 24]``, scaled to about [-3, 3].

    Raises:
        DataError: if pvlib's files are not there, or are not those known.
    """
    parts: dict[str, list[Split]] = {"train": [], "test": []}
    for name in STATIONS:
        for month in months(name):
            cut = 24 * TRAINING_DAYS
            parts["train"].append(windows(month[:cut]))
            if name == TESTED:
                parts["test"].append(windows(month[cut:]))
    train, test = (
        Split(np.concatenate([s.inputs for s in found]), np.concatenate([s.labels for s in found]))
        for found in parts.values()
    )
    return Dataset("tmy3-temperature", "pvlib's TMY3 files of 2 stations", shuffled(train), shuffled(test))


def months(name: str) -> list[np.ndarray]:
    """Returns the hourly temperatures of a station's twelve months, in degrees Celsius.

    Raises:
        DataError: see `load`.
    """
    path = package_file("pvlib", f"data/{name}", install=INSTALL)
    content = path.read_bytes()
    if (found := sha256(content)) != STATIONS[name]:
        raise DataError(f"{path} is another file (sha256 {found[:12]}, expected {STATIONS[name][:12]}): {INSTALL}")
    _, *lines = csv.reader(content.decode().splitlines())
    column = lines[0].index(COLUMN)
    hours: dict[str, list[float]] = {}
    for line in lines[1:]:
        hours.setdefault(line[0][:2], []).append(float(line[column]))  # MM/DD/YYYY
    return [np.asarray(values) for values in hours.values()]


def windows(hours: np.ndarray) -> Split:
    """Returns every window of `CONTEXT` hours and the `HORIZON` hours after it."""
    scaled = ((hours - CENTRE) / SCALE).astype(np.float32)
    view = np.lib.stride_tricks.sliding_window_view(scaled, CONTEXT + HORIZON)
    return Split(np.ascontiguousarray(view[:, :CONTEXT, None]), np.ascontiguousarray(view[:, CONTEXT:]))


def shuffled(split: Split) -> Split:
    """Returns the windows in a fixed random order: a slice has every month of both stations."""
    order = np.random.default_rng(0).permutation(len(split.labels))
    return Split(split.inputs[order], split.labels[order])
