"""What a wrong request is, and text of others on the user's terminal."""


class UsageError(Exception):
    """Something the user typed; its text is one line that says what to do."""


def shown(text: str) -> str:
    r"""Returns one line of text, which a file of somebody else may have put together, without what a terminal obeys.

    Example:
        >>> shown("a name\x1b[2J, 2 × 3\nexact")
        'a name\\x1b[2J, 2 × 3\\nexact'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
