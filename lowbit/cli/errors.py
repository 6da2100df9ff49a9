"""What a wrong request is."""


class UsageError(Exception):
    """Something the user typed; its text is one line that says what to do."""
