"""Shots: which answered examples stand before a question, in what order, and what is said around them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError

Choice = Literal["seed", "first", "similar"]
Order = Literal["auto", "seed", "first", "similar"]

STEPS = "Let's think step by step."  # Kojima et al., arXiv:2205.11916, table 1
RATIONALES = ("rationale", "reasoning")  # where a record's chain of thought is looked for when no field is named


@dataclass(frozen=True)
class Shots:
    """Shots.

    After construction escapes are characters: `\\n` of --separator is a newline.

    Raises:
        UserError: a value out of range.
    """

    shots: Annotated[int, "Answered examples before each query; 0: none."] = 3
    choose: Annotated[
        Choice,
        "seed: at random, anew for each query; first: the first ones; similar: those that share the most telling "
        "words with the query (cosine of tf-idf).",
    ] = "seed"
    order: Annotated[
        Order, "seed: as drawn; first: as in the file; similar: the most similar last; auto: as --choose says."
    ] = "auto"
    instruction: Annotated[str, "Text before the shots."] = ""
    separator: Annotated[str, "Text between the parts; \\n is a newline."] = "\\n\\n"
    rationale: Annotated[
        str | None,
        "Field that holds a chain of thought, said before a shot's answer; default: rationale, or else reasoning; "
        '"": none is said.',
    ] = None
    think: Annotated[bool, f"Begin every answer, that of the query too, with {STEPS!r}"] = False
    therefore: Annotated[str, "Text between a chain of thought and its answer."] = "The answer is"
    seed: Annotated[int, "Of the random choices; each query has a stream of its own."] = 0

    def __post_init__(self) -> None:
        wrong = {
            f"--shots is {self.shots}, wanted 0 or more": self.shots < 0,
            f"--seed is {self.seed}, wanted a number of 64 bits": not -(2**63) <= self.seed < 2**63,
        }
        if any(wrong.values()):
            raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
        plain = self.separator.replace("\\n", "\n").replace("\\t", "\t")
        object.__setattr__(self, "separator", plain)
        if self.order == "auto":
            object.__setattr__(self, "order", self.choose)

    def reasoning(self, record: dict[str, object]) -> str:
        """The chain of thought of a record, "" where it has none."""
        names = RATIONALES if self.rationale is None else (self.rationale,)
        found = next((record[name] for name in names if isinstance(record.get(name), str)), "")
        return str(found).strip()
