"""A thermostat's forecaster within a budget of flash: bits chosen so that the compiled program of a microcontroller fits.

Command::

    lowbit run experiments/configs/allocate_thermostat.py

Needs what ``edge_thermostat.py`` needs; a stopped run goes on; about 3 minutes on 2 idle CPU cores. ``cp runs/allocate_thermostat/summary.json
experiments/results/allocate_thermostat.json`` and ``python -m experiments.mixed_table papers/allocation.md`` write the table.
"""

from experiments.flash import Flash
from experiments.flash import run as run

config = Flash(
    name="allocate_thermostat",
    limits=(10_000, 16_000, 20_000),
    candidates=("w2,a8", "w4,a8", "w8,a8"),
    uniform=("w2,a8", "w4,a8", "w8,a8"),
)
