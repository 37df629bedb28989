"""idle: options that were given and that nothing would look at, so that nobody waits for what they ask for."""

from collections.abc import Container
from dataclasses import fields
from typing import Any

from llmctl.errors import Exit, UserError


def changed(options: Any, besides: Container[str] = ()) -> list[str]:
    """Flags of a dataclass of options whose value is not their default.

    Args:
        besides: names of fields that are left out.
    """
    return [
        "--" + one.name.replace("_", "-")
        for one in fields(options)
        if one.name not in besides and getattr(options, one.name) != one.default
    ]


def check_idle(flags: list[str], beside: str) -> None:
    """That there are none.

    Args:
        beside: what leaves them without meaning: "--method rtn".

    Raises:
        UserError: there are; all are named.
    """
    if flags:
        verb = "says" if len(flags) == 1 else "say"
        raise UserError(f"{', '.join(flags)} {verb} nothing beside {beside}.", "Leave it out.", Exit.USAGE)
