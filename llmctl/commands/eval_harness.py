"""eval-harness: tasks of lm-evaluation-harness, put to a model of llmctl."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl import __version__
from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, model_path
from llmctl.spec.files import jsonable, write_file
from llmctl.spec.harness import Harness
from llmctl.spec.tasks import suited

if TYPE_CHECKING:
    from llmctl.console import Console


@expand
def eval_harness(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    harness: Harness,
    compute: Compute,
    shown: Shown,
    samples: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a JSON record for each example, with its scores.")
    ] = None,
    force: Annotated[bool, "Replace the file of samples that is there."] = False,
    batch_tokens: Annotated[int, "Tokens in one pass of the model; decides speed and memory."] = 8192,
    batch_size: Annotated[int, "Texts that are written at a time."] = 16,
) -> None:
    """Run tasks of lm-evaluation-harness on a model, with the figures of its own backend.

    The report is lm-eval's results file. Its whole command line is there too, with llmctl's models in it:
    python -m llmctl.core.harness run --model llmctl --model_args pretrained=DIR. Both need the extra `harness`.
    """
    if batch_tokens < 1 or batch_size < 1:
        raise UserError("--batch-tokens and --batch-size are 1 or more.", code=Exit.USAGE)
    if samples is not None and samples.exists() and not force:
        raise UserError(f"{samples} exists.", "Use --force to replace it, or another name.")
    path = model_path(model)
    from llmctl.spec.families import read_config
    from llmctl.spec.peft import within

    suited("generate", within(path, read_config(path)), path)
    os.environ.setdefault("TQDM_DISABLE", "1")  # its bars: ours tell what takes long
    try:
        from llmctl.core.harness.evaluate import evaluate, figures, found_tasks
        from llmctl.core.harness.evaluate import samples as records
        from llmctl.core.harness.model import HarnessModel
    except ImportError as error:
        raise UserError(f"It needs the package lm_eval ({error}).", "pip install 'llmctl[harness]'") from error
    from llmctl.console import Console
    from llmctl.core.benchmark.subject import Subject

    console = Console(shown)
    _listen(console)
    loaded = found_tasks(harness)
    subject = Subject.open(path, compute.device, compute.dtype, compute.threads, batch_tokens, batch_size)

    def follow(answers: Iterator[Any], total: int, label: str) -> Iterator[Any]:
        with console.progress(total, "requests", label) as progress:
            progress.update(0)
            for done, answer in enumerate(answers, 1):
                yield answer
                progress.update(done)

    began = time.perf_counter()
    seed = 0 if harness.seed is None else harness.seed
    asked = HarnessModel(subject, chat_template=harness.chat_template, seed=seed, follow=follow)
    results = evaluate(asked, harness, loaded)
    if samples is not None:
        import orjson

        with write_file(samples, force) as file:
            file.writelines(orjson.dumps(jsonable(record)) + b"\n" for record in records(results))
    del results["samples"]
    found = figures(results)
    report = {**results, "seconds": time.perf_counter() - began, "signature": _signature(results, harness)}
    rows = [(name, value, "" if error is None else f"{error:.4g}") for name, (value, error) in found.items()]
    console.report(report, None if shown.json else console.table(str(path), ("", "value", "stderr"), rows))
    harness.check({name: value for name, (value, _) in found.items()})


def _signature(results: dict[str, Any], harness: Harness) -> str:
    from importlib.metadata import version

    versions = {f"{name}-{number}" for name, number in results["versions"].items()}
    told = {
        "tasks": "+".join(sorted(versions)),
        "shots": "+".join(str(number) for number in dict.fromkeys(results["n-shot"].values())),
        "chat": "yes" if harness.chat else "no",
        "limit": harness.limit or "none",
        "dtype": results["config"]["model_dtype"].removeprefix("torch."),
        "lm_eval": version("lm_eval"),
        "version": f"llmctl-{__version__}",
    }
    return "|".join(f"{name}:{value}" for name, value in told.items())


def _listen(console: "Console") -> None:
    """Says what lm-eval warns of as our own warnings, each once; not what it thinks of how a task is written."""
    said: set[str] = set()

    class Warnings(logging.Handler):
        """Hands messages on."""

        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())
            if text not in said:
                said.add(text)
                console.warn(text)

    logger = logging.getLogger("lm_eval")
    logger.handlers, logger.propagate = [Warnings(logging.WARNING)], False
    for name in ("api.task", "api.registry", "config", "tasks"):
        logging.getLogger(f"lm_eval.{name}").setLevel(logging.ERROR)
