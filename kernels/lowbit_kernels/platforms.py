"""Which machine a program is for: the platforms, what is known of their devices, and a choice made when lowering.

A function is traced once and may be lowered for another machine than this one, or for several (`jax.export`, ahead-of-time
compilation). `by_platform` keeps a function for each platform and traces the one that is lowered, when it is lowered.
"""

import contextvars
import functools
import platform as system
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import get_abstract_mesh

PLATFORMS = ("cpu", "tpu", "cuda", "rocm")
INTERPRETERS = ("tpu-interpreter", "cuda-interpreter")
"""The kernels of a platform in Pallas' interpreter, on any machine: slow, for tests."""


def platform_named(name: str) -> str:
    """Returns a platform's name, "gpu" as the kind that this process has.

    Raises:
        ValueError: for an unknown name.

    >>> platform_named("tpu")
    'tpu'
    """
    if name == "gpu":
        return "rocm" if _is_amd(_kind("gpu") or "") else "cuda"
    if not isinstance(name, str) or name not in (*PLATFORMS, *INTERPRETERS):
        raise ValueError(f"platform must be one of {', '.join((*PLATFORMS, *INTERPRETERS))} or gpu, got {name!r}")
    return name


def default_platform() -> str:
    """Returns the platform that jax runs on where nothing else is said."""
    return platform_named(jax.default_backend())


def platform_of(arrays: Any) -> str:
    """Returns the platform of concrete arrays: of the first that is on a device, else the default one."""
    for leaf in jax.tree.leaves(arrays):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            return platform_named(next(iter(leaf.devices())).platform)
    return default_platform()


def device_kind(platform: str) -> str | None:
    """Returns the kind of the first device of a platform: of this process, or described by an abstract mesh; else None."""
    described = getattr(get_abstract_mesh(), "abstract_device", None)
    if described is not None and platform != "cpu":
        return described.device_kind
    return _kind(platform)


@functools.cache
def _kind(platform: str) -> str | None:
    try:
        return jax.devices(platform)[0].device_kind
    except RuntimeError:  # no such backend in this process
        return None


def _is_amd(kind: str) -> bool:
    return kind.lower().startswith(("amd", "gfx", "mi", "radeon"))


def compute_capability() -> str | None:
    """Returns the compute capability of the CUDA GPU of this process, or of a described Hopper; None where there is none."""
    kind = device_kind("cuda")
    if kind is None:
        return None
    if kind == _kind("cuda"):
        return str(getattr(jax.devices("cuda")[0], "compute_capability", "unknown"))
    return "9.0" if any(name in kind for name in ("H100", "H200", "H800", "H20", "GH200")) else "unknown"


@functools.cache
def processor() -> str:
    """Returns the name of the processor as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, system.processor() or system.machine())


Function = Callable[..., Any]


def by_platform(functions: Mapping[str, Function], default: Function, like: Any, *args: Any) -> Any:
    """Returns what the function of the platform that is lowered for returns.

    Args:
        functions: by names of `PLATFORMS`; traced when lowered.
        default: for every other platform.
        like: a tree of what is returned, of arrays or `jax.ShapeDtypeStruct`.
        *args: trees of arrays, for each function.

    Works under `jit`, `vmap`, `shard_map` and lowering for several platforms; under `grad` each function is traced.
    """
    flat, tree = jax.tree.flatten(args)
    leaves, out = jax.tree.flatten(like)

    def flattened(function: Function) -> Function:
        return lambda *flat: jax.tree.leaves(function(*jax.tree.unflatten(tree, flat)))

    found = _by_platform.bind(
        *[jnp.asarray(x) for x in flat],
        branches=tuple((name, flattened(functions[name])) for name in PLATFORMS if name in functions),
        default=flattened(default),
        like=tuple((tuple(leaf.shape), jnp.dtype(leaf.dtype)) for leaf in leaves),
    )
    return jax.tree.unflatten(out, found)


_by_platform = Primitive("lowbit_by_platform")
_by_platform.multiple_results = True


@_by_platform.def_impl
def _(*args, **params):
    return jax.jit(lambda *args: _by_platform.bind(*args, **params))(*args)


@_by_platform.def_abstract_eval
def _(*avals, branches, default, like):
    if not get_abstract_mesh().empty:  # results are sharded, or vary along axes, as tracing says
        return jax.make_jaxpr(default)(*avals).out_avals
    return [ShapedArray(shape, dtype) for shape, dtype in like]


_has_devices: contextvars.ContextVar[bool] = contextvars.ContextVar("has_devices", default=True)


def has_devices() -> bool:
    """Whether the branch that is traced now is lowered for devices: an export for several platforms knows none.

    jax lowers `custom_partitioning` only where it knows them, so such an export holds the calls as they are.
    """
    return _has_devices.get()


def _lowering(platform: str | None) -> Callable[..., Any]:
    def rule(ctx, *args, branches, default, like):
        known = getattr(ctx.module_context.axis_context, "device_assignment", ()) is not None
        before = _has_devices.set(known and _has_devices.get())
        try:
            return mlir.lower_fun(dict(branches).get(platform, default), multiple_results=True)(ctx, *args)
        finally:
            _has_devices.reset(before)

    return rule


for _name in PLATFORMS:
    mlir.register_lowering(_by_platform, _lowering(_name), platform=_name)
mlir.register_lowering(_by_platform, _lowering(None))


def _batched(args, dims, *, branches, default, like):
    count = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)

    def mapped(function: Function) -> Function:
        return jax.vmap(function, in_axes=tuple(dims), axis_size=count)

    out = _by_platform.bind(
        *args,
        branches=tuple((name, mapped(function)) for name, function in branches),
        default=mapped(default),
        like=tuple(((count, *shape), dtype) for shape, dtype in like),
    )
    return out, [0] * len(out)


batching.primitive_batchers[_by_platform] = _batched


def _jvp(primals, tangents, *, branches, default, like):
    def chosen(*args):
        return lax.platform_dependent(*args, default=default, **dict(branches))

    tangents = [ad.instantiate_zeros(t) for t in tangents]
    return jax.jvp(chosen, primals, tuple(tangents))


ad.primitive_jvps[_by_platform] = _jvp
