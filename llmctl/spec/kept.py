"""Kept: what one of llmctl's layers keeps for the backward pass, in bytes a token, component by component.

Symbols as in `activations`. All of it was measured on a CPU; on a GPU, norms and attention are assumed to keep what
torch's fused kernels keep.
"""

from dataclasses import dataclass
from math import ceil

from llmctl.spec.learning import Half, Layer
from llmctl.spec.model import ModelConfig
from llmctl.spec.setting import ELEMENT, Setting
from llmctl.spec.sizes import LINEAR_CHUNK, crossed, linears

EXPLICIT = 1024  # tokens of a row up to which llmctl, on a CPU, keeps the attention weights (core/model/explicit.py)
QUERIES = 256  # of one block of theirs
COMPONENTS = (
    "queries", "keys and values", "attention output", "attention statistics", "attention weights", "attention masks",
    "norms of q and k",
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """The rows that pass through one stack.

    Attributes:
        stack: its name.
        tokens: of a row.
        source: tokens of the encoder's row, which cross-attention reads; 0: there is none.
        causal: no token sees one after itself.
    """

    stack: str
    tokens: int
    source: int = 0
    causal: bool = True


def rows_of(config: ModelConfig, setting: Setting) -> list[Rows]:
    """The rows of each stack, in the order in which the stacks run; a learned prompt lengthens those of the first."""
    lengths = setting.lengths(config)
    if setting.tuning.method == "prompt":
        lengths[next(iter(config.stacks))] += setting.tuning.virtual_tokens
    return [
        Rows(
            stack,
            lengths[stack],
            lengths["encoder"] if crossed(config, stack) else 0,
            stack == "decoder" and not config.prefix_lm,
        )
        for stack in config.stacks
    ]


def of_layer(
    config: ModelConfig, setting: Setting, rows: Rows, window: int | None, learns: Layer = Layer()
) -> dict[str, float]:
    """Bytes a token by component.

    Under autocast each matrix has a 16-bit copy of its input of its own. A frozen matrix keeps no input, and a half
    that no gradient enters keeps nothing of what lies before the first thing that it learns.
    """
    e, h = ELEMENT[setting.dtype], config.width
    first, cross, mlp, keys = learns.attention, learns.cross, learns.mlp, rows.tokens + learns.virtual
    sums = dict.fromkeys(COMPONENTS, 0.0)
    if first.inner:
        kinds = {"softmax": _softmax, "linear": _linear}
        causal = rows.causal and not learns.virtual
        sums |= kinds[config.attention](config, setting, rows.tokens, keys, causal, window)
        sums["norms of q and k"] = _norms_of_q_and_k(config, setting, first.norm)
    sums["attention output"] = max(sums["attention output"], _of_output(config, setting, first))
    sums["inputs of the matrices"] = h * e * _inputs(setting, first, "q", "k", "v")
    if rows.source:
        crossing = dict.fromkeys(COMPONENTS, 0.0)
        if cross.inner:
            crossing |= _softmax(config, setting, rows.tokens, rows.source, False, None, True)
        crossing["attention output"] = max(crossing["attention output"], _of_output(config, setting, cross))
        sums |= {name: sums[name] + size for name, size in crossing.items()}
        read = _inputs(setting, cross, "k", "v") * rows.source / rows.tokens if setting.autocast else 0  # else: of all
        sums["inputs of the matrices"] += h * e * (_inputs(setting, cross, "q") + read)
    sums["inputs of the matrices"] += h * e * _inputs(setting, mlp, *(["gate", "up"] if config.gated else ["up"]))
    halves = [first, cross, mlp] if rows.source else [first, mlp]
    sums["norms"] = _norms(config, setting, halves)
    sums["mlp"] = config.ff * e * _of_mlp(config, mlp)
    alive = sum(half.after for half in halves)
    sums["dropout masks"] = alive * h * (e if setting.device == "cpu" else 1) if config.dropout > 0 else 0
    sums["adapters"] = of_adapters(config, setting, rows, learns)
    return sums


def norm_bytes(
    config: ModelConfig,
    setting: Setting,
    element: int,
    width: int = 0,
    rows: int = 1,
    kind: str = "",
    trained: bool = True,
) -> float:
    """What a norm of `rows` rows a token, `width` wide together, keeps of an input whose numbers have `element` bytes.

    Its input (or, as large, the normalised input) and statistics of each row; on a CPU and in 16 bits, RMS norm is
    plain operations on an fp32 copy, and keeps it, and what its weight multiplies if that is trained; times
    1 + weight it is in fp32 everywhere.
    """
    width = width or config.width
    if (kind or config.norm) == "layer":
        return (width + 2 * rows) * element
    plain = setting.device == "cpu" and element == 2
    return width * ((8 if trained else 4) if plain else 4 if config.norm_plus_one else element) + 4 * rows


def explicit(config: ModelConfig, setting: Setting, tokens: int) -> bool:
    """Whether the attention weights of rows so long are kept."""
    return not setting.fused_attention or (setting.device == "cpu" and tokens <= EXPLICIT)


def stream_bytes(setting: Setting) -> int:
    """Bytes of a number of the residual stream: autocast leaves it in fp32."""
    return 4 if setting.autocast else ELEMENT[setting.dtype]


def _inputs(setting: Setting, half: Half, *names: str) -> int:
    """How often the input that these matrices share is kept."""
    own, low = len(half.own.intersection(names)), len(half.low.intersection(names))
    if setting.autocast:
        return own + low
    return min(1, own) + low if setting.tuning.dropout else min(1, own + low)  # each drops others


def _of_output(config: ModelConfig, setting: Setting, half: Half) -> float:
    """Of what enters the last matrix of attention."""
    return config.heads * config.head_dim * ELEMENT[setting.dtype] * ("out" in half.reading)


def _norms(config: ModelConfig, setting: Setting, halves: list[Half]) -> float:
    """Of the halves of a layer: of the stream, of what is added to it, or of both."""
    e, s, found = ELEMENT[setting.dtype], stream_bytes(setting), 0.0
    for half in halves:
        own, added = (norm_bytes(config, setting, size, trained=half.norm) for size in (s, e))
        before, after = own * (half.before or half.norm), half.after or half.norm
        at = {"pre": before, "post": own * after, "output": added * after, "sandwich": before + added * after}
        found += at[config.norm_place]
    if config.parallel and all(half.before or half.norm for half in halves):  # both read the same
        same = config.norm == "layer" or setting.device != "cpu"
        return found - (config.width * s if same else 0)
    return found


def _norms_of_q_and_k(config: ModelConfig, setting: Setting, trained: bool) -> float:
    if not config.qk_norm:
        return 0
    e, d = ELEMENT[setting.dtype], config.head_dim
    sizes = ((heads * d, 1 if config.qk_norm_whole else heads) for heads in (config.heads, config.kv_heads))
    return sum(norm_bytes(config, setting, e, width, rows, "rms", trained) for width, rows in sizes)


def _of_mlp(config: ModelConfig, half: Half) -> int:
    """How many times the MLP's inner width is kept; relu keeps its output, which what follows keeps as well."""
    learning = bool(half.reading & {"down"}) or "down" in half.scaled
    entered = half.before or half.norm
    gate, up = (entered or name in half.reading | half.scaled for name in ("gate", "up"))
    kept = 2 * gate + up if config.gated else int(up)  # the gate before and after its activation, and what it lets by
    return kept + learning - (config.activation == "relu" and kept > 0 and (config.gated or learning))


def of_adapters(config: ModelConfig, setting: Setting, rows: Rows, learns: Layer) -> float:
    """Bytes a token of what adapters keep of their own: low products, outputs that are scaled, narrow features."""
    e, tuning, found = ELEMENT[setting.dtype], setting.tuning, 0.0
    for name, half in (("attention", learns.attention), ("cross", learns.cross), ("mlp", learns.mlp)):
        if name == "cross" and not rows.source:
            continue
        for matrix in half.low | half.scaled:
            outputs, inputs = linears(config)[matrix]
            share = rows.source / rows.tokens if name == "cross" and matrix in ("k", "v") else 1
            if matrix in half.scaled:
                found += share * e * outputs * (matrix != "down")
                continue
            found += share * e * tuning.rank
            if tuning.method == "dora":
                found += share * e * outputs
            if tuning.dropout and (half.inner if matrix in ("out", "down") else half.before or half.norm):
                found += share * inputs * e
        if half.narrow:
            found += e * (config.width + 2 * tuning.bottleneck)
    q = config.heads * config.head_dim
    return found + (e * (2 * q + config.heads * learns.gated) if learns.gated else 0)


def _softmax(
    config: ModelConfig,
    setting: Setting,
    queries: int,
    keys: int,
    causal: bool,
    window: int | None,
    crossing: bool = False,
) -> dict[str, float]:
    """Of attention of `queries` on `keys` tokens of a row."""
    e, a = ELEMENT[setting.dtype], config.heads
    q, kv, ratio = a * config.head_dim, config.kv_heads * config.head_dim, keys / queries
    short, drops = explicit(config, setting, max(queries, keys)), config.dropout > 0
    biased = config.position == "relative" and not crossing
    wide = not short and (drops or biased) and setting.device == "cpu"  # torch falls back to plain operations in fp32
    apart = setting.packed or config.kind != "decoder"  # padding of those that see both ways is hidden always
    masked = (apart or (window or keys) < keys) and config.position != "alibi"
    masks = e * keys * (a if biased else 1) / (1 if apart else setting.batch) if masked or biased else 0
    found = {
        "queries": q * (4 if wide else e),
        "keys and values": 2 * ratio * (4 * q if wide else e * q if short else e * kv),
        "attention output": 0 if short else q * e,
        "attention statistics": 0 if short or wide else 4 * a,
        "attention weights": 0,
        "attention masks": 0 if short or wide else masks,
    }
    if short:
        found["attention weights"] = a * (e + drops) * _kept_keys(queries, keys, causal)  # and which were dropped
    elif wide:
        found["attention weights"] = a * keys * (12 if drops else 4)
    if config.attention_softcap:
        found |= _capped(setting, a, q, keys, ratio)
    return found


def _capped(setting: Setting, a: int, q: int, keys: int, ratio: float) -> dict[str, float]:
    """Of capped scores, written out in fp32 (under autocast, the products are not): their tanh and the weights."""
    e = 2 if setting.casts else 4
    return {
        "queries": q * e,
        "keys and values": 2 * ratio * q * e,
        "attention statistics": 0,
        "attention weights": 8 * a * keys,
        "attention masks": 0,
    }


def _linear(
    config: ModelConfig, setting: Setting, queries: int, keys: int, causal: bool, window: int | None
) -> dict[str, float]:
    """Of linear attention in whole chunks: features, each chunk's copies of them, its weights and its sums."""
    e, a, kv, d = ELEMENT[setting.dtype], config.heads, config.kv_heads, config.head_dim
    chunk = min(LINEAR_CHUNK, queries)
    full = chunk * ceil(queries / chunk) / queries  # the last chunk is filled up
    turned, both = config.position == "rope", not causal
    inside = chunk / queries / setting.batch  # which tokens of a chunk see each other
    if setting.packed or both:
        inside = 1 + (1 + both) * (a // kv + 1) / chunk
    return {
        "queries": e * a * d * (1 + full * (2 + turned)),
        "keys and values": e * kv * d * (1 + full * (4 + turned + 2 * both)),
        "attention output": 0,
        "attention statistics": full * ((4 + e) * a + e * kv * d * (d + 1) * (1 + both) / chunk),
        "attention weights": e * a * chunk * full,
        "attention masks": e * chunk * full * inside,
    }


def _kept_keys(queries: int, keys: int, causal: bool) -> float:
    """Attention weights kept for a query, on average: a causal block of queries leaves the keys after it out."""
    if not causal:
        return keys
    ends = ((start, min(queries, start + QUERIES)) for start in range(0, queries, QUERIES))
    return sum((end - start) * end for start, end in ends) / queries
