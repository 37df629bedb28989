"""Shards from documents: in order, split by content, the same whatever the threads, in constant memory."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from llmctl.core.data import encode
from llmctl.core.data.encode import sample, write_shards
from llmctl.core.data.ids import documents_of, read_ids
from llmctl.core.data.read import Document
from llmctl.core.data.shards import Tokens
from llmctl.core.text.bulk import Library
from llmctl.core.text.train import train_tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.data import Algorithm, Reading, Sharding


def documents(count=2000):
    return [Document(f"Document {n % 1500} says {'é日 word ' * (n % 37)}.\n", f"made:{n}") for n in range(count)]


def shards(directory, tokenizer, made=None, threads=2, encoder=None, **how):
    directory.mkdir()
    done = list(write_shards(made or documents(), tokenizer, directory, Sharding(**how), threads, encoder))
    return Tokens.open(directory), done


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_document_is_in_one_split_in_order_and_ends_with_eos(tmp_path, byte_tokenizer, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_BYTES", 4000)  # many batches
    tokens, done = shards(tmp_path / "a", byte_tokenizer, held_out=0.2, shard_tokens=50_000)
    found = {name: list(documents_of(split, tokens.vocab)) for name, split in tokens.splits.items()}
    expected = {"train": [], "heldout": []}
    for document in documents():
        data = document.text.encode()
        expected[Sharding(held_out=0.2).split(data)].append([*data, tokens.eos])
    assert found == expected
    assert len(tokens.splits["train"].shards) > 1
    assert done[-1] == (
        2000,
        sum(s.tokens for s in tokens.splits.values()),
        sum(len(d.text.encode()) for d in documents()),
    )
    assert done == sorted(done)
    assert tokens.splits["train"].bytes == sum(len(ids) - 1 for ids in expected["train"])
    tokens.check_ids()


def test_a_document_that_comes_twice_is_never_in_both_splits(tmp_path, byte_tokenizer):
    tokens, _ = shards(tmp_path / "a", byte_tokenizer, held_out=0.3)
    found = [{tuple(ids) for ids in documents_of(split, tokens.vocab)} for split in tokens.splits.values()]
    assert all(found)
    assert not found[0] & found[1]


def test_the_share_held_out_is_about_what_was_asked(tmp_path, byte_tokenizer):
    assert sum(Sharding(held_out=0.1).split(str(n).encode()) == "heldout" for n in range(10_000)) in range(900, 1100)
    tokens, _ = shards(tmp_path / "a", byte_tokenizer, held_out=0)
    assert tokens.splits["heldout"].documents == 0


@pytest.mark.parametrize("size", [300, 70_000])
def test_threads_engines_and_batches_change_nothing(tmp_path, monkeypatch, size):
    texts = [document.text for document in documents(300)]
    tokenizer = train_tokenizer(texts, "bpe", size, tuple(f"<{n}>" for n in range(size - 300)))
    assert tokenizer.size == 300 if size == 300 else tokenizer.size > 65_536
    shards(tmp_path / "one", tokenizer, threads=1)
    shards(tmp_path / "library", tokenizer, encoder=Library(tokenizer, tokenizer.eos))
    monkeypatch.setattr(encode, "BATCH_BYTES", 999)
    shards(tmp_path / "three", tokenizer, threads=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "library") == contents(tmp_path / "three")
    assert json.loads((tmp_path / "one" / "tokens.json").read_text())["dtype"] == (
        "uint16" if size == 300 else "uint32"
    )


def test_no_documents_is_an_error(tmp_path, byte_tokenizer):
    with pytest.raises(UserError, match="no text to encode"):
        shards(tmp_path / "a", byte_tokenizer, iter(()))


def test_a_tokenizer_without_an_end_of_text_token_is_refused(tmp_path, byte_tokenizer):
    byte_tokenizer.eos = None
    with pytest.raises(UserError, match="no end-of-text token") as caught:
        shards(tmp_path / "a", byte_tokenizer)
    assert caught.value.code == Exit.MISMATCH


def test_a_sample_takes_the_train_part_of_all_files_in_proportion(tmp_path):
    for name, count in (("a", 3000), ("b", 1000)):
        (tmp_path / name).write_text("".join(f"{name} line number {n:5d}\n" for n in range(count)))
    paths, sharding = [str(tmp_path / name) for name in "ab"], Sharding(held_out=0.5)
    found = list(sample(paths, Reading(documents="line"), sharding, 20_000))
    assert all(sharding.split(text.encode()) == "train" for text in found)
    assert sum(map(len, found)) in range(19_900, 20_100)
    assert sum(text.startswith("a") for text in found) / len(found) == pytest.approx(0.75, abs=0.01)
    first = list(sample(paths, Reading(documents="line", limit=100), sharding, 20_000))
    assert all(text.startswith("a") for text in first) and len(first) < 100


def test_every_algorithm_has_a_size_of_sample():
    assert set(encode.SAMPLE_BYTES) == set(Algorithm.__args__)


GROWTH = """
import resource, sys
from pathlib import Path
from llmctl.core.data.encode import write_shards
from llmctl.core.data.read import read_texts
from llmctl.core.text.train import train_tokenizer
from llmctl.spec.data import Sharding
path, out, algorithm = sys.argv[1:]
line = '{"text": "%s"}\\n' % ("The quick brown fox jumps over the lazy dog. " * 40)
tokenizer = train_tokenizer([line], algorithm)
peaks = []
for repeats in (8_000, 40_000):
    with open(path, "w") as file:
        for n in range(repeats):
            file.write(line.replace("quick", str(n)))
    directory = Path(out) / str(repeats)
    directory.mkdir()
    for done in write_shards(read_texts([path]), tokenizer, directory, Sharding(), 2):
        pass
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(*peaks, done.bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["bpe", "byte"])
def test_memory_does_not_grow_with_the_input(tmp_path, algorithm):
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "in.jsonl"), str(tmp_path), algorithm]
    small, large, size = map(int, subprocess.run(command, check=True, capture_output=True).stdout.split())
    assert size > 70_000_000
    assert large - small < 25  # MiB, for 56 MiB more of text, 112 of ids; batches in flight vary by a few


IDS = [
    (b"1 2\t3\n", [1, 2, 3], None),
    (b"[1, 2]", [1, 2], None),
    (b"[]", [], None),
    (b'{"ids": [5], "n": 1}', [5], None),
    (b"300", [], "line 1 has id 300, but the tokenizer has 257 (0 to 256)"),
    (b"-1", [], "line 1 has id -1, but"),
    (b"[1, 2.5]", [], "line 1 has 2.5, which is not an id"),
    (b"[true]", [], "line 1 has True, which is not an id"),
    (b'["1"]', [], "line 1 has '1', which is not an id"),
    (b"1 x", [], "line 1 is not a line of ids"),
    (b"[1, 2", [], "line 1 is not JSON"),
    (b'{"tokens": [1]}', [], "line 1 has no list 'ids'"),
    (b'{"ids": 3}', [], "line 1 has no list 'ids'"),
    (b"99999999999999999999", [], "line 1 has id 99999999999999999999, but"),
    (b"\xff\xfe", [], "line 1 is not a line of ids"),
]


@pytest.mark.parametrize(("line", "ids", "error"), IDS)
def test_lines_of_ids_are_read_or_their_fault_named(byte_tokenizer, line, ids, error):
    (row,) = read_ids([b"\n", line][1:], "ids", byte_tokenizer)
    assert row.ids == ids
    assert (row.error or "").startswith(error or "")
    assert (row.error is None) == (error is None)


def test_blank_lines_are_skipped_and_counted(byte_tokenizer):
    rows = list(read_ids([b"1\n", b"\n", b"x\n"], "ids", byte_tokenizer))
    assert [row.error for row in rows] == [None, "line 3 is not a line of ids"]


def test_documents_longer_than_a_chunk_come_whole(tmp_path, byte_tokenizer):
    made = [Document(text, "") for text in ("a", "b" * 3_000_000, "c", "d" * 1_200_000)]
    tokens, _ = shards(tmp_path / "a", byte_tokenizer, made, held_out=0)
    started = time.perf_counter()
    assert [len(ids) for ids in documents_of(tokens.splits["train"], tokens.vocab)] == [2, 3_000_001, 2, 1_200_001]
    assert time.perf_counter() - started < 5
    assert np.array_equal(tokens.splits["train"].document_ends, np.cumsum([2, 3_000_001, 2, 1_200_001]))
