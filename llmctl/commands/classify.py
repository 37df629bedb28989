"""classify: labels of texts, or of the words in them."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, Texts, expand, model_path
from llmctl.spec.model import Level
from llmctl.spec.tasks import has, suited


@expand
def classify(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    texts: Texts,
    compute: Compute,
    shown: Shown,
    pair: Annotated[tuple[str, ...], "The second text to each -p, for models that judge two; repeatable."] = (),
    pair_field: Annotated[str, "Field of a record that holds the second text, if it is there."] = "text_pair",
    level: Annotated[Level | None, "Label each text, or words in it; default: what the model was made for."] = None,
    aggregation: Annotated[
        Literal["first", "simple"],
        "Of words: the label is that of the first token, or each token has its own (simple).",
    ] = "first",
    threshold: Annotated[float, "Where several labels may hold: those with this probability do."] = 0.5,
    max_tokens: Annotated[int | None, "Cut longer texts to this many tokens; default: the model's context."] = None,
) -> None:
    """Label texts, or the named entities in them.

    Each text comes back as a JSON record with `label`, its `score` and the `scores` of all labels, which are
    probabilities; where several labels may hold, also with `labels`. A model of words gives `entities` instead, a
    list of `{"entity", "text", "start", "end", "score"}` with offsets in characters. A terminal shows texts typed
    with -p as a table.
    """
    wrong = {
        f"--threshold is {threshold}, wanted 0 to 1": not 0 <= threshold <= 1,
        f"--max-tokens is {max_tokens}, wanted 1 or more": max_tokens is not None and max_tokens < 1,
        f"there are {len(pair)} --pair for {len(texts.prompt)} -p": len(pair) not in (0, len(texts.prompt)),
    }
    if any(wrong.values()):
        raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
    path = model_path(model)
    from llmctl import records
    from llmctl.spec.families import read_config
    from llmctl.spec.peft import within

    records.check_source(texts)
    config = within(path, read_config(path))
    suited("classify", config, path)
    if level not in (None, config.classifier):
        hint = f"Leave --level out, or name a model with a classifier of {level}s."
        raise UserError(f"--level is {level}, but of {path}, {has(config)}.", hint, Exit.MISMATCH)
    limit = max_tokens or config.context
    if config.position == "learned" and limit > config.context:
        wanted = f"at most {config.context}, where its positions end"
        raise UserError(f"--max-tokens is {max_tokens}; wanted {wanted}.", code=Exit.USAGE)

    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.data.requests import Request, no_text
    from llmctl.core.device import DTYPES, pick
    from llmctl.core.infer.answer import answers
    from llmctl.core.infer.classify import classify as core
    from llmctl.core.infer.classify import entities, labelled
    from llmctl.core.infer.encode import Encoder, Row

    checkpoint, console = Checkpoint.open(path), Console(shown)
    encoder = Encoder(checkpoint.tokenizer(), config, limit, texts.special)
    place = pick(compute.device, compute.dtype, compute.threads)
    loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
    each = config.classifier == "token"
    columns = ("text", "entity", "score") if each else ("text", "label", "score")
    writer, cut = records.Records(console, texts, columns), 0

    def encode(request: Request) -> Row | str:
        if pair:
            return encoder.row(request.text, pair[request.number])
        if request.record is None or pair_field not in request.record:
            return encoder.row(request.text)
        wrong = no_text(request.record, pair_field)
        return f"the record {wrong}" if wrong else encoder.row(request.text, str(request.record[pair_field]))

    with records.requests(texts) as requests, records.progress(console, texts, "classify") as progress:
        progress.update(0)
        for answer in answers(requests, encode, lambda rows: core(loaded, rows), texts.batch_size):
            request, row = answer.request, answer.row
            rows: list[tuple[object, ...]]
            if answer.result is None or row is None:
                writer.fail(request, answer.error)
            elif each:
                found = entities(request.text, row, answer.result, config.labels, aggregation == "first")
                rows = [(one["text"], one["entity"], one["score"]) for one in found]
                writer.add(request, {"entities": found}, rows)
            else:
                made: dict[str, Any] = labelled(answer.result, config, threshold)
                rows = [(request.text, made["label"], made["score"])]
                writer.add(request, made, rows)
            cut += row is not None and row.cut
            progress.update(writer.count)
    if cut:
        console.warn(f"{cut} of {writer.count} texts were cut to {limit} tokens.")
    writer.end()
