"""What a recipe did, operation by operation: a table to print, and JSON."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from lowbit.core.aligned import aligned


@dataclasses.dataclass(frozen=True)
class Line:
    """One operation.

    Attributes:
        path: of the operation.
        weight: spec of the weight; "" where it stays in float.
        inputs: spec of the inputs; "" where they stay as computed.
        bits: stored per weight, scales included; 0 where there is none.
        weight_db: signal to noise of the weight.
        output_db: signal to noise of the results that the weight's rounding leaves, on the calibration inputs; of an operation
            that was learned with its block, that its operands leave, quantized alone on the first batch.
        ratio: error of the results over that of rounding to nearest on absmax scales.
        clipped: share of the weight's entries beyond the range.
        kernel: what runs it.
        accumulated_db: signal to noise of the results with everything before it quantized as well; None: not measured.
        notes: what was decided on the way, and why it stays in float.
    """

    path: str
    weight: str = ""
    inputs: str = ""
    bits: float = 0.0
    weight_db: float | None = None
    output_db: float | None = None
    ratio: float | None = None
    clipped: float | None = None
    kernel: str = ""
    accumulated_db: float | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """What a recipe did.

    Attributes:
        recipe: as text, with every hyper-parameter.
        lines: one per operation, in program order.
        bits_per_weight: of all packed weights together, scales included, and parameters that take back what is left of them.
        nbytes: of the packed parameters.
        seconds: what each stage took.
        batches: of calibration.
        fn: the function that the plan is of: the given one, or what the recipe's rewrite made of it.
        state: that goes with it; None where the function takes none.
        rewritten: what the recipe's rewrite did, and what it left as it is and why; "" without one that says so.
    """

    recipe: str
    lines: tuple[Line, ...]
    bits_per_weight: float
    nbytes: int
    seconds: Mapping[str, float]
    batches: int
    fn: Callable[..., Any] = dataclasses.field(repr=False, compare=False)
    state: Any = dataclasses.field(default=None, repr=False, compare=False)
    rewritten: str = ""

    @property
    def guilty(self) -> tuple[Line, ...]:
        """The three operations whose results lose most by their own rounding."""
        known = [line for line in self.lines if _loss(line) is not None]
        return tuple(sorted(known, key=lambda line: _loss(line) or 0.0)[:3])

    def to_json(self) -> str:
        """Returns the report as JSON; numbers that are not finite are null."""
        lines = [
            {k: _finite(v) for k, v in dataclasses.asdict(line).items()}  # tuples become lists
            for line in self.lines
        ]
        content = {
            "recipe": self.recipe,
            "rewritten": self.rewritten.splitlines(),
            "bits_per_weight": self.bits_per_weight,
            "nbytes": self.nbytes,
            "batches": self.batches,
            "seconds": dict(self.seconds),
            "guilty": [line.path for line in self.guilty],
            "operations": lines,
        }
        return json.dumps(content, indent=1)

    def __str__(self) -> str:
        rows = [list(HEADS), *(cells(line) for line in self.lines)]
        said = [i for i in range(len(HEADS)) if i == 0 or any(row[i] not in ("", "-") for row in rows[1:])]
        rows = [[row[i] for i in said] for row in rows]
        table = "\n".join(aligned(rows, [at for at, i in enumerate(said) if HEADS[i] in _TEXT], ruled=True))
        spent = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        said_before = f"{self.rewritten}\n" if self.rewritten else ""
        guilty = ", ".join(f"{line.path} ({_number(_loss(line))} dB)" for line in self.guilty)
        return (
            f"{self.recipe}\n{said_before}\n{table}\n\n{self.bits_per_weight:.3f} bits per weight with scales, {self.nbytes:,} bytes; "
            f"{self.batches} calibration batches; {spent}\nloses most: {guilty or 'nothing'}"
        )


HEADS = (
    "operation", "weight", "inputs", "bits", "weight dB", "output dB", "x nearest", "clipped", "so far dB",
    "kernel", "notes",
)  # fmt: skip
_TEXT = ("operation", "weight", "inputs", "notes")


def cells(line: Line) -> list[str]:
    """Returns a line of the table as text."""
    return [
        line.path,
        line.weight or "float",
        line.inputs or "as computed",
        f"{line.bits:.2f}" if line.bits else "-",
        _number(line.weight_db),
        _number(line.output_db),
        "-" if line.ratio is None else f"{line.ratio:.3f}",
        "-" if line.clipped is None else f"{100 * line.clipped:.2f} %",
        _number(line.accumulated_db),
        line.kernel,
        "; ".join(line.notes),
    ]


def _loss(line: Line) -> float | None:
    value = line.output_db
    return value if value is not None and not math.isnan(value) else None


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
