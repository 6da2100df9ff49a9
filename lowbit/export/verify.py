"""`verify`: a bundle run again on everything that is installed, and compared with its test vectors.

A target passes where its results are exact, or, where the module holds operations whose last bits a compiler may choose,
within what the export measured for them (`Bundle.manifest["allowed"]`); and where the compiled file still holds
low-bit weights: by its size, and each in its bits (`lowbit.export.storage`) where the tool shows them.

A target whose kernels round in their own way passes within a step of every output. In a deep network such a step grows; so
it also passes where it is about as far off as the same integers under another named rounding, by the largest difference and
by the root of the mean square (`Bundle.manifest["roundings"]`): a wrong operation adds to what rounding makes.

A bundle may come from anyone. Only regular files that its manifest lists are opened, inside its folder. A module with a custom
call is not compiled, because lowbit writes none. Source code of a bundle, which its C form is, is compiled and run only with
``run_code=True``. Every target runs in a process of its own with limits (`lowbit.export.process`), which isolate nothing.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.core import atomic
from lowbit.targets.table import lookup
from lowbit.targets.target import Target

from . import process
from .forms import SERVED, folders_with
from .installed import missing, version
from .process import Limits
from .reading import ARTIFACT, Bundle, read_bundle
from .runners import Ran, runners
from .storage import bits_per_weight, widened
from .vectors import stacked

_CODE_BYTES = 32 * 1024
_CODE_BYTES_PER_OPERATION = 4 * 1024
"""What a compiled file may take beside its constants. Measured with IREE 3.13 for x86-64: 11 kB for two dense layers, 20 kB
for a CNN of two convolutions and two dense layers; 1 to 3 kB for each further operation; 31 kB more where the batch is open."""

_ALIGNED_BYTES_PER_OPERATION = 512
"""IREE begins each constant at a multiple of 64 bytes; an operation has a handful: codes, bias, multipliers, sums."""

_OF_LARGEST, _OF_RMS = 2.0, 1.25
"""How much further off than the other rounding a target may be. The largest of some thousand differences varies between two
roundings that are as good; their root mean square hardly does: an error three quarters as large as what rounding makes adds
25 % to it. Smaller ones cannot be told from rounding at the end of a deep network; a bundle of its first layers shows them."""

_CODE = ("c",)
"""Forms that are source code: of whoever made the bundle."""

DEFAULT = ("xla", "interpreter", "iree")
"""The targets of every bundle; those it was exported for come on top."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one target did.

    Attributes:
        target: its name.
        form: the form of the bundle that it took.
        status: ``exact``, ``close`` (within what the export allows for inexact operations and other roundings),
            ``differs``, ``inflated`` (the compiled file holds wider weights), ``failed`` (it could not compile or run),
            ``reported`` (it compiled, and nothing here can run the result), ``not run``.
        difference: the largest, over all outputs; None where nothing ran.
        unit: of the difference: ``steps`` of the output's scale, or ``absolute``.
        share: of output elements that differ.
        rounding: the largest difference that another rounding of the same integers makes, in the same unit; None where the
            target was within its steps, or nothing was measured.
        bytes: of the compiled file; None where there is none.
        bits_per_weight: found in the compiled file, scales not counted; where the tool does not show them, all of its
            constants, or the whole file, over the number of weights: an upper bound.
        detail: why, and what to install.
        version: of the tool.
        measured: what else the run found, by name with unit: ``flash_bytes``, ``ram_bytes``, ``microseconds``.
    """

    target: str
    form: str
    status: str
    difference: float | None = None
    unit: str = ""
    share: float | None = None
    rounding: float | None = None
    bytes: int | None = None
    bits_per_weight: float | None = None
    detail: str = ""
    version: str = ""
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def is_failure(self) -> bool:
        """Whether it ran and did not pass."""
        return self.status in ("differs", "inflated", "failed")


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What was run where.

    Attributes:
        bundle: the folder.
        rows: one per target.
        machine: where.
        artifact: sha256 of the artifact.
    """

    bundle: str
    rows: tuple[Verdict, ...]
    machine: str
    artifact: str

    @property
    def is_passed(self) -> bool:
        """Whether something was compared, or reported where only reports were asked for, and nothing failed."""
        ran = [row for row in self.rows if row.status != "not run"]
        return bool(ran) and not any(row.is_failure for row in ran)

    def to_json(self) -> str:
        """Returns the certificate as JSON text."""
        content = {"machine": self.machine, "artifact": self.artifact, "passed": self.is_passed}
        return json.dumps(content | {"rows": [dataclasses.asdict(row) for row in self.rows]}, indent=1) + "\n"


def verify(
    path: str | os.PathLike[str],
    targets: Sequence[str] | None = None,
    *,
    run_code: bool = False,
    limits: Limits | None = None,
) -> Certificate:
    """Returns what every target made of a bundle.

    Args:
        path: the bundle's folder; its checksums are checked first.
        targets: names from `lowbit.targets.table.TARGETS`; by default those in `DEFAULT`, the interpreter only for small
            models, and those that the bundle was exported for.
        run_code: whether source code of the bundle, its C form, is compiled and run: only for bundles of those you trust.
            Without it, the rows of those targets say that they were not run.
        limits: of time and memory for each target.

    Raises:
        TypeError: for other types.
        ValueError: if the folder holds no bundle, or one that was altered (see `lowbit.export.reading.read_bundle`); for a target
            that cannot be verified here.

    Example:
        >>> import tempfile, lowbit as lb, jax.numpy as jnp
        >>> fn, params, x = lambda p, x: x @ p["w"], {"w": jnp.eye(8)}, jnp.ones((2, 8))
        >>> plan = lb.bind(fn, {"**": "w8,a8"}, params, x)
        >>> qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bundle = lb.export(fn, plan, qparams, (x,), f"{folder}/model")
        ...     verify(bundle.path, ["xla"]).rows[0].status
        'exact'
    """
    if not isinstance(run_code, bool):
        raise TypeError(f"run_code must be True or False, got {run_code!r}")
    if not isinstance(limits, Limits | None):
        raise TypeError(f"limits must be lowbit.export.process.Limits, got {type(limits).__name__}")
    bundle = read_bundle(path)
    chosen = lookup([*DEFAULT, *bundle.manifest["targets"]] if targets is None else targets)
    if targets is None:
        chosen = [target for target in chosen if target.name in runners()]
    for target in chosen:
        if target.name not in runners():
            raise ValueError(f"target {target.name!r} cannot be run here; verify runs: {', '.join(runners())}")
        if target.form not in (SERVED, *bundle.manifest.get("forms", ())):
            raise ValueError(
                f"target {target.name!r} takes the {target.form} form, which {bundle.path} does not hold: export it with "
                f"targets=[{target.name!r}]"
            )
    ask = {"is_asked": targets is not None, "run_code": run_code, "limits": limits or Limits()}
    rows = tuple(_row(bundle, target, **ask) for target in chosen)
    return Certificate(str(bundle.path), rows, _machine(), bundle.manifest["files"][ARTIFACT]["sha256"])


def write_certificate(certificate: Certificate) -> Path:
    """Writes ``certificate.json`` into the bundle, in the place of whatever has that name there, and returns its path."""
    target = Path(certificate.bundle) / "certificate.json"
    atomic.write_file(target, certificate.to_json())
    return target


def _row(bundle: Bundle, target: Target, *, is_asked: bool, run_code: bool, limits: Limits) -> Verdict:
    base = Verdict(target.name, target.form, "not run")
    if target.form in _CODE and not run_code:
        return dataclasses.replace(base, detail="source code of the bundle: compiled and run only with --run-code")
    if needed := missing(target):
        return dataclasses.replace(base, detail=f"{needed} is not installed: {target.install}")
    tool = version(target)
    cases = bundle.cases()
    own = runners()[target.name]
    if own.__module__ in (f"{__package__}.{form}.run" for form in folders_with("run")):
        answer, ran = process.run(bundle, target, limits, is_asked=is_asked)
        if ran is None:
            return dataclasses.replace(base, status=answer["status"], detail=answer["detail"], version=tool)
    else:  # a caller's own, which no other process would find by the target's name
        ran = own(bundle, [inputs for inputs, _ in cases])
    if ran.outputs is None:
        numbers = {"status": "reported", "detail": "a compiler's report: nothing was run"}
    else:
        numbers = _compared(bundle, ran, [wanted for _, wanted in cases], steps=target.steps)
    if numbers["status"] in ("close", "differs") and target.rounding not in ("", bundle.manifest.get("rounding", "")):
        numbers["detail"] += f"; its kernels compute plans bound with integer=True, rounding={target.rounding!r}"
    row = dataclasses.replace(base, version=tool, measured=ran.measured, **numbers)
    if ran.compiled is None:
        return row
    detail = widened(bundle.manifest, target, ran.stored or ())
    if ran.stored is not None:
        bits = bits_per_weight(ran.stored)
    else:
        what, size = (
            ("compiled file takes", ran.compiled) if ran.constants is None else ("constants take", ran.constants)
        )
        limit = size_limit(bundle.manifest, has_code=ran.constants is None)
        bits = stored_bits(bundle.manifest, size)
        detail = f"the {what} {size:,} bytes, {limit:,} are enough: weights were widened" if size > limit else ""
    row = dataclasses.replace(row, bytes=ran.compiled, bits_per_weight=bits)
    return dataclasses.replace(row, status="inflated", detail=detail) if detail and not row.is_failure else row


def _compared(bundle: Bundle, ran: Ran, wanted: Sequence[Sequence[np.ndarray]], *, steps: int) -> dict[str, Any]:
    """What `compared` says of all calls that ran, and how many those are."""
    outputs: Any = ran.outputs
    cases = [outputs] if all(isinstance(y, np.ndarray) for y in outputs) else outputs  # the results of the only call
    if not 0 < len(cases) <= len(wanted):
        return {"status": "differs", "detail": f"results of {len(cases)} calls, {len(wanted)} wanted"}
    shapes = [[(y.shape, y.dtype) for y in case] for case in cases]
    odd = next((n for n, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:  # said of the call alone
        return compared(bundle.manifest, cases[odd], wanted[odd], steps=steps)
    if len(cases) == 1:
        numbers = compared(bundle.manifest, cases[0], wanted[0], steps=steps)
    else:
        numbers = compared(bundle.manifest, stacked(cases), stacked(wanted[: len(cases)]), steps=steps)
    if len(cases) < len(wanted):
        numbers["detail"] = "; ".join(filter(None, [numbers["detail"], f"{len(cases)} of {len(wanted)} test vectors"]))
    return numbers


def compared(
    manifest: dict[str, Any], got: Sequence[np.ndarray], wanted: Sequence[np.ndarray], *, steps: int = 0
) -> dict[str, Any]:
    """Returns status, difference, unit, share, rounding and detail of some results against the test vectors.

    Args:
        manifest: of the bundle.
        got: flat results.
        wanted: what they should be.
        steps: of an output's grid that the target may be off; where there is no grid, what a rounding of its own may change.
    """
    allowed = manifest.get("conditioning" if steps else "allowed") or [0.0] * len(wanted)
    if len(got) != len(wanted):
        return {"status": "differs", "detail": f"{len(got)} results, {len(wanted)} wanted"}
    nothing = {"against": "", "largest": [0.0] * len(wanted), "rms": [0.0] * len(wanted)}
    other = (manifest.get("roundings") if steps else None) or nothing
    noise = zip(other["largest"], other["rms"], strict=True)
    largest, moved, count, total, is_within, unit = 0.0, 0.0, 0, 0, True, "absolute"
    for a, b, limit, entry, (most, rms) in zip(got, wanted, allowed, manifest["outputs"], noise, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            detail = f"{entry['name']} is {a.dtype}{list(a.shape)}, wanted {b.dtype}{list(b.shape)}"
            return {"status": "differs", "detail": detail}
        distance = _distance(a, b)
        is_code = np.issubdtype(b.dtype, np.integer) and "scale" in entry
        unit = "steps" if is_code else unit
        slack = 0.0 if is_code else 2.0**-10  # of a step: values of codes are rounded to float32
        limit = max(limit, (steps + slack) * (1.0 if is_code else entry.get("scale", 0.0)) if steps else 0.0)
        furthest = float(distance.max(initial=0.0))
        if furthest > limit:
            is_within = is_within and furthest <= _OF_LARGEST * most and np.sqrt(np.mean(distance**2)) <= _OF_RMS * rms
            moved = max(moved, most)
        largest = max(largest, furthest)
        count, total = count + int(np.count_nonzero(distance)), total + b.size
    status = "exact" if count == 0 else ("close" if is_within else "differs")
    detail = "" if count == 0 else f"{count} of {total} elements differ"
    if moved:
        detail += f"; {other['against']} rounding moves them by up to {moved:g}"
    share = count / max(total, 1)
    numbers = {"status": status, "difference": largest, "unit": unit, "share": share, "detail": detail}
    return numbers | {"rounding": moved or None}


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Absolute differences in float64; 0 where both are the same, NaN and infinities included, else infinite there."""
    wide = [x.astype(np.float64) for x in (a, b)]
    is_same = (wide[0] == wide[1]) | (np.isnan(wide[0]) & np.isnan(wide[1]))
    with np.errstate(invalid="ignore"):
        distance = np.abs(wide[0] - wide[1])
    return np.where(is_same, 0.0, np.where(np.isnan(distance), np.inf, distance))


def size_limit(manifest: dict[str, Any], *, has_code: bool = True) -> int:
    """Returns the bytes that a compiled file may take: its constants at their own width, and code.

    Args:
        manifest: of the bundle.
        has_code: without it, the constants alone, each from an address of its own.
    """
    if not has_code:
        return manifest["constant_bytes"] + _ALIGNED_BYTES_PER_OPERATION * len(manifest["plan"]["rows"])
    is_symbolic = any(isinstance(n, str) for entry in manifest["inputs"] for n in entry["shape"])
    code = _CODE_BYTES * (2 if is_symbolic else 1) + _CODE_BYTES_PER_OPERATION * len(manifest["plan"]["rows"])
    return manifest["constant_bytes"] + code


def stored_bits(manifest: dict[str, Any], compiled: int) -> float | None:
    """Returns the bits per weight of a compiled file, all else counted in: an upper bound. None without weights."""
    count = sum(int(np.prod(entry["shape"])) for entry in manifest["weights"])
    return 8 * compiled / count if count else None


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
