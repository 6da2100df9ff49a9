"""``litert/model.tflite``: what LiteRT, TFLite-Micro and the compilers that read their files take, and its contents."""

from collections.abc import Mapping

from lowbit.export.forms import Lowered
from lowbit.export.litert.convert import converted

TOOLS = ("litert-converter",)
MODEL, CONTENTS = "litert/model.tflite", "litert/contents.json"


def write(lowered: Lowered) -> Mapping[str, bytes]:
    """Returns the LiteRT model and a description of what is in it.

    Raises:
        ValueError: if the converter is not installed or does not take the model, or its result is not what the plan says:
            a weight in other bits, an operation left over, or a float kernel in a full-integer plan.
    """
    model, contents = converted(lowered)
    return {MODEL: model, CONTENTS: contents.encode()}
