"""Quantized types through a whole module: on its arguments and results, on constants, and on what only moves elements."""

from collections.abc import Sequence
from typing import Any

from jaxlib.mlir import ir  # noqa: TID251 - public jax cannot change a module
from jaxlib.mlir.passmanager import PassManager  # noqa: TID251

from lowbit.export.stablehlo import new_context

from .types import QuantType

_CAST = "stablehlo.bitcast_convert"
_MOVES = {
    "stablehlo.broadcast_in_dim": 0,
    "stablehlo.concatenate": 0,
    "stablehlo.pad": 0,
    "stablehlo.reshape": 0,
    "stablehlo.select": 1,
    "stablehlo.slice": 0,
    "stablehlo.transpose": 0,
}
"""What moves elements of one scale, and which of its operands is the first with elements. ``reverse`` is no such operation:
StableHLO's own lowering of quantized types does not take it."""


def settled(text: str, ins: Sequence[QuantType | None], outs: Sequence[QuantType | None]) -> str:
    """Returns a module without the casts of `lowbit.export.quantized.operations` that meet.

    Args:
        text: StableHLO, entry point ``main``.
        ins: types of the arguments that are to be quantized; None leaves one as it is.
        outs: of the results.
    """
    with new_context(), ir.Location.unknown():
        module = ir.Module.parse(text)
        for function in module.body.operations:
            if ir.StringAttr(function.attributes["sym_name"]).value == "main":
                _type_boundary(function, ins, outs)
        for function in module.body.operations:
            _settle(function)
            _erase_unread(function)
        PassManager.parse("builtin.module(cse)").run(module.operation)  # a shared weight is one constant
        return str(module.operation.get_asm(large_elements_limit=None))


def _type_boundary(main: Any, ins: Sequence[QuantType | None], outs: Sequence[QuantType | None]) -> None:
    block = main.regions[0].blocks[0]
    first, last = block.operations[0], block.operations[len(block.operations) - 1]
    for argument, quant in zip(block.arguments, ins, strict=True):
        if quant is not None:
            plain = argument.type
            argument.set_type(_typed(plain, quant))
            with ir.InsertionPoint(first):
                cast = ir.Operation.create(_CAST, [plain], [argument])
            argument.replace_all_uses_except(cast.result, cast)
    for i, quant in enumerate(outs):
        if quant is not None:
            result = last.operands[i]
            with ir.InsertionPoint(last):
                last.operands[i] = ir.Operation.create(_CAST, [_typed(result.type, quant)], [result]).result
    kinds = [a.type for a in block.arguments], [v.type for v in last.operands]
    main.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(*kinds))


def _typed(plain: Any, quant: QuantType) -> Any:
    return ir.RankedTensorType.get(ir.RankedTensorType(plain).shape, ir.Type.parse(str(quant)))


def _settle(op: Any) -> None:
    for region in op.regions:
        for block in region.blocks:
            for inner in list(block.operations):
                _settle(inner)
                if inner.operation.name == _CAST:
                    _settle_cast(inner.operation)
                elif inner.operation.name in _MOVES:
                    _settle_move(inner.operation, _MOVES[inner.operation.name])


def _erase_unread(op: Any) -> None:
    for region in op.regions:
        for block in region.blocks:
            for inner in reversed(list(block.operations)):
                _erase_unread(inner)
                is_spare = inner.operation.name in (_CAST, "stablehlo.constant")
                if is_spare and not list(inner.operation.results[0].uses):
                    inner.operation.erase()


def _settle_cast(op: Any) -> None:
    """A cast that undoes another one, and one of a constant."""
    (source,), result = op.operands, op.results[0]
    maker = _maker(source)
    if maker is None:
        return
    if maker.name == _CAST and maker.operands[0].type == result.type:
        result.replace_all_uses_with(maker.operands[0])
    elif maker.name == "stablehlo.constant" and _is_quantized(result.type):
        result.replace_all_uses_with(_constant(maker, result.type, op))


def _settle_move(op: Any, first: int) -> None:
    """A movement of elements that were quantized, or written constants, moves quantized ones."""
    makers = [_maker(value) for value in list(op.operands)[first:]]
    kinds = {_element(m.operands[0].type) for m in makers if m is not None and _was_quantized(m)}
    is_moved = all(m is not None and (_was_quantized(m) or m.name == "stablehlo.constant") for m in makers)
    if not is_moved or len(kinds) != 1:
        return
    (element,) = kinds
    if ir.RankedTensorType(op.results[0].type).element_type == element or ":f32:" in str(element):
        return  # a type per axis: where its axis goes is another question
    values = list(op.operands)[:first]
    for value, maker in zip(list(op.operands)[first:], makers, strict=True):
        kind = ir.RankedTensorType.get(ir.RankedTensorType(value.type).shape, element)
        values.append(maker.operands[0] if maker.name == _CAST else _constant(maker, kind, op))
    result = op.results[0]
    kind = ir.RankedTensorType.get(ir.RankedTensorType(result.type).shape, element)
    with ir.InsertionPoint(op):
        moved = ir.Operation.create(op.name, [kind], values, _attributes(op))
        result.replace_all_uses_with(ir.Operation.create(_CAST, [result.type], [moved.result]).result)
    op.erase()


def _attributes(op: Any) -> dict[str, Any]:
    named = [op.attributes[i] for i in range(len(op.attributes))]
    return {each.name: each.attr for each in named}


def _constant(maker: Any, kind: Any, before: Any) -> Any:
    with ir.InsertionPoint(before):
        return ir.Operation.create("stablehlo.constant", [kind], [], {"value": maker.attributes["value"]}).result


def _maker(value: Any) -> Any:
    return None if isinstance(value.owner, ir.Block) else value.owner.operation


def _was_quantized(op: Any) -> bool:
    return op.name == _CAST and _is_quantized(op.operands[0].type)


def _is_quantized(kind: Any) -> bool:
    return str(_element(kind)).startswith("!quant.uniform")


def _element(kind: Any) -> Any:
    return ir.RankedTensorType(kind).element_type
