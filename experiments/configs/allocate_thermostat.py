"""A thermostat's forecaster within a budget of flash: bits chosen so that the compiled program of a microcontroller fits.

Command::

    lowbit run experiments/configs/allocate_thermostat.py

Needs what ``edge_thermostat.py`` needs; a stopped run goes on; about 3 minutes on 2 idle CPU cores. ``cp runs/allocate_thermostat/summary.json
experiments/results/allocate_thermostat.json`` and ``python -m experiments.mixed_table papers/allocation.md`` write the table.
"""

import lowbit as lb
from experiments.data import temperature
from experiments.models import forecaster
from lowbit.run import Allocation, Experiment, Fit, Method, Metric, absolute_error, device

_TARGET, _RULES = "cortex-m4", ("w2,a8", "w4,a8", "w8,a8")


def _within(limit: int) -> Method:
    """Bits of every operation, chosen until the whole program has at most so many bytes."""
    asked = Allocation(_RULES, lb.budget(flash=limit), method="taylor", loss="mse", target=_TARGET, compiled=True)
    return Method(f"within_{limit}", {"**": _RULES[-1]}, integer=True, allocate=asked)


config = Experiment(
    name="allocate_thermostat",
    data=temperature.load,
    model=forecaster.build,
    metric=Metric("MAE C", forecaster.mean_error, digits=3),
    loss=absolute_error,
    fit=Fit(epochs=12, batch=64, lr=1e-3),
    methods=(
        *(_within(limit) for limit in (10_000, 16_000, 20_000)),
        *(Method("uniform_" + rule.replace(",", ""), {"**": rule}, integer=True) for rule in _RULES),
    ),
    seeds=(0,),
    calibration_batch=100,
    evals=(device(_TARGET, samples=20, digits=3),),
)
