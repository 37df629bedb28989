"""Contents: what lies at a path (checkpoint, adapter, tensors, tokens ...), as its small files and headers tell."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.account import account
from llmctl.spec.families import config_within, read_config_json
from llmctl.spec.files import read_json
from llmctl.spec.manifest import listed, read_manifest
from llmctl.spec.model import ModelConfig
from llmctl.spec.peft import CONFIG, is_adapter, weights_of
from llmctl.spec.quantized_config import Quantized, quantized
from llmctl.spec.safetensors import INDEX, SINGLE, TensorInfo, read_header, read_tensors
from llmctl.spec.sizes import parameters

Kind = Literal["checkpoint", "adapter", "tensors", "tokens", "tokenizer"]


@dataclass(frozen=True)
class Contents:
    """What lies at a path; of tokens and tokenizers only that they are such.

    Attributes:
        path: a directory, or a safetensors file.
        kind: what it is.
        json: its config.json, or an adapter's adapter_config.json; None where there is none.
        config: the model's shape; None where there is no config.json, or one of a model that is not known.
        tensors: by name, in the order of the files.
        metadata: of the one file's header.
        remarks: why `config` is None, or what of it the tensors do not fit.
    """

    path: Path
    kind: Kind
    json: dict[str, Any] | None
    config: ModelConfig | None
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> "Contents":
        """Reads headers and config.json.

        Raises:
            UserError: nothing that is known lies there, or a header or index that is not sound.
        """
        kind = kind_of(path)
        if kind is None:
            raise unknown(path)
        if kind in ("tokens", "tokenizer"):
            return cls(path, kind, None, None, {}, {}, ())
        if path.is_file():
            return cls(path, kind, None, None, *read_header(path), ())
        if kind == "adapter":
            return cls(path, kind, read_json(path / CONFIG, CONFIG), None, *read_header(weights_of(path)), ())
        if kind == "tensors":
            return cls(path, kind, None, None, every_tensor(path), {}, ())
        json = read_config_json(path) if (path / "config.json").is_file() else None
        config, remarks = None, []
        tensors: dict[str, TensorInfo] = {}
        if json is None or has_weights(path):
            tensors = read_tensors(path)
        else:
            remarks.append(f"{path} holds no weights; parameters are those that config.json asks for.")
        if json is None:
            remarks.append(f"{path} has no config.json.")
        else:
            try:
                config = config_within(json, tensors or None)
            except UserError as error:
                remarks.append(error.problem)
        if config is not None and tensors:
            try:
                account(tensors, config, str(path), quantized(json))
            except UserError as error:
                remarks.append(error.problem)
        metadata = read_header(path / SINGLE)[1] if SINGLE in {info.file for info in tensors.values()} else {}
        return cls(path, kind, json, config, tensors, metadata, tuple(remarks))

    @property
    def fits(self) -> bool:
        """Whether a config that is known says what the tensors are."""
        return self.config is not None and (not self.tensors or not self.remarks)

    @property
    def parameters(self) -> int:
        """Numbers in the model: a tied head once, buffers not; of an unknown model, elements of all tensors."""
        if self.fits:
            return parameters(self.config)  # type: ignore[arg-type]
        return sum(prod(info.shape) for info in self.tensors.values())

    @property
    def quantized(self) -> Quantized | None:
        """Which of its matrices are in few bits; None: none, or of an unknown model."""
        return None if self.config is None or self.json is None else quantized(self.json)

    @property
    def folder(self) -> Path:
        """Where the files of the tensors lie."""
        return self.path.parent if self.path.is_file() else self.path


def kind_of(path: Path) -> Kind | None:
    """What lies at a path, by the names of its files; None: nothing that is known."""
    if path.is_file():
        return "tensors"
    if not path.is_dir():
        return None
    if (path / "tokens.json").is_file():
        return "tokens"
    if is_adapter(path):
        return "adapter"
    if any((path / name).is_file() for name in ("config.json", SINGLE, INDEX)):
        return "checkpoint"
    tokenizers = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
    if any(all((path / name).is_file() for name in names) for names in tokenizers):
        return "tokenizer"
    return "tensors" if any(path.glob("*.safetensors")) else None


def unknown(path: Path) -> UserError:
    """The error of a path at which nothing known lies."""
    return UserError(
        f"{path} holds no config.json, safetensors, tokens.json or tokenizer.json.",
        "Name a checkpoint, a token directory, a tokenizer, or one .safetensors file.",
        Exit.MISMATCH,
    )


def has_weights(directory: Path) -> bool:
    """Whether a directory with a config.json has weights, sound or not, pickled or not."""
    weights = ("*.safetensors", INDEX, "pytorch_model*", "*.pth", "model.pt")
    return any(any(directory.glob(pattern)) for pattern in weights)


def every_tensor(directory: Path) -> dict[str, TensorInfo]:
    """The tensors of all safetensors files of a directory that has no index, such as an adapter's.

    Raises:
        UserError: a header that is not sound, or a name that is in two files.
    """
    found: dict[str, TensorInfo] = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, info in read_header(file)[0].items():
            if name in found:
                raise UserError(
                    f"{directory}: {name} is in both {found[name].file} and {file.name}.",
                    "Name one of the files.",
                    Exit.MISMATCH,
                )
            found[name] = info
    return found


def manifest_of(directory: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The llmctl.json of a directory, and the files there that it lists, each {name, bytes, sha256}.

    A directory inside of one that llmctl made, such as `best` of a training run, has that one's.

    Raises:
        UserError: it is not what it should be.
    """
    manifest = read_manifest(directory)
    if manifest is not None:
        return manifest, listed(manifest)
    whole = directory.resolve()
    manifest = read_manifest(whole.parent)
    prefix = f"{whole.name}/"
    files = [] if manifest is None else [file for file in listed(manifest) if file["name"].startswith(prefix)]
    if not files:
        return None, []
    return manifest, [file | {"name": file["name"].removeprefix(prefix)} for file in files]
