"""PRESETS: the shapes that `pretrain --preset` and `memcalc --preset` know by size."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """The dimensions of one model size; the vocabulary comes from the tokenizer.

    `ff` is for the gated MLP of llama (three matrices); gpt2 and the other plain MLPs use 4 x width.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    ff: int
    context: int


PRESETS: dict[str, Preset] = {
    "1m": Preset(layers=4, width=128, heads=4, kv_heads=2, ff=352, context=256),
    "5m": Preset(layers=6, width=256, heads=8, kv_heads=4, ff=704, context=256),
    "15m": Preset(layers=8, width=384, heads=6, kv_heads=3, ff=1024, context=512),
    "30m": Preset(layers=10, width=512, heads=8, kv_heads=4, ff=1408, context=512),
    "60m": Preset(layers=12, width=640, heads=10, kv_heads=5, ff=1728, context=1024),
    "124m": Preset(layers=12, width=768, heads=12, kv_heads=12, ff=2048, context=1024),
    "350m": Preset(layers=24, width=1024, heads=16, kv_heads=8, ff=2816, context=2048),
    "1b": Preset(layers=16, width=2048, heads=32, kv_heads=8, ff=8192, context=4096),
    "3b": Preset(layers=28, width=3072, heads=24, kv_heads=8, ff=8192, context=4096),
    "8b": Preset(layers=32, width=4096, heads=32, kv_heads=8, ff=14336, context=8192),
}
