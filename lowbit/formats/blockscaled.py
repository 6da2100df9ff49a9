"""Block-scaled formats: short words for an element format, its block and its scale.

=================  =====================================================================
``mxfp4``          ``fp4_e2m1/g32/e8m0``; also ``mxfp4_e2m1``
``mxfp6_e2m3``     ``fp6_e2m3/g32/e8m0``; ``mxfp6_e3m2`` likewise
``mxfp8_e4m3``     ``fp8_e4m3/g32/e8m0``; ``mxfp8_e5m2`` likewise
``mxint8``         ``int8n/g32/e8m0``; ``mxint4`` likewise (not in the OCP specification)
``nvfp4``          ``fp4_e2m1/g16/e4m3``: e4m3 block scales times one float32 scale per tensor
=================  =====================================================================

Reference: OCP Microscaling Formats (MX) v1.0, section 5.2; NVIDIA, NVFP4 (block 16, two-level scale).

The levels of ``mxint8`` are the whole numbers -127 to 127, so lowbit's scale is the specification's divided by 64: the
values are the same, and a file in OCP layout adds 6 to the scale byte. Differs from the specification: a block of zeros
has scale 1 (byte 127), and scales are not below 2**-126 divided by the smallest level, so that no level is subnormal.
"""

_WORDS = {
    "mxfp4": "fp4_e2m1/g32/e8m0",
    "mxfp4_e2m1": "fp4_e2m1/g32/e8m0",
    "mxfp6_e2m3": "fp6_e2m3/g32/e8m0",
    "mxfp6_e3m2": "fp6_e3m2/g32/e8m0",
    "mxfp8_e4m3": "fp8_e4m3/g32/e8m0",
    "mxfp8_e5m2": "fp8_e5m2/g32/e8m0",
    "mxint8": "int8n/g32/e8m0",
    "mxint4": "int4n/g32/e8m0",
    "nvfp4": "fp4_e2m1/g16/e4m3",
}

SHORTHANDS = tuple(word for word in _WORDS if word != "mxfp4_e2m1")
"""Every word, once."""


def shorthand(word: str) -> str | None:
    """Returns the rule text that ``word`` is short for, or None.

    Raises:
        ValueError: for ``mxfp6`` and ``mxfp8``, which come in two kinds.

    Example:
        >>> shorthand("nvfp4")
        'fp4_e2m1/g16/e4m3'
    """
    if word in ("mxfp6", "mxfp8"):
        kinds = [known for known in _WORDS if known.startswith(word)]
        raise ValueError(f"{word!r} comes in two kinds: {', '.join(kinds)}")
    return _WORDS.get(word)
