"""The table of post-training methods for the README, written by this and by nothing else.

``python -m experiments.post_training_table README.md`` renders ``experiments/results/post_training.json`` between the marks, after it has taken the
pieces of ``--merge runs/post_training/summary.json`` in: those that a run of some of them (``--only``) made replace what was there.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.matrix_table import write_block
from experiments.post_training import taken_in

RESULT = Path(__file__).parent / "results" / "post_training.json"
MARKS = (
    "<!-- post-training: written by python -m experiments.post_training_table README.md -->",
    "<!-- end of post-training -->",
)
RECIPES = ("rtn", "gptq", "centered", "ocs", "brecq", "nwq", "auto")

NOTE = (
    "Numbers are of `lowbit.execute` on packed parameters, on data that no calibration has seen; bits with scales. Brackets: 95 % "
    "by a bootstrap over photographs, images or sentences. *: reaches the bar; -: not asked for. `auto`: GPTQ, after "
    "smoothing for W8A8, after equalization where a weight has one scale, and before learned blocks for W3 and W4A8 (cells made since "
    "`brecq` is; small networks in W4A8 are learned as a whole now, as by `nwq`: their cells of `auto` are older). 8-bit inputs are affine, one static scale per tensor. MobileNetV2: top-1 on ten crops of each of 20 "
    "labelled photographs; BlazeFace: 200 crops of faces and background; MiniLM: mean cosine to float's vectors on sentences "
    "of the Brown corpus; MLPerf Tiny: agreement with float's class on 2,000 inputs, of the auto-encoder the correlation of "
    "anomaly scores with float's."
)


def cell(found: Mapping[str, Any] | None, digits: int, bar: float | None, *, is_asked: bool = True) -> str:
    """Returns a score, its interval, and a star where it reaches the bar.

    Args:
        found: the piece, or None.
        digits: of the score.
        bar: what should be reached, or None.
        is_asked: whether the config asks for the piece: what is asked for and not there was not measured.
    """
    if found is None:
        return "not measured" if is_asked else "-"
    numbers = found["numbers"]
    said = f"{found['score']:.{digits}f}"
    if "low" in numbers:
        said += f" [{numbers['low']:.{digits}f}, {numbers['high']:.{digits}f}]"
    return said + ("*" if bar is not None and found["score"] >= bar else "")


def markdown(found: Mapping[str, Any]) -> str:
    """Returns the table and what its cells mean."""
    heads = ["network", "plan", "bits/w", "nearest", *RECIPES[1:], "bar"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for network in found["networks"]:
        digits, before = network["digits"], network["float"]
        title = f"{network['title']}, {network['metric']}"
        title += "" if before is None else f", float {before['score']:.{digits}f}"
        for plan in network["plans"]:
            every = plan["recipes"]
            bits = f"{next(iter(every.values()))['bits_per_weight']:.2f}" if every else "-"
            cells = [cell(every.get(name), digits, plan["bar"], is_asked=name in plan["asked"]) for name in RECIPES]
            bar = "-" if plan["bar"] is None else f"{plan['bar']:g}"
            lines.append("| " + " | ".join([title, plan["name"], bits, *cells, bar]) + " |")
            title = ""
    return "\n".join([*lines, "", NOTE, *missed(found)]) + "\n"


def missed(found: Mapping[str, Any]) -> list[str]:
    """Returns a line for every plan whose bar no recipe reaches: by how much, and what was tried."""
    lines = []
    for network in found["networks"]:
        for plan in network["plans"]:
            scores = {name: each["score"] for name, each in plan["recipes"].items()}
            if plan["bar"] is None or not scores or max(scores.values()) >= plan["bar"]:
                continue
            best = max(scores, key=lambda name: scores[name])
            tried = plan.get("tried") or "Nothing else was tried."
            digits = network["digits"]
            lines.append(
                f"* Missed: {network['title']}, {plan['name']}: {scores[best]:.{digits}f} by `{best}`, of {plan['bar']:g}. {tried}"
            )
    return ["", *lines] if lines else []


def main(arguments: Sequence[str]) -> None:
    """Takes a summary in, where one is named, and writes the table into the documents named."""
    write_block(taken_in(RESULT, arguments), markdown(json.loads(RESULT.read_text())), MARKS)


if __name__ == "__main__":
    main(sys.argv[1:])
