"""embed: vectors of texts."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, Texts, expand, model_path
from llmctl.spec.model import ModelConfig
from llmctl.spec.sentence import Pooling, Sentence
from llmctl.spec.tasks import suited


@expand
def embed(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    texts: Texts,
    compute: Compute,
    shown: Shown,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the vectors to this file: NAME.safetensors.")
    ] = None,
    force: Annotated[bool, "Replace the file that is there."] = False,
    pooling: Annotated[
        Pooling | None,
        "The vector is the mean of the tokens' hidden states, or that of the first (cls) or last token. "
        "Default: what a sentence-transformers directory says, else last for decoders and mean for others.",
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Scale vectors to length 1. Default: what a sentence-transformers directory says, else not.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        "Cut longer texts to this many tokens. Default: what a sentence-transformers directory says, "
        "else the model's context.",
    ] = None,
) -> None:
    """Make a vector of each text.

    Each text comes back as a JSON record with `embedding`. With -o, a safetensors file holds `vectors` (N, D) in
    float32 and `ids` (N) in int64, the field `id` of the records, or their numbers in the input from 0 where there
    is none. Ids that are not all whole numbers lie in NAME.ids.jsonl beside the file, a line each.
    """
    if out is not None and out.suffix != ".safetensors":
        raise UserError(f"-o is {out}; wanted a name that ends in .safetensors.", code=Exit.USAGE)
    path = model_path(model)
    from llmctl import records
    from llmctl.spec.families import read_config
    from llmctl.spec.peft import within
    from llmctl.spec.sentence import read_sentence

    records.check_source(texts)
    said = read_sentence(path)
    config = within(said.transformer, read_config(said.transformer))
    suited("embed", config, path)
    limit = _limit(max_tokens, said, config)
    pooling = pooling or said.pooling or ("last" if config.kind == "decoder" else "mean")
    normalize = said.normalize if normalize is None else normalize
    if out is not None and out.exists() and not force:
        raise UserError(f"{out} exists.", "Use --force to replace it, or another name.")

    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.device import DTYPES, pick
    from llmctl.core.infer.answer import answers
    from llmctl.core.infer.embed import embed as core
    from llmctl.core.infer.embed import open_layer
    from llmctl.core.infer.encode import Encoder
    from llmctl.core.infer.vectors import listed, vector_file

    checkpoint, console, began = Checkpoint.open(said.transformer), Console(shown), time.monotonic()
    encoder = Encoder(checkpoint.tokenizer(), config, limit, texts.special)
    place = pick(compute.device, compute.dtype, compute.threads)
    loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
    layers = [open_layer(dense, place.device) for dense in said.layers]
    writer, cut = records.Records(console, texts), 0
    about = {"model": str(path), "pooling": pooling, "normalized": str(normalize).lower()}
    with (
        records.requests(texts) as requests,
        vector_file(out, about, force) as file,
        records.progress(console, texts, "embed") as progress,
    ):
        progress.update(0)
        work = answers(
            requests,
            lambda request: encoder.row(request.text),
            lambda rows: core(loaded, rows, pooling, normalize, layers),
            texts.batch_size,
        )
        for answer in work:
            request = answer.request
            if answer.error or answer.result is None:
                writer.fail(request, answer.error, shown=file is None)
            elif file is not None:
                writer.count += 1
                file.add(answer.result, request.number, (request.record or {}).get("id"))
            else:
                writer.add(request, {"embedding": listed(answer.result)}, [])
            cut += answer.row is not None and answer.row.cut
            progress.update(writer.count)
    if cut:
        console.warn(f"{cut} of {writer.count} texts were cut to {limit} tokens.")
    if file is not None:
        done: dict[str, Any] = {"vectors": file.count, "width": file.width, "cut": cut, "failed": writer.failed}
        console.made(out, done, time.monotonic() - began)
    writer.end()


def _limit(asked: int | None, said: Sentence, config: ModelConfig) -> int:
    """Tokens of a text, special ones included.

    Raises:
        UserError: more are asked for than the model has positions, or none.
    """
    if asked is None:
        return min(said.limit or config.context, config.context)
    if asked < 1 or (config.position == "learned" and asked > config.context):
        wanted = f"1 to {config.context}, where its positions end" if config.position == "learned" else "1 or more"
        raise UserError(f"--max-tokens is {asked}; wanted {wanted}.", code=Exit.USAGE)
    return asked
