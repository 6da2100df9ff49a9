"""Which operations of a module may end in other last bits elsewhere."""

from .stablehlo import Contents

_ROUNDED = ("exponential", "exponential_minus_one", "log", "log_plus_one", "tanh", "logistic", "power", "rsqrt", "cbrt",
            "sine", "cosine", "tan", "atan2", "fft", "cholesky", "triangular_solve", "custom_call", "divide")  # fmt: skip
_SUMMED = ("dot_general", "dot", "convolution")
_REORDERED = ("maximum", "minimum", "and", "or")


def inexact_operations(found: Contents) -> tuple[str, ...]:
    """Returns the operations whose last bits compilers may choose: transcendental ones, and sums of floats.

    Everything else of IEEE arithmetic rounds the same everywhere.
    """
    names = set()
    for name, element in found.operations:
        word, *reducer = name.removeprefix("stablehlo.").removeprefix("chlo.").split()
        is_float = element.startswith(("f", "bf", "complex"))
        if is_float and (word in _ROUNDED or word in _SUMMED or any(r not in _REORDERED for r in reducer)):
            names.add(word)
    return tuple(sorted(names))
