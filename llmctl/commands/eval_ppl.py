"""eval-ppl: how surprised a model is by text."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmctl import __version__
from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, model_path
from llmctl.spec.data import Errors, Format, Reading
from llmctl.spec.model import ModelConfig
from llmctl.spec.tasks import suited

WIDEST = 4096  # tokens of the default window, where the context is longer


@expand
def eval_ppl(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    texts: Annotated[
        tuple[str, ...],
        typer.Argument(help="Text, JSON lines, CSV or parquet; a directory of tokens; - for stdin; hf:NAME."),
    ],
    compute: Compute,
    shown: Shown,
    window: Annotated[int | None, "Tokens seen at once; default: the model's context, 4096 at most."] = None,
    stride: Annotated[int | None, "Tokens by which the window moves on; default: half of it."] = None,
    bos: Annotated[
        bool, "Begin documents after the beginning-of-text token; --no-bos: their first is unscored."
    ] = True,
    split: Annotated[Literal["heldout", "train"], "Split of a directory of tokens."] = "heldout",
    field: Annotated[str, "Field or column that holds the text, in JSON lines, CSV and parquet."] = "text",
    format: Annotated[Format, "Format of the files; auto looks at name and content."] = "auto",
    documents: Annotated[Literal["file", "line"], "Plain text: a document each file, or each line."] = "file",
    errors: Annotated[Errors, "Bytes that are not UTF-8: stop there, or put U+FFFD in their place."] = "strict",
    limit: Annotated[int | None, "Score no more than so many documents."] = None,
    batch_tokens: Annotated[int, "Tokens in one pass of the model; decides speed and memory."] = 8192,
    fail_over: Annotated[float | None, "End with exit code 6 if the perplexity is above this."] = None,
) -> None:
    """Report a model's perplexity on text.

    Each document is scored on its own, in overlapping windows: every token once, after at least window - stride
    tokens where there are so many. A document begins after the beginning-of-text token, or if there is none, the
    end-of-text token. Bits per byte compare models of different tokenizers. The arithmetic is in the
    checkpoint's own dtype unless --dtype says otherwise.
    """
    reading = Reading(field=field, format=format, documents=documents, errors=errors, limit=limit)
    path = model_path(model)
    from llmctl.spec.families import read_config
    from llmctl.spec.peft import within

    config = within(path, read_config(path))
    suited("eval-ppl", config, path)
    window = min(config.context, WIDEST) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    _check(config, window, stride, batch_tokens)

    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.decode.prompt import start_id
    from llmctl.core.device import DTYPES, pick
    from llmctl.core.metrics.passages import passages
    from llmctl.core.metrics.perplexity import Perplexity, perplexity

    console, checkpoint = Console(shown), Checkpoint.open(path)
    tokenizer = checkpoint.tokenizer()
    start = start_id(tokenizer, config) if bos else None
    found = passages(texts, reading, split, tokenizer, start)
    place = pick(compute.device, compute.dtype, compute.threads)
    loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
    result, began = Perplexity(), time.perf_counter()
    with console.progress(None, "tokens", "scoring") as progress:
        progress.update(0)
        for result in perplexity(loaded, found, window, stride, batch_tokens):
            progress.update(result.tokens, perplexity=result.perplexity)
    seconds = time.perf_counter() - began
    if not result.tokens:
        raise UserError("There is no text to score.", "The input is empty, or its documents have one token each.")
    signature = {
        "tokenizer": tokenizer.sha256[:12],
        "documents": result.documents,
        "window": window,
        "stride": min(stride, window - 1),
        "start": "none" if start is None else start,
        "end": "unscored",
        "dtype": str(next(loaded.parameters()).dtype).removeprefix("torch."),
        "version": f"llmctl-{__version__}",
    }
    report = {
        "perplexity": result.perplexity,
        "nll_per_token": result.nll_per_token,
        "bits_per_token": result.bits_per_token,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.tokens,
        "bytes": result.bytes,
        "documents": result.documents,
        "seconds": seconds,
        "signature": "|".join(f"{name}:{value}" for name, value in signature.items()),
    }
    rows = [(name.replace("_", " "), value) for name, value in report.items()]
    console.report(report, None if shown.json else console.table(str(path), ("", ""), rows))
    if fail_over is not None and not result.perplexity <= fail_over:
        raise UserError(
            f"The perplexity is {result.perplexity:.6g}, above --fail-over {fail_over:g}.", code=Exit.THRESHOLD
        )


def _check(config: ModelConfig, window: int, stride: int, batch_tokens: int) -> None:
    """Refuses sizes that do not fit each other or the model."""
    wrong = [
        text
        for text, found in (
            (f"--window is {window}, wanted 2 or more", window < 2),
            (f"--stride is {stride}, wanted from 1 to --window ({window})", not 1 <= stride <= max(1, window)),
            (f"--batch-tokens is {batch_tokens}, wanted 1 or more", batch_tokens < 1),
            (
                f"--window is {window}, but the model's learned positions end at {config.context}",
                config.position == "learned" and window > config.context,
            ),
        )
        if found
    ]
    if wrong:
        raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)
