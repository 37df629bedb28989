"""chat: talk with a model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, model_path
from llmctl.spec.chat import Talking, read_talk
from llmctl.spec.sample import KV_BITS, KvDtype
from llmctl.spec.tasks import check_kv, suited
from llmctl.spec.wording import Wording


@expand
def chat(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory.")],
    sampling: Talking,
    wording: Wording,
    compute: Compute,
    shown: Shown,
    system: Annotated[str | None, "What the system says before the conversation."] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Layout of the conversation: own (the tokenizer's, the default), chatml, llama2, llama3, zephyr, "
            "plain, or a file in Jinja.",
        ),
    ] = None,
    template: Annotated[
        bool, "Lay the conversation out by a template; without one, the model goes on with what is typed."
    ] = True,
    stop: Annotated[tuple[str, ...], "End an answer before this text; repeatable."] = (),
    load: Annotated[Path | None, typer.Option(metavar="FILE", help="Go on with a conversation that was saved.")] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the conversation in a file, written after each answer.")
    ] = None,
    seed: Annotated[int, "Of the random choices; each answer has a stream of its own."] = 0,
    kv_dtype: Annotated[
        KvDtype, "Type in which keys and values of earlier tokens are kept; auto: as computed."
    ] = "auto",
) -> None:
    """Talk with a model.

    At a terminal, answers come as they are written; Ctrl-C stops one, Ctrl-D ends, /help lists the commands. From a
    pipe, each line is a turn of its own, and stdout has the answers, each with a newline after it, or with --json a
    record each. What was said is read by the model once. Where it no longer fits the context, the oldest turns go
    first; the system prompt stays.
    """
    wrong = {
        "--stop is empty": "" in stop,
        "--chat-template and --no-template exclude each other": chat_template is not None and not template,
        "- reads the path of the model from stdin, where the turns come from": str(model) == "-",
        f"--seed is {seed}, wanted a number of 64 bits": not -(2**63) <= seed < 2**63,
    }
    if any(wrong.values()):
        raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
    mine = save is not None and load is not None and save.absolute() == load.absolute()
    if save is not None and save.exists() and not mine:
        raise UserError(f"--save: {save} exists.", f"Go on with it: --load {save} --save {save}. Or name another file.")
    if save is not None and not save.absolute().parent.is_dir():
        raise UserError(f"--save {save}: there is no directory {save.parent}.", "Make it first, or name another file.")
    path = model_path(model)
    from llmctl.spec.families import read_config, read_config_json
    from llmctl.spec.peft import within

    config = within(path, read_config(path))
    suited("chat", config, path)
    bits = KV_BITS[kv_dtype]
    check_kv(kv_dtype, config, path)
    messages = [] if load is None else read_talk(load)
    if system is not None:
        given = bool(messages) and messages[0]["role"] == "system"
        messages = [{"role": "system", "content": system}, *messages[given:]]

    from llmctl.console import Console
    from llmctl.conversation import Conversation, answer_lines
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.decode.prompt import special_stops, stop_ids
    from llmctl.core.decode.ready import ready
    from llmctl.core.decode.rules import Rules
    from llmctl.core.decode.talk import Talk, check_opening, continued
    from llmctl.core.decode.words import worded
    from llmctl.core.device import DTYPES, pick
    from llmctl.core.text.chat import chat_of, own_template

    console, checkpoint = Console(shown), Checkpoint.open(path)
    said, tokenizer = checkpoint.generation or read_config_json(path), checkpoint.tokenizer()
    if template and chat_template is None and own_template(tokenizer) is None:
        raise UserError(
            f"{path} has no chat template: it was not taught to talk, or lost it on its way.",
            "Pass --no-template to have it go on with what you type, or a layout: --chat-template chatml",
            Exit.MISMATCH,
        )
    layout = chat_of(tokenizer, chat_template) if template else None
    lay = continued(tokenizer, config) if layout is None else layout.ids
    check_opening(lay, messages[: bool(messages) and messages[0]["role"] == "system"], config.context)
    rules = worded(Rules.of(said, config), wording, tokenizer, config.vocab)
    eos = stop_ids(tokenizer, config, checkpoint.generation) | special_stops(tokenizer, stop) | {*wording.stop_id}
    eos |= frozenset() if layout is None or layout.turn_end is None else {layout.turn_end}
    person = not shown.json and sys.stdin is not None and sys.stdin.isatty()
    if person:
        console.say(f"{path}: /help lists the commands, Ctrl-D ends.")
    place = pick(compute.device, compute.dtype, compute.threads)
    loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
    slower = ready(loaded, bool(bits))
    if slower:
        console.say(f"{path} is read by torch's kernels, not by the faster native step: {slower}.")
    how = {"rules": rules, "stops": stop, "seed": seed, "kv_bits": bits}
    talk = Talk(loaded, tokenizer, lay, sampling.after(said), eos, bare=layout is not None, **how)
    talk.restart(messages)
    if person:
        Conversation(talk, console, save, mine).run()
        return
    count, failed = answer_lines(talk, console, sys.stdin.buffer if sys.stdin is not None else (), save)
    if not count:
        raise UserError("stdin holds no turn.", "One a line is wanted; or run it in a terminal.")
    if failed:
        console.warn(f"{failed} of {count} turns were not answered.")
        raise typer.Exit(Exit.RECORDS)
