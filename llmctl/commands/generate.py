"""generate: continue prompts with a model."""

import sys
from contextlib import closing, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, model_path
from llmctl.spec.amount import size_of
from llmctl.spec.drafting import Drafting
from llmctl.spec.guide import Guiding
from llmctl.spec.idle import check_idle
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import KV_BITS, Format, KvDtype, Sampling
from llmctl.spec.search import Search
from llmctl.spec.tasks import check_kv, suited
from llmctl.spec.wording import Wording

if TYPE_CHECKING:
    from llmctl.console import Console
    from llmctl.core.decode.answer import Answer

FIELDS = ("prompt", "text")  # where a record's prompt is looked for when no field is named
# What a record is given besides its completion.
GIVEN = ("schema", "error", "finish_reason", "score", "branch", "logprobs", "steps", "tree", "usage")


@expand
def generate(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    sampling: Sampling,
    wording: Wording,
    guiding: Guiding,
    search: Search,
    drafting: Drafting,
    compute: Compute,
    shown: Shown,
    file: Annotated[
        str | None, typer.Argument(help="Prompts, a line each or a JSON record a line; - for stdin.")
    ] = None,
    prompt: Annotated[tuple[str, ...], typer.Option("--prompt", "-p", help="A prompt; repeatable.")] = (),
    format: Annotated[
        Format, "FILE holds lines, JSON lines (jsonl), or is one prompt (text); auto: by name or content."
    ] = "auto",
    field: Annotated[str | None, "Field of a record that holds the prompt; default: prompt, or else text."] = None,
    output_field: Annotated[str, "Field of a record that gets the completion."] = "completion",
    stop: Annotated[tuple[str, ...], "End before this text; repeatable."] = (),
    special: Annotated[bool, "Read special tokens typed in a prompt as such, and show those that are written."] = False,
    seed: Annotated[int, "Of the random choices; each completion has a stream of its own."] = 0,
    batch_size: Annotated[
        int,
        "Completions made at a time: one that has ended makes room for the next. In fp32 results are the same. "
        "With 1, each prompt is answered before the next is read.",
    ] = 16,
    memory: Annotated[
        str | None, "Take no more than this (24GiB, 500MB): fewer completions are then made at a time."
    ] = None,
    kv_dtype: Annotated[
        KvDtype,
        "Type in which keys and values of earlier tokens are kept, but for those of the last 32; auto: as computed. "
        "Less memory for long texts, and slower.",
    ] = "auto",
    cache_prompt: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep what the model makes of the first prompt, its keys and values, in a file; where there is one, "
            "what prompts share with it is not read again.",
        ),
    ] = None,
) -> None:
    """Continue prompts with a model, or answer them with an encoder-decoder.

    Of one plain prompt, stdout is exactly the completion, and a terminal sees it grow. Of several, or with --n, each
    completion ends with a newline; --json tells them apart, a record each. JSON records come back in their order with
    `completion` (with --n a list, `completions`), `finish_reason` and `usage` added. The arithmetic is in the
    checkpoint's own dtype unless --dtype says otherwise.
    """
    wrong = {
        "--stop is empty": "" in stop,
        f"--output-field is {output_field!r}, which is taken": output_field in ("", *GIVEN),
        f"--batch-size is {batch_size}, wanted 1 or more": batch_size < 1,
        f"--seed is {seed}, wanted a number of 64 bits": not -(2**63) <= seed < 2**63,
    }
    if any(wrong.values()):
        raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
    if prompt and file is not None:
        raise UserError(f"Prompts come from -p or from {file}, not both.", "Leave one out.", Exit.USAGE)
    if not prompt and file is None:
        raise UserError("There is no prompt.", 'Add -p "Once upon a time", a FILE, or - for stdin.', Exit.USAGE)
    if prompt:
        check_idle(
            [flag for flag, on in {"--format": format != "auto", "--field": bool(field)}.items() if on], "beside -p"
        )
    if sampling.greedy:
        check_idle(sampling.drawing, "where --temperature is 0")
    if file not in (None, "-") and not Path(file).exists():
        raise UserError(f"{file} does not exist.", "Check the path; a prompt itself is given with -p.")
    if cache_prompt is not None and not cache_prompt.parent.is_dir():
        raise UserError(f"--cache-prompt: there is no directory {cache_prompt.parent}.", "Make it, or check the path.")
    budget = None if memory is None else size_of(memory, "--memory")
    form = guiding.read()
    path = model_path(model)
    from llmctl.spec.families import read_config, read_config_json
    from llmctl.spec.peft import within

    config = within(path, read_config(path))
    suited("generate", config, path)
    bits = KV_BITS[kv_dtype]
    check_kv(kv_dtype, config, path)

    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.data.requests import Request, read_requests
    from llmctl.core.decode.answer import answers, readable
    from llmctl.core.decode.cached import kept, unkept
    from llmctl.core.decode.guide import Grammar
    from llmctl.core.decode.prompt import prompt_ids, special_stops, stop_ids
    from llmctl.core.decode.ready import left, ready
    from llmctl.core.decode.rules import Rules
    from llmctl.core.decode.speculate.source import checked, sample_of, source_of
    from llmctl.core.decode.words import worded
    from llmctl.core.decode.writer import Manner, writer
    from llmctl.core.device import DTYPES, pick
    from llmctl.core.text.texts import Texts as Names
    from llmctl.written import Records, Texts, fared

    console = Console(shown)
    checkpoint = Checkpoint.open(path)
    said = checkpoint.generation or read_config_json(path)
    tokenizer = checkpoint.tokenizer()
    rules = worded(Rules.of(said, config), wording, tokenizer, config.vocab)
    if (least := sum(len(word[0]) for word in rules.wanted)) > sampling.max_tokens:
        raise UserError(
            f"The words of --forced-word are {least} tokens, more than --max-tokens {sampling.max_tokens}.",
            f"Use --max-tokens {least} or more.",
            Exit.USAGE,
        )
    search, sampling = search.settled(sampling, said, drafting.on)
    if cache_prompt is not None and (why := unkept(config, bits, search.strategy)):
        raise UserError(f"--cache-prompt: {why}.", "Leave it out.", Exit.MISMATCH)
    if drafting.on and search.strategy != "tokens":
        asked = "--contrastive" if search.contrastive else "--beams"
        raise UserError(
            "Guessing ahead is for texts that are written token by token.", f"Leave {asked} out.", Exit.USAGE
        )
    guesser = checked(drafting, tokenizer, config) if drafting.on else None
    eos = stop_ids(tokenizer, config, checkpoint.generation) | special_stops(tokenizer, stop) | {*wording.stop_id}
    grammar = None if form is None else Grammar(tokenizer, eos, *form)
    for warning in grammar.warnings if grammar else ():
        console.warn(warning)
    for text in prompt:
        prompt_ids(tokenizer, text, config, special)  # what is wrong is said before the weights are read
    typed = (Request(number, text) for number, text in enumerate(prompt))
    count = failed = past = cut = 0
    with closing(read_requests(file, format, (field,) if field else FIELDS) if file is not None else typed) as requests:
        first = next(requests, None)
        if first is None:
            raise UserError(f"{'stdin' if file == '-' else file} holds no prompt.", "One a line is wanted.")
        place = pick(compute.device, compute.dtype, compute.threads)
        loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
        stock = bool(bits) or search.strategy == "contrastive"
        slower = ready(loaded, stock)
        if slower:
            console.say(f"{path} is read by torch's kernels, not by the faster native step: {slower}.")
        source = None
        if drafting.on:
            draft = None if guesser is None else guesser.model(place.device, DTYPES.get(compute.dtype))
            if draft is not None:
                ready(draft, stock)
            source = source_of(drafting, loaded, draft, bits, rules.start, sample_of(tokenizer, first.text))
        room = None if budget is None else left(loaded, place, budget, batch_size)
        manner = Manner(
            sampling, rules, search, sampling.n, eos, stop, special, grammar, source, batch_size, bits, room
        )
        writing = writer(loaded, tokenizer, manner)
        if cache_prompt is not None and not first.error:
            ids = prompt_ids(tokenizer, first.text, readable(loaded), special)
            prefix, note = kept(cache_prompt, path, loaded, ids)
            writing.desk.rows.prefixes += [] if prefix is None else [prefix]
            if note:
                console.warn(f"--cache-prompt: {note}")
        names, told = Names(tokenizer), sampling.logprobs is not None
        records = shown.json or first.record is not None or told
        if records:
            show = Records(console, output_field, names, told, sampling.n > 1)
        else:
            show = Texts(console, names if sampling.explain else None)
        hear = show.hear if isinstance(show, Texts) and len(prompt) == sampling.samples == 1 else None
        how = (readable(loaded), seed, sampling.n, special, batch_size, hear)
        with show, _progress(console, file) as progress:
            progress.update(0)
            for answer in answers(writing, chain([first], requests), *how):
                show.answer(answer)
                count += 1
                failed += bool(answer.error)
                past += _past(answer, config)
                cut += grammar is not None and any(one.finish == "length" for one in answer.completions)
                progress.update(count)
    if drafting.on:
        console.say(fared(writing.desk.tally))
    if past:
        console.warn(f"{past} of {count} texts are longer than the model's context of {config.context} tokens.")
    if cut:
        console.warn(f"{cut} of {count} texts were cut off before their form was complete: --max-tokens allows more.")
    if failed:
        console.warn(f"{failed} of {count} prompts were not answered.")
        raise typer.Exit(Exit.RECORDS)


def _past(answer: "Answer", config: ModelConfig) -> bool:
    """Whether a text went on beyond what the model was made for; the last token is not read."""
    if config.kind == "encoder-decoder":  # prompt and completion have a context each
        return max([answer.prompt_tokens, *(one.tokens for one in answer.completions)]) > config.context
    return any(answer.prompt_tokens + one.tokens > config.context + 1 for one in answer.completions)


def _progress(console: "Console", file: str | None) -> Any:
    """Progress where the completions themselves are not progress enough."""
    quiet = file is None or (sys.stdout is not None and sys.stdout.isatty())
    from llmctl.console import Progress

    return nullcontext(Progress()) if quiet else console.progress(None, "prompts", "generate")
