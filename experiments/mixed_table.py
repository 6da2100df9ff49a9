"""The tables of mixed plans for papers/allocation.md and the README, written by this and by nothing else.

``python -m experiments.mixed_table papers/allocation.md`` renders ``experiments/results/allocate_networks.json`` and
``allocate_thermostat.json`` between the marks;
``--report FOLDER`` writes a page with pictures of every network.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.matrix_table import write_block
from lowbit.allocate.pareto import Front, FrontPoint
from lowbit.allocate.scores import Scores
from lowbit.core import atomic
from lowbit.report import allocation as pictures
from lowbit.report import page

RESULT = Path(__file__).parent / "results" / "allocate_networks.json"
FLASH = RESULT.with_name("allocate_thermostat.json")
MARKS = (
    "<!-- mixed: written by python -m experiments.mixed_table papers/allocation.md -->",
    "<!-- end of mixed -->",
)
_NAMES = {"rtn": "nearest", "gptq": "GPTQ", "qat": "QAT"}

NOTE = (
    "dB and KL: logits of `lowbit.execute` beside float's, on inputs that no calibration has seen; gains in brackets: 95 % by a "
    "paired bootstrap over inputs, and, where several inputs are crops of one photograph, by one over photographs after the bar. "
    "Bits are stored bits of a weight, scales included. **wins**: both gains are above 0 with both intervals."
)


def markdown(found: Mapping[str, Any]) -> str:
    """Returns the tables: plans under a budget, scores beside what was measured, sums beside whole plans, a budget of flash."""
    parts = (_ranks(found), _predicted(found), _flash(json.loads(FLASH.read_text())))
    more = [line for part in parts if part for line in ("", *part)]
    return "\n".join([*_pairs(found), "", NOTE, *more]) + "\n"


def wins(pair: Mapping[str, Any]) -> bool:
    """Returns whether signal to noise and divergence both gain more than their intervals."""
    return min(pair[f"{what}{kind}_low"] for what in ("dB", "KL") for kind in ("", "_units")) > 0


def _pairs(found: Mapping[str, Any]) -> list[str]:
    heads = [
        "network",
        "recipe",
        "mixed, bits",
        "dB",
        "KL",
        "right",
        "uniform, bits",
        "dB",
        "KL",
        "right",
        "gain, dB",
        "gain, KL",
        "",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for network in found["networks"]:
        title = f"{network['title']}, {network['right']}, float {network['float']['right %']:.1f}"
        for pair in network["pairs"]:
            one, other = network["plans"][pair["mixed"]], network["plans"][pair["uniform"]]
            cells = [
                title,
                _how(pair),
                f"{pair['mixed'].partition('/')[0].partition(' ')[2]}: {one['bits']:.2f}",
                *_numbers(one),
            ]
            cells += [
                f"{pair['rule']}: {other['bits']:.2f}",
                *_numbers(other),
                _gain(pair, "dB", 1),
                _gain(pair, "KL", 4),
            ]
            lines.append("| " + " | ".join([*cells, "**wins**" if wins(pair) else ""]) + " |")
            title = ""
    return lines


def _how(pair: Mapping[str, Any]) -> str:
    said = str(_NAMES.get(pair["recipe"], pair["recipe"]))
    return f"{said}, evolved" if pair["mixed"].startswith("evolved") else said


def _numbers(plan: Mapping[str, Any]) -> list[str]:
    return [f"{plan['dB']:.1f}", f"{plan['KL']:.4f}", f"{plan['right %']:.1f}"]


def _gain(pair: Mapping[str, Any], what: str, digits: int) -> str:
    said = f"{pair[what]:.{digits}f} [{pair[f'{what}_low']:.{digits}f}, {pair[f'{what}_high']:.{digits}f}]"
    if pair["units"] < pair.get("inputs", pair["units"] + 1) and pair[f"{what}_units_low"] != pair[f"{what}_low"]:
        said += f" / [{pair[f'{what}_units_low']:.{digits}f}, {pair[f'{what}_units_high']:.{digits}f}]"
    return said


def _ranks(found: Mapping[str, Any]) -> list[str]:
    if not any(network["ranks"] for network in found["networks"]):
        return []
    methods = list(dict.fromkeys(method for network in found["networks"] for method in network["ranks"]))
    heads = ["rank correlation with measured KL", *methods]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for network in found["networks"]:
        if network["ranks"]:
            each = [network["ranks"].get(method) for method in methods]
            cells = ["-" if one is None else f"{one['all']:.2f}, {one['within']:.2f}" for one in each]
            lines.append("| " + " | ".join([network["title"], *cells]) + " |")
    said = (
        "Spearman, of every candidate at every operation: over all of them, and the mean within one candidate. Measured: one operation "
        "quantized at a time, on inputs that no score has seen."
    )
    return [*lines, "", said]


def _predicted(found: Mapping[str, Any]) -> list[str]:
    if not any(network["predicted"] for network in found["networks"]):
        return []
    heads = [
        "network, rounded to nearest",
        "plan",
        "bits",
        "KL",
        "sum of single measurements",
        "ratio",
        "sum of scores",
        "ratio",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for network in found["networks"]:
        title = network["title"]
        for line in network["predicted"]:
            cells = [title, line["plan"], f"{line['bits']:.2f}", f"{line['measured']:.4f}"]
            for what in ("singles", "scores"):
                cells += [f"{line[what]:.4f}", f"{line['measured'] / max(line[what], 1e-12):.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
            title = ""
    said = "A ratio of 1: losses of operations add up. Far from it, at few bits, they do not."
    return [*lines, "", said]


def _flash(found: Mapping[str, Any]) -> list[str]:
    heads = ["a thermostat's program", "bytes of flash", "of RAM", "mean error, degrees", "as `lb.execute`"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in found["rows"].items():
        measured = row["measured"]
        if "device" not in measured:  # the float network
            continue
        kind, _, value = name.partition("_")
        what = f"within {int(value):,} bytes" if kind == "within" else f"uniform `{value[:2]},{value[2:]}`"
        flash, ram = (measured["device"][key]["mean"] for key in ("flash_bytes", "ram_bytes"))
        same = "**differs**" if measured["difference"]["device"]["share"]["mean"] else "same bits"
        lines.append(f"| {what} | {flash:,.0f} | {ram:,.0f} | {row['mean']:.2f} | {same} |")
    return lines


def report(found: Mapping[str, Any], folder: Path) -> Path:
    """Writes ``report.html`` with the pictures of every network, and these as PNG, and returns it.

    The front is of what plans rounded to nearest measure: mixed ones beside uniform ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for network in found["networks"]:
        title, name = network["title"], network["name"]
        measured = {plan.partition("/")[0]: each for plan, each in network["plans"].items() if plan.endswith("/rtn")}
        points = {
            kind: tuple(
                FrontPoint(each["bits"], each["KL"], 0.0, (plan.partition(" ")[2],))
                for plan, each in sorted(measured.items(), key=lambda item: item[1]["bits"])
                if plan.startswith(kind)
            )
            for kind in ("mixed", "uniform")
        }
        front = Front("stored bits of a weight", (), points["mixed"], points["uniform"])
        label, path = "measured KL", folder / f"{name}_front.png"
        sections.append(
            page.figure(f"{title}: mixed and uniform plans", pictures.pareto_front(front, label=label, path=path))
        )
        if network["scores"] is not None:
            scores = Scores.from_json(json.dumps(network["scores"]))
            drawn = pictures.heat_map(scores, path=folder / f"{name}_scores.png")
            sections.append(page.figure(f"{title}: scores", drawn))
        if lines := network["predicted"]:
            sums, right = [line["singles"] for line in lines], [line["measured"] for line in lines]
            drawn = pictures.predicted_against_measured(sums, right, path=folder / f"{name}_predicted.png")
            sections.append(page.figure(f"{title}: sum of single measurements beside the whole plan's", drawn))
    text = page.page("Mixed plans on real networks", f"By {found['command']}.", sections)
    atomic.write_file(folder / "report.html", text)
    return folder / "report.html"


def main(arguments: Sequence[str]) -> None:
    """Writes the tables into the documents named, or a page with pictures into a folder."""
    found = json.loads(RESULT.read_text())
    if arguments[:1] == ["--report"]:
        print(report(found, Path(arguments[1])))
    else:
        write_block(arguments, markdown(found), MARKS)


if __name__ == "__main__":
    main(sys.argv[1:])
