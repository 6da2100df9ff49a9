"""Time of a token: a 12-layer decoder in float32 and packed in 4 bits, `lowbit.execute` beside `jax.jit`, interleaved.

    lowbit run experiments/configs/bench_decode.py        under a minute, 3 GB of memory; close everything else

Weights are random: this measures time, and nothing about accuracy. Attention between computed operands stays float. ``cp runs/bench_decode/times.json
experiments/results/bench_decode.json``.
"""

import functools

from experiments import decoding
from experiments.models.decoder import Sizes
from lowbit.run import Experiment, Method, latency, timed

SIZES = Sizes(layers=12, width=1024, hidden=4096, heads=16, context=128)

config = Experiment(
    name="bench_decode",
    data=functools.partial(decoding.token, SIZES),
    model=functools.partial(decoding.model, SIZES),
    metric=None,
    methods=(Method("w4a8_g32", dict.fromkeys(decoding.WEIGHTS, "w4/g32,a8/dynamic/sym")),),
    seeds=(0,),
    evals=(latency(seconds=15.0),),
    report=timed,
)
