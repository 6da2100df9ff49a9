"""The contracts fail where a quantizer is wrong, and see a new file without being told."""

import dataclasses
import textwrap

import jax
import jax.numpy as jnp
import pytest

import lowbit.quantizers
from lowbit.core import blocks as block_ops
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import Quantizer
from lowbit.core.spec import Operand
from lowbit.formats.lookup import spec_from_text
from lowbit.quantizers.rtn import RTN
from tests.contract import test_quantizers as contracts
from tests.contract.cases import Case, factories


@dataclasses.dataclass(frozen=True)
class Unrounded(RTN):
    """Levels that are not on the grid."""

    def quantize(self, qstate, x, operand):
        q = super().quantize(qstate, x, operand)
        return dataclasses.replace(q, codes=q.codes + 0.25)


@dataclasses.dataclass(frozen=True)
class Halves(RTN):
    """Multiplies in the dtype of the values."""

    def fake(self, qstate, x, operand):
        q = self.quantize(qstate, x, operand)
        return q.codes.astype(x.dtype) * q.scale.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Unstored(RTN):
    """A scale that is not what its dtype can hold."""

    def quantize(self, qstate, x, operand):
        return super().quantize({**qstate, "fixed": {"scale": qstate["fixed"]["scale"] * 1.001}}, x, operand)


@dataclasses.dataclass(frozen=True)
class Shrinking(RTN):
    """A range that follows the values it is given, so that quantizing twice shrinks twice."""

    def quantize(self, qstate, x, operand):
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        reach = block_ops.reduce_blocks(jnp.abs(x.astype(jnp.float32)), blocks, jnp.max)
        return quantize_with(x, self.spec, jnp.maximum(reach * 0.1, 1e-9), None, blocks)


@dataclasses.dataclass(frozen=True)
class NoGradient(RTN):
    """Nothing reaches the values."""

    def quantize(self, qstate, x, operand):
        return super().quantize(qstate, jax.lax.stop_gradient(x), operand)


@dataclasses.dataclass(frozen=True)
class NoLimit(RTN):
    """Trains on something else than it serves, for ever."""

    def train(self, qstate, x, operand, *, key, step):
        return self.quantize(qstate, x * 1.5, operand)


@dataclasses.dataclass(frozen=True)
class Vanishing(RTN):
    """Not a number where a block is zero."""

    def quantize(self, qstate, x, operand):
        q: QTensor = super().quantize(qstate, x, operand)
        return dataclasses.replace(q, codes=q.codes * (x / x))


@pytest.mark.parametrize(
    ("cls", "text", "contract"),
    [
        (Unrounded, "int4", contracts.test_bits),
        (Halves, "int4/tensor", contracts.test_bits_of_half_precision),
        (Unstored, "int4/bfloat16", contracts.test_bits),
        (Shrinking, "int4n", contracts.test_bits),
        (NoGradient, "int4", contracts.test_gradients),
        (NoLimit, "int4", contracts.test_train_has_a_limit),
        (Vanishing, "int4", contracts.test_special_values),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_a_defect_is_found(cls, text, contract):
    def case(cls):
        return Case(cls(spec_from_text(text, is_weight=True)), Operand((70, 6), contract=(0,)), "case")

    check = contract
    if contract is contracts.test_bits_of_half_precision:

        def check(case):
            contracts._check_bits(case, "bfloat16", eagerly=False)

    check(case(RTN))  # the same case without the defect
    with pytest.raises(AssertionError):
        check(case(cls))


def test_a_new_file_is_seen(tmp_path, monkeypatch):
    """A file dropped into the folder has cases, with nothing else edited."""
    (tmp_path / "dropped.py").write_text(
        textwrap.dedent(
            """
            from lowbit.core.quantizer import Quantizers
            from lowbit.quantizers.rtn import rtn

            def dropped(text: str) -> Quantizers:
                return rtn(text)
            """
        )
    )
    before = set(factories())
    monkeypatch.setattr(lowbit.quantizers, "__path__", [*lowbit.quantizers.__path__, str(tmp_path)])
    monkeypatch.delattr(lowbit.quantizers, "dropped", raising=False)
    found = factories.__wrapped__()
    assert set(found) == before | {"dropped"}
    assert isinstance(found["dropped"]("w4").weight, Quantizer)
