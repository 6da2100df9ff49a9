"""A small compiler from integer jaxprs to C99: what the ``c`` form is written with.

::

    graph      a jaxpr as values; calls inlined, constants computed, simplified by ``simplify``
    schedule   which values get a buffer, and in which order they are stored
    emit       loops and scalar code of every store; rules in ``elementwise``, ``movement`` and ``sums``
    arena      buffers that are never live together share memory
    source     the header, the source and the test program
"""
