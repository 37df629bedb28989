"""Asking lm-evaluation-harness: which of its tasks, how they are put, and what their figures must not miss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from llmctl.errors import Exit, UserError
from llmctl.spec.limits import check_limits, parse_limits


@dataclass(frozen=True)
class Harness:
    """Tasks.

    Raises:
        UserError: no task, a value out of range, or a limit that is none.
    """

    tasks: Annotated[
        tuple[str, ...],
        "A task of lm-eval, a group or tag of them, a pattern (mmlu_*), or a YAML file; several with commas between; "
        "repeatable. Most tasks of its own fetch their data from the Hugging Face hub.",
    ] = ()
    include_path: Annotated[tuple[str, ...], "Directory with YAML files of further tasks; repeatable."] = ()
    shots: Annotated[int | None, "Answered examples before each prompt; default: as each task says."] = None
    limit: Annotated[int | None, "Ask no more than so many records of each task, the first ones."] = None
    chat: Annotated[bool, "Put prompts as conversations, by the model's own chat template; examples as turns."] = False
    chat_template: Annotated[
        str | None, "With --chat: another layout: chatml, llama2, llama3, zephyr, plain, or a file in Jinja."
    ] = None
    system: Annotated[str | None, "System message, or without --chat, text before each prompt."] = None
    gen_kwargs: Annotated[
        tuple[str, ...], "NAME=VALUE for texts that are written, over what tasks say: max_gen_toks=64; repeatable."
    ] = ()
    bootstrap: Annotated[int, "Draws for standard errors that have no formula; 0: none. lm-eval's own: 100000."] = 1000
    seed: Annotated[int | None, "Of examples and of what is drawn; default: lm-eval's, 1234."] = None
    fail_under: Annotated[
        tuple[str, ...],
        "End with exit code 6 if a figure is under this: acc=0.5 (of every task that has it), arc_easy:acc=0.5, or a "
        "number alone, about the first one.",
    ] = ()
    fail_over: Annotated[tuple[str, ...], "The same where a figure is over this: word_perplexity=20."] = ()

    def __post_init__(self) -> None:
        wrong = {
            "there is no task: --tasks NAME": not self.names,
            f"--shots is {self.shots}, wanted 0 or more": self.shots is not None and self.shots < 0,
            f"--limit is {self.limit}, wanted 1 or more": self.limit is not None and self.limit < 1,
            f"--bootstrap is {self.bootstrap}, wanted 0 or more": self.bootstrap < 0,
            f"--seed is {self.seed}, wanted 0 or more": self.seed is not None and self.seed < 0,
            "--chat-template wants --chat": self.chat_template is not None and not self.chat,
        }
        for pair in self.gen_kwargs:
            wrong[f"--gen-kwargs is {pair!r}, wanted NAME=VALUE"] = not all(pair.partition("=")[::2])
        if any(wrong.values()):
            raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
        for option, texts in (("--fail-under", self.fail_under), ("--fail-over", self.fail_over)):
            parse_limits(option, texts, "")

    @property
    def names(self) -> list[str]:
        """Of the tasks, as they were given, each once."""
        return list(dict.fromkeys(name.strip() for text in self.tasks for name in text.split(",") if name.strip()))

    @property
    def generation(self) -> dict[str, Any]:
        """What --gen-kwargs says: numbers and true or false as such."""
        return {name: _value(value) for name, _, value in (pair.partition("=") for pair in self.gen_kwargs)}

    def check(self, figures: Mapping[str, float]) -> None:
        """Whether figures, by task and name ("arc_easy:acc"), are what was asked for.

        Raises:
            UserError: one misses its limit, or there is none of a name.
        """
        limits = [
            {
                whole: limit
                for name, limit in parse_limits(option, texts, next(iter(figures), "")).items()
                for whole in [one for one in figures if name in (one, one.rpartition(":")[2])] or [name]
            }
            for option, texts in (("--fail-under", self.fail_under), ("--fail-over", self.fail_over))
        ]
        check_limits(figures, *limits)


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
