"""A foreign LiteRT file: operators that lowbit does not write are refused before anything runs it."""

import contextlib
import os
import random
import re

import flatbuffers
import pytest
import tflite

from lowbit.export.litert import run as litert

FUZZ = int(os.environ.get("LOWBIT_FUZZ_FILES", "1"))


def tflite_file(*codes: tuple[int, int, str | None]) -> bytes:
    """A LiteRT file of operator codes: the older field, the newer one, and the name of a custom operator."""
    builder = flatbuffers.Builder(256)
    made = []
    for deprecated, builtin, custom in codes:
        name = None if custom is None else builder.CreateString(custom)
        tflite.OperatorCodeStart(builder)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, deprecated)
        tflite.OperatorCodeAddBuiltinCode(builder, builtin)
        if name is not None:
            tflite.OperatorCodeAddCustomCode(builder, name)
        made.append(tflite.OperatorCodeEnd(builder))
    tflite.ModelStartOperatorCodesVector(builder, len(made))
    for each in reversed(made):
        builder.PrependUOffsetTRelative(each)
    vector = builder.EndVector()
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddOperatorCodes(builder, vector)
    builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


ADD, CUSTOM, PLACEHOLDER, STABLEHLO_ADD = 0, 32, 127, tflite.BuiltinOperator.STABLEHLO_ADD


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ((CUSTOM, CUSTOM, "FlexRead"), "CUSTOM 'FlexRead'"),
        ((CUSTOM, 0, "Evil"), "CUSTOM 'Evil'"),
        ((ADD, ADD, "Evil"), "ADD 'Evil'"),
        ((51, 51, None), "DELEGATE"),
        ((PLACEHOLDER, PLACEHOLDER, None), "PLACEHOLDER_FOR_GREATER_OP_CODES"),
        ((PLACEHOLDER, STABLEHLO_ADD, None), "STABLEHLO_ADD"),
        ((PLACEHOLDER, 60_000, None), "operator 60000"),
    ],
)
def test_custom_operators_of_litert_are_refused(code, said):
    good = tflite_file((ADD, ADD, None), (PLACEHOLDER, 150, None))  # GELU: above what the older field holds
    assert litert.checked(good) == good
    with pytest.raises(ValueError, match=re.escape(f"it calls {said}, which lowbit does not write: not run")):
        litert.checked(tflite_file((ADD, ADD, None), code))


def test_what_is_no_litert_file():
    good = tflite_file((ADD, ADD, None), (CUSTOM, CUSTOM, "x"))
    draw = random.Random(0)
    for data in (b"", b"TFL3", good[:20], b"\xff" * 64, *(good[: draw.randrange(8, len(good))] for _ in range(20))):
        with pytest.raises(ValueError, match=r"this is no LiteRT file|which lowbit does not write"):
            litert.checked(data)
    for _ in range(100 * FUZZ):
        flipped = bytearray(good)
        for _ in range(draw.choice([1, 2, 8])):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        with contextlib.suppress(ValueError):
            litert.checked(bytes(flipped))
