"""Guiding: what the text of a completion must look like: a JSON schema, a regular expression or a grammar."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError

Form = Literal["schema", "regex", "grammar"]


@dataclass(frozen=True)
class Guiding:
    """Constrained output (extra: guide).

    Raises:
        UserError: more than one form is asked for.
    """

    schema: Annotated[Path | None, "Write JSON that fits this JSON Schema (a file)."] = None
    regex: Annotated[str | None, "Write a text that this regular expression matches as a whole."] = None
    grammar: Annotated[Path | None, "Write a text of this grammar (a file; Lark's syntax, as llguidance has it)."] = (
        None
    )

    def __post_init__(self) -> None:
        asked = [f"--{name}" for name in ("schema", "regex", "grammar") if getattr(self, name) is not None]
        if len(asked) > 1:
            raise UserError(f"{' and '.join(asked)} are not followed together.", "Leave one out.", Exit.USAGE)

    def read(self) -> tuple[Form, str] | None:
        """The form that is asked for and its text, or None.

        Raises:
            UserError: the file cannot be read.
        """
        if self.regex is not None:
            return "regex", self.regex
        if self.schema is not None:
            return "schema", _text(self.schema, "--schema")
        return ("grammar", _text(self.grammar, "--grammar")) if self.grammar is not None else None


def _text(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{flag}: {path} does not exist.", "Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag}: {path} cannot be read: {error}.") from error
