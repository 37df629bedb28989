"""fill-mask: the words that an encoder puts in place of masks."""

from pathlib import Path
from typing import Annotated

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, Texts, expand, model_path
from llmctl.spec.tasks import suited


@expand
def fill_mask(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    texts: Texts,
    compute: Compute,
    shown: Shown,
    top_k: Annotated[int, "Tokens for each mask."] = 5,
) -> None:
    """Fill in the masks of texts with an encoder.

    A mask is typed as the model's own mask token, or as [MASK] or <mask>. Each text comes back as a JSON record with
    `fills`: for each mask its likeliest tokens, `{"token", "score", "id"}`, scores being probabilities. The masks of
    a text are filled at once, each as if the others stayed. A terminal shows texts typed with -p as a table.
    """
    if top_k < 1:
        raise UserError(f"--top-k is {top_k}, wanted 1 or more.", code=Exit.USAGE)
    path = model_path(model)
    from llmctl import records
    from llmctl.spec.families import read_config
    from llmctl.spec.peft import within

    records.check_source(texts)
    config = within(path, read_config(path))
    suited("fill-mask", config, path)

    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.device import DTYPES, pick
    from llmctl.core.infer.answer import answers
    from llmctl.core.infer.encode import Encoder
    from llmctl.core.infer.fill import fill, fillable, spelled, with_masks

    checkpoint, console = Checkpoint.open(path), Console(shown)
    tokenizer = checkpoint.tokenizer()
    mask = tokenizer.mask
    if mask is None:
        raise UserError(
            f"The tokenizer of {path} has no mask token.", "Name one in its tokenizer_config.json.", Exit.MISMATCH
        )
    encoder = Encoder(tokenizer, config, special=texts.special, only=mask)
    place = pick(compute.device, compute.dtype, compute.threads)
    loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
    writer = records.Records(console, texts, ("text", "mask", "token", "score"))
    with records.requests(texts) as requests, records.progress(console, texts, "fill-mask") as progress:
        progress.update(0)
        work = answers(
            requests,
            lambda request: fillable(encoder([with_masks(request.text, tokenizer)])[0], mask, config),
            lambda rows: fill(loaded, rows, mask, top_k, tokenizer.size),
            texts.batch_size,
        )
        for answer in work:
            if answer.error or answer.result is None:
                writer.fail(answer.request, answer.error)
            else:
                named = [
                    [{"token": spelled(tokenizer, one.id), "score": one.score, "id": one.id} for one in fills]
                    for fills in answer.result
                ]
                rows = [
                    (
                        answer.request.text if number + rank == 0 else "",
                        number + 1 if rank == 0 else "",
                        one["token"],
                        one["score"],
                    )
                    for number, fills in enumerate(named)
                    for rank, one in enumerate(fills)
                ]
                writer.add(answer.request, {"fills": named}, rows)
            progress.update(writer.count)
    writer.end()
