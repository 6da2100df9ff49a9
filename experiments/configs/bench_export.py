"""What it costs to export a transformer of 100 MB: seconds, and memory in multiples of the model.

Command::

    lowbit run experiments/configs/bench_export.py

Needs 2 minutes on 2 CPU cores and 2 GB of memory, and Linux. The 100 MB are float32 parameters, 25 million in 8 decoder
layers of width 512. Every method's file is read, and exported in the served and the universal form, in a process of its own;
``summary.json`` says how long the export took, and by how much memory rose above what was held before it. Wanted: under a
minute, under 3 times the 100 MB. ``cp runs/bench_export/summary.json experiments/results/bench_export.json``.
"""

import functools

from experiments import decoding
from experiments.models.decoder import Sizes
from lowbit.run import Experiment, Method, export_cost

SIZES = Sizes(layers=8, width=512, hidden=2048, heads=8, context=128)

config = Experiment(
    name="bench_export",
    data=functools.partial(decoding.token, SIZES),
    model=functools.partial(decoding.model, SIZES),
    metric=None,
    methods=(
        Method("w8a8", {"**": "w8,a8"}),
        Method("w4a8_g32", {"**": "w4/g32,a8/dynamic"}),
    ),
    seeds=(0,),
    evals=(export_cost("served", "universal"),),
)
