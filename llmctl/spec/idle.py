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


def check_idle(flags: list[str], where: str) -> None:
    """That there are none.

    Args:
        where: what leaves them without meaning: "beside --method rtn", "without --eval TEXT".

    Raises:
        UserError: there are; all are named.
    """
    if flags:
        verb, them = ("says", "it") if len(flags) == 1 else ("say", "them")
        raise UserError(f"{', '.join(flags)} {verb} nothing {where}.", f"Leave {them} out.", Exit.USAGE)
