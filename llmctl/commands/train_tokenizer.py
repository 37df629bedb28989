"""train-tokenizer: a tokenizer from text."""

from typing import Annotated

import typer

from llmctl.flags import Shown, Written, expand, invocation
from llmctl.spec.data import Reading, TokenizerConfig
from llmctl.spec.layout import Output


@expand
def train_tokenizer(
    texts: Annotated[
        list[str], typer.Argument(help="Text, JSON lines, CSV or parquet; directories; - for stdin; hf:NAME.")
    ],
    written: Written,
    training: TokenizerConfig,
    reading: Reading,
    shown: Shown,
    threads: Annotated[int, "CPU threads; 0: one for each core."] = 0,
) -> None:
    """Train a tokenizer on text, and save it as transformers reads it.

    bpe (byte-level), unigram and byte give every text back exactly; wordpiece, word and char do not.
    """
    output = Output.plan(written.out, invocation(), texts, written.force)
    from llmctl.console import Console

    console = Console(shown)
    if written.dry_run:
        console.report(
            {"path": written.out, "up_to_date": output.up_to_date, "algorithm": training.algorithm}
            | {"vocab": training.size, "special_tokens": training.specials}
        )
        return
    if not output.up_to_date:
        with output as partial:
            from llmctl.core.data.read import read_texts
            from llmctl.core.text.threads import use_threads
            from llmctl.core.text.train import train

            use_threads(threads)
            seen = {"documents": 0, "bytes": 0}
            with console.progress(None, "B", f"reading text for a {training.algorithm} tokenizer") as progress:

                def counted():
                    for document in read_texts(texts, reading):
                        seen["documents"] += 1
                        seen["bytes"] += len(document.text.encode())
                        progress.update(seen["bytes"], documents=seen["documents"])
                        yield document.text

                tokenizer = train(counted(), training)
            tokenizer.save(partial)
            output.metrics = {"vocab": tokenizer.size, **seen}
            if training.size is not None and tokenizer.size < training.size:
                console.warn(f"the text gave only {tokenizer.size} of {training.size} tokens.")
    console.made(written.out, output.metrics, output.seconds, output.up_to_date)
