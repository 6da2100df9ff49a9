"""BlazeFace in 8 bits without training: one scale per tensor breaks it, one per output channel does not.

Command::

    lowbit run experiments/configs/rtn_blazeface_w8.py

Needs, on 2 CPU cores: about 2 minutes. Krishnamoorthi, Quantizing deep convolutional networks for efficient inference,
2018, section 3.2, on real weights: MediaPipe's pretrained face detector, whose depthwise layers differ a lot from
channel to channel, on the 200 labelled crops that scikit-image ships. Float finds 99.0 %; weights alone at 8 bits
54.5 % per tensor (chance is 50 %) and 99.0 % per channel. With 8-bit inputs as well it is 79.0 % and 98.5 %, where the
input ranges keep 99.9 % of the values; the minimum and maximum reach far beyond the bulk of what a depthwise layer gives
to the next one, and cost 18 points (the last row).

With jax 0.10's own settings the per-tensor row is 55.0 %: XLA then fuses a max-pool of this network into a wrong program
(`lowbit run` keeps it from that; IREE, and XLA operation by operation, give 54.5 %).

Input ranges are measured on 100 of the 200 images, without labels: the set is too small to split.
"""

from experiments.data import lfw_faces
from experiments.models import blazeface
from experiments.ranges import with_inputs
from lowbit.core.clipping import Percentile
from lowbit.core.ranges import Full
from lowbit.run import Experiment, Method, Metric, grids, iree, iree_latency, latency

config = Experiment(
    name="rtn_blazeface_w8",
    data=lfw_faces.load,
    model=blazeface.load,
    metric=Metric("accuracy %", blazeface.face_accuracy),
    seeds=(0,),
    methods=(
        Method("w8_tensor", {"**": "w8/tensor"}),
        Method("w8_channel", {"**": "w8"}),
        Method("w8a8_tensor", {"**": with_inputs("w8/tensor", Percentile(99.9))}),
        Method("w8a8_channel", {"**": with_inputs("w8", Percentile(99.9))}),
        Method("w8a8_minmax", {"**": with_inputs("w8", Full())}),
    ),
    test_samples=200,
    test_batch=50,
    calibration_samples=100,
    evals=(iree(samples=200), latency(), iree_latency(), grids()),
)
