"""A thermostat's forecaster within a budget of flash: bits chosen so that the compiled program of a microcontroller fits.

Command::

    lowbit run experiments/configs/allocate_thermostat.py

Needs what ``edge_thermostat.py`` needs; a stopped run goes on; about 3 minutes on 2 idle CPU cores. ``cp runs/allocate_thermostat/summary.json
experiments/results/allocate_thermostat.json`` and ``python -m experiments.mixed_table papers/allocation.md`` write the table.
"""

import dataclasses

import lowbit as lb
from experiments.configs import edge_thermostat
from lowbit.run import Allocation, Method, device

_TARGET, _RULES = "cortex-m4", ("w2,a8", "w4,a8", "w8,a8")


def _within(limit: int) -> Method:
    """Bits of every operation, chosen until the whole program has at most so many bytes."""
    asked = Allocation(_RULES, lb.budget(flash=limit), method="taylor", loss="mse", target=_TARGET, compiled=True)
    return Method(f"within_{limit}", {"**": _RULES[-1]}, integer=True, allocate=asked)


config = dataclasses.replace(
    edge_thermostat.config,
    name="allocate_thermostat",
    methods=(
        *(_within(limit) for limit in (10_000, 16_000, 20_000)),
        *(Method("uniform_" + rule.replace(",", ""), {"**": rule}, integer=True) for rule in _RULES),
    ),
    seeds=(0,),
    baseline=None,
    evals=(device(_TARGET, samples=20, digits=3),),
)
