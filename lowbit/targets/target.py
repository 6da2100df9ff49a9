"""What a target is: one way to run an exported model, and what it can hold."""

import dataclasses
from collections.abc import Mapping

INLINED_BYTES = 256
"""IREE copies constants of up to this many bytes into the code that uses them, and there cannot read 2 or 4 bits
("failed to emulate bit width"): integers that would be this small stay in 8 bits."""

_ANY = ("tensor", "channel", "group", "tile")


@dataclasses.dataclass(frozen=True)
class Holds:
    """What a target takes at one primitive.

    Attributes:
        weights: names of weight formats; ``"*"`` means all.
        weight_granularity: ``tensor``, ``channel``, ``group``, ``tile``, by weight format where they differ.
        has_affine_weights: whether weights may have zero points.
        inputs: names of input formats; ``"float"``: inputs as computed (weight-only).
        input_granularity: of inputs.
        has_dynamic_inputs: whether input scales may be computed at run time.
        note: what made the rule necessary.
    """

    weights: tuple[str, ...] = ("*",)
    weight_granularity: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    has_affine_weights: bool = True
    inputs: tuple[str, ...] = ("*",)
    input_granularity: tuple[str, ...] = _ANY
    has_dynamic_inputs: bool = True
    note: str = ""

    def granularity(self, name: str) -> tuple[str, ...]:
        """Returns the granularities of a weight format."""
        return self.weight_granularity.get(name, self.weight_granularity.get("*", _ANY))


@dataclasses.dataclass(frozen=True)
class Target:
    """One way to run an exported model.

    Attributes:
        name: the word of ``targets=`` and ``--target``.
        form: which form of the bundle it takes, of `lowbit.export.forms.FORMS`.
        package: the tool, as installed: its version is reported.
        modules: what must be importable.
        install: how to get it.
        holds: by primitive; one that is missing cannot be quantized there.
        steps: how far a result may be from the test vectors, in steps of the output grid: 0 where the target computes
            the form's own arithmetic; 1 where its kernels round in their own way.
        note: what is special about it.
        has_symbolic: whether a dimension of the inputs may be left open when exporting.
        rejects: StableHLO operations that its compiler does not take, and what to write instead.
        is_full_integer: whether it takes full-integer plans only.
        rounding: of full-integer plans: the one that its kernels compute, where that is known.
        refuses: kinds of steps of a full-integer plan, and primitives of its tables, that it cannot take, and why.
        programs: what must be found among the programs of this machine.
        files: programs of other machines: what must be in `lowbit.export.installed.tools_folder`.
        widths: bits in which it stores integer weights, ascending: one takes the first that holds it.
        small_bytes: weights of up to so many bytes may take 8 bits each instead.
    """

    name: str
    form: str
    package: str
    modules: tuple[str, ...]
    install: str
    holds: Mapping[str, Holds]
    steps: int = 0
    note: str = ""
    has_symbolic: bool = False
    rejects: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_full_integer: bool = False
    rounding: str = ""
    refuses: Mapping[str, str] = dataclasses.field(default_factory=dict)
    programs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    widths: tuple[int, ...] = (2, 4, 8, 16)
    small_bytes: int = INLINED_BYTES
