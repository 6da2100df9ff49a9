"""The forms of an exported model, a folder each: the same integers and scales, written for another family of tools.

A folder beside this file is a form where it has a ``write.py``: ``write(lowered) -> {file name: content}``, ``TOOLS``, where packages
write it, ``PROGRAM``, where a file of it is a StableHLO artifact, and ``RUNTIMES``, where runtimes must be told something. What runs
it is its ``run.py`` (`lowbit.export.runners`). The bundle gets the files of every form that a target asks for
(`lowbit.targets.table`). The served form, StableHLO, is every bundle's own.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.export.folder import Content
from lowbit.export.reading import ARTIFACT
from lowbit.export.signature import Call
from lowbit.interpret.trace import Model
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan

SERVED = "served"
_HERE = __name__.rpartition(".")[0]


def folders_with(part: str) -> tuple[str, ...]:
    """Returns the folders beside this file that have a module of this name, sorted.

    Example:
        >>> folders_with("write")
        ('c', 'litert', 'onnx', 'quantized', 'universal')
    """
    return tuple(sorted(path.parent.name for path in Path(__file__).parent.glob(f"*/{part}.py")))


FORMS = (SERVED, *folders_with("write"))
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


def _module(form: str) -> Any:
    return importlib.import_module(f"{_HERE}.{form}.write")


def tools(form: str) -> tuple[str, ...]:
    """Returns the packages that write a form, besides lowbit and jax."""
    return getattr(_module(form), "TOOLS", ())


def runtimes(form: str) -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """Returns what whoever runs a form must set, by runtime: ``{"onnxruntime": {"session_options": {name: value}}}``."""
    return getattr(_module(form), "RUNTIMES", {})


def program(form: str) -> str | None:
    """Returns the file of a form that is a StableHLO artifact; None where it has none."""
    return ARTIFACT if form == SERVED else getattr(_module(form), "PROGRAM", None)


def write_form(form: str, lowered: Lowered) -> Mapping[str, Content]:
    """Returns the files of one form but the served one.

    Raises:
        ValueError: if the form cannot hold the model.
    """
    return _module(form).write(lowered)
