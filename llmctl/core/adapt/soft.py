"""Soft prompts: vectors, keys and values, or gated vectors to look at, learned in the place of words."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from llmctl.core.model.attend import Mask, attend
from llmctl.core.model.cache import KVCache
from llmctl.core.model.init import drawn
from llmctl.core.model.layers import Attention
from llmctl.core.model.memory import Memory
from llmctl.core.model.transformer import Transformer
from llmctl.core.model.virtual import Prompt
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.families import family_read
from llmctl.spec.peft import Adapter
from llmctl.spec.sites import sites
from llmctl.spec.trained import gated_layers

VECTORS = "prompt_embeddings"  # PEFT's name of a prompt's, and of a prefix's keys and values
PROMPT, GATE = "adaption_prompt", "adaption_gate"
UNPROJECTED = "attn"  # GPT-2's attention, around which PEFT adds what a prompt gives after the output's matrix


class Gated(nn.Module):
    """What one layer's queries find among learned vectors, gated, beside what they find among the tokens.

    Keys and values are made of the vectors by the layer's own matrices, have no positions, and have a softmax of their
    own, so that with a gate of 0 nothing is changed.

    Attributes:
        vectors: (N, width).
        gate: (1,).
        projected: what is found goes through the output's matrix, with what attention found; else it is added after.

    Source: Zhang et al., "LLaMA-Adapter", arXiv:2303.16199, section 3.2; one gate a layer, without tanh, as in PEFT.
    """

    def __init__(self, vectors: Tensor, gate: Tensor, projected: bool = True):
        super().__init__()
        self.vectors, self.gate, self.projected = nn.Parameter(vectors), nn.Parameter(gate), projected

    def forward(self, attention: Attention, q: Tensor, y: Tensor) -> Tensor:
        """Queries (B, H, T, D), turned, and what attention found for them, (B, H, T, D), to (B, T, width)."""
        vectors = self.vectors[None].to(q.dtype)
        k, v = attention.k(vectors), attention.v(vectors)  # (1, N, Hkv * D)
        if attention.k_norm is not None:
            k = attention.k_norm(k)
        k, v = (attention.heads(x).expand(len(q), -1, -1, -1) for x in (k, v))  # (B, Hkv, N, D)
        found = attend(q, k, v, Mask(), attention.scale, 0.0, attention.softcap) * self.gate.to(q.dtype)
        if self.projected:
            return attention.merged(y + found)
        return attention.merged(y) + found.transpose(1, 2).flatten(2)  # (B, T, H * D), and that is the width


def attach_soft(model: Transformer, config: AdaptConfig, seed: int, tokenizer: Tokenizer | None = None) -> None:
    """Attach a fresh soft prompt of the method, float32, in place.

    A prompt begins as the vectors of words, and a prefix as the keys and values of words at the front of a row: those
    of a text, repeated or cut, or of tokens drawn at random. Vectors of llama-adapter are normal, their gates 0.

    Args:
        seed: of what is drawn; each tensor has a stream of its own, seeded by (seed, name).
        tokenizer: of the text that --prompt-text gives, and then needed.

    Raises:
        UserError: the virtual tokens leave a row no room, the text has no tokens, or the method is not for this model.
    """
    shape, count = model.config, config.virtual_tokens
    if config.method == "llama-adapter":
        for number in gated_layers(shape):
            name = f"{shape.last_stack}.layers.{number}.attention.extra.vectors"
            vectors, gate = drawn((count, shape.width), 1.0, seed, name), torch.zeros(1, dtype=torch.float32)
            _set_gated(model, number, vectors, gate)
        return
    if shape.position == "learned" and count >= shape.context:
        raise UserError(
            f"--virtual-tokens {count} leaves no room: the model's rows hold {shape.context} tokens.",
            f"Use {shape.context // 2} or fewer.",
            Exit.USAGE,
        )
    ids = _words(model, config, seed, tokenizer)
    with torch.no_grad():
        if config.method == "prompt":
            embed = model.embed if model.encoder_embed is None else model.encoder_embed
            model.prompt = Prompt(embed.vectors(ids).float())
        else:
            set_prefix(model, read(model, ids[None]))


def has_soft(model: Transformer) -> bool:
    """Whether a model has a soft prompt."""
    extras = any(layer.attention.extra is not None for layer in model.last_stack.layers.values())
    return model.prompt is not None or model.last_stack.virtual > 0 or extras


def save_soft(model: Transformer) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The soft prompt of a model as PEFT writes it: keys of adapter_config.json, and tensors; both empty without one.

    Beside an encoder, PEFT takes every other layer of a prefix, so that layer i and layer i + L / 2 get the same one
    if the number of layers is even. A prefix of ours has one for each layer, so an even number is written as one more.
    """
    config = model.config
    shape = {"num_attention_heads": config.heads, "token_dim": config.width, "num_layers": config.layers}
    if config.kind == "encoder" and not config.labels:  # without a task PEFT leaves the prompt out
        shape["task_type"] = "FEATURE_EXTRACTION"
    if model.prompt is not None:
        vectors = model.prompt.vectors
        # 1: the encoder's alone, beside which PEFT writes a decoder's that are never read
        keys = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": len(vectors), "num_transformer_submodules": 1}
        return {**keys, **shape, "prompt_tuning_init": "RANDOM"}, {VECTORS: vectors.detach()}
    stack = model.last_stack
    if stack.virtual:
        layers, both = len(stack.layers), config.kind == "encoder-decoder"
        written = layers | 1 if both else layers
        width = config.kv_heads * config.head_dim
        pairs = stack.layers["0"].attention.prefix.new_zeros(written, 2, stack.virtual, width)
        for place, layer in zip(_places(written, layers, both), stack.layers.values(), strict=True):
            pairs[place] = layer.attention.prefix.detach().transpose(1, 2).flatten(2)  # (2, N, Hkv * D)
        keys = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": stack.virtual, "prefix_projection": False}
        shape |= {"num_attention_heads": config.kv_heads, "token_dim": width, "num_layers": written}
        shape |= {"num_transformer_submodules": 2 if both else 1, "encoder_hidden_size": width}
        return {**keys, **shape}, {VECTORS: pairs.flatten(0, 1).transpose(0, 1).flatten(1).contiguous()}
    extras = {number: layer.attention.extra for number, layer in stack.layers.items()}
    gated = {_published(model, number): one for number, one in extras.items() if one is not None}
    if not gated:
        return {}, {}
    keys = {"adapter_len": len(next(iter(gated.values())).vectors), "adapter_layers": len(gated)}
    keys |= {"peft_type": "ADAPTION_PROMPT", "target_modules": next(iter(gated)).rpartition(".")[2]}
    tensors = {f"base_model.model.{name}.{PROMPT}": one.vectors.detach()[None] for name, one in gated.items()}
    return keys, tensors | {f"base_model.model.{name}.{GATE}": one.gate.detach() for name, one in gated.items()}


def load_soft(model: Transformer, adapter: Adapter, tensors: dict[str, Tensor]) -> None:
    """Attach the soft prompt of an adapter's directory, and take its tensors out of `tensors`.

    Raises:
        UserError: a tensor is absent, or does not fit the model.
    """
    config, count = model.config, adapter.virtual_tokens
    device = model.embed.tokens.weight.device
    if adapter.kind == "PROMPT_TUNING":
        vectors = _taken(tensors, VECTORS, (count, config.width), (2 * count, config.width))
        model.prompt = Prompt(vectors[:count].to(device))  # a decoder's follow beside an encoder, and are never read
        return
    if adapter.kind == "PREFIX_TUNING":
        stack = model.last_stack
        layers, both = len(stack.layers), config.kind == "encoder-decoder"
        written, width = adapter.depth or layers, config.kv_heads * config.head_dim
        if written < layers:
            raise UserError(f"The prefix is of {written} layers, the model has {layers}.", code=Exit.MISMATCH)
        flat = _taken(tensors, VECTORS, (count, 2 * written * width))
        pairs = flat.view(count, written, 2, config.kv_heads, config.head_dim).permute(1, 2, 3, 0, 4)
        set_prefix(model, pairs[list(_places(written, layers, both))].to(device))
        return
    layers, adapted = len(model.last_stack.layers), adapter.adapted_layers
    if adapted > layers:
        raise UserError(f"The adapter is of {adapted} layers, the model has {layers}.", code=Exit.MISMATCH)
    for number in range(layers - adapted, layers):
        name = f"base_model.model.{_published(model, number)}"
        vectors = _taken(tensors, f"{name}.{PROMPT}", (1, count, config.width))
        _set_gated(model, number, vectors[0], _taken(tensors, f"{name}.{GATE}", (1,)))


def _taken(tensors: dict[str, Tensor], name: str, *shapes: tuple[int, ...]) -> Tensor:
    """One tensor of a file, float32, taken out."""
    if name not in tensors:
        raise UserError(f"The adapter has no tensor {name}.", code=Exit.MISMATCH)
    found = tensors.pop(name)
    if tuple(found.shape) not in shapes:
        raise UserError(f"{name} of the adapter is {tuple(found.shape)}, wanted {shapes[0]}.", code=Exit.MISMATCH)
    return found.float().clone()  # where memory is aligned: it lies in the file's map


def _places(written: int, layers: int, both: bool) -> list[int]:
    """Which pair of keys and values in PEFT's file is that of each layer, beside an encoder (`both`) or not.

    PEFT repeats the L pairs, deals them in twos, one to self-attention and one to cross-attention, and drops the
    latter; so layer i gets the pair 2 i modulo L.
    """
    return [2 * layer % written if both else layer for layer in range(layers)]


def _words(model: Transformer, config: AdaptConfig, seed: int, tokenizer: Tokenizer | None) -> Tensor:
    """(N,) ids to begin with: of the text, again and again, or drawn at random, none twice while there are others."""
    known, count = model.config.vocab, config.virtual_tokens
    if config.prompt_text is not None:
        if tokenizer is None:
            raise ValueError("a text needs its tokenizer")
        ids = torch.tensor(tokenizer.encode(config.prompt_text), dtype=torch.int64)
        if not len(ids):
            raise UserError("--prompt-text has no tokens.", "Give it a word, or leave it out.", Exit.USAGE)
    else:
        known = known if tokenizer is None else min(known, tokenizer.size)
        ids = drawn((known,), 1.0, seed, "prompt.vectors").argsort()
    return ids.repeat(-(-count // len(ids)))[:count].to(model.embed.tokens.weight.device)


def read(model: Transformer, ids: Tensor, memory: Memory | None = None) -> Tensor:
    """The keys, turned, and values that the last stack makes of a row.

    Args:
        ids: (1, N) int64.
        memory: of the source, for a decoder that has one; None: the row itself is the source.

    Returns:
        (layers, 2, Hkv, N, D) float32.

    Raises:
        UserError: attention is linear, so there are no such keys.
    """
    config, training = model.config, model.training
    if config.attention == "linear":
        raise UserError("--method prefix needs softmax attention.", "Use --method prompt.", Exit.USAGE)
    stack = model.last_stack
    device, kind = ids.device, model.embed.tokens.weight.dtype
    cache = KVCache(replace(config, layers=len(stack.layers)), 1, ids.shape[1], device, kind)
    weight = stack.layers["0"].attention.k.weight  # frozen ones may be of another dtype than all else; None: in 4 bits
    dtype = kind if weight is None else weight.dtype
    prefix = torch.ones_like(ids, dtype=torch.bool) if config.prefix_lm else None
    model.eval()
    with torch.autocast(device.type, dtype, enabled=dtype != kind):
        if model.encoder_embed is not None and memory is None:
            memory = model.encode(ids)
        model(ids, cache=cache, memory=memory, prefix=prefix)
    model.train(training)
    pairs = [torch.stack(cache.held(0, layer)) for layer in range(len(stack.layers))]
    return torch.stack(pairs).float()


def set_prefix(model: Transformer, pairs: Tensor) -> None:
    """Give each layer of the last stack its keys and values of (layers, 2, Hkv, N, D)."""
    stack = model.last_stack
    for layer, pair in zip(stack.layers.values(), pairs, strict=True):
        layer.attention.prefix = nn.Parameter(pair.contiguous())


def _set_gated(model: Transformer, number: int, vectors: Tensor, gate: Tensor) -> None:
    """Give one layer of the last stack gated vectors."""
    projected = _published(model, number).rpartition(".")[2] != UNPROJECTED
    device = model.embed.tokens.weight.device
    extra = Gated(vectors.to(device), gate.to(device), projected)
    model.last_stack.layers[str(number)].attention.extra = extra


def _published(model: Transformer, number: int | str) -> str:
    """The published name of the attention of one layer of the last stack."""
    ours = f"{model.config.last_stack}.layers.{number}.attention.q"
    site = next(site for site in sites(model.config, family_read(model.config)) if ours in site.ours)
    return site.theirs.rpartition(".")[0]
