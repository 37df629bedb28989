"""A stand-in for an environment with llmctl installed, so that recipes run the code of this tree."""

import sys
from pathlib import Path

import pytest

from tests.conftest import environment


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A directory whose bin/ has llmctl and python, marked as set up."""
    path = tmp_path / "venv"
    (path / "bin").mkdir(parents=True)
    for name, words in (("llmctl", "-m llmctl "), ("python", "")):
        script = path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        script.chmod(0o755)
    (path / ".llmctl").touch()
    return path


@pytest.fixture
def shell(venv: Path) -> dict[str, str]:
    """The environment of a shell in which that environment is active."""
    found = environment()
    return found | {"PATH": f"{venv / 'bin'}:{found['PATH']}"}
