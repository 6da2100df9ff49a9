"""Whether packed parameters are of a plan, and whether their scales are scales."""

from typing import Any

import jax

from lowbit.core.checks import holds, is_traced
from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import SMALLEST_SCALE
from lowbit.plan.rows import Plan

from .trees import QParams, flatten


def check_belongs(plan: Plan, qparams: QParams) -> None:
    """Raises unless packed parameters are of this plan. Values are not looked at: it holds under `jax.jit` too.

    Where they carry no fingerprint (made by hand, or by an older lowbit), every quantized weight has to have the plan's
    spec and shape, and every static input its scale.

    Raises:
        TypeError: for other types.
        ValueError: if they are another plan's, with the first difference.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan from lowbit.bind or lowbit.load, got {type(plan).__name__}")
    if not isinstance(qparams, QParams):
        raise TypeError(f"qparams must be packed parameters from lowbit.pack, got {type(qparams).__name__}")
    if qparams.fingerprint == plan.fingerprint:
        return
    difference = difference_of(plan, qparams)
    if difference is None and not qparams.fingerprint:
        return
    raise ValueError(
        f"qparams are another plan's ({qparams.fingerprint or 'they do not say which'}, this one is {plan.fingerprint}): "
        f"{difference or 'weights alike, but another quantizer or model'}; pack with this plan, or execute with theirs"
    )


def difference_of(plan: Plan, qparams: QParams) -> str | None:
    """Returns the first weight or input in which packed parameters are not of the plan, or None."""
    paths, leaves, _ = flatten(qparams.params)
    by_path = dict(zip(paths, leaves, strict=True))
    for row in plan.rows:
        held = qparams.sites.get(row.path, {})
        for site in row.sites:
            if site.kind == "leaf" and site.key not in by_path:
                return f"they have no parameter {site.key!r}"
            if site.spec is None or site.kind == "grid":
                continue
            if not site.is_weight:
                if not site.spec.dynamic and not site.own_code and "scale" not in held.get(site.role, {}):
                    return f"they have no scale for the {site.role} of {row.path!r}, which is {site.spec.text} in this plan"
                continue
            q = by_path[site.key] if site.kind == "leaf" else held.get(site.role)
            want = f"{site.spec.text} of shape {site.operand.shape}"
            if not isinstance(q, QTensor):
                return f"the weight of {row.path!r} is not packed in them, and {want} in this plan"
            if q.spec != site.spec or q.shape != site.operand.shape:
                return (
                    f"the weight of {row.path!r} is {q.spec.text} of shape {q.shape} in them, and {want} in this plan"
                )
    known = plan.leaf_sites()
    extra = next((path for path, leaf in by_path.items() if isinstance(leaf, QTensor) and path not in known), None)
    if extra is not None:
        return f"{extra!r} is packed in them, and not in this plan"
    grid = next((path for path in plan.grids() if "scale" not in qparams.sites.get(path, {})), None)
    return None if grid is None else f"they have no scale for the grid {grid!r}"


def checked(qparams: QParams) -> QParams:
    """Returns packed parameters whose every scale is finite and at least 2**-126 in size; traced ones are passed over.

    Raises:
        ValueError: for a scale that is NaN, infinite or too small, with the place it is at.
    """
    named: dict[str, list[Any]] = {}
    paths, leaves, _ = flatten(qparams.params)
    for path, leaf in zip(paths, leaves, strict=True):
        if isinstance(leaf, QTensor):
            named[f"the weight {path!r}"] = _scales(leaf)
    for path, roles in qparams.sites.items():
        for role, state in roles.items():
            scale = state.get("scale") if isinstance(state, dict) else None
            if isinstance(state, QTensor):
                named[f"the {role} of {path!r}"] = _scales(state)
            elif scale is not None:
                named[f"the {role} of {path!r}"] = [scale]
        if hasattr(roles.get("scale"), "dtype"):  # of a grid in a full-integer plan
            named[f"the grid {path!r}"] = [roles["scale"]]
    named = {name: arrays for name, arrays in named.items() if not any(is_traced(x) for x in arrays)}
    for name, is_right in holds(named, _are_scales).items():
        if not is_right:
            raise ValueError(
                f"the scale of {name} is NaN, infinite or smaller than 2**-126: it stands for no grid. The state it was packed "
                f"from diverged in training, or was changed by hand: go back to one that is finite"
            )
    return qparams


def _scales(q: QTensor) -> list[Any]:
    leaves = jax.tree.leaves(q.scale)
    return leaves if any(is_traced(x) for x in leaves) else [q.scale_values]


def _are_scales(numpy: Any, x: Any) -> Any:
    wide = numpy.abs(numpy.asarray(x).astype(numpy.float32))
    return (wide >= SMALLEST_SCALE) & numpy.isfinite(wide)
