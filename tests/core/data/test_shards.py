"""Shards of tokens: what is written is read back, across files, and by datatrove too."""

import json

import numpy as np
import pytest

from llmctl.core.data.shards import ShardWriter, Tokens, write_tokens
from llmctl.core.text.tokenizer import token_dtype
from llmctl.errors import Exit, UserError

DOCUMENTS = [[5, 6, 7, 0], [9, 0], [0], [*range(1, 30), 0], [8, 0]]


@pytest.fixture
def tokens_directory(tmp_path, byte_tokenizer):
    return written(tmp_path, byte_tokenizer)


def written(directory, tokenizer, dtype="<u2", shard_tokens=10):
    writer = ShardWriter(directory, "train", np.dtype(dtype), shard_tokens)
    for documents in (DOCUMENTS[:2], DOCUMENTS[2:]):
        ids = np.array([i for ids in documents for i in ids], np.uint32)
        writer.write(ids, np.cumsum([len(ids) for ids in documents]), 7)
    empty = ShardWriter(directory, "heldout", np.dtype(dtype))
    write_tokens(directory, tokenizer, 0, {"train": writer.close(), "heldout": empty.close()})
    return directory


def test_what_is_written_is_read_back_across_files(tokens_directory):
    train = Tokens.open(tokens_directory).splits["train"]
    flat = [i for ids in DOCUMENTS for i in ids]
    assert len(train.shards) == 2
    assert (train.tokens, train.documents, train.bytes) == (len(flat), len(DOCUMENTS), 14)
    for start in range(len(flat)):
        for count in range(len(flat) - start + 1):
            assert train.read(start, count).tolist() == flat[start : start + count]
    assert train.read(0, 3).dtype == np.int64
    assert train.document_ends.tolist() == np.cumsum([len(ids) for ids in DOCUMENTS]).tolist()
    assert train.document_ends.dtype == np.uint64


def test_reading_beyond_the_end_is_an_error_and_not_a_short_answer(tokens_directory):
    train = Tokens.open(tokens_directory).splits["train"]
    for start, count in ((0, train.tokens + 1), (train.tokens, 1), (-1, 1)):
        with pytest.raises(ValueError, match="tokens"):
            train.read(start, count)


def test_an_empty_split_is_there_with_no_tokens(tokens_directory):
    heldout = Tokens.open(tokens_directory).splits["heldout"]
    assert (heldout.tokens, heldout.documents) == (0, 0)
    assert len(heldout.read(0, 0)) == len(heldout.document_ends) == 0


def test_files_are_cut_between_documents(tokens_directory):
    about = json.loads((tokens_directory / "tokens.json").read_text())
    for shard in about["splits"]["train"]["shards"]:
        ends = np.fromfile(tokens_directory / f"{shard['file']}.index", "<u8")
        assert len(ends) == shard["documents"]
        assert ends[-1] == shard["tokens"]


@pytest.mark.parametrize(("dtype", "size"), [("<u2", 2), ("<u4", 4)])
def test_datatrove_reads_our_shards(tmp_path, byte_tokenizer, dtype, size):
    dataset = pytest.importorskip("datatrove.utils.dataset")
    written(tmp_path, byte_tokenizer, dtype, shard_tokens=1000)
    file = dataset.DatatroveFileDataset(str(tmp_path / "train-00000.ds"), 3, token_size=size, return_positions=True)
    flat = [i for ids in DOCUMENTS for i in ids]
    starts = {0, *np.cumsum([len(ids) for ids in DOCUMENTS]).tolist()}
    assert len(file) == len(flat) // 4
    for i in range(len(file)):
        window = range(4 * i, 4 * i + 4)
        expected = [at - max(start for start in {window[0], *starts} if start <= at) for at in window]
        assert file[i]["input_ids"].tolist() == [flat[at] for at in window]
        assert file[i]["positions"].tolist() == expected


def test_we_read_what_datatrove_writes(tmp_path, byte_tokenizer):
    tokenizer = pytest.importorskip("datatrove.pipeline.tokens.tokenizer")
    file = tokenizer.TokenizedFile(str(tmp_path), "train-00000.ds")
    for ids in DOCUMENTS:
        file.write(ids, None)
    file.close()
    theirs = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    written(tmp_path, byte_tokenizer, shard_tokens=1000)
    assert {name: (tmp_path / name).read_bytes() for name in theirs} == theirs


def test_a_file_of_another_size_than_tokens_json_says_is_refused(tokens_directory):
    with open(tokens_directory / "train-00000.ds", "ab") as file:
        file.write(b"\0\0")
    with pytest.raises(UserError, match=r"train-00000\.ds has 76 bytes, tokens\.json says 74") as caught:
        Tokens.open(tokens_directory)
    assert caught.value.code == Exit.MISMATCH


def test_a_missing_file_or_a_missing_description_is_named(tokens_directory, tmp_path_factory):
    (tokens_directory / "train-00001.ds.index").unlink()
    with pytest.raises(UserError, match=r"train-00001\.ds\.index"):
        Tokens.open(tokens_directory)
    with pytest.raises(UserError, match=r"no tokens\.json"):
        Tokens.open(tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "{}", '{"dtype": "float32", "splits": {}}'])
def test_a_broken_description_is_a_user_error(tokens_directory, text):
    (tokens_directory / "tokens.json").write_text(text)
    with pytest.raises(UserError, match=r"cannot be read|not a description of tokens"):
        Tokens.open(tokens_directory)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda about: about.update(vocab=None), "vocab is None"),
        (lambda about: about.update(vocab=10**9), "wanted a whole number from 1 to 65536"),
        (lambda about: about.update(eos=10**9), "eos is 1000000000; the vocabulary is 0 to 256"),
        (lambda about: about.update(splits=None), "splits lacks train or heldout"),
        (lambda about: about["splits"].pop("heldout"), "splits lacks train or heldout"),
        (lambda about: about["splits"].update(heldout=3), "heldout is not tokens, documents, bytes and shards"),
        (lambda about: about["splits"]["train"].update(bytes="7"), "train is not tokens, documents, bytes and shards"),
        (lambda about: about["splits"]["train"].update(tokens=-1), "train is not tokens, documents, bytes and shards"),
        (lambda about: about["splits"]["train"].update(tokens=99), "train has 99 tokens, but its files have 3"),
        (lambda about: about["splits"]["train"]["shards"][0].update(file="../d.jsonl"), "not each a file of this"),
    ],
)
def test_an_edited_description_is_refused_and_says_what_is_wrong(tokens_directory, change, told):
    about = json.loads((tokens_directory / "tokens.json").read_text())
    change(about)
    (tokens_directory / "tokens.json").write_text(json.dumps(about))
    with pytest.raises(UserError) as caught:
        Tokens.open(tokens_directory)
    assert told in caught.value.problem and caught.value.code == Exit.MISMATCH


@pytest.mark.parametrize(("at", "value"), [(0, 0), (1, 2**63), (-1, 1)])
def test_ends_of_documents_that_do_not_rise_to_the_last_token_are_refused(tokens_directory, at, value):
    ends = np.memmap(tokens_directory / "train-00000.ds.index", "<u8", "r+")
    ends[at] = value
    ends.flush()
    with pytest.raises(UserError, match=r"train-00000\.ds\.index does not hold the ends") as caught:
        Tokens.open(tokens_directory).splits["train"].document_ends  # noqa: B018
    assert caught.value.code == Exit.MISMATCH


def test_an_id_over_the_vocabulary_is_found(tokens_directory):
    tokens = Tokens.open(tokens_directory)
    tokens.check_ids()
    ids = np.memmap(tokens_directory / "train-00000.ds", "<u2", "r+")
    ids[3] = 60000
    ids.flush()
    with pytest.raises(UserError, match="holds id 60000, but the vocabulary has 257"):
        tokens.check_ids()


def test_the_tokenizer_travels_with_the_tokens(tokens_directory, byte_tokenizer):
    tokens = Tokens.open(tokens_directory)
    assert tokens.tokenizer().sha256 == tokens.tokenizer_sha256 == byte_tokenizer.sha256


def test_ids_take_two_bytes_up_to_65536_tokens():
    assert token_dtype(65536).itemsize == 2
    assert token_dtype(65537).itemsize == 4
