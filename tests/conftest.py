"""What all tests share: llmctl run as a process, and a small corpus."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would steer llmctl, with the repository importable."""
    steering = ("LLMCTL_", "NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "COLUMNS", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "2", "TERM": "xterm"} | dict(extra or {})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("memcalc", "--preset", "5m")`: llmctl in a process of its own, in an empty directory.

    `stdin` is text (absent: empty), `env` adds to the environment, `cwd` is the directory; stdout and stderr come
    back as text unless they are given as files.
    """

    def run(
        *argv: object,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 300,
        **options: object,
    ) -> subprocess.CompletedProcess[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.run(
            [sys.executable, "-m", "llmctl", *map(str, argv)],
            input=stdin or "",
            env=environment(env),
            cwd=cwd or tmp_path,
            timeout=timeout,
            text=True,
            encoding="utf-8",
            **pipes,
        )

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
