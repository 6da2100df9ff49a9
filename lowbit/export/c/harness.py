"""The test program: vectors compiled in, what the model makes of them printed, mismatches counted."""

from collections.abc import Sequence

import numpy as np

from . import types
from .constants import wrapped
from .source import Port

Case = tuple[Sequence[np.ndarray], Sequence[np.ndarray]]
"""Inputs and the outputs that belong to them."""

WORD = "output"
"""A line of the printed results: this word, number of the case, number of the output, elements."""


def program_source(name: str, inputs: Sequence[Port], outputs: Sequence[Port], cases: Sequence[Case]) -> str:
    """Returns ``test.c``: it prints every output and exits with 0 where all are as expected.

    Args:
        name: of the model.
        inputs: of its function.
        outputs: of its function.
        cases: vectors.
    """
    for arrays, wanted in cases:
        for port, array in zip((*inputs, *outputs), (*arrays, *wanted), strict=True):
            if array.shape != port.shape or array.dtype != port.dtype:
                actual = f"{array.dtype}{list(array.shape)}"
                raise ValueError(f"{port.name} must be {port.dtype}{list(port.shape)}, got {actual}")
    parts = [
        f"/* Runs {name}_run on test vectors and compares: exits with 0 where every output is as expected. */",
        '#include <stdio.h>\n\n#include "model.h"\n',
        f"enum {{ CASES = {len(cases)} }};\n",
    ]
    parts += [_array(f"in{i}", p, [case[0][i] for case in cases]) for i, p in enumerate(inputs)]
    parts += [_array(f"want{i}", p, [case[1][i] for case in cases]) for i, p in enumerate(outputs)]
    parts += [f"static {types.c_type(p.dtype)} out{i}[{max(p.size, 1)}];\n" for i, p in enumerate(outputs)]
    args = [*(f"in{i}[n]" for i in range(len(inputs))), *(f"out{i}" for i in range(len(outputs)))]
    parts.append(f"static long mismatches[{len(outputs)}];\n\nint main(void)\n{{\n    long total = 0;\n")
    parts.append("    for (int32_t n = 0; n < CASES; ++n) {")
    parts.append(f"        {name}_run({', '.join(args)});")
    for i, p in enumerate(outputs):
        shown = _shown(p)
        parts.append(f'        printf("{WORD} %ld {i}", (long)n);')
        parts.append(f"        for (int32_t k = 0; k < {p.size}; ++k) {{")
        parts.append(f'            printf(" {shown[0]}", ({shown[1]})out{i}[k]);')
        parts.append(f"            mismatches[{i}] += out{i}[k] != want{i}[n][k];")
        parts.append('        }\n        printf("\\n");')
    parts.append("    }")
    for i, p in enumerate(outputs):
        total = p.size * len(cases)
        parts.append(f'    printf("{p.name}: %ld of {total} mismatches\\n", mismatches[{i}]);')
        parts.append(f"    total += mismatches[{i}];")
    parts.append("    return total != 0;\n}\n")
    return "\n".join(parts)


def _array(name: str, port: Port, arrays: Sequence[np.ndarray]) -> str:
    kind = types.c_type(port.dtype)
    rows = []
    for array in arrays:
        words = [types.literal(int(x), port.dtype) for x in array.reshape(-1).tolist()]
        rows.append("{\n" + wrapped(words or ["0"]) + "\n},")
    return f"static const {kind} {name}[CASES][{max(port.size, 1)}] = {{\n" + "\n".join(rows) + "\n};\n"


def _shown(port: Port) -> tuple[str, str]:
    if types.storage_bits(port.dtype) == 64:
        return ("%lld", "long long") if types.is_signed(port.dtype) else ("%llu", "unsigned long long")
    return ("%ld", "long") if types.is_signed(port.dtype) else ("%lu", "unsigned long")


def parsed(text: str, outputs: Sequence[Port], count: int) -> list[list[np.ndarray]]:
    """Returns the outputs of every case from what the test program printed.

    Args:
        text: printed.
        outputs: of the model.
        count: how many cases.

    Raises:
        ValueError: where outputs are missing.
    """
    arrays: dict[tuple[int, int], np.ndarray] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == WORD:
            port = outputs[int(words[2])]
            numbers = np.array([int(word) for word in words[3:]], port.dtype)
            if numbers.size == port.size:
                arrays[int(words[1]), int(words[2])] = numbers.reshape(port.shape)
    wanted = [[(n, i) for i in range(len(outputs))] for n in range(count)]
    if missing := [f"output {i} of case {n}" for case in wanted for n, i in case if (n, i) not in arrays]:
        tail = text.strip().splitlines()[-1:] or ["nothing"]
        raise ValueError(f"the program did not print {missing[0]}; its last line: {tail[0][:200]}")
    return [[arrays[key] for key in case] for case in wanted]
