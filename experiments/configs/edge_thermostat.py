"""A thermostat forecasts tomorrow's temperature on a microcontroller, in 8 and 4 bits.

Command::

    lowbit run experiments/configs/edge_thermostat.py

Needs ``pip install --no-deps pvlib`` and ``apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm``; on
2 CPU cores about 3 minutes. Three days of hourly temperatures in, the next 24 hours out; the error is the mean absolute
error over all 24. Every window of the test set, 1,860, is run on an emulated Cortex-M4, and every output there is that of
`lowbit.execute`, to the last bit.

Mean ± standard deviation of 3 seeds, in degrees Celsius: seasonal naive (tomorrow as today) 3.105, float 2.358 ± 0.026,
w8a8 2.358 ± 0.025 in 23.3 kB of flash, w4a8 2.418 ± 0.029 in 12.8 kB, with learned steps (LSQ) 2.359 ± 0.021 in 13.0 kB;
1.1 kB of memory, 1.2 million instructions a forecast in 8 bits, 2.0 million in 4 bits, which are unpacked one by one.
"""

import lowbit as lb
from experiments.data import temperature
from experiments.models import forecaster
from lowbit.run import Experiment, Fit, Method, Metric, absolute_error, device, device_time

config = Experiment(
    name="edge_thermostat",
    data=temperature.load,
    model=forecaster.build,
    metric=Metric("MAE C", forecaster.mean_error, digits=3),
    loss=absolute_error,
    fit=Fit(epochs=12, batch=64, lr=1e-3),
    methods=(
        Method("w8a8", {"**": "w8,a8"}, integer=True),
        Method("w4a8", {"**": "w4,a8"}, integer=True),
        Method("lsq_w4a8", {"**": lb.lsq("w4,a8")}, Fit(epochs=4, batch=64, lr=5e-4, step_lr=1e-4), integer=True),
    ),
    baseline=("seasonal naive", forecaster.seasonal_naive),
    calibration_batch=100,
    evals=(device("cortex-m4", digits=3), device_time("cortex-m4")),
)
