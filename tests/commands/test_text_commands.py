"""corpus, train-tokenizer, tokenize and detokenize as processes: stdout, exit codes, whole outputs."""

import gzip
import json
import os
import subprocess
import sys

import pytest

from llmctl.core.data.shards import Tokens
from llmctl.core.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def bpe(tmp_path_factory, corpus_file):
    """A tokenizer trained by the command."""
    out = tmp_path_factory.mktemp("bpe") / "tokenizer"
    command = [sys.executable, "-m", "llmctl", "train-tokenizer", corpus_file, "-o", out, "--vocab-size", "400"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == f"{out}\n"
    return out


def jsonl(text):
    return [json.loads(line) for line in text.splitlines()]


def test_tokenize_trains_encodes_and_prints_its_path(run, tmp_path, corpus_file):
    done = run("tokenize", corpus_file, "-o", "tokens", "--vocab-size", 400, "--held-out", 0.1)
    assert (done.returncode, done.stdout) == (0, "tokens\n")
    tokens = Tokens.open(tmp_path / "tokens")
    assert tokens.vocab == 400
    assert sum(split.documents for split in tokens.splits.values()) == 300
    assert all(split.documents > 10 for split in tokens.splits.values())
    manifest = json.loads((tmp_path / "tokens" / "llmctl.json").read_text())
    assert manifest["command"] == "tokenize"
    assert {file["name"] for file in manifest["files"]} >= {"tokens.json", "tokenizer.json", "train-00000.ds.index"}
    again = run("tokenize", corpus_file, "-o", "tokens", "--vocab-size", 400, "--held-out", 0.1, "--json")
    report = json.loads(again.stdout)
    assert report["up_to_date"] and report["path"] == "tokens"
    assert report["metrics"]["train"]["tokens"] == tokens.splits["train"].tokens
    other = run("tokenize", corpus_file, "-o", "tokens", "--vocab-size", 500)
    assert other.returncode == 1 and "--vocab-size" in other.stderr


def test_stdin_gives_the_same_tokens_as_the_file(run, tmp_path, corpus_file):
    assert run("tokenize", corpus_file, "-o", "file", "--vocab-size", 300).returncode == 0
    assert run("tokenize", "-", "-o", "pipe", "--vocab-size", 300, stdin=corpus_file.read_text()).returncode == 0
    names = ["train-00000.ds", "train-00000.ds.index", "tokenizer.json", "tokens.json"]
    for name in names:
        assert (tmp_path / "file" / name).read_bytes() == (tmp_path / "pipe" / name).read_bytes()
    assert not [path for path in (tmp_path / "pipe").iterdir() if path.name.startswith(".")]


def test_a_path_on_stdin_names_the_tokenizer(run, tmp_path, corpus_file, bpe):
    done = run("tokenize", corpus_file, "--tokenizer", "-", "-o", "tokens", stdin=f"{bpe}\n")
    assert done.returncode == 0, done.stderr
    assert Tokens.open(tmp_path / "tokens").tokenizer_sha256 == Tokenizer.open(bpe).sha256


def test_without_out_tokens_are_json_lines_that_detokenize_turns_back(run, corpus_file, bpe):
    done = run("tokenize", corpus_file, "--tokenizer", bpe, "--limit", 5)
    records = jsonl(done.stdout)
    originals = jsonl(corpus_file.read_text())[:5]
    for record, original in zip(records, originals, strict=True):
        assert {key: record[key] for key in original} == original
        assert len(record["tokens"]) == len(record["ids"])
    back = run("detokenize", "-", "--tokenizer", bpe, stdin=done.stdout)
    assert jsonl(back.stdout) == records
    lines = "".join(" ".join(map(str, record["ids"])) + "\n" for record in records)
    assert run("detokenize", "-", "--tokenizer", bpe, stdin=lines).stdout == "".join(
        r["text"] + "\n" for r in originals
    )


def test_prompts_are_tokenized_and_stdin_is_left_alone(run, bpe):
    done = run("tokenize", "-p", "ka lo", "-p", "<|endoftext|>", "--tokenizer", bpe, stdin="must not be read")
    first, second = jsonl(done.stdout)
    assert first["text"] == "ka lo"
    assert len(second["ids"]) > 1  # typed special tokens are text


def test_a_directory_of_tokens_turns_back_into_its_documents(run, tmp_path, corpus_file, bpe):
    run("tokenize", corpus_file, "--tokenizer", bpe, "-o", "tokens", "--held-out", 0.1)
    found = [jsonl(run("detokenize", "tokens", "--split", split).stdout) for split in ("train", "heldout")]
    texts = [record["text"] for part in found for record in part]
    assert sorted(texts) == sorted(record["text"] for record in jsonl(corpus_file.read_text()))
    run("train-tokenizer", corpus_file, "-o", "other", "--algorithm", "byte")
    other = run("detokenize", "tokens", "--tokenizer", "other")
    assert other.returncode == 4 and "not the one that made tokens" in other.stderr
    special = run("detokenize", "tokens", "--special", "--limit", 1).stdout
    assert jsonl(special)[0]["text"].endswith("<|endoftext|>")


def test_bad_records_are_answered_in_their_place(run, bpe):
    done = run("tokenize", "-", "--tokenizer", bpe, stdin='{"text": "a"}\n{"x": 1}\n{"text": "b"}\n')
    records = jsonl(done.stdout)
    assert done.returncode == 3
    assert [record.get("text") for record in records] == ["a", None, "b"]
    assert records[1] == {"x": 1, "error": "line 2 has no field 'text', only 'x'"}
    done = run("detokenize", "-", "--tokenizer", bpe, stdin="40 41\n40 99999\n[42]\n")
    lines = done.stdout.splitlines()
    assert done.returncode == 3
    assert "99999" in json.loads(lines[1])["error"] and "text" in json.loads(lines[2])


BAD = {
    "empty": (b"", "There is no text"),
    "blank": (b" \n\n", "There is no text"),
    "utf8": (b"fine\nbad \xff\n", "line 2: byte 0xff is not UTF-8"),
    "record": (b'{"text": "a"}\n{"body": "b"}\n', "line 2 has no field 'text', only 'body'"),
    "json": (b'{"text": "a"}\n{"text"\n', "line 2 is not JSON"),
    "gzip": (gzip.compress(b"text " * 9999)[:-20], "damaged or cut short"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("given", [True, False])
def test_bad_input_is_two_lines_and_leaves_nothing_behind(run, tmp_path, bpe, name, given):
    data, words = BAD[name]
    (tmp_path / name).write_bytes(data)
    done = run("tokenize", name, "-o", "out", *(["--tokenizer", bpe] if given else ["--vocab-size", 300]))
    errors = [line for line in done.stderr.splitlines() if line.startswith(("error:", "hint:", "Traceback"))]
    assert (done.returncode, done.stdout) == (1, "")
    assert len(errors) == 2 and words in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["tokenize"], 2, "nothing to tokenize"),
        (["tokenize", "-p", "x"], 2, "--tokenizer says which"),
        (["tokenize", "nowhere.txt", "-o", "out"], 1, "nowhere.txt does not exist"),
        (["tokenize", "FILE", "-o", "out", "--tokenizer", "nowhere"], 1, "nowhere does not exist"),
        (["tokenize", "FILE", "-o", "out", "--tokenizer", "BPE", "--vocab-size", "900"], 2, "other options say how"),
        (["tokenize", "FILE", "-o", "out", "-p", "x", "--tokenizer", "BPE"], 2, "Leave one out"),
        (["tokenize", "FILE", "-o", "out", "--vocab-size", "100"], 2, "needs at least 257"),
        (["tokenize", "FILE", "-o", "out", "--held-out", "1"], 2, "--held-out is 1.0"),
        (["tokenize", "FILE", "-o", "out", "--limit", "0"], 2, "--limit is 0"),
        (["tokenize", "FILE", "-o", "out", "--field", "body"], 1, "has no field 'body', only 'text', 'source'"),
        (["tokenize", "FILE", "-o", "out", "--tokenizer", "FILE"], 1, "is not JSON"),
        (["train-tokenizer", "FILE", "-o", "out", "--algorithm", "wordpiece", "--vocab-size", "20"], 2, "alone are"),
        (["train-tokenizer", "FILE", "-o", "out", "--algorithm", "bpee"], 2, "bpe"),
        (["detokenize", "FILE"], 2, "--tokenizer is missing"),
        (["detokenize", "nowhere", "--tokenizer", "BPE"], 1, "nowhere does not exist"),
        (["detokenize", "/dev/null", "--tokenizer", "BPE"], 1, "holds no ids"),
        (["detokenize", "BPE"], 1, "has no tokens.json"),
        (["corpus", "poems"], 2, "docs, source or summaries"),
        (["corpus", "docs", "--limit", "0"], 2, "--limit is 0"),
    ],
)
def test_mistakes_are_named_with_their_exit_code(run, tmp_path, corpus_file, bpe, argv, code, words):
    names = {"FILE": corpus_file, "BPE": bpe}
    done = run(*(names.get(word, word) for word in argv))
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(run, tmp_path, corpus_file):
    for command in ("tokenize", "train-tokenizer"):
        done = run(command, corpus_file, "-o", "out", "--dry-run")
        assert done.returncode == 0
        assert json.loads(done.stdout)["up_to_date"] is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["tokenize", "FILE", "-o", "out"], ["tokenize", "-p", "x", "--tokenizer", "BPE"]])
def test_tokenize_does_not_load_torch(tmp_path, corpus_file, bpe, argv):
    names = {"FILE": str(corpus_file), "BPE": str(bpe)}
    code = (
        "import sys\nfrom llmctl.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'pyarrow'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, *(names.get(w, w) for w in argv)], cwd=tmp_path, check=True)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, corpus_file, bpe):
    command = f"ulimit -f 4; exec '{sys.executable}' -m llmctl tokenize '{corpus_file}' --tokenizer '{bpe}' -o out"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("\n") <= 3 and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_fails_while_stdin_is_read_is_not_blamed_on_stdin(run, bpe):
    ids = "1 2 3\n" * 50_000
    reader, writer = os.pipe()
    os.close(reader)
    done = run("detokenize", "-", "--tokenizer", bpe, stdin=ids, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = run("detokenize", "-", "--tokenizer", bpe, stdin=ids, stdout=full)
    assert done.returncode == 5 and done.stderr.startswith("error: stdout: No space left on device.\n")


def test_a_closed_stdin_is_said(run, start, bpe):
    done = start("tokenize", "-", "--tokenizer", bpe, stdin=None, preexec_fn=lambda: os.close(0))
    _, stderr = done.communicate(timeout=60)
    assert done.returncode == 1 and stderr.startswith("error: stdin is closed.\nhint:  ")


def test_nothing_held_out_is_worth_a_warning(run, tmp_path, bpe):
    (tmp_path / "a.txt").write_text("ka lo mi\n")
    done = run("tokenize", "a.txt", "--tokenizer", bpe, "-o", "out")
    assert done.returncode == 0
    assert "warning: none of the 1 documents fell into the held-out share" in done.stderr


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram", "word", "char", "byte"])
def test_every_algorithm_makes_tokens(run, tmp_path, corpus_file, algorithm):
    sizes = {"wordpiece": 200, "unigram": 500, "word": 100}
    size = ["--vocab-size", sizes[algorithm]] if algorithm in sizes else []
    done = run("tokenize", corpus_file, "-o", "out", "--algorithm", algorithm, *size, "--special", "<|im_end|>")
    assert (done.returncode, done.stdout) == (0, "out\n"), done.stderr
    Tokens.open(tmp_path / "out").check_ids()
    assert Tokenizer.open(tmp_path / "out").id("<|im_end|>") is not None


def test_corpus_writes_json_lines_the_same_each_time_and_ends_quietly_with_its_reader(run):
    first, second = (run("corpus", "summaries", "--limit", 50).stdout for _ in range(2))
    assert first == second
    assert len(jsonl(first)) == 50
    command = f"set -o pipefail; '{sys.executable}' -m llmctl corpus docs | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")
    assert json.loads(done.stdout)["kind"] == "topic"


def test_the_two_parts_of_summaries_share_nothing(run):
    parts = [jsonl(run("corpus", "summaries", "--split", part, "--limit", 60).stdout) for part in ("train", "test")]
    assert len(parts[0]) == len(parts[1]) == 60
    assert not {r["prompt"] for r in parts[0]} & {r["prompt"] for r in parts[1]}
