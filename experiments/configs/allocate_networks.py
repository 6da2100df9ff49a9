"""Mixed plans under a budget beside uniform ones, on pretrained networks: what the table of papers/allocation.md is made from.

Command::

    lowbit run experiments/configs/allocate_networks.py

Needs what ``post_training.py`` needs; about 40 minutes on 2 idle CPU cores, half of them GPTQ on MobileNetV2, and half an hour of a core more
for how well MobileNetV2's scores predict; a stopped run goes on.
``--only minilm`` runs one network, ``--only '*-rtn'`` one recipe, and ``--only '*/float'`` how well scores predict. ``cp
runs/allocate_networks/summary.json experiments/results/allocate_networks.json`` and ``python -m experiments.mixed_table
papers/allocation.md`` write the table.
"""

from experiments.mixed import Budgeted, Network, suite
from experiments.mixed_subjects import clothes, faces, mobilenet, sentences

_WIDTHS = ("w2", "w3", "w4", "w5", "w6", "w8")
_SHORT = tuple(f"{width}/bfloat16" for width in _WIDTHS)
"""Scales in half the bits, which small layers spend on a width: they take .2 to .8 bits of a weight there."""

config = suite(
    "allocate_networks",
    Network(
        "fashion_mnist", "Fashion-MNIST", clothes(), "top-1 %", _SHORT, (Budgeted("w3", ("w3",)),),
        ladder=(3.0, 3.5, 4.0, 5.0, 6.0), measured=5, recipes=("rtn", "qat"), generations=30,
    ),
    Network(
        "minilm", "MiniLM", sentences(), "nearest sentence %", _WIDTHS,
        (Budgeted(3.5, ("w3/g64", "w3/g32/bfloat16", "w4")),),
        keep=("**/dot_*",), ladder=(2.5, 3.0, 4.0, 4.5, 5.0, 6.0), measured=2,
    ),
    Network(
        "blazeface", "BlazeFace", faces(), "right %", _SHORT, (Budgeted("w4", ("w4",)),),
        ladder=(3.5, 4.0, 4.5, 5.0, 6.0), measured=4, positions=896, generations=30,
    ),
    Network(
        "mobilenet_v2", "MobileNetV2", mobilenet(), "top-1 %", _WIDTHS, (Budgeted("w4", ("w4",)), Budgeted("w5", ("w5",))),
        ladder=(3.5, 4.0, 4.5, 6.0), measured=1, generations=30,
        methods=("taylor kl", "taylor mse", "fisher kl", "sqnr"),  # half an hour of a core; traces and slopes take longer
    ),
)  # fmt: skip
