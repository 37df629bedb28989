"""gguf: a checkpoint as one file that llama.cpp runs, written tensor by tensor."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.checkpoint.names import split
from llmctl.core.checkpoint.stream import Stream, threaded
from llmctl.core.export.blocks import packed
from llmctl.core.export.vocabulary import vocabulary
from llmctl.core.model.position import rope_frequencies, turning
from llmctl.errors import Exit, UserError
from llmctl.spec.account import account
from llmctl.spec.gguf import MADE, MIXTURES, ExportConfig, GgufPlan, Planned
from llmctl.spec.gguf_graphs import NO_TURN, UNCAPPED, period
from llmctl.spec.gguf_tensors import Entry
from llmctl.spec.model import ModelConfig
from llmctl.spec.safetensors import read_tensors
from llmctl.spec.sentence import Pooling, read_sentence
from llmctl.spec.sizes import shapes

if TYPE_CHECKING:
    import gguf

Source = Callable[[str], Tensor]
_VERSION = 2  # of the layouts of blocks
_POOLINGS: dict[Pooling, int] = {"mean": 1, "cls": 2, "last": 3}


def export(
    path: Path, file: IO[bytes], how: ExportConfig, made: str, progress: Callable[[int], None] = lambda done: None
) -> tuple[GgufPlan, list[str]]:
    """Write a checkpoint as a GGUF file; beside one tensor and what it becomes nothing is in memory.

    Args:
        path: of the checkpoint.
        file: to write to, empty, at a path of its own.
        made: what the file says of its making.
        progress: told the bytes of tensors written, after each.

    Returns:
        What was written, and where llama.cpp's tokenizer is not quite the checkpoint's.

    Raises:
        UserError: llama.cpp computes no such model or has no such tokenizer; or a number does not fit the type.
        OSError: the disk is full.
    """
    checkpoint = Checkpoint.open(path)
    config = checkpoint.config
    plan = GgufPlan.of(config, how.type, _lengthened(config))
    keys, notes = vocabulary(checkpoint.tokenizer(), config, checkpoint.generation)
    header = _header(plan, {MADE: made, **_keys(plan, config, how), **_pooling(path, plan), **keys}, Path(file.name))
    header.write_header_to_file(Path(file.name))
    header.write_kv_data_to_file()
    header.write_ti_data_to_file()
    header.close()
    place = file.seek(0, 2)
    done = 0
    with threaded(1), _tensors(path, config) as source:
        for planned in plan.tensors:
            place += file.write(bytes(-place % header.data_alignment))
            place += file.write(_data(planned, source, config).data)
            done += planned.bytes
            progress(done)
    file.write(bytes(-place % header.data_alignment))
    return plan, notes


def _header(plan: GgufPlan, keys: dict[str, object], path: Path) -> "gguf.GGUFWriter":
    """A writer that knows all keys and tensors.

    Raises:
        UserError: the package gguf is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError("A GGUF file needs the package gguf.", "pip install 'llmctl[gguf]'") from error
    writer = gguf.GGUFWriter(None, plan.graph.name)
    kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
    kinds |= {str: gguf.GGUFValueType.STRING, list: gguf.GGUFValueType.ARRAY}
    for name, value in keys.items():
        if isinstance(value, bytes):
            writer.add_key_value(name, value, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8)
        else:
            writer.add_key_value(name, value, kinds[type(value)])
    for planned in plan.tensors:
        kind = gguf.GGMLQuantizationType[planned.type]
        writer.add_tensor_info(planned.entry.name, planned.entry.shape, np.dtype(np.float32), planned.bytes, kind)
    return writer


def _keys(plan: GgufPlan, config: ModelConfig, how: ExportConfig) -> dict[str, object]:
    """What a file says of its model."""
    graph, arch = plan.graph, plan.graph.name
    keys: dict[str, object] = {
        "general.type": "model",
        "general.file_type": MIXTURES[how.type][2],
        "general.quantization_version": _VERSION,
        **({"general.name": how.name} if how.name else {}),
        f"{arch}.vocab_size": config.vocab,
        f"{arch}.context_length": plan.context,
        f"{arch}.embedding_length": config.width,
        f"{arch}.block_count": config.stacks[next(iter(config.stacks))],
        f"{arch}.feed_forward_length": config.ff,
        f"{arch}.attention.head_count": config.heads,
        f"{arch}.attention.head_count_kv": config.kv_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.value_length": config.head_dim,
    }
    eps = "layer_norm_rms_epsilon" if config.norm == "rms" else "layer_norm_epsilon"
    keys[f"{arch}.attention.{eps}"] = float(config.norm_eps)
    if config.position in ("rope", "none") and graph.position == "rope":
        keys |= _turning(plan, config)
    if graph.windows:
        keys |= _windows(config, arch)
    if graph.capped:
        keys[f"{arch}.attn_logit_softcapping"] = float(config.attention_softcap or UNCAPPED)
        keys[f"{arch}.final_logit_softcapping"] = float(config.logit_softcap or UNCAPPED)
    elif config.logit_softcap is not None:
        keys[f"{arch}.final_logit_softcapping"] = float(config.logit_softcap)
    if graph.parallel:
        keys[f"{arch}.use_parallel_residual"] = config.parallel
    if config.kind == "encoder":
        keys[f"{arch}.attention.causal"] = False
    if config.kind == "encoder-decoder":
        keys[f"{arch}.decoder_block_count"] = config.layers
        keys[f"{arch}.attention.relative_buckets_count"] = config.relative_buckets
        if config.opens is not None:
            keys[f"{arch}.decoder_start_token_id"] = config.opens
    return keys


def _pooling(path: Path, plan: GgufPlan) -> dict[str, object]:
    """How a text's vector is made of its tokens', of an encoder."""
    if plan.graph.kind != "encoder":
        return {}
    return {f"{plan.graph.name}.pooling_type": _POOLINGS[read_sentence(path).pooling or "mean"]}


def _turning(plan: GgufPlan, config: ModelConfig) -> dict[str, object]:
    """Rotary positions; what `rope_freqs` says of them is not said here."""
    graph, arch, scaling = plan.graph, plan.graph.name, config.rope_scaling
    keys: dict[str, object] = {
        f"{arch}.rope.dimension_count": turning(config),
        f"{arch}.rope.freq_base": float(config.rope_theta),
    }
    if graph.local:
        keys[f"{arch}.rope.freq_base_swa"] = float(config.rope_local_theta or config.rope_theta)
    if scaling is None or scaling.kind == "dynamic":
        return keys
    if scaling.kind == "linear":
        keys |= {f"{arch}.rope.scaling.type": "linear", f"{arch}.rope.scaling.factor": float(scaling.factor)}
    elif graph.lengths:
        original = scaling.original_context or config.context
        factor = rope_frequencies(config)[1]
        keys |= {
            f"{arch}.rope.scaling.original_context_length": original,
            f"{arch}.rope.scaling.attn_factor": float(factor),
        }
    elif not graph.factors:  # yarn with its usual options
        keys |= {
            f"{arch}.rope.scaling.type": "yarn",
            f"{arch}.rope.scaling.factor": float(scaling.factor),
            f"{arch}.rope.scaling.original_context_length": scaling.original_context or config.context,
            f"{arch}.rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            f"{arch}.rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
        }
    return keys


def _windows(config: ModelConfig, arch: str) -> dict[str, object]:
    """Which layers have a window, and how long it is; where none has, one that holds the context."""
    every = period(config)
    if config.window is None or every is None or every == 1:
        return {f"{arch}.attention.sliding_window": config.context}
    keys = {f"{arch}.attention.sliding_window_pattern": every if every <= config.layers else 0}
    return {**keys, f"{arch}.attention.sliding_window": config.window}


def _lengthened(config: ModelConfig) -> float:
    """By how much rotary positions lengthen queries and keys."""
    return rope_frequencies(config)[1] if config.position == "rope" else 1.0


@contextmanager
def _tensors(path: Path, config: ModelConfig) -> Iterator[Source]:
    """A function that gives our tensors of a checkpoint by name; each is out of memory when the next is asked for."""
    checkpoint = Checkpoint.open(path)
    found, stream = account(read_tensors(path), config, str(path), checkpoint.quantized), Stream(path)
    if found.coded:
        model = checkpoint.model()
        state = dict(model.named_parameters())

        def dense(name: str) -> Tensor:
            module, _, kind = name.rpartition(".")
            return model.get_submodule(module).dense() if kind == "weight" and name not in state else state[name]

        yield dense
        return
    rows = {name: shape[0] for name, shape in shapes(config).items()}
    places = {name: (rule, info) for rule, info in found.stored.items() for name in rule.ours}

    def plain(name: str) -> Tensor:
        stream.release()
        rule, info = places[name]
        parts = split(rule, stream.tensor(info), [rows[one] for one in rule.ours], config.heads)
        return parts[rule.ours.index(name)]

    yield plain


@torch.no_grad()
def _data(planned: Planned, source: Source, config: ModelConfig) -> np.ndarray:
    """The bytes of one tensor."""
    entry = planned.entry
    try:
        return packed(_made(entry, source, config), planned.type)
    except ValueError as error:
        hint = "Use --type bf16 or f32, whose range is larger."
        raise UserError(f"{entry.name}: {error}.", hint, Exit.MISMATCH) from error


def _made(entry: Entry, source: Source, config: ModelConfig) -> Tensor:
    """One tensor of the file before it is rounded, (rows, columns) or (n,)."""
    if entry.turns is not None:
        return _divisors(entry, config)
    if not entry.parts:
        return torch.zeros(entry.shape)
    made = []
    for part in entry.parts:
        one = source(part.name)[entry.skip :]
        if entry.plus or part.times != 1:
            one = (one.float() + entry.plus) * part.times
        if part.heads:
            one = one.unflatten(0, (part.heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        made.append(one.clone() if len(entry.parts) > 1 else one)  # the next may take this one's place
    return made[0] if len(made) == 1 else torch.cat(made)


def _divisors(entry: Entry, config: ModelConfig) -> Tensor:
    """(R/2,) what the frequencies of rotary positions are divided by."""
    scaling, pairs = config.rope_scaling, turning(config) // 2
    if config.position == "none":
        return torch.full((pairs,), NO_TURN)
    if scaling.kind == "longrope":
        return torch.tensor(scaling.long_factor if entry.turns == "long" else scaling.short_factor)
    plain = config.rope_theta ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    return (plain / rope_frequencies(config)[0]).float()
