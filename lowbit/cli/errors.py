"""What a wrong request is."""

import os
import traceback
from collections.abc import Sequence


class UsageError(Exception):
    """Something the user typed; its text is one line that says what to do."""


def in_file_of(error: BaseException, words: Sequence[str]) -> str | None:
    """Returns one line for what the user's own file raised, with the line in it; None where the error comes from elsewhere.

    Args:
        error: whatever it is, ``sys.exit`` included.
        words: of the command; files are named as ``FILE.py`` or ``FILE.py:FUNCTION``.
    """
    frames = traceback.extract_tb(error.__traceback__)
    words = [*words, *(word.partition("=")[2] for word in words)]  # --data=FILE.py:FUNCTION
    named = {os.path.abspath(name) for word in words for name in (word, word.rpartition(":")[0]) if name}
    if not frames or os.path.abspath(frames[-1].filename) not in named:
        return None
    what = (
        f"it calls sys.exit({error.code!r}): return, or raise an error"
        if isinstance(error, SystemExit)
        else "".join(traceback.format_exception_only(error)).strip()
    )
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {what}"
