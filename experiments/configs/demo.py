"""A small convolutional network on Fashion-MNIST: float, 8 bits for free, 4 bits by learning the steps, 2 bits too few.

Command::

    lowbit run experiments/configs/demo.py

Needs, on 2 CPU cores: about 5 minutes. What it should show over 3 seeds: W8A8 as good as float; W4A4 rounded to
nearest more than 2 points below W4A4 with learned step sizes (LSQ), which ends within 1 point of float; W2A2 broken
even with learned steps. A quick look: ``--set seeds=0 --set train_samples=6000 --without iree --without iree_latency``.
"""

import lowbit as lb
from experiments.data import fashion_mnist
from experiments.models import small_conv
from lowbit.run import ACCURACY, Experiment, Fit, Method, cross_entropy, grids, iree, iree_latency, latency

config = Experiment(
    name="demo",
    data=fashion_mnist.load,
    model=small_conv.build,
    metric=ACCURACY,
    loss=cross_entropy,
    fit=Fit(epochs=4, batch=128, lr=4e-3),
    methods=(
        Method("w8a8", {"**": "w8,a8"}),
        Method("w4a8", {"**": "w4,a8"}),
        Method("rtn_w4a4", {"**": "w4,a4"}),
        Method("lsq_w4a4", {"**": lb.lsq("w4,a4")}, Fit(epochs=2, batch=128, lr=2e-3, step_lr=2e-3)),
        Method("lsq_w2a2", {"**": lb.lsq("w2,a2")}, Fit(epochs=2, batch=128, lr=2e-3, step_lr=2e-3)),
    ),
    evals=(iree(samples=10_000), latency(batches=(100,)), iree_latency(), grids()),
)
