"""Checkpoint: a directory in Hugging Face layout, opened into a model and written from one."""

import mmap
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from llmctl.core.checkpoint.names import join, split
from llmctl.core.checkpoint.write import DTYPES, Item, write_shards
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError
from llmctl.spec.account import account, rules, their_shape
from llmctl.spec.families import family_for, fitted, read_config, read_config_json
from llmctl.spec.families.family import tokens_json
from llmctl.spec.files import read_json, write_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.peft import base_of, is_adapter
from llmctl.spec.quantized_config import Quantized, quantized
from llmctl.spec.safetensors import SparseInfo, TensorInfo, main_dtype, read_tensors
from llmctl.spec.sizes import shapes

if TYPE_CHECKING:
    from llmctl.core.text.tokenizer import Tokenizer

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory, or that of an adapter, whose config.json has been read and nothing else.

    Attributes:
        path: the directory.
        config: the model's shape.
        base: of an adapter, the directory of the checkpoint below it; None: it is a checkpoint.
        quantized: which of its matrices are in few bits, and how; None: none are.
    """

    path: Path
    config: ModelConfig
    base: Path | None = None
    quantized: Quantized | None = None

    @classmethod
    def open(cls, path: Path | str) -> "Checkpoint":
        """Read config.json.

        Raises:
            UserError: it is absent, unreadable, or of a model that is not implemented.
        """
        if is_adapter(path):
            return cls(Path(path), read_config(path), base_of(path))
        return cls(Path(path), read_config(path), None, quantized(read_config_json(path)))

    def model(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, writable: bool = False
    ) -> Transformer:
        """The model, in eval mode, every tensor of the files accounted for.

        On the CPU and in the files' own dtype, parameters are views of a private memory map: opening costs no
        second copy, and pages come from disk as they are first read. Nothing written to them ever reaches the
        file, but a map reads on from it: a file that is changed or cut short while mapped changes the model.

        Args:
            device: where the parameters go.
            dtype: to cast to; None: as stored, or where the files hold several, the one that holds most bytes. What an
                adapter adds is float32.
            writable: parameters are contiguous private copies instead, for training and whatever else rewrites
                them all; the files may then change or go.

        Raises:
            UserError: tensors missing, unexpected or misshapen; a header that lies; a tied head that differs from
                the embedding.
        """
        if self.base is not None:
            return self._adapted(device, dtype, writable)
        if writable:
            self.need_plain()
        found = account(read_tensors(self.path), self.config, str(self.path), self.quantized)
        maps = {file: _mapped(self.path / file) for file in {info.file for info in found.every}}
        device, dtype = torch.device(device), dtype or DTYPES[main_dtype(found.stored.values())]
        model = Transformer(self.config, device="meta")
        state: dict[str, Tensor] = {}
        with torch.no_grad():
            for rule, info in found.stored.items():
                rows = [len(model.get_parameter(name)) for name in rule.ours]
                parts = split(rule, _tensor(maps, info), rows, self.config.heads)
                for name, part in zip(rule.ours, parts, strict=True):
                    state[name] = _placed(part, device, dtype, writable)
            for copy, rule in found.copies:
                self._check_copy(copy, found.stored[rule], maps)
        if not found.coded:
            model.load_state_dict(state, strict=True, assign=True)
            return model.requires_grad_().eval()
        from llmctl.core.checkpoint.coded import hold

        model.load_state_dict(state, strict=False, assign=True)
        for rule, one in found.coded.items():
            parts = {suffix: _tensor(maps, info) for suffix, info in one.parts.items()}
            hold(model, rule, one, parts, device, dtype)
        return model.requires_grad_().eval()

    def need_plain(self) -> None:
        """Raises UserError unless all weights are plain numbers."""
        if self.quantized is not None:
            raise UserError(
                f"{self.path} is quantized ({self.quantized.method}), and this needs weights that are plain numbers.",
                "Name the checkpoint that it was quantized from, or train an adapter on it: --method lora.",
                Exit.MISMATCH,
            )

    def tokenizer(self) -> "Tokenizer":
        """The tokenizer that lies beside the weights.

        Raises:
            UserError: there is none.
        """
        from llmctl.core.text.tokenizer import TOKENIZER_FILES, Tokenizer

        own = self.base is None or any((self.path / name).is_file() for name in TOKENIZER_FILES)
        return Tokenizer.open(self.path if own else self.base)

    @property
    def generation(self) -> dict:
        """generation_config.json, or {} where there is none.

        Raises:
            UserError: it is not a JSON object.
        """
        path = self.path / "generation_config.json"
        if not path.exists():
            return {} if self.base is None else Checkpoint.open(self.base).generation
        return read_json(path, "generation_config.json")

    def _adapted(self, device: torch.device | str, dtype: torch.dtype | None, writable: bool) -> Transformer:
        """The base with the adapter on it."""
        from llmctl.core.adapt.head import rehead
        from llmctl.core.adapt.stored import load_adapter

        model, fresh = Checkpoint.open(self.base).model(device, dtype, writable), []
        if model.config != self.config:
            try:
                model, fresh = rehead(model, self.config, 0)
            except ValueError as error:
                raise UserError(
                    f"{self.path}/config.json is of another model than the base {self.base}: {error}.",
                    f"If {self.base} is the checkpoint that the adapter was made for, remove that config.json.",
                    Exit.MISMATCH,
                ) from error
        new = [model.get_submodule(name) for name in fresh]
        with torch.no_grad():
            for parameter in (one for module in new for one in module.parameters()):
                parameter.fill_(float("nan"))
        load_adapter(model, self.path)
        if lacking := [name for name, module in zip(fresh, new, strict=True) if _unknown(module)]:
            raise UserError(
                f"{self.path} holds no {', no '.join(lacking)}, nor does its base {self.base}.",
                "Its head was not saved with it (modules_to_save); name a base that has the head.",
                Exit.MISMATCH,
            )
        return model.requires_grad_().eval()

    def _check_copy(self, copy: TensorInfo, original: TensorInfo, maps: dict[str, mmap.mmap]) -> None:
        one, other = _tensor(maps, copy), _tensor(maps, original)
        if one.dtype != other.dtype or not torch.equal(one, other):
            raise UserError(
                f"{self.path} stores {copy.name} beside {original.name}; its config.json ties them, but they differ.",
                f"Set tie_word_embeddings to false in config.json to use {copy.name}, or remove it from the weights.",
                Exit.MISMATCH,
            )


def save_checkpoint(
    directory: Path,
    model_or_state: Transformer | dict[str, Tensor],
    config: ModelConfig,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tokenizer_from: Path | None = None,
    generation: dict | None = None,
) -> None:
    """Write a checkpoint into an existing, empty directory; the same model always gives the same bytes.

    Tensors are written one after another, so that beyond the model no more than one is in memory. A model that no
    family of Hugging Face can express is written as model_type llmctl.

    Args:
        directory: where to write.
        model_or_state: the model, or its tensors by our names.
        config: of the model.
        dtype: to cast floats to; None: as they are.
        shard_bytes: largest size of one file's data; a tensor larger than that has a file of its own.
        tokenizer_from: a directory whose tokenizer files are copied.
        generation: contents of generation_config.json; None: the special ids of `config`, if it can generate.

    Raises:
        ValueError: tensors that do not fit the config.
        OSError: the disk is full, or the directory cannot be written.
    """
    config = fitted(config)
    state = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    items = [_item(rule, state, config, dtype) for rule in _fitting(state, config)]
    write_shards(directory, items, shard_bytes)
    write_config(directory, config, items[0].dtype)
    if generation or config.kind != "encoder":
        write_json(directory / "generation_config.json", tokens_json(config) if generation is None else generation)
    if tokenizer_from is not None:
        from llmctl.core.text.tokenizer import TOKENIZER_FILES

        for name in TOKENIZER_FILES:
            if (tokenizer_from / name).is_file():
                shutil.copyfile(tokenizer_from / name, directory / name)
        name_inputs(directory, config)


def name_inputs(directory: Path, config: ModelConfig) -> None:
    """Have the tokenizer_config.json of a model that tells kinds of tokens apart say so, if it says nothing.

    A tokenizer of transformers gives kinds only where they are named, since its version 5.
    """
    path = directory / "tokenizer_config.json"
    if config.token_types < 2 or not path.is_file():
        return
    said = read_json(path, path.name)
    write_json(path, {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"], **said})


def write_config(directory: Path, config: ModelConfig, dtype: torch.dtype, name: str = "config.json") -> None:
    """Write config.json into an existing directory, as the family of a model of that config spells it."""
    named = str(dtype).removeprefix("torch.")
    spelled = {**family_for(config).to_json(fitted(config)), "dtype": named, "torch_dtype": named}
    write_json(directory / name, spelled)


def _fitting(state: dict[str, Tensor], config: ModelConfig) -> list[Name]:
    """The rules of a model, once its tensors are known to be those of the config."""
    wanted = shapes(config)
    wrong = sorted(wanted.keys() ^ state.keys())
    wrong += [name for name in wanted.keys() & state.keys() if wanted[name] != tuple(state[name].shape)]
    if wrong:
        raise ValueError(f"the model does not fit its config: {', '.join(wrong[:4])}")
    return rules(config)


def _item(rule: Name, state: dict[str, Tensor], config: ModelConfig, dtype: torch.dtype | None) -> Item:
    ours = [state[name].detach() for name in rule.ours]
    shape = their_shape(rule, {name: tuple(state[name].shape) for name in rule.ours})
    return Item(rule.theirs, shape, dtype or ours[0].dtype, lambda: join(rule, ours, config.heads))


def _unknown(module: nn.Module) -> bool:
    """Whether parameters of a module still wait for their values."""
    return any(bool(parameter.isnan().any()) for parameter in module.parameters())


def _mapped(path: Path) -> mmap.mmap:
    """A file as private memory: reading it reads the file, writing it copies the page."""
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise UserError(f"{path} cannot be mapped into memory: {error.strerror}.", code=Exit.SPACE) from error


def _tensor(maps: dict[str, mmap.mmap], info: TensorInfo) -> Tensor:
    """The tensor as a view of its file's map; a copy where the file does not align it, or leaves its zeros out."""
    if isinstance(info, SparseInfo):
        return _with_zeros(maps, info)
    dtype = DTYPES[info.dtype]
    if not info.bytes:
        return torch.empty(info.shape, dtype=dtype)
    if info.start % dtype.itemsize:
        data = bytearray(maps[info.file][info.start : info.end])
        return torch.frombuffer(data, dtype=dtype).view(info.shape)
    count = info.bytes // dtype.itemsize
    return torch.frombuffer(maps[info.file], dtype=dtype, count=count, offset=info.start).view(info.shape)


def _with_zeros(maps: dict[str, mmap.mmap], info: SparseInfo) -> Tensor:
    bits = _tensor(maps, info.mask)  # (rows, columns / 8)
    stands = torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, bitorder="little")).view(torch.bool)
    values = _tensor(maps, TensorInfo(info.name, info.dtype, ((info.end - info.start) // DTYPES[info.dtype].itemsize,),
                                      info.file, info.start, info.end))  # fmt: skip
    if int(stands.count_nonzero()) != len(values):
        raise UserError(
            f"{info.file}: {info.mask.name} stands for {int(stands.count_nonzero())} values, but there are "
            f"{len(values)} of {info.name}.",
            "Copy or download the file again.",
            Exit.MISMATCH,
        )
    return torch.zeros(info.shape, dtype=values.dtype).masked_scatter_(stands, values)


def _placed(part: Tensor, device: torch.device, dtype: torch.dtype, writable: bool) -> Tensor:
    placed = part.to(device=device, dtype=dtype)
    if placed is not part:  # copied already; then at least without gaps
        return placed.contiguous()
    return part.clone(memory_format=torch.contiguous_format) if writable else part
