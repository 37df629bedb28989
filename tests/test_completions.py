"""The completion scripts: as generated, and answering as a shell asks."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {"bash": "llmctl.bash", "zsh": "_llmctl", "fish": "llmctl.fish"}


@pytest.mark.parametrize("shell", FILES)
def test_the_script_in_the_repository_is_what_the_command_prints(shell, run):
    path = ROOT / "completions" / FILES[shell]
    assert path.read_text(encoding="utf-8") == run("completion", shell).stdout, "renew it: python .ci/renew"


@pytest.mark.parametrize("shell", FILES)
def test_the_shell_reads_the_script(shell):
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n", ROOT / "completions" / FILES[shell]], check=True)


def bash(*words: str, cwd: Path) -> list[str]:
    """What bash offers for the last word of `llmctl WORDS`."""
    script = (
        f'source "{ROOT}/completions/llmctl.bash"\n'
        'COMP_WORDS=(llmctl "$@"); COMP_CWORD=$#; _llmctl; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, cwd=cwd, check=True)
    return [line for line in done.stdout.split("\n") if line]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["memc"], ["memcalc"]),
        (["--ver"], ["--version"]),
        (["--config", "x.toml", "memc"], ["memcalc"]),
        (["pretrain", "--sched"], ["--schedule"]),
        (["pretrain", "--no-f"], ["--no-force"]),
        (["pretrain", "x", "--schedule", ""], ["cosine", "wsd", "linear", "constant"]),
        (["pretrain", "--schedule", "=", "c"], ["cosine", "constant"]),
        (["pretrain", "--schedule", "="], ["cosine", "wsd", "linear", "constant"]),
        (["pretrain", "--lr", ""], []),
        (["pretrain", "-o", ""], ["a dir"]),
        (["pretrain", "--out", "a"], ["a dir"]),
        (["pretrain", "a"], ["a dir", "a file"]),
        (["--config", "a"], ["a dir", "a file"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
    ],
)
def test_bash_completes_commands_options_choices_files_and_directories(words, offered, tmp_path):
    (tmp_path / "a dir").mkdir()
    (tmp_path / "a file").touch()
    assert sorted(bash(*words, cwd=tmp_path)) == sorted(offered)


def test_bash_offers_every_command_first(tmp_path):
    from llmctl.cli import COMMANDS

    assert bash("", cwd=tmp_path) == list(COMMANDS)


def test_fish_completes_commands_options_and_choices(tmp_path):
    if not shutil.which("fish"):
        pytest.skip("no fish here")

    def fish(line: str) -> list[str]:
        script = f"source {ROOT}/completions/llmctl.fish; complete -C '{line}'"
        done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
        return [offer.split("\t")[0] for offer in done.stdout.splitlines()]

    assert fish("llmctl memc") == ["memcalc"]
    assert fish("llmctl pretrain --sched") == ["--schedule"]
    assert sorted(fish("llmctl pretrain --schedule ")) == ["constant", "cosine", "linear", "wsd"]
