"""What shapes could reach at best on chips, computed from their data sheets: `python -m experiments.aot.roofline [PAGE]`.

    least time = max(bytes / bandwidth, operations / peak)

Bytes are the packed weight with its scales, the activations and the result, each moved once; operations are two a
multiply-add, at the peak of the type that is multiplied. No kernel reaches either. Nothing here is measured.
"""

import pathlib
import sys
from typing import NamedTuple

from experiments.aot.programs import BACKENDS
from lowbit_kernels.aot.report import read_golden


class Chip(NamedTuple):
    """Of a data sheet.

    Attributes:
        name: as it is written in the table.
        bandwidth: of its memory, bytes a second.
        bfloat16: peak, operations a second, dense.
        int8: peak, dense; that of bfloat16 where the sheet names none.
        source: of these.
    """

    name: str
    bandwidth: float
    bfloat16: float
    int8: float
    source: str


CHIPS = {
    "v5e": Chip("TPU v5e", 819e9, 197e12, 394e12, "https://cloud.google.com/tpu/docs/v5e"),
    "v6e": Chip("TPU v6e", 1640e9, 918e12, 1836e12, "https://cloud.google.com/tpu/docs/v6e"),
    "tpu7x": Chip("TPU7x", 7380e9, 2307e12, 2307e12, "https://cloud.google.com/tpu/docs/tpu7x"),
    "sm_90a": Chip("H100 SXM", 3350e9, 989e12, 1979e12, "https://www.nvidia.com/en-us/data-center/h100/"),
}
LENGTH, OUT = 8192, 28672
ROWS = (1, 16, 64, 256)
FORMATS = {  # bits of a weight, codes that share a scale, activations
    "bf16": (16, 0, "bfloat16"),
    "W8A16": (8, LENGTH, "bfloat16"),
    "W4A16 g128": (4, 128, "bfloat16"),
    "W8A8": (8, LENGTH, "int8"),
    "W4A8 g128": (4, 128, "int8"),
}
START, END = (
    "<!-- roofline: written by python -m experiments.aot.roofline papers/accelerators.md -->",
    "<!-- end of roofline -->",
)


def least_seconds(chip: Chip, rows: int, length: int, out: int, format_name: str) -> float:
    """The least time of `(rows, length) @ (length, out)`, bfloat16 in and out; int8 codes are made on the chip.

    >>> round(1e6 * least_seconds(CHIPS["v5e"], 1, 8192, 28672, "bf16"), 1)
    573.7
    """
    bits, group, activation = FORMATS[format_name]
    scales = 4 * (length // group) * out if group else 0
    moved = length * out * bits / 8 + scales + 2 * rows * (length + out)
    peak = chip.int8 if activation == "int8" else chip.bfloat16
    return max(moved / chip.bandwidth, 2 * rows * length * out / peak)


def shapes_table() -> list[str]:
    """Least microseconds of each format, and how many times faster than bfloat16's least that is."""
    lines = [f"| chip | M | {' | '.join(FORMATS)} | measured |", "|---" * (len(FORMATS) + 3) + "|"]
    for chip in CHIPS.values():
        for rows in ROWS:
            least = {name: least_seconds(chip, rows, LENGTH, OUT, name) for name in FORMATS}
            cells = [
                f"{1e6 * seconds:.0f} µs" + ("" if name == "bf16" else f", {least['bf16'] / seconds:.1f}x")
                for name, seconds in least.items()
            ]
            lines.append(f"| {chip.name} | {rows} | {' | '.join(cells)} | not measured |")
    return lines


def networks_table() -> list[str]:
    """What the compilers say of each network, from the golden reports, and its least time."""
    lines = ["| chip | network | kernels | in XLA | packed | temporaries | least time | measured |", "|---" * 8 + "|"]
    for backend in BACKENDS.values():
        for target, cases in read_golden(backend)[1].items():
            for name, report in cases.items():
                if not report.ok:
                    lines.append(
                        f"| {CHIPS[target].name} | {name} | {report.stage}: {report.error} | - | - | - | - | - |"
                    )
                    continue
                m, chip = report.metrics, CHIPS[target]
                peak = chip.int8 if ",a8" in name else chip.bfloat16
                least = max(m["packed"] / chip.bandwidth, 2 * m["macs"] / peak)
                others = ", ".join(path.split("/")[-1] for path in m["others"]) or "-"
                lines.append(
                    f"| {chip.name} | {name} | {m['kernels']} of {m['products']} | {others} | {m['packed'] / 1e6:.1f} MB | "
                    f"{m['temp'] / 1e6:.2f} MB | {1e6 * least:.0f} µs | not measured |"
                )
    return lines


def text() -> str:
    """Both tables, as they stand in the page."""
    head = f"Computed, not measured: least time of `(M, {LENGTH}) @ ({LENGTH}, {OUT})`, and how many times that of bfloat16."
    sources = ", ".join(f"[{chip.name}]({chip.source})" for chip in CHIPS.values())
    middle = (
        "Compiled, not run: networks through `lb.execute`, and their least time, computed from packed bytes and products. The 16 to 22 MB "
        "of temporaries in decoding are its two float caches (8.2 MB each) in another order, which XLA chooses for the loop over layers."
    )
    parts = [
        START,
        head,
        "",
        *shapes_table(),
        "",
        f"Bandwidths and peaks: {sources}.",
        "",
        middle,
        "",
        *networks_table(),
        END,
    ]
    return "\n".join(parts)


def main(page: str) -> int:
    """Writes the tables into a page, between their marks."""
    path = pathlib.Path(page)
    before, rest = path.read_text().split(START)
    path.write_text(before + text() + rest.split(END)[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]) if len(sys.argv) > 1 else print(text()))
