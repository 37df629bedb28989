"""prompt: questions as prompts, after answered examples."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Shown, expand, model_path
from llmctl.spec.sets import Sets
from llmctl.spec.shots import Shots
from llmctl.spec.tasks import suited


@expand
def prompt(
    examples: Annotated[str, typer.Argument(help="Answered examples, JSON lines as finetune takes them; - for stdin.")],
    how: Shots,
    shown: Shown,
    queries: Annotated[
        str | None, typer.Argument(help="What is asked, likewise; - for stdin. Default: each example, after others.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="How a record becomes a prompt and its answer, as for finetune."),
    ] = None,
    map: Annotated[
        tuple[str, ...], "OURS=THEIRS: the field of a record that stands for one of ours, as for finetune; repeatable."
    ] = (),
    model: Annotated[
        Path | None, "Checkpoint whose tokenizer counts the tokens and whose context they must fit; no weight is read."
    ] = None,
    max_tokens: Annotated[int, "With --model: tokens kept for the completion, as generate's."] = 128,
    fit: Annotated[bool, "With --model: leave out shots where not all fit, the last chosen first."] = False,
) -> None:
    """Put questions as prompts for generate, each after some answered examples.

    stdout has a record for each query: its own fields, `prompt`, `shots` (the numbers of its examples, from 0) and,
    with --model, `prompt_tokens`. Its answer, where it has one, is there as `reference` and no longer as
    `completion`, which generate writes. An example that asks the same as a query is never among its shots.
    """
    wrong = {
        f"--max-tokens is {max_tokens}, wanted 0 or more": max_tokens < 0,
        "--fit wants a --model, whose context it is": fit and model is None,
        "stdin can be read once, but - stands for EXAMPLES and for QUERIES": examples == queries == "-",
    }
    if any(wrong.values()):
        raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
    for path in (examples, queries):
        if path not in (None, "-") and not Path(str(path)).exists():
            raise UserError(f"{path} does not exist.", "Check the path; - reads stdin.")
    where = None if model is None else model_path(model)
    if where is not None:
        from llmctl.spec.families import read_config

        suited("generate", read_config(where), where)

    mapping = Sets(map=map).mapping

    from llmctl.console import Console
    from llmctl.core.decode.room import Room
    from llmctl.core.text.prompts import Prompts, read_queries
    from llmctl.core.text.templates import template_of

    console, worded = Console(shown), template_of(template, how.seed, mapping)
    given = list(read_queries(examples, worded))
    prompts = Prompts(given, how, None if where is None else Room.of(where, max_tokens), fit)
    if not given:
        raise UserError(f"{'stdin' if examples == '-' else examples} holds no record.", "One a line is wanted.")
    if how.shots and not prompts.pool:
        why = next((f": {query.error}" for query in given if query.error), ".")
        hint = "Name the answer: --map completion=THEIRS. Or take none: --shots 0"
        raise UserError(f"{examples} holds no example with a question and an answer{why}", hint)
    if how.rationale and not prompts.reasoned:
        console.warn(f"no example has a chain of thought in its field {how.rationale!r}.")
    bad = [] if queries is None else [query for query in given if query.error]
    for query in bad:
        console.warn(f"{examples} {query.error}")
    with closing(read_queries(queries, worded) if queries is not None else (one for one in given)) as asked:
        for query in asked:
            console.jsonl(prompts.of(query))
    for line in prompts.told():
        console.warn(line)
    if bad:
        console.warn(f"{len(bad)} of {len(given)} examples could not be used.")
    if bad or prompts.failed:
        raise typer.Exit(Exit.RECORDS)
