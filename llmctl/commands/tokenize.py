"""tokenize: text to shards of tokens, or to tokens on stdout."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Shown, expand, invocation, model_path
from llmctl.spec.data import Reading, Sharding, TokenizerConfig
from llmctl.spec.layout import Output

if TYPE_CHECKING:
    from llmctl.console import Console
    from llmctl.core.data.read import Document
    from llmctl.core.text.tokenizer import Tokenizer


@expand
def tokenize(
    training: TokenizerConfig,
    sharding: Sharding,
    reading: Reading,
    shown: Shown,
    texts: Annotated[
        tuple[str, ...], typer.Argument(help="Text, JSON lines, CSV or parquet; directories; - for stdin; hf:NAME.")
    ] = (),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory to write; none: print the tokens.")] = None,
    tokenizer: Annotated[
        Path | None, "Checkpoint or tokenizer to use, or - for its path on stdin; none: train one on the text."
    ] = None,
    prompt: Annotated[tuple[str, ...], typer.Option("--prompt", "-p", help="Text to print the tokens of.")] = (),
    force: Annotated[bool, "Replace what an earlier run left at --out."] = False,
    dry_run: Annotated[bool, "Check everything and say what would be done; write nothing."] = False,
    threads: Annotated[int, "CPU threads; 0: one for each core."] = 0,
) -> None:
    """Encode text: with -o into shards to train on, else onto stdout.

    With -o, a share of the documents is held out, chosen by a hash of their text, and each document ends with the
    end-of-text token. Without --tokenizer one is trained first, on the beginnings of the files. Without -o, each
    document is a JSON line with `tokens` and `ids` (a table on a terminal).
    """
    if not texts and not prompt:
        raise UserError("There is nothing to tokenize.", 'Name files, - for stdin, or -p "some text".', Exit.USAGE)
    if tokenizer is not None and training != TokenizerConfig():
        raise UserError(
            "--tokenizer names a tokenizer, but other options say how to train one.",
            "Leave out --tokenizer, or --algorithm, --vocab-size, --special, --min-frequency, --normalize, --words "
            "and --roles.",
            Exit.USAGE,
        )
    if out is None:
        if tokenizer is None:
            hint = "Add --tokenizer DIR, or -o DIR to train one and write shards."
            raise UserError("Without -o, tokens are printed, and --tokenizer says which.", hint, Exit.USAGE)
        _print(model_path(tokenizer), texts, prompt, reading, shown)
    elif prompt:
        raise UserError("-p prints tokens, but -o writes shards of files.", "Leave one out.", Exit.USAGE)
    else:
        source = None if tokenizer is None else model_path(tokenizer)
        _shard(out, source, list(texts), training, sharding, reading, shown, force, dry_run, threads)


def _shard(
    out: Path,
    source: Path | None,
    texts: list[str],
    training: TokenizerConfig,
    sharding: Sharding,
    reading: Reading,
    shown: Shown,
    force: bool,
    dry_run: bool,
    threads: int,
) -> None:
    inputs = [*texts, *([source] if source else [])]
    output = Output.plan(out, invocation(), inputs, force)
    from llmctl.console import Console

    console = Console(shown)
    if dry_run:
        sizes = [Path(text).stat().st_size for text in texts if Path(text).is_file()]
        console.report(
            {"path": out, "up_to_date": output.up_to_date, "tokenizer": source, "algorithm": training.algorithm}
            | {"inputs": len(texts), "bytes": sum(sizes) if len(sizes) == len(texts) else None}
        )
        return
    if not output.up_to_date:
        with output as partial:
            from llmctl.core.data.encode import write_shards
            from llmctl.core.data.read import read_texts
            from llmctl.core.data.streams import spooled
            from llmctl.core.text.threads import use_threads
            from llmctl.core.text.tokenizer import Tokenizer

            threads = use_threads(threads)
            if source is None:
                texts = spooled(texts, partial / ".stdin")
                tokenizer = _trained(texts, training, sharding, reading, console)
            else:
                tokenizer = Tokenizer.open(source)
            with console.progress(None, "bytes", "encoding") as progress:
                for done in write_shards(read_texts(texts, reading), tokenizer, partial, sharding, threads):
                    progress.update(done.bytes, documents=done.documents, tokens=done.tokens)
            output.metrics = _metrics(partial, console, sharding)
    console.made(out, output.metrics, output.seconds, output.up_to_date)


def _trained(
    texts: list[str], training: TokenizerConfig, sharding: Sharding, reading: Reading, console: "Console"
) -> "Tokenizer":
    """A tokenizer trained on a sample of the train split."""
    from llmctl.core.data.encode import SAMPLE_BYTES, sample
    from llmctl.core.text.train import train

    console.say(f"training a {training.algorithm} tokenizer")
    tokenizer = train(sample(texts, reading, sharding, SAMPLE_BYTES[training.algorithm]), training)
    if training.size is not None and tokenizer.size < training.size:
        console.warn(f"the text gave only {tokenizer.size} of {training.size} tokens.")
    return tokenizer


def _metrics(partial: Path, console: "Console", sharding: Sharding) -> dict[str, Any]:
    """What was written, and a warning if nothing was held out."""
    from llmctl.core.data.shards import Tokens

    metrics = Tokens.open(partial).summary()
    if sharding.held_out and not metrics["heldout"]["documents"]:
        count = metrics["train"]["documents"]
        console.warn(f"none of the {count} documents fell into the held-out share of {sharding.held_out}: raise it.")
    return metrics


def _print(source: Path, texts: tuple[str, ...], prompt: tuple[str, ...], reading: Reading, shown: Shown) -> None:
    """The tokens of each document, in order; a bad record is answered in its place."""
    import sys
    from itertools import chain

    from llmctl.console import Console
    from llmctl.core.data.read import Document, read_texts
    from llmctl.core.text.tokenizer import Tokenizer

    console, tokenizer = Console(shown), Tokenizer.open(source)
    documents: Iterable[Document] = chain(
        (Document(text, "-p") for text in prompt), read_texts(texts, reading, go_on=True)
    )
    table = sys.stdout.isatty() and not shown.json
    failed = count = 0
    for document in documents:
        count += 1
        failed += document.error is not None
        if table and document.error is None:
            console.report({}, _table(console, document, tokenizer))
        else:
            console.jsonl(_record(document, tokenizer, reading.field))
    if not count:
        raise UserError("There is no text to tokenize.", "The files are empty, or hold white space alone.")
    if failed:
        console.warn(f"{failed} of {count} records had no text.")
        raise typer.Exit(Exit.RECORDS)


def _record(document: "Document", tokenizer: "Tokenizer", field: str) -> dict[str, Any]:
    record = document.record or {}
    if document.error is not None:
        return {**record, "error": document.error}
    ids = tokenizer.encode(document.text)
    return {**record, field: document.text, "tokens": [tokenizer.token(id) for id in ids], "ids": ids}


def _table(console: "Console", document: "Document", tokenizer: "Tokenizer") -> Any:
    """Id, token and the text that it completes; line ends and other invisible characters written out."""
    ids, stream = tokenizer.encode(document.text), tokenizer.stream(skip_special=False)
    rows = [(str(id), tokenizer.token(id), repr(stream.push(id))[1:-1]) for id in ids]
    if rest := stream.flush():
        rows.append(("", "", repr(rest)[1:-1]))
    size = len(document.text.encode())
    console.say(f"{document.source}: {len(ids):,} tokens, {size:,} bytes, {size / max(1, len(ids)):.2f} bytes a token")
    return console.table("", ("id", "token", "text"), rows)
