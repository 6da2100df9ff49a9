"""`export`: a packed model as a folder that other compilers read, with what it takes to check them.

::

    model.mlirbc         StableHLO as a portable artifact of a chosen version: what compilers take
    model.mlir           the same as text, for people: on request, or where the artifact is small
    model.zip            the artifact deflated, likewise
    vectors.safetensors  inputs, and the outputs that `lowbit.execute` gives for them: 64 calls where a batch of one is exported
    manifest.json        signatures, plan, weights, sizes, tool versions, sha256 of every file, and its own digest
    <form>/...           the same model in another form, where a target asks for it: `lowbit.export.forms`

StableHLO's bytecode has 2-bit and 4-bit constants at a byte an element, its text at two; deflated they take their bits. So
one program is stored once, unless asked otherwise, and what its artifact takes deflated is said in the manifest.
"""

import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from lowbit.core.keywords import explicit
from lowbit.core.marks import takes_state
from lowbit.core.moved import moved
from lowbit.core.qtensor import QTensor
from lowbit.interpret.execute import execute, execution
from lowbit.interpret.trace import Model, trace_planned
from lowbit.packed import arguments
from lowbit.packed.belongs import check_belongs, checked
from lowbit.packed.bits import unpack
from lowbit.packed.files import encode_tensors
from lowbit.packed.trees import QParams
from lowbit.plan import serial
from lowbit.plan.rows import Plan
from lowbit.targets.refusals import check, check_inputs, table
from lowbit.targets.table import lookup
from lowbit.targets.target import Target

from . import forms, integer, manifest, signature, stablehlo, symbolic
from .fold import fold
from .folder import fresh
from .forms import FORMS
from .inexact import inexact_operations
from .last_step import last_steps
from .memory import give_back
from .reading import ARTIFACT, MANIFEST, VECTORS
from .reading import Bundle as Bundle
from .sites import all_grids, sites
from .storage import check_size, weights
from .vectors import of_call, stacked


def export(
    fn: Model,
    plan: Plan,
    qparams: QParams,
    args: Sequence[Any],
    path: str | os.PathLike[str],
    *,
    constant_args: Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    version: str = stablehlo.VERSION,
    name: str = "lowbit",
    integer_io: bool = False,
    targets: Sequence[str] = ("xla", "iree"),
    text: bool | None = None,
    vectors: Sequence[Sequence[Any]] = (),
) -> Bundle:
    """Writes a packed model as StableHLO and returns the bundle.

    What is lowered is `lowbit.execute` itself, with ``implementation="reference"``: integer codes, int32 accumulation,
    its epilogue; the exported numbers are the served numbers. Weights are integer constants of their own width (i2, i4,
    i8; 3 bits in i4, 5 to 7 in i8; at most 256 bytes stay in i8), everything that depends on constants alone is
    computed here, and the module's inputs are the data.

    Args:
        fn: the function the plan was bound for, or another with the same operations.
        plan: from `lowbit.bind`, or read from a file.
        qparams: from `lowbit.pack`, or read from a file.
        args: example arguments after the parameters. Their shapes are those of the module, their values the test
            vectors; a `jax.ShapeDtypeStruct` gets random ones, and may have symbolic dimensions
            (``jax.export.symbolic_shape("batch, 64")``) where every target takes them.
        path: the folder; an earlier bundle there is replaced.
        constant_args: positions in ``args`` whose values become constants. By default the state of `lowbit.linen` and
            `lowbit.nnx` functions (position 0), wrapped and rewritten or not (`lowbit.core.marks`), and none of a plain
            function.
        kwargs: keyword arguments, all constant.
        version: of the StableHLO portable artifact.
        name: of the module.
        integer_io: of a full-integer plan: the module takes and gives codes, int8 or int16; the manifest has their scales and zero
            points. Without it, the module quantizes at the entry and dequantizes at the exit, and has no other float.
        targets: names from `lowbit.targets.table.TARGETS` that must be able to take the plan.
        text: whether the program is also written as text, and deflated, beside every artifact. By default where the
            artifact takes at most 64 kB: text has 4-bit weights at two bytes each.
        vectors: arguments of further calls, as ``args``: test vectors that every target is compared on. Where the inputs
            begin with a batch of one, there are 64 in all; those not given are made from the example's values.

    Raises:
        TypeError: for other types, or a constant argument without values.
        ValueError: for parameters of another plan, a scale that is NaN, infinite or smaller than 2**-126, an unknown target or one that cannot take the plan, a version that cannot hold the model, a position that does not exist, a folder that holds
            something else, an input quantized by code of its own, a module whose constants take more than the packed weights, or a full-integer plan's module
            that computes in floats.

    Example:
        >>> import tempfile, lowbit as lb, jax.numpy as jnp
        >>> fn, params, x = (
        ...     lambda p, x: x @ p["w"],
        ...     {"w": jnp.linspace(-1.0, 1.0, 2048).reshape(64, 32)},
        ...     jnp.ones((2, 64)),
        ... )
        >>> plan = lb.bind(fn, {"**": "w4,a8"}, params, x)
        >>> qparams = lb.pack(plan, params, lb.init(fn, plan, params, x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bundle = export(fn, plan, qparams, (x,), f"{folder}/model")
        ...     "tensor<64x32xi4>" in (bundle.path / "model.mlir").read_text(), bundle.manifest["inputs"]
        (True, [{'name': 'x', 'shape': [2, 64], 'dtype': 'float32'}])
    """
    asked = _checked(
        fn, plan, qparams, args, path,
        constant_args=constant_args, kwargs=kwargs, version=version, name=name, integer_io=integer_io,
        targets=targets, text=text, vectors=vectors,
    )  # fmt: skip
    call, boundary = asked.call, asked.boundary
    shapes = boundary.shapes() if boundary else [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in call.leaves]
    folded, out_shapes = _served(fn, plan, qparams, call, shapes, has_integer_io=integer_io)
    module = stablehlo.module(functools.partial(folded, has_bytes=True), shapes, name)
    contents = stablehlo.contents(module)
    if call.is_symbolic:
        symbolic.check_operations(contents.operations, asked.targets)
    check_size(contents, qparams, call.constants)
    floats = integer.audit(module, has_integer_io=integer_io) if plan.is_full_integer else None
    tested = _tested(asked, out_shapes, vectors, inexact_operations(contents))
    inputs, outputs = _ports(asked, shapes, out_shapes)
    said = _said(asked, contents, floats, tested, inputs, outputs)
    lowered = forms.Lowered(
        fn, plan, qparams, call, folded, inputs, outputs, tested.inputs[0], tested.results[0], integer_io, name, version
    )  # fmt: skip
    give_back()
    with fresh(asked.path, has_text=text) as folder:
        mark = manifest.scales_mark(json.loads(json.dumps(said)))
        folder.add(ARTIFACT, stablehlo.artifact(module, version, mark=mark))
        folder.add("model.mlir", functools.partial(stablehlo.print_text, module))
        folder.add(VECTORS, b"".join(encode_tensors(tested.tensors, {"format": manifest.FORMAT})))
        del module, folded
        for form in asked.forms:
            before = set(folder.files)
            for file, content in forms.write_form(form, lowered).items():
                folder.add(file, content)
            said["forms"][form] = sorted(set(folder.files) - before)
            said["runtimes"] |= forms.runtimes(form)
        said["files"] = folder.files
        full, content = manifest.encoded(said)
        folder.put(MANIFEST, content)
    return Bundle(asked.path, full)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What is exported, checked: the arguments of `export` that later stages read."""

    fn: Model
    plan: Plan
    qparams: QParams
    call: signature.Call
    boundary: integer.Boundary | None
    targets: tuple[Target, ...]
    path: Path
    name: str
    version: str
    constant_args: tuple[int, ...]

    @property
    def forms(self) -> list[str]:
        """Those that a target takes besides the served one."""
        return [form for form in dict.fromkeys(target.form for target in self.targets) if form != forms.SERVED]


def _checked(
    fn: Model, plan: Plan, qparams: QParams, args: Any, path: Any, *, constant_args: Any, kwargs: Any, version: str,
    name: Any, integer_io: bool, targets: Any, text: Any, vectors: Any,
) -> _Asked:  # fmt: skip
    """First stage: everything that can be refused before anything is traced."""
    arguments.check(fn=fn, plan=plan, qparams=qparams, kwargs=kwargs, integer_io=integer_io)
    if text is not None:
        arguments.check(text=text)
    for word, given in (("constant_args", constant_args), ("targets", targets), ("vectors", vectors)):
        if given is not None and (not isinstance(given, Sequence) or isinstance(given, str)):
            raise TypeError(f"{word} must be a list or tuple, got {given!r:.40}")
    if targets is None or vectors is None:
        raise TypeError(f"{'targets' if targets is None else 'vectors'} must be a list or tuple, got None")
    check_belongs(plan, qparams)
    checked(qparams)
    if not isinstance(args, Sequence) or isinstance(args, str):
        raise TypeError(f"args must be a tuple of example arguments, such as (state, x), got {type(args).__name__}")
    check_inputs(plan)
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"name must be an identifier, got {name!r}")
    chosen = lookup(targets)
    check(plan, chosen, tuple(FORMS))
    target = _target(path)
    stablehlo.check_version(version)
    if constant_args is None:
        constant_args = (0,) if takes_state(fn) and args else ()
    call = signature.read_call(fn, args, constant_args, dict(kwargs or {}))
    if call.is_symbolic:
        symbolic.check_plan(call, plan, chosen)
    if integer_io and not plan.is_full_integer:
        raise ValueError("integer_io needs a full-integer plan: lowbit.bind(..., integer=True)")
    boundary = integer.Boundary(fn, plan, qparams, call) if integer_io else None
    return _Asked(fn, plan, qparams, call, boundary, chosen, target, name, version, tuple(constant_args))


@dataclasses.dataclass(frozen=True)
class _Tested:
    """Test vectors, and how far a target may be from their results.

    Attributes:
        inputs: flat, of every call.
        results: likewise: what `lowbit.execute` gives.
        inexact: operations that tools compute differently.
        allowed: by output, where there are some.
        conditioning: what an input's last bit moves; None where all is exact.
        roundings: how far other named roundings are from a full-integer plan's own.
    """

    inputs: list[Any]
    results: list[list[jax.Array]]
    inexact: Sequence[str]
    allowed: list[float] | None
    conditioning: list[float] | None
    roundings: dict[str, Any] | None

    @property
    def tensors(self) -> dict[str, Any]:
        """What the file of vectors holds."""
        return {f"input{i}": x for i, x in enumerate(stacked(self.inputs))} | {
            f"output{i}": y for i, y in enumerate(stacked(self.results))
        }


def _tested(asked: _Asked, out_shapes: Any, vectors: Any, inexact: Sequence[str]) -> _Tested:
    """Third stage: the served model is run on the test vectors, and moved by what tools may move it."""
    fn, plan, qparams, call, boundary = asked.fn, asked.plan, asked.qparams, asked.call, asked.boundary
    tested = of_call(call, vectors, () if call.is_symbolic else jax.tree.leaves(out_shapes))
    if boundary:
        tested = [boundary.codes(leaves) for leaves in tested]

    def results(plan: Plan) -> list[list[jax.Array]]:
        serve = boundary.server(plan) if boundary else None
        if serve is not None:
            return [jax.tree.leaves(serve(leaves)) for leaves in tested]
        run = execute(fn, plan)
        return [jax.tree.leaves(run(qparams, *call.arguments(leaves), **explicit(call.kwargs))) for leaves in tested]

    want = results(plan)
    run = functools.partial(execute(fn, plan), qparams)

    def conditioned() -> list[float]:
        each = [signature.conditioning(run, call, *case) for case in zip(tested, want, strict=True)]
        return [max(limits) for limits in zip(*each, strict=True)]

    allowed = conditioned() if inexact and not boundary else None
    is_rounded = any(each.steps for each in asked.targets)
    roundings, conditioning = None, allowed
    if is_rounded and plan.is_full_integer:
        roundings = integer.rounding_differences(lambda plan: stacked(results(plan)), plan, stacked(want))
    elif is_rounded:
        conditioning = allowed or conditioned()
        traced = trace_planned(fn, plan, qparams.params, call.arguments(call.leaves), call.kwargs)
        steps = last_steps(plan, traced, qparams)
        conditioning = [max(a, b or 0.0) for a, b in zip(conditioning, steps, strict=True)]
    return _Tested(tested, want, inexact, allowed, conditioning, roundings)


def _ports(asked: _Asked, shapes: Sequence[Any], out_shapes: Any) -> tuple[Any, Any]:
    """The signature as the manifest has it: inputs and outputs, scales where they are on grids."""
    inputs = signature.described(asked.call.names, shapes)
    outputs = signature.described(signature.output_names(out_shapes), jax.tree.leaves(out_shapes))
    if boundary := asked.boundary:
        return boundary.described(inputs, boundary.ins), boundary.described(outputs, boundary.outs)
    if asked.plan.is_full_integer:  # floats, but on grids: targets are compared in their steps
        grids, sites = integer.Boundary(asked.fn, asked.plan, asked.qparams, asked.call).outs, asked.qparams.sites
        outputs = [entry | {"scale": float(sites[g]["scale"])} for entry, g in zip(outputs, grids, strict=True)]
    return inputs, outputs


def _said(
    asked: _Asked,
    found: stablehlo.Contents,
    floats: Mapping[str, Any] | None,
    tested: _Tested,
    inputs: Any,
    outputs: Any,
) -> manifest.Manifest:
    """Fourth stage: the manifest, files and digest aside."""
    plan, qparams = asked.plan, asked.qparams
    tools = ("lowbit", "jax", "jaxlib", *itertools.chain(*map(forms.tools, asked.forms)))
    said: manifest.Manifest = {
        "format": manifest.FORMAT,
        "version": manifest.FORMAT_VERSION,
        "name": asked.name,
        "entry": "main",
        "stablehlo": asked.version,
        "inputs": inputs,
        "outputs": outputs,
        "vectors": len(tested.inputs),
        "constant_args": list(asked.constant_args),
        "inexact_operations": list(tested.inexact),
        "constant_bytes": -(-found.constant_bits // 8),
        "allowed": tested.allowed,
        "conditioning": tested.conditioning,
        "roundings": tested.roundings,
        "weights": weights(qparams),
        "sites": sites(plan, qparams),
        "forms": {},
        "runtimes": {},
        "targets": {each.name: table(plan, each) for each in asked.targets},
        "plan": json.loads(serial.to_json(plan)),
        "tools": {tool: _installed(tool) for tool in tools},
    }
    if floats is not None:
        said["rounding"] = plan.rounding
        said["grids"] = all_grids(plan, qparams)
        said["float_operations"] = {where: sorted(set(names)) for where, names in floats.items()}
    return said


def _served(
    fn: Model, plan: Plan, qparams: QParams, call: signature.Call, shapes: Sequence[Any], *, has_integer_io: bool
) -> tuple[Callable[..., list[Any]], Any]:
    """The served model as a function of its flat inputs, constants computed, and the shapes of its results."""
    unpacked = jax.tree.map(_unpacked, qparams, is_leaf=lambda x: isinstance(x, QTensor))

    def served(*leaves):
        return execution(
            fn, plan, unpacked, call.arguments(leaves), call.kwargs,
            implementation="reference", has_integer_io=has_integer_io, keeps_nan=False,
        )  # fmt: skip

    jaxpr, out_shapes = jax.make_jaxpr(served, return_shape=True)(*shapes)
    return fold(jaxpr), out_shapes


def _unpacked(leaf: Any) -> Any:
    return unpack(leaf) if isinstance(leaf, QTensor) else leaf


def _target(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a string or a path, got {type(path).__name__}")
    target = Path(path)
    is_free = not target.exists() or (
        target.is_dir() and ((target / "manifest.json").exists() or not any(target.iterdir()))
    )
    if not is_free:
        raise ValueError(f"{target} exists and is not a bundle: export to a folder of its own")
    return target


def _installed(tool: str) -> str | None:
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        return None


__getattr__ = moved(__name__, {"read": "lowbit.export.reading.read_bundle"})
