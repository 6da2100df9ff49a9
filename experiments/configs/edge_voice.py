"""A microphone hears whether someone speaks: silero-vad, pretrained, in full integers on a microcontroller.

Command::

    lowbit run experiments/configs/edge_voice.py

Needs ``pip install --no-deps silero-vad`` and ``apt-get install pocketsphinx-testdata gcc-arm-none-eabi
libnewlib-arm-none-eabi qemu-system-arm``; on 2 CPU cores about 10 minutes. Real sentences in noise made here, labels from
the clean signal: `experiments.data.speech` says how. The spectrum is the device's front end, in front of the network; the
convolutions, the LSTM (a loop of 64 frames, its states on 8-bit grids) and the output are integers.

102 clips of two seconds, 6,528 frames, all on an emulated Cortex-M4, every output that of `lowbit.execute` to the last bit.
Frames right, in %: always speech 64.43, float 94.52, w8a8 with one scale per output channel 93.90 in 261 kB of flash, with
one per tensor 62.87 (silero's layers differ too much from channel to channel), w4a8 91.67 in 138 kB. 41 kB of memory; 263
million instructions a clip in 8 bits, which is 131 million a second of sound: more than a Cortex-M4 at 100 MHz keeps up with.

Activations of 16 bits, on the same 102 clips: w8a16 94.12, w4a16 92.46, in 131 kB of memory.
"""

from experiments.data import speech
from experiments.models import silero_vad
from experiments.ranges import with_inputs
from lowbit.core.clipping import Percentile
from lowbit.run import Experiment, Method, Metric, device, device_time

config = Experiment(
    name="edge_voice",
    data=speech.load,
    model=silero_vad.load,
    metric=Metric("frames right %", silero_vad.frame_accuracy),
    methods=(
        Method("w8_tensor", {"**": with_inputs("w8/tensor", Percentile(99.9))}, integer=True),
        Method("w8a8", {"**": with_inputs("w8", Percentile(99.9))}, integer=True),
        Method("w4a8", {"**": with_inputs("w4", Percentile(99.9))}, integer=True),
        Method("w8a16", {"**": "w8,aint16"}, integer=True),
        Method("w4a16", {"**": "w4,aint16"}, integer=True),
    ),
    baseline=("always speech", speech.always_speech),
    seeds=(0,),
    test_batch=51,
    calibration_batch=100,
    evals=(device("cortex-m4"), device_time("cortex-m4")),
)
