"""generate: continue prompts with a model."""

import sys
from contextlib import closing, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, model_path
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import KV_BITS, Format, KvDtype, Sampling
from llmctl.spec.tasks import suited

if TYPE_CHECKING:
    from llmctl.console import Console
    from llmctl.core.decode.answer import Answer

FIELDS = ("prompt", "text")  # where a record's prompt is looked for when no field is named
# Control characters but newline and tab, as pictures: a model's text must not steer the terminal.
PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {0x7F: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


@expand
def generate(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    sampling: Sampling,
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
    batch_size: Annotated[int, "Completions made at a time; in fp32 the results do not depend on it."] = 16,
    kv_dtype: Annotated[
        KvDtype,
        "Type in which keys and values of earlier tokens are kept, but for those of the last 32; auto: as computed. "
        "Less memory for long texts, and slower.",
    ] = "auto",
) -> None:
    """Continue prompts with a model, or answer them with an encoder-decoder.

    Of one plain prompt, stdout is exactly the completion, and a terminal sees it grow. Of several, or with --n, each
    completion ends with a newline; --json tells them apart, a record each. JSON records come back in their order with
    `completion` (with --n a list, `completions`), `finish_reason` and `usage` added. The arithmetic is in the
    checkpoint's own dtype unless --dtype says otherwise.
    """
    wrong = {
        "--stop is empty": "" in stop,
        f"--batch-size is {batch_size}, wanted 1 or more": batch_size < 1,
        f"--seed is {seed}, wanted a number of 64 bits": not -(2**63) <= seed < 2**63,
    }
    if any(wrong.values()):
        raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
    if prompt and file is not None:
        raise UserError(f"Prompts come from -p or from {file}, not both.", "Leave one out.", Exit.USAGE)
    if not prompt and file is None:
        raise UserError("There is no prompt.", 'Add -p "Once upon a time", a FILE, or - for stdin.', Exit.USAGE)
    if file not in (None, "-") and not Path(file).exists():
        raise UserError(f"{file} does not exist.", "Check the path; a prompt itself is given with -p.")
    path = model_path(model)
    from llmctl.spec.families import read_config, read_config_json
    from llmctl.spec.peft import within

    config = within(path, read_config(path))
    suited("generate", config, path)
    bits = KV_BITS[kv_dtype]
    if bits and config.attention == "linear":
        raise UserError(f"--kv-dtype is {kv_dtype}, but {path} keeps sums, not keys and values.", "Leave it out.")
    if bits == 4 and config.head_dim % 2:
        raise UserError(
            f"--kv-dtype int4 takes channels by twos, but {path} has heads of {config.head_dim}.", "Use int8."
        )

    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.data.requests import Request, read_requests
    from llmctl.core.decode.answer import answers
    from llmctl.core.decode.prompt import prompt_ids, special_stops, stop_ids
    from llmctl.core.decode.rules import Rules
    from llmctl.core.device import DTYPES, pick

    console = Console(shown)
    checkpoint = Checkpoint.open(path)
    said = checkpoint.generation or read_config_json(path)
    tokenizer, rules = checkpoint.tokenizer(), Rules.of(said, config)
    if said.get("num_beams") not in (None, 1):
        console.warn(f"{path} asks for a search with {said['num_beams']} beams, which is not done: tokens come singly.")
    for text in prompt:
        prompt_ids(tokenizer, text, config, special)  # what is wrong is said before the weights are read
    typed = (Request(number, text) for number, text in enumerate(prompt))
    count = failed = past = 0
    with closing(read_requests(file, format, (field,) if field else FIELDS) if file is not None else typed) as requests:
        first = next(requests, None)
        if first is None:
            raise UserError(f"{'stdin' if file == '-' else file} holds no prompt.", "One a line is wanted.")
        place = pick(compute.device, compute.dtype, compute.threads)
        loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
        eos = stop_ids(tokenizer, config, checkpoint.generation) | special_stops(tokenizer, stop)
        writer = Records(console, output_field) if shown.json or first.record is not None else Texts(console)
        hear = writer.hear if isinstance(writer, Texts) and len(prompt) == sampling.n == 1 else None
        every = chain([first], requests)
        how = {"special": special, "rows": batch_size, "hear": hear, "rules": rules, "kv_bits": bits}
        with writer, _progress(console, file) as progress:
            progress.update(0)
            for answer in answers(loaded, tokenizer, every, sampling, seed, eos, stop, **how):
                writer.answer(answer)
                count += 1
                failed += bool(answer.error)
                past += _past(answer, config)
                progress.update(count)
    if past:
        console.warn(f"{past} of {count} texts are longer than the model's context of {config.context} tokens.")
    if failed:
        console.warn(f"{failed} of {count} prompts were not answered.")
        raise typer.Exit(Exit.RECORDS)


def _past(answer: "Answer", config: ModelConfig) -> bool:
    """Whether a text went on beyond what the model was made for; the last token is not read."""
    if config.kind == "encoder-decoder":  # prompt and completion have a context each
        return max([answer.prompt_tokens, *(one.tokens for one in answer.completions)]) > config.context
    return any(answer.prompt_tokens + one.tokens > config.context + 1 for one in answer.completions)


class Texts:
    """Completions as they are: one alone exactly, several with a newline after each; to a terminal always with one."""

    def __init__(self, console: "Console"):
        self.console = console
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

    def __enter__(self) -> "Texts":
        return self

    def __exit__(self, *error: object) -> None:
        """End the last line, where it is not to be left as the model did; after an interruption, too."""
        if self.count > 1 or (self.terminal and self.last and not self.last.endswith("\n")):
            self.console.out("\n")


class Records:
    """JSON lines: the record that came in, if one did, with what was made of it."""

    def __init__(self, console: "Console", field: str):
        self.console, self.field = console, field
        self.warned = False

    def answer(self, answer: "Answer") -> None:
        """Write one record."""
        made: dict[str, Any] = {"error": answer.error}
        if not answer.error:
            texts = [one.text for one in answer.completions]
            ends = [one.finish for one in answer.completions]
            several = len(texts) > 1
            name = "completions" if several and self.field == "completion" else self.field
            made = {
                name: texts if several else texts[0],
                "finish_reason": ends if several else ends[0],
                "usage": {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens},
            }
        record = answer.request.record
        if record is None:
            record = {"schema": "llmctl/generate/1", "prompt": answer.request.text}
        elif lost := [name for name in made if name in record and not self.warned]:
            self.warned = True
            self.console.warn(
                f"the records have a field {lost[0]!r} already, which is replaced: --output-field names another."
            )
        self.console.jsonl({**record, **made})

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _progress(console: "Console", file: str | None) -> Any:
    """Progress where the completions themselves are not progress enough."""
    quiet = file is None or (sys.stdout is not None and sys.stdout.isatty())
    from llmctl.console import Progress

    return nullcontext(Progress()) if quiet else console.progress(None, "prompts", "generate")
