"""What all tests share: llmctl run as a process, and a small corpus."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.learned import Learned

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Recipes, which take longest, come first, so that of several workers none is left with them at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/recipes"))


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would steer llmctl, with the repository importable."""
    steering = ("LLMCTL_", "NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "COLUMNS", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {"OMP_NUM_THREADS": "2"} | kept | {"PYTHONPATH": os.pathsep.join(paths), "TERM": "xterm"} | dict(extra or {})


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """`start("pretrain", ...)`: llmctl in a process of its own, in an empty directory, not waited for.

    `env` adds to the environment, `cwd` is the directory; stdout and stderr are pipes of text unless they are given.
    """

    def start(
        *argv: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, **options: object
    ) -> "subprocess.Popen[str]":
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
        command = [sys.executable, "-m", "llmctl", *map(str, argv)]
        place = {"env": environment(env), "cwd": cwd or tmp_path}
        return subprocess.Popen(command, text=True, encoding="utf-8", **place, **pipes)

    return start


@pytest.fixture
def run(start: Callable[..., "subprocess.Popen[str]"]) -> Run:
    """`run("memcalc", "--preset", "5m")`: the same, waited for. `stdin` is text (absent: empty)."""

    def run(
        *argv: object, stdin: str = "", timeout: float = 300, **options: object
    ) -> subprocess.CompletedProcess[str]:
        process = start(*argv, stdin=subprocess.PIPE, **options)
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines: 300 documents of made-up sentences with `text` and `source`, the same in every run."""
    chance = random.Random(0)
    syllables = ["ka", "lo", "mi", "tu", "ren", "sa", "vel", "do", "ni", "pra", "é", "ström"]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 3))) for _ in range(200)]
    path = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(300):
            sentences = [" ".join(chance.choices(words, k=chance.randint(3, 12))).capitalize() for _ in range(8)]
            record = {"text": ". ".join(sentences) + ".", "source": f"made/{number}"}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> "Learned":
    """A small decoder trained on Python's documentation by llmctl itself; see tests/learned.py."""
    from tests.learned import Learned

    place = tmp_path_factory.mktemp("learned")
    made = Learned(place / "model", place / "tokens", place / "docs.jsonl")

    def llmctl(*argv: object) -> str:
        command = [sys.executable, "-m", "llmctl", *map(str, argv)]
        done = subprocess.run(command, env=environment(), cwd=place, text=True, encoding="utf-8", capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    made.text.write_text(llmctl("corpus", "docs"), encoding="utf-8")
    llmctl("tokenize", made.text, "--vocab-size", 1024, "--held-out", 0.05, "-o", made.tokens)
    shape = ["--preset", "1m", "--context", 128, "--steps", 250, "--batch-tokens", 2048, "--eval-every", 250]
    llmctl("pretrain", made.tokens, *shape, "--optimizer", "muon", "--lr", 3e-3, "-o", made.path)
    return made
