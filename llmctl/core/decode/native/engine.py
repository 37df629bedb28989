"""Engine: a model packed for the native step, and the pass that it makes over any tokens of any rows."""

import ctypes
import threading
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from llmctl.core.compress.pages import give_back, trim
from llmctl.core.decode.native.build import Unavailable, library, wanted
from llmctl.core.decode.native.layout import ACTIVATIONS, KINDS, NORMS, PANEL, PLACES, Layer, Matrix, Model, Norm, Pass
from llmctl.core.decode.native.pack import PackedEmbedding, PackedLinear, pack_linear, why_not
from llmctl.core.model.attend import attend
from llmctl.core.model.heads import TiedHead
from llmctl.core.model.layers import Attention, Block
from llmctl.core.model.position import Rotary, alibi_slopes, sinusoids, turning
from llmctl.core.model.transformer import Transformer

EXACT = 16  # tokens of a pass up to which activations keep 16 bits where they meet bf16; beyond, 8, in half the time
WIDEST_HEAD = 1024  # channels
ROTATIONS = ("global", "local")
_ENGINES: "WeakKeyDictionary[Transformer, Engine]" = WeakKeyDictionary()
_LOCK = threading.Lock()


def engine_of(model: Transformer) -> "Engine":
    """The engine of a model, made once: its matrices are then packed, and held in no other way.

    Raises:
        Unavailable: this model, device or machine is not one for the native step, or the environment wants none.
    """
    target = wanted()
    if target is None:
        raise Unavailable("LLMCTL_NATIVE says so")
    with _LOCK:
        found = _ENGINES.get(model)
        if found is not None and found.target == target and changed(model) is None:
            return found
        reason = unfit(model)
        if reason is not None:
            raise Unavailable(reason)
        made = _ENGINES[model] = Engine(model, library(target), target)
        return made


def made(model: Transformer) -> bool:
    """Whether `engine_of` has packed a model, so that it is best read by the native step."""
    return model in _ENGINES and changed(model) is None


def unfit(model: Transformer) -> str | None:
    """Why the native step does not compute what this model does, as the end of a sentence, or None."""
    config = model.config
    scaling = None if config.rope_scaling is None else config.rope_scaling.kind
    for unlike, reason in (
        (next(model.parameters()).device.type != "cpu", "it is not on a CPU"),
        (config.kind != "decoder", f"it is an {config.kind}"),
        (config.attention != "softmax", f"its attention is {config.attention}"),
        (config.position == "relative", "its positions are relative"),
        (config.position == "rope" and scaling in ("dynamic", "longrope"), f"its rope scaling is {scaling}"),
        (config.prefix_lm, "its prompts see themselves both ways"),
        (config.token_types > 0, "its tokens are of several kinds"),
        (not config.lm_head or config.head_transform, "its head is no single matrix"),
        (config.head_dim > WIDEST_HEAD, f"its heads have {config.head_dim} channels"),
        (model.training and config.dropout > 0, "it is being trained"),
    ):
        if unlike:
            return reason
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if not dtypes <= KINDS.keys():
        return f"its weights are {', '.join(sorted(map(str, dtypes - KINDS.keys())))}"
    return changed(model) or _unfit_matrices(model)


def changed(model: Transformer) -> str | None:
    """What stands in the model that the native step would pass by, or None."""
    if model.prompt is not None or model.last_stack.virtual:
        return "virtual tokens stand before its texts"
    for module in model.modules():
        if getattr(module, "adapter", None) is not None:
            return "an adapter is attached"
        if module._forward_hooks or module._forward_pre_hooks:
            return "somebody looks at what its parts compute"
        if isinstance(module, Attention) and (module.extra is not None or module.attend is not attend):
            return "something stands in for its attention"
    return None


def _unfit_matrices(model: Transformer) -> str | None:
    for linear in _matrices(model):
        reason = why_not(linear)
        if reason is not None:
            return reason
    for layer in model.layers:
        gate, up = layer.mlp.gate, layer.mlp.up
        if gate is not None and _form(gate) != _form(up):
            return "gate and up are held in different ways"
    return None


def _form(linear: nn.Module) -> tuple:
    packed = getattr(linear, "packed", None)
    if packed is not None:
        return packed.form
    grid = getattr(linear, "grid", None)
    return (linear.weight.dtype,) if grid is None else (grid.bits <= 4, linear.weight_scale.shape[1])


def _matrices(model: Transformer) -> list[nn.Module]:
    """Every Linear of its layers, and that of its head where it is one."""
    found = [one for layer in model.layers for one in _of_layer(layer).values()]
    return found + list(getattr(model.head, "_held", ()))


def _of_layer(layer: Block) -> dict[str, nn.Module]:
    parts = {name: getattr(layer.attention, name) for name in ("q", "k", "v", "out")}
    parts.update({name: getattr(layer.mlp, name) for name in ("gate", "up", "down")})
    return {name: linear for name, linear in parts.items() if linear is not None}


@dataclass
class Angles:
    """Cosines and sines of one kind of rotation, or vectors of sinusoids, for as many places as were asked for.

    Attributes:
        tables: (places, ...) float32 each.
    """

    rotary: Rotary | None
    width: int
    tables: tuple[Tensor, ...] = ()

    def of(self, places: int) -> tuple[Tensor, ...]:
        """Tables of so many places or more."""
        tables = self.tables  # once: another thread may put shorter ones there
        if not tables or len(tables[0]) < places:
            more = torch.arange(max(256, 2 * places))[None]
            if self.rotary is None:
                tables = (sinusoids(more, self.width, torch.float32)[0].contiguous(),)
            else:
                cosine, sine = (part[0, 0] for part in self.rotary(more, torch.float32))  # (places, R), the first half
                half = cosine.shape[1] // 2
                tables = cosine[:, :half].contiguous(), sine[:, half:].contiguous()
            self.tables = tables
        return tables


@dataclass
class Request:
    """The tokens of one pass; those of a row follow each other.

    Attributes:
        ids, rows, places: of each token: what it is, whose, and where in its text.
        pools: of layers that see all, 0, and of those with a window, 1: the blocks of each row, (rows, blocks) int32,
            and the blocks themselves.
        asked: numbers of the tokens whose scores are wanted.
    """

    ids: list[int]
    rows: list[int]
    places: list[int]
    pools: dict[int, tuple[Tensor, Tensor]]
    asked: list[int] = field(default_factory=list)


class Workspace:
    """Memory that passes use one after another."""

    def __init__(self, library: ctypes.CDLL):
        self._library, self.pointer = library, library.llmctl_workspace()

    def __del__(self) -> None:
        self._library.llmctl_release(self.pointer)


class Engine:
    """A model for the native step.

    Args:
        model: one that `unfit` has nothing against; its matrices are packed, one layer after another, in place.
    """

    def __init__(self, model: Transformer, library: ctypes.CDLL, target: str):
        config = model.config
        self.library, self.target, self.vocab, self.layers = library, target, config.vocab, config.layers
        self.kv_dtype = next(model.parameters()).dtype
        self.kv_heads, self.head_dim = config.kv_heads, config.head_dim
        self.dim = -(-config.head_dim // PANEL) * PANEL
        self._held: list[object] = []  # what the structures point at
        stack = model.decoder
        self.angles = [Angles(stack.rotaries.get(kind), 0) if kind in stack.rotaries else None for kind in ROTATIONS]
        self.waves = Angles(None, config.width) if config.position == "sinusoidal" else None
        blocks = list(stack.layers.values())
        windowed = [block.attention.window is not None for block in blocks]
        self.window = config.window
        self.pools = [[layer for layer, one in enumerate(windowed) if one == kind] for kind in (False, True)]
        self._layers = (Layer * len(blocks))(*(self._layer(*pair) for pair in enumerate(blocks)))
        self.numbers = torch.arange(len(blocks), dtype=torch.int32)
        self.layers = len(blocks)
        self.model = self._model(model)

    def run(self, request: Request, workspace: Workspace, order: Tensor | None = None) -> Tensor:
        """Read the tokens, and return the scores of those asked for, (asked, V) float32.

        Args:
            order: (n,) int32, the layers that they pass through; None: all.

        Raises:
            IndexError: an id that the model has no vector for.
            MemoryError: there is not enough.
        """
        if not 0 <= min(request.ids) <= max(request.ids) < self.vocab:
            raise IndexError(f"ids from {min(request.ids)} to {max(request.ids)}, but {self.vocab} are known")
        count, most = len(request.ids), max(request.places) + 1
        order = self.numbers if order is None else order
        given = torch.tensor((request.ids, request.rows, request.places), dtype=torch.int32)
        asked = torch.tensor(request.asked, dtype=torch.int32)
        logits = torch.empty(len(request.asked), self.vocab)
        tables = [None if one is None else one.of(most) for one in self.angles]
        step = Pass(
            tokens=count, ids=given[0].data_ptr(), rows=given[1].data_ptr(), places=given[2].data_ptr(),
            asked=len(request.asked), which=asked.data_ptr(), logits=logits.data_ptr(),
            parts=2 if count <= EXACT or self.kv_dtype != torch.bfloat16 else 1, threads=torch.get_num_threads(),
            layers=len(order), order=order.data_ptr(),
        )  # fmt: skip
        for pool, (table, blocks) in request.pools.items():
            step.tables[pool], step.table_strides[pool] = table.data_ptr(), table.shape[1]
            step.blocks[pool] = blocks.data_ptr()
        for kind, table in enumerate(tables):
            if table is not None:
                step.cosines[kind], step.sines[kind] = (one.data_ptr() for one in table)
        model = self.model
        if self.waves is not None:
            model, (waves,) = Model.from_buffer_copy(self.model), self.waves.of(most)
            model.positions = waves.data_ptr()
        if self.library.llmctl_pass(ctypes.byref(model), ctypes.byref(step), workspace.pointer):
            raise MemoryError("no memory for a pass")
        return logits

    def _model(self, model: Transformer) -> Model:
        config, embed, head = model.config, model.embed, model.head
        attention = next(iter(model.decoder.layers.values())).attention
        scale = float(torch.tensor(config.width**0.5, dtype=embed.tokens.weight.dtype)) if embed.scaled else 1.0
        tokens, scores = self._ends(model)
        positions = None
        if embed.positions is not None:
            table = self._keep(embed.positions.weight.detach().float().contiguous())
            positions = table.data_ptr() + embed.offset * config.width * 4
        slopes = None if config.position != "alibi" else self._keep(alibi_slopes(config.heads).contiguous()).data_ptr()
        return Model(
            layers=self.layers, width=config.width, heads=config.heads, kv_heads=config.kv_heads,
            head_dim=config.head_dim, ff=config.ff, turned=turning(config), place=PLACES[config.norm_place],
            parallel=config.parallel, activation=ACTIVATIONS[config.activation], gated=config.gated,
            norm_whole=config.qk_norm_whole, scale=attention.scale, softcap=config.attention_softcap or 0.0,
            embed_scale=scale, logit_scale=head.scale, logit_softcap=config.logit_softcap or 0.0, slopes=slopes,
            layer=self._layers, embed=tokens, head=scores, positions=positions,
            embed_norm=self._norm(embed.norm), norm=self._norm(model.decoder.norm), kv_kind=KINDS[self.kv_dtype],
            pool_layers=tuple(map(len, self.pools)),
        )  # fmt: skip

    def _ends(self, model: Transformer) -> tuple[Matrix, Matrix]:
        """The table of tokens, and the matrix of the head: packed once where they are the same."""
        embed, head = model.embed, model.head
        bias = None if head.bias is None else self._keep(head.bias.detach().float())
        head.swift = None
        if isinstance(head, TiedHead):
            if not isinstance(embed.tokens, PackedEmbedding):
                table = embed.tokens.weight.detach()
                embed.tokens = PackedEmbedding(embed.tokens, self.library)
                head._embedding = (embed.tokens,)
                give_back([table], model.parameters())
            packed = self._keep(embed.tokens.packed)
            return packed.matrix(), packed.matrix(bias)
        if not head._held:
            head.hold(PackedLinear(_Weight(head.weight), self.library))
        elif not hasattr(head._held[0], "packed"):
            head.hold(pack_linear(head._held[0], self.library))
        table = self._keep(embed.tokens.weight.detach().contiguous())
        flat = Matrix(KINDS[table.dtype], len(table), table.shape[1], 0, table.data_ptr(), flat=1)
        return flat, self._keep(head._held[0].packed).matrix(bias)

    def _layer(self, number: int, block: Block) -> Layer:
        sources = [linear.weight.detach() for linear in _of_layer(block).values() if linear.weight is not None]
        for owner, names in ((block.attention, ("q", "k", "v", "out")), (block.mlp, ("gate", "up", "down"))):
            owner.joint = None
            for name in names:
                if getattr(owner, name) is not None:
                    setattr(owner, name, pack_linear(getattr(owner, name), self.library))
        matrices = {}
        for name, linear in _of_layer(block).items():
            bias = None if linear.bias is None else self._keep(linear.bias.detach().float().contiguous())
            matrices[name] = self._keep(linear.packed).matrix(bias)
        give_back(sources, [])
        del sources
        trim()
        norms = ("attention_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm")
        rotation = block.attention.rotation
        pool = number in self.pools[1]
        return Layer(
            **{name: self._norm(getattr(block, name)) for name in norms},
            q_norm=self._norm(block.attention.q_norm),
            k_norm=self._norm(block.attention.k_norm),
            **matrices,
            window=block.attention.window or 0,
            rotation=-1 if rotation is None else ROTATIONS.index(rotation),
            pool=pool,
            slot=self.pools[pool].index(number),
        )

    def _norm(self, norm: nn.Module | None) -> Norm:
        if norm is None:
            return Norm()
        bias = getattr(norm, "bias", None)
        weight = self._keep((norm.weight.detach().float() + norm.plus_one).contiguous())
        held = None if bias is None else self._keep(bias.detach().float().contiguous()).data_ptr()
        return Norm(NORMS["rms" if bias is None else "layer"], norm.eps, weight.data_ptr(), held)

    def _keep(self, held: object) -> object:
        self._held.append(held)
        return held


class _Weight(nn.Linear):
    """A matrix of a head, as a Linear without a bias."""

    def __init__(self, weight: nn.Parameter):
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight, self.adapter = weight, None
