"""The results of the float model taught to a rounded one: `distilled` beside `centered`, where it starts.

Command::

    lowbit run experiments/configs/distilled_tiny.py

Two networks of MLPerf Tiny with 4-bit weights and 8-bit inputs; needs what ``post_training.py`` needs. Its minutes on 2 idle
cores were not measured: it was written beside other work.
"""

from experiments.post_training import Network, Plan, PostTraining
from experiments.post_training import run as run
from experiments.post_training_subjects import TINY

_PLAN = Plan("W4A8", {"**": "w4,a8"}, None, ("rtn", "centered", "distilled"))

config = PostTraining(
    name="distilled_tiny",
    networks=(
        Network(
            "image_classification", "ResNet-8", TINY["image_classification"], "agreement %", 1, (_PLAN,),
        ),
        Network(
            "keyword_spotting", "DS-CNN", TINY["keyword_spotting"], "agreement %", 1, (_PLAN,),
        ),
    ),
)  # fmt: skip
