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


def add_candidates(parser: argparse.ArgumentParser, data: str) -> None:
    """Adds the words of commands that look at a user's model with several rules: ``data`` says what batches are for."""
    parser.add_argument("model", metavar="FILE.py:FUNCTION", help="what builds the model")
    parser.add_argument("--data", metavar="FILE.py:FUNCTION", required=True, help=data)
    parser.add_argument(
        "--candidate", metavar="RULE", action="append", required=True, help="such as w4; may be repeated"
    )
    parser.add_argument(
        "--rules", metavar="[GLOB=]RULE", action="append",
        help="what is quantized at all, such as head/*=keep; may be repeated (default: everything)",
    )  # fmt: skip
    parser.add_argument("--integer", action="store_true", help="a full-integer plan")
