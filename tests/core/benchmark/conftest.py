"""Small random models as subjects of tasks."""

import json
from collections.abc import Callable, Iterable

import pytest

from llmctl.core.benchmark.outcome import Outcome
from llmctl.core.benchmark.run import run
from llmctl.core.benchmark.subject import Subject
from llmctl.spec.benchmark import Task
from tests.commands.conftest import tiny  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def decoder(tiny) -> Subject:  # noqa: F811
    """A random llama with a context of 64 and a byte-level tokenizer."""
    return Subject.open(tiny, threads=1)


@pytest.fixture
def task(tmp_path) -> Callable[..., Task]:
    """`task(records, **options)`: the records in a file."""

    def made(records: Iterable[dict], **options: object) -> Task:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
        return Task(file=str(path), name="made", **options)

    return made


@pytest.fixture
def asked(task) -> Callable[..., Outcome]:
    """`asked(subject, records, **options)`: what became of them."""
    return lambda subject, records, **options: run(subject, task(records, **options))
