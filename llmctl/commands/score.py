"""score: how likely each text is to a model, as records."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, Source, expand, model_path
from llmctl.spec.scoring import Scoring
from llmctl.spec.tasks import suited


@expand
def score(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    texts: Source,
    compute: Compute,
    shown: Shown,
    scoring: Scoring,
    prompt_field: Annotated[
        str | None, "Field of a record that holds what comes before the text, which alone is scored."
    ] = None,
    logprobs: Annotated[bool, "Also give each scored token with its log probability, nats."] = False,
) -> None:
    """Give each text its -log probability: for filters, and to choose among answers.

    Each text comes back as a JSON record with `nll` (nats), `tokens`, `bytes`, `perplexity` (by token) and
    `bits_per_byte`. With --prompt-field the text is what follows that field, by default the field completion, as
    llmctl generate writes it; a prompt that several records in a row share is read once. An encoder-decoder needs it:
    its encoder reads the prompt. An encoder gives the pseudo-log-likelihood, each token masked by itself. Texts that
    are longer than the window are scored in several, as eval-ppl does.
    """
    if prompt_field is not None and texts.file is None:
        raise UserError("--prompt-field is of records, but the texts come from -p.", "Name a FILE.", Exit.USAGE)
    if prompt_field is not None and texts.field is None:
        texts = replace(texts, field="completion")
    path = model_path(model)
    from llmctl import records
    from llmctl.spec.families import read_config
    from llmctl.spec.peft import within

    records.check_source(texts)
    config = within(path, read_config(path))
    suited("score", config, path)
    scoring.sizes(config)
    if config.kind == "encoder-decoder" and prompt_field is None:
        raise UserError(
            f"{path} holds an encoder-decoder, which scores an answer to a text.",
            "Name the field that holds what it answers: --prompt-field prompt",
            Exit.USAGE,
        )

    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.device import DTYPES, pick
    from llmctl.core.metrics.score import Scorer

    checkpoint, console = Checkpoint.open(path), Console(shown)
    place = pick(compute.device, compute.dtype, compute.threads)
    loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
    scorer = Scorer(loaded, checkpoint.tokenizer(), scoring, prompt_field, texts.special, logprobs)
    writer = records.Records(console, texts, ("text", "nll", "tokens", "perplexity"))
    with records.requests(texts) as requests, records.progress(console, texts, "score") as progress:
        progress.update(0)
        for request, made in scorer.scores(requests):
            if isinstance(made, str):
                writer.fail(request, made)
            else:
                writer.add(request, made, [(request.text, made["nll"], made["tokens"], made["perplexity"])])
            progress.update(writer.count)
    writer.end()
