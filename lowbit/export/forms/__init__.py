"""Further forms of an exported model, one module each: the same integers and scales, written for another family of tools.

A module ``<form>.py`` here has ``write(lowered) -> {file name: content}``, and ``TOOLS``, where packages write it. The bundle gets those files wherever a target asks
for that form (`lowbit.targets.table`); nothing else is edited. The served form, StableHLO, is every bundle's own.
"""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.export.folder import Content
from lowbit.export.signature import Call
from lowbit.interpret.trace import Model
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan

SERVED = "served"
FORMS = (SERVED, *sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""Every form that `lowbit.export` writes."""


@dataclasses.dataclass(frozen=True)
class Lowered:
    """What is exported, before it is written.

    Attributes:
        fn: the function.
        plan: its plan.
        qparams: its packed parameters.
        call: which arguments are inputs.
        served: the served model, a function of the flat inputs: codes and scales are its constants.
        inputs: JSON entries of the flat inputs: name, shape, dtype; scale and zero point where the input is codes.
        outputs: the same of the flat results.
        vectors: flat test inputs, as arrays.
        results: what the served model gives for them.
        has_integer_io: whether inputs and results are codes.
        name: of the module, an identifier.
        version: of StableHLO artifacts.
    """

    fn: Model
    plan: Plan
    qparams: QParams
    call: Call
    served: Callable[..., Any]
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    vectors: Sequence[Any]
    results: Sequence[Any]
    has_integer_io: bool
    name: str
    version: str

    @functools.cached_property
    def jaxpr(self) -> Any:
        """The served model as a closed jaxpr of the flat inputs."""
        shapes = [jax.ShapeDtypeStruct(tuple(x["shape"]), jnp.dtype(x["dtype"])) for x in self.inputs]
        return jax.make_jaxpr(self.served)(*shapes)


def tools(form: str) -> tuple[str, ...]:
    """Returns the packages that write a form, besides lowbit and jax."""
    return getattr(importlib.import_module(f"{__name__}.{form}"), "TOOLS", ())


def runtimes(form: str) -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """Returns what whoever runs a form must set, by runtime: ``{"onnxruntime": {"session_options": {name: value}}}``."""
    return getattr(importlib.import_module(f"{__name__}.{form}"), "RUNTIMES", {})


def write(form: str, lowered: Lowered) -> Mapping[str, Content]:
    """Returns the files of one form but the served one.

    Raises:
        ValueError: if the form cannot hold the model.
    """
    return importlib.import_module(f"{__name__}.{form}").write(lowered)
