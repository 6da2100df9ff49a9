"""The parser of commands: what it refuses is one line, as every wrong request is."""

import argparse
import sys
from typing import Any, NoReturn

from .errors import UsageError


class Parser(argparse.ArgumentParser):
    """Of `argparse`, but a wrong word raises `UsageError`."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            (file or sys.stderr).write(message)  # argparse itself swallows what a full disk says

    def error(self, message: str) -> NoReturn:
        name = self.prog
        raise UsageError(f"{message} (see {name} --help)")
