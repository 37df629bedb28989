"""Configs of released models, with the parameter counts that their authors or transformers give."""

from llmctl.spec.model import ModelConfig


def llama(vocab: int, width: int, layers: int, heads: int, kv: int, ff: int, context: int, tie=False, **more):
    return ModelConfig(
        vocab=vocab, width=width, layers=layers, heads=heads, kv_heads=kv, ff=ff, context=context, tie=tie, **more
    )


def plain(vocab: int, width: int, layers: int, heads: int, context: int, **more):
    return ModelConfig(
        vocab=vocab, width=width, layers=layers, heads=heads, ff=4 * width, context=context, norm="layer", gated=False,
        activation="gelu_tanh", qkv_bias=True, out_bias=True, mlp_bias=True, **more,
    )  # fmt: skip


RELEASED: dict[str, tuple[ModelConfig, int]] = {
    "Llama-2 7B": (llama(32000, 4096, 32, 32, 32, 11008, 4096), 6_738_415_616),
    "Llama-2 13B": (llama(32000, 5120, 40, 40, 40, 13824, 4096), 13_015_864_320),
    "Llama-2 70B": (llama(32000, 8192, 80, 64, 8, 28672, 4096), 68_976_648_192),
    "Llama-3 8B": (llama(128256, 4096, 32, 32, 8, 14336, 8192), 8_030_261_248),
    "Llama-3 70B": (llama(128256, 8192, 80, 64, 8, 28672, 8192), 70_553_706_496),
    "Llama-3.1 405B": (llama(128256, 16384, 126, 128, 8, 53248, 131072), 405_853_388_800),
    "Llama-3.2 1B": (llama(128256, 2048, 16, 32, 8, 8192, 131072, tie=True), 1_235_814_400),
    "Mistral 7B": (llama(32000, 4096, 32, 32, 8, 14336, 32768, window=4096), 7_241_732_096),
    "TinyLlama": (llama(32000, 2048, 22, 32, 4, 5632, 2048), 1_100_048_384),
    "Qwen2 0.5B": (llama(151936, 896, 24, 14, 2, 4864, 131072, tie=True, qkv_bias=True), 494_032_768),
    "Qwen3 0.6B": (llama(151936, 1024, 28, 16, 8, 3072, 40960, tie=True, head_dim=128, qk_norm=True), 596_049_920),
    "GPT-2": (plain(50257, 768, 12, 12, 1024, position="learned"), 124_439_808),
    "BLOOM 560M": (plain(250880, 1024, 24, 16, 2048, position="alibi", embed_norm=True), 559_214_592),
}
GPT_3 = plain(50257, 12288, 96, 96, 2048, position="learned")
