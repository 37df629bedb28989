"""safetensors headers: sound files are read as the library reads them, and every kind of lie is found."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llmctl.errors import UserError
from llmctl.spec.safetensors import BITS, INDEX, SINGLE, read_header, read_tensors

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def file(path: Path, header: object, data: int = 32, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data))
    return path


def shards(directory: Path, **files: dict[str, torch.Tensor]) -> dict[str, str]:
    """Write shards model-NAME.safetensors and their index; returns its weight_map."""
    weight_map = {}
    for name, tensors in files.items():
        save_file(tensors, directory / f"model-{name}.safetensors")
        weight_map |= dict.fromkeys(tensors, f"model-{name}.safetensors")
    index(directory, weight_map)
    return weight_map


def index(directory: Path, weight_map: object) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def test_a_file_of_the_library_is_read_as_the_library_reads_it(tmp_path):
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "ids": torch.arange(5),
        "small": torch.zeros(3, dtype=torch.int8),
        "eight": torch.zeros(2, 2, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / SINGLE, {"format": "pt"})
    found, metadata = read_header(tmp_path / SINGLE)
    assert metadata == {"format": "pt"}
    raw = (tmp_path / SINGLE).read_bytes()
    for name, tensor in tensors.items():
        info = found[name]
        assert info.shape == tuple(tensor.shape) and info.bytes == tensor.nbytes and info.file == SINGLE
        assert raw[info.start : info.end] == tensor.flatten().view(torch.uint8).numpy().tobytes()
    assert {found[name].dtype for name in ("a", "b", "ids", "eight")} == {"F32", "BF16", "I64", "F8_E4M3"}


@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_of_the_format_is_known_by_its_size(dtype, tmp_path):
    size = 16 * BITS[dtype] // 8
    path = file(tmp_path / SINGLE, {"x": {"dtype": dtype, "shape": [16], "data_offsets": [0, size]}}, size)
    assert read_header(path)[0]["x"].bytes == size
    with safe_open(path, "np") as theirs:
        assert list(theirs.keys()) == ["x"]


LIES = {
    "a shape that needs more bytes": {"a": {**A, "shape": [2, 4]}, "b": B},
    "a shape that needs fewer bytes": {"a": {**A, "shape": [2, 2]}, "b": B},
    "overlapping tensors": {"a": A, "b": {**B, "data_offsets": [20, 28]}},
    "the same bytes twice": {"a": A, "c": A, "b": B},
    "a hole between tensors": {"a": A, "b": {"dtype": "F16", "shape": [2], "data_offsets": [28, 32]}},
    "a hole before the first": {"a": {"dtype": "F32", "shape": [7], "data_offsets": [4, 32]}},
    "a tensor past the end": {"a": A, "b": {"dtype": "BF16", "shape": [8], "data_offsets": [24, 40]}},
    "bytes after the last": {"a": A},
    "offsets the wrong way round": {"a": {**A, "data_offsets": [24, 0]}, "b": B},
    "negative offsets": {"a": {**A, "data_offsets": [-24, 0]}, "b": B},
    "fractional offsets": {"a": {**A, "data_offsets": [0.0, 24.0]}, "b": B},
    "one offset": {"a": {**A, "data_offsets": [24]}, "b": B},
    "a negative shape": {"a": {**A, "shape": [-2, -3]}, "b": B},
    "a fractional shape": {"a": {**A, "shape": [2.0, 3]}, "b": B},
    "a shape of truths": {"a": {**A, "shape": [True, 6]}, "b": B},
    "a shape that overflows": {"a": {**A, "shape": [1 << 62, 1 << 62, 4]}, "b": B},
    "an unknown dtype": {"a": {**A, "dtype": "F31"}, "b": B},
    "a dtype that is no name": {"a": {**A, "dtype": ["F32"]}, "b": B},
    "no dtype": {"a": {"shape": [2, 3], "data_offsets": [0, 24]}, "b": B},
    "a tensor that is a number": {"a": 5, "b": B},
    "metadata that is a list": {"__metadata__": [], "a": A, "b": B},
    "metadata with numbers": {"__metadata__": {"n": 1}, "a": A, "b": B},
    "a list": [A, B],
    "null": None,
    "no JSON": b"{,}",
    "JSON cut short": b'{"a": {"dtype"',
    "no UTF-8": b'{"\xff": 1}',
    "JSON nested without end": b"[" * 200_000,
    "a number without end": b'{"a": ' + b"9" * 5000 + b"}",
    "a key twice": json.dumps({"a": A, "b": B}).replace('"b"', '"a"').encode(),
    "an empty header": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused_as_the_library_refuses_it(lie, tmp_path):
    path = file(tmp_path / SINGLE, LIES[lie])
    with pytest.raises(UserError) as caught:
        read_header(path)
    assert str(path) in caught.value.problem and "\n" not in caught.value.problem
    if lie != "a key twice":  # there the library takes the last
        with pytest.raises((SafetensorError, ValueError, OSError)):
            safe_open(path, "np").__enter__()


@pytest.mark.parametrize("kept", [0, 3, 7, 8, 9, 60, 168])
def test_a_file_cut_short_anywhere_is_refused(kept, tmp_path):
    path = file(tmp_path / SINGLE, {"a": A, "b": B})
    whole = path.read_bytes()
    assert kept < len(whole)
    path.write_bytes(whole[:kept])
    with pytest.raises(UserError, match="not a sound safetensors file"):
        read_header(path)


@pytest.mark.parametrize("length", [100_000_001, 1 << 40, (1 << 64) - 1, 500])
def test_an_oversized_header_is_refused_before_it_is_read(length, tmp_path):
    path = file(tmp_path / SINGLE, {"a": A, "b": B}, length=length)
    with pytest.raises(UserError, match=f"claims {length} bytes"):
        read_header(path)


def test_a_file_that_is_not_there_or_a_directory_is_said_plainly(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_header(tmp_path / "absent")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_header(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_tensors(tmp_path / "absent")
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        read_tensors(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a directory"):
        read_tensors(tmp_path / "file")


def test_shards_are_read_through_their_index(tmp_path):
    weight_map = shards(tmp_path, one={"a": torch.zeros(2)}, two={"b": torch.zeros(3), "c": torch.zeros(1)})
    assert {name: info.file for name, info in read_tensors(tmp_path).items()} == weight_map


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", ".", "", "a\\b"])
def test_a_shard_outside_the_directory_is_refused_unread(name, tmp_path):
    index(tmp_path, {"a": name})
    with pytest.raises(UserError, match="outside its directory"):
        read_tensors(tmp_path)


def test_missing_shards_are_all_named(tmp_path):
    weight_map = shards(tmp_path, one={"a": torch.zeros(2)})
    index(tmp_path, {**weight_map, "b": "model-two.safetensors", "c": "model-three.safetensors"})
    with pytest.raises(UserError, match=r"2 shards .*model-three\.safetensors, model-two\.safetensors"):
        read_tensors(tmp_path)


def test_a_tensor_in_two_shards_or_in_another_than_the_index_says_is_refused(tmp_path):
    shards(tmp_path, one={"a": torch.zeros(2)}, two={"b": torch.zeros(2), "a": torch.zeros(2)})
    index(tmp_path, {"a": "model-one.safetensors", "b": "model-two.safetensors"})
    with pytest.raises(UserError, match="disagree: a is in both"):
        read_tensors(tmp_path)
    index(tmp_path, {"a": "model-two.safetensors", "b": "model-one.safetensors"})
    with pytest.raises(UserError, match=r"model-one\.safetensors holds a, which the index does not place there"):
        read_tensors(tmp_path)


def test_a_tensor_that_no_shard_holds_is_refused(tmp_path):
    weight_map = shards(tmp_path, one={"a": torch.zeros(2)})
    index(tmp_path, {**weight_map, "b": "model-one.safetensors"})
    with pytest.raises(UserError, match="no shard holds b"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("stray", ["model-00003-of-00003.safetensors", "model_old.safetensors", SINGLE])
def test_a_shard_left_over_is_refused(stray, tmp_path):
    shards(tmp_path, one={"a": torch.zeros(2)})
    save_file({"z": torch.zeros(1)}, tmp_path / stray)
    with pytest.raises(UserError, match=f"holds {stray} beside"):
        read_tensors(tmp_path)


def test_shards_beside_a_single_file_are_refused_but_variants_and_adapters_are_not(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / SINGLE)
    for harmless in ("model.fp16.safetensors", "adapter_model.safetensors", "consolidated.safetensors"):
        save_file({"z": torch.zeros(1)}, tmp_path / harmless)
    assert list(read_tensors(tmp_path)) == ["a"]
    save_file({"z": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="left over"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "\xff", "[" * 99999]
)
def test_an_index_that_is_none_is_refused(text, tmp_path):
    (tmp_path / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=INDEX):
        read_tensors(tmp_path)
