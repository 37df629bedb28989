"""What a model wrote, as generate gives it out: texts for people and pipes, or records."""

import sys
from typing import TYPE_CHECKING, Any

from llmctl.console import PICTURES
from llmctl.explained import branch_tables, branches, logprobs, step_tables, steps

if TYPE_CHECKING:
    from llmctl.console import Console
    from llmctl.core.decode.answer import Answer
    from llmctl.core.decode.speculate.tally import Tally
    from llmctl.core.text.texts import Texts as Names


def fared(tally: "Tally") -> str:
    """How guesses fared, for people."""
    if not tally.drafted:
        return "No token was guessed."
    told = (
        f"{tally.accepted} of {tally.drafted} guesses were right ({tally.share:.0%}), {tally.a_pass:.2f} tokens a pass"
    )
    return f"{told}." if tally.speedup is None else f"{told}, about {tally.speedup:.2f} times as fast as without."


class Texts:
    """Completions as they are: one alone exactly, several with a newline after each; to a terminal always with one.

    Args:
        names: what tokens are called, where their choice is to be explained; None: it is not.
    """

    def __init__(self, console: "Console", names: "Names | None" = None):
        self.console, self.names = console, names
        self.terminal = sys.stdout is not None and sys.stdout.isatty()
        self.count = 0
        self.last = ""

    def hear(self, text: str) -> None:
        """Show a part of the only completion."""
        self.last = text or self.last
        self.console.out(text.translate(PICTURES) if self.terminal else text)

    def answer(self, answer: "Answer") -> None:
        """Show the completions of one prompt; one that was heard already is not shown again."""
        if answer.error:
            self.console.warn(f"prompt {answer.request.number + 1}: {answer.error}")
        heard = bool(self.last) and not self.count
        for text in [one.text for one in answer.completions] or [""]:
            if self.count:
                self.console.out("\n")
            self.count += 1
            if not heard:
                self.hear(text)
        if self.names is not None:
            self._explain(answer)

    def _explain(self, answer: "Answer") -> None:
        if self.last and not self.last.endswith("\n") and self.terminal:
            self.console.out("\n")
            self.last = "\n"
        for number, one in enumerate(answer.completions):
            if one.tree and number:  # all texts of a search have one tree
                break
            tables = branch_tables(self.console, one.tree, self.names, one.branch)
            for table in tables if one.tree else step_tables(self.console, one.picked, self.names):
                self.console.show(table)

    def __enter__(self) -> "Texts":
        return self

    def __exit__(self, *error: object) -> None:
        """End the last line, where it is not to be left as the model did; after an interruption, too."""
        if self.count > 1 or (self.terminal and self.last and not self.last.endswith("\n")):
            self.console.out("\n")


class Records:
    """JSON lines: the record that came in, if one did, with what was made of it.

    Args:
        field: of the completion.
        names: what tokens are called.
        scored: give the log-probabilities of tokens.
        several: a list of completions, however many there are.
    """

    def __init__(self, console: "Console", field: str, names: "Names", scored: bool, several: bool):
        self.console, self.field, self.names = console, field, names
        self.scored, self.several = scored, several
        self.warned = False

    def answer(self, answer: "Answer") -> None:
        """Write one record."""
        made: dict[str, Any] = {"error": answer.error}
        if not answer.error:
            made = self._made(answer)
        record = answer.request.record
        if record is None:
            record = {"schema": "llmctl/generate/1", "prompt": answer.request.text}
        elif not self.warned and (lost := [name for name in made if name in record]):
            self.warned = True
            other = ": --output-field names another" if lost[0] in (self.field, "completions") else ""
            self.console.warn(f"the records have a field {lost[0]!r} already, which is replaced{other}.")
        self.console.jsonl({**record, **made})

    def _made(self, answer: "Answer") -> dict[str, Any]:
        name = "completions" if self.several and self.field == "completion" else self.field
        usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens}
        drafted = sum(one.drafted for one in answer.made.values())
        if drafted:
            usage |= {"drafted": drafted, "accepted": sum(one.accepted for one in answer.made.values())}
        columns: dict[str, list[Any]] = {
            name: [one.text for one in answer.completions],
            "finish_reason": [one.finish for one in answer.completions],
        }
        if any(one.score is not None for one in answer.completions):
            columns["score"] = [one.score for one in answer.completions]
        if any(one.tree for one in answer.completions):
            columns["branch"] = [one.branch for one in answer.completions]
        if self.scored:
            columns["logprobs"] = [logprobs(one.picked, self.names) for one in answer.completions]
        if any(one.shown for completion in answer.completions for one in completion.picked):
            columns["steps"] = [steps(one.picked, self.names) for one in answer.completions]
        made = {key: column if self.several else column[0] for key, column in columns.items()}
        trees = [one.tree for one in answer.completions if one.tree]
        return made | ({"tree": branches(trees[0], self.names)} if trees else {}) | {"usage": usage}

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error: object) -> None:
        pass
