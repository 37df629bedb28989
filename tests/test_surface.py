"""The manners that all commands share: streams, exit codes, errors in two lines, where options come from."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.cli import COMMANDS, table

ALL = list(COMMANDS)
HEAVY = ("torch", "datasets", "evaluate", "pandas", "transformers", "numpy", "tokenizers", "rich", "pydantic")
# A command line of each command that names a file which is not there.
MISSING = {
    "train-tokenizer": ["missing.txt", "-o", "out"],
    "tokenize": ["missing.txt", "-o", "out"],
    "detokenize": ["missing.txt", "--tokenizer", "missing"],
    "pretrain": ["missing", "-o", "out"],
    "finetune": ["missing", "missing.jsonl", "-o", "out"],
    "distill": ["missing", "missing.txt", "--layers", "1", "-o", "out"],
    "refresh": ["missing", "missing.txt", "-o", "out"],
    "lora-merge": ["missing", "-o", "out"],
    "merge": ["missing", "-o", "out"],
    "prune": ["missing", "-o", "out"],
    "quantize": ["missing", "-o", "out"],
    "export": ["missing", "-o", "out.gguf"],
    "prompt": ["missing.jsonl"],
    "generate": ["missing", "-p", "a"],
    "chat": ["missing"],
    "serve": ["missing"],
    "fill-mask": ["missing", "-p", "a"],
    "embed": ["missing", "-p", "a"],
    "classify": ["missing", "-p", "a"],
    "score": ["missing", "-p", "a"],
    "eval-ppl": ["missing", "missing.txt"],
    "eval-bleu": ["missing.txt", "missing.txt"],
    "eval-chrf": ["missing.txt", "missing.txt"],
    "eval-ter": ["missing.txt", "missing.txt"],
    "eval-metric": ["exact_match", "missing.txt"],
    "eval-rouge": ["missing.jsonl"],
    "eval-safety": ["missing.jsonl"],
    "eval-task": ["missing", "missing.jsonl"],
    "eval-harness": ["missing", "--tasks", "missing.yaml"],
    "eval-compare": ["missing.jsonl", "missing.jsonl"],
    "eval-memorization": ["missing", "missing.txt"],
    "bench": ["missing"],
    "memcalc": ["missing"],
    "inspect": ["missing"],
    "attention": ["missing", "-p", "a"],
    "verify": ["missing"],
    "plot": ["missing.jsonl"],
}
NO_FILES = {"corpus", "completion"}  # they read none
# Quick command lines that put data on stdout.
TALKING = {
    "corpus": ["docs", "--limit", "3"],
    "memcalc": ["--preset", "5m", "--vocab-size", "4096"],
    "completion": ["bash"],
}
# Quick command lines that make the directory `out` from the file that comes first.
WRITING = {
    "train-tokenizer": ["--vocab-size", "400", "-o", "out"],
    "tokenize": ["--vocab-size", "400", "-o", "out"],
}


def two_lines(stderr: str) -> tuple[str, str]:
    """The problem and the hint, when stderr is an error of two lines and nothing else."""
    assert "Traceback" not in stderr and "\x1b" not in stderr
    found = re.fullmatch(r"error: (.+)\nhint:  (.+)\n", stderr)
    assert found, f"not two lines: {stderr!r}"
    return found[1], found[2]


@pytest.mark.parametrize("command", ALL)
def test_help_goes_to_stdout_and_says_what_each_option_is_for(command, run):
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: llmctl {command}")
    assert re.search(r"^  -h, --help ", done.stdout, re.MULTILINE)
    bare = re.findall(r"^  (?:-\w, )?--[^ ]+(?: [A-Z|a-z0-9-]+)?\n(?! {4})", done.stdout, re.MULTILINE)
    assert not bare, "options without help"


@pytest.mark.parametrize("command", ALL)
def test_help_fits_80_columns_and_no_terminal_codes_are_in_it(command, run):
    done = run(command, "--help", env={"GITHUB_ACTIONS": "true", "FORCE_COLOR": "1", "CI": "1"})
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", ["", *ALL])
def test_help_loads_nothing_heavy(command, tmp_path):
    code = (
        "import sys; from llmctl.cli import main\n"
        f"sys.argv = ['llmctl', *{[command] if command else []}, '--help']\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.parametrize("command", ALL)
def test_an_unknown_option_is_two_lines_and_exit_code_2(command, run):
    done = run(command, "--cofnig", "x")
    assert (done.returncode, done.stdout) == (2, "")
    problem, hint = two_lines(done.stderr)
    assert "--cofnig" in problem and "--config" in hint


@pytest.mark.parametrize("command", ALL)
def test_an_error_has_no_color_even_where_others_turn_it_on(command, run):
    done = run(command, "--cofnig", "x", env={"GITHUB_ACTIONS": "true"})
    two_lines(done.stderr)


@pytest.mark.parametrize("command", [name for name in ALL if name not in NO_FILES])
def test_a_missing_file_is_named_in_two_lines(command, run, tmp_path):
    done = run(command, *MISSING[command])
    assert (done.returncode, done.stdout) == (1, "")
    problem, _ = two_lines(done.stderr)
    assert "missing" in problem
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ALL)
def test_a_full_stdout_is_exit_code_5(command, run):
    with open("/dev/full", "w") as full:
        done = run(command, *TALKING.get(command, ["--help"]), stdout=full)
    assert done.returncode == 5
    assert "space" in two_lines(done.stderr)[0]


@pytest.mark.parametrize("command", ALL)
def test_a_reader_that_went_away_is_exit_code_141_and_silence(command, run):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(command, *TALKING.get(command, ["--help"]), stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", ALL)
def test_a_config_file_with_an_unknown_key_is_refused_with_a_suggestion(command, run, tmp_path):
    (tmp_path / "run.toml").write_text(f'[{command}]\ncolour = "no"\njson = 1\n'.replace("json = 1\n", ""))
    for argv in (["--config", "run.toml", command], [command, "--config", "run.toml"]):
        done = run(*argv)
        assert (done.returncode, done.stdout) == (2, "")
        problem, hint = two_lines(done.stderr)
        assert "run.toml" in problem and f"[{command}]" in problem and "colour" in problem
        if command != "completion":  # it has no colors
            assert "color" in hint


@pytest.mark.parametrize("command", ALL)
def test_an_unknown_variable_of_a_command_is_refused(command, run):
    variable = f"LLMCTL_{command.replace('-', '_').upper()}_COLOUR"
    done = run(command, env={variable: "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert variable in two_lines(done.stderr)[0]


@pytest.mark.parametrize("command", ALL)
def test_stdin_is_not_waited_for_unless_it_is_asked_for(command, start):
    process = start(command, *TALKING.get(command, MISSING.get(command, [])), stdin=subprocess.PIPE)
    try:
        process.wait(timeout=60)  # stdin stays open and empty
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("command", TALKING)
def test_stdout_is_data_and_stderr_is_silent_with_quiet(command, run):
    quiet = [] if command == "completion" else ["-q"]
    done = run(command, *TALKING[command], *quiet)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout and "\x1b" not in done.stdout


@pytest.mark.parametrize("command", WRITING)
def test_what_a_command_makes_is_whole_then_up_to_date_then_replaced(command, run, corpus_file, tmp_path):
    line = [command, corpus_file, *WRITING[command]]
    assert run(*line, "--dry-run").returncode == 0 and os.listdir(tmp_path) == []
    made = run(*line, "-q")
    assert (made.returncode, made.stdout, made.stderr) == (0, "out\n", "")
    manifest = json.loads((tmp_path / "out" / "llmctl.json").read_text())
    assert {file["name"] for file in manifest["files"]} == set(os.listdir(tmp_path / "out")) - {"llmctl.json"}
    again = run(*line, "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["up_to_date"] is True
    other = run(command, corpus_file, "--vocab-size", "401", "-o", "out")
    assert other.returncode == 1 and "--vocab-size 400 there, 401 here" in two_lines(other.stderr)[0]
    assert run(command, corpus_file, "--vocab-size", "401", "-o", "out", "--force").returncode == 0
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("command", WRITING)
def test_a_full_disk_is_exit_code_5_and_leaves_nothing(command, run, corpus_file, tmp_path):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    done = run(command, corpus_file, *WRITING[command], "-q", preexec_fn=small_files)
    assert (done.returncode, done.stdout) == (5, "")
    two_lines(done.stderr)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", WRITING)
def test_a_directory_that_llmctl_did_not_make_is_never_replaced(command, run, corpus_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    done = run(command, corpus_file, *WRITING[command], "--force")
    assert (done.returncode, done.stdout) == (1, "")
    two_lines(done.stderr)
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]


def test_a_report_in_a_pipe_is_one_json_object_with_a_schema(run):
    for flags in ([], ["--json"]):
        done = run("memcalc", *TALKING["memcalc"], *flags)
        assert json.loads(done.stdout)["schema"] == "llmctl/memcalc/1"
        assert done.stdout.count("\n") == 1


def test_the_program_alone_prints_its_help_as_an_error(run):
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert all(f"  {command} " in done.stderr for command in ALL)


def test_help_lists_the_commands_in_the_order_of_a_models_life(run):
    listed = re.findall(r"^  ([a-z][a-z-]+) ", run("--help").stdout, re.MULTILINE)
    assert listed == ALL


def test_version_says_the_version(run):
    from llmctl import __version__

    assert run("--version").stdout == f"llmctl {__version__}\n"


def test_a_mistyped_command_gets_the_one_that_was_meant(run):
    done = run("memclac")
    assert done.returncode == 2
    problem, hint = two_lines(done.stderr)
    assert "memclac" in problem and "memcalc" in hint


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(run, tmp_path):
    (tmp_path / "run.toml").write_text("[memcalc]\nvocab_size = 1001\npreset = '5m'\n")

    def width(*argv, **options):
        done = run("--config", "run.toml", "memcalc", *argv, **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["parameters"]

    of = {
        size: json.loads(run("memcalc", "--preset", "5m", "--vocab-size", size).stdout) for size in (1001, 1002, 1003)
    }
    assert width() == of[1001]["parameters"]
    assert width(env={"LLMCTL_MEMCALC_VOCAB_SIZE": "1002"}) == of[1002]["parameters"]
    assert width("--vocab-size", "1003", env={"LLMCTL_MEMCALC_VOCAB_SIZE": "1002"}) == of[1003]["parameters"]


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[memclac]\n", "memclac"),
        ("vocab_size = 3\n", "vocab_size"),
        ("[memcalc]\nvocab_size = 'many'\n", "many"),
        ("[memcalc]\nvocab_size = true\n", "vocab_size"),
        ("[memcalc]\npreset = '6m'\n", "6m"),
        ("[memcalc\n", "not TOML"),
    ],
)
def test_a_wrong_config_file_is_refused_and_named(toml, told, run, tmp_path):
    (tmp_path / "run.toml").write_text(toml)
    done = (
        run("memcalc", "--config", "run.toml", "--preset", "5m")
        if "preset" not in toml
        else run("memcalc", "--config", "run.toml")
    )
    assert (done.returncode, done.stdout) == (2, "")
    problem, _ = two_lines(done.stderr + ("" if "hint" in done.stderr else "hint:  none\n"))
    assert "run.toml" in problem and told in problem


def test_a_wrong_value_of_a_variable_is_named_by_the_variable(run):
    done = run("memcalc", "--preset", "5m", env={"LLMCTL_MEMCALC_VOCAB_SIZE": "many"})
    assert done.returncode == 2
    assert two_lines(done.stderr)[0] == "LLMCTL_MEMCALC_VOCAB_SIZE is 'many'; wanted a whole number."


def test_debug_shows_the_traceback_as_well(run):
    done = run("memcalc", "missing", env={"LLMCTL_DEBUG": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "\nerror: missing" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_exit_code_130_without_a_traceback(number, start):
    process = start("generate", "-", "-p", "Once", stdin=subprocess.PIPE)
    wait_until_it_reads(process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "error: interrupted.\n"


def wait_until_it_reads(process: subprocess.Popen) -> None:
    """Waits until the process sleeps in a read of stdin (Linux), so that main has long begun."""
    import time

    for _ in range(600):
        time.sleep(0.05)
        where = Path(f"/proc/{process.pid}/wchan")
        if where.exists() and "pipe" in where.read_text():
            return
        if not where.exists():
            break
    time.sleep(3)


def test_the_readme_has_the_table_of_commands():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- commands -->\n(.*?)<!-- /commands -->", readme, re.DOTALL)
    assert found, "README.md lacks the marks <!-- commands --> and <!-- /commands -->"
    assert found[1].strip() == table().strip(), "renew it: python .ci/renew"
