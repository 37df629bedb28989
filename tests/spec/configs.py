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


def bert(vocab: int, width: int, layers: int, heads: int, context=512, **more):
    heads_of = {"token_types": 2, "head_transform": True, "head_bias": True} | more
    return plain(vocab, width, layers, heads, context, kind="encoder", position="learned", embed_norm=True,
                 norm_place="post", **heads_of)  # fmt: skip


def t5(width: int, layers: int, heads: int, ff: int, gated=False, **more):
    return ModelConfig(
        vocab=32128, width=width, layers=layers, heads=heads, head_dim=64, ff=ff, context=512, kind="encoder-decoder",
        position="relative", attention_scale=1.0, gated=gated, tie=not gated, **more,
    )  # fmt: skip


def bart(width: int, layers: int, heads: int):
    return plain(
        50265, width, layers, heads, 1024, kind="encoder-decoder", position="learned", position_offset=2,
        embed_norm=True, norm_place="post",
    )  # fmt: skip


def gemma(width: int, layers: int, heads: int, kv: int, ff: int, vocab=256000, head_dim=256, **more):
    return llama(
        vocab, width, layers, heads, kv, ff, 8192, tie=True, head_dim=head_dim, norm_place="sandwich",
        norm_plus_one=True, embed_scale=True, **more,
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
    "BERT-base": (bert(30522, 768, 12, 12, lm_head=False, pooler=True), 109_482_240),
    "BERT-base, masked": (bert(30522, 768, 12, 12), 109_514_298),
    "BERT-base, all heads": (bert(30522, 768, 12, 12, pooler=True, next_sentence=True), 110_106_428),
    "BERT-large": (bert(30522, 1024, 24, 16, lm_head=False, pooler=True), 335_141_888),
    "RoBERTa-base": (bert(50265, 768, 12, 12, token_types=1, position_offset=2), 124_697_433),
    "DistilBERT": (bert(30522, 768, 6, 12, token_types=0, lm_head=False), 66_362_880),
    "T5 small": (t5(512, 6, 8, 2048, activation="relu"), 60_506_624),
    "T5 base": (t5(768, 12, 12, 3072, activation="relu"), 222_903_552),
    "Flan-T5 base": (t5(768, 12, 12, 2048, gated=True), 247_577_856),
    "BART-base": (bart(768, 6, 12), 139_420_416),
    "BART-large": (bart(1024, 12, 16), 406_291_456),
    "Gemma-2 2B": (gemma(2304, 26, 8, 4, 9216), 2_614_341_888),
    "Gemma-2 9B": (gemma(3584, 42, 16, 8, 14336), 9_241_705_984),
    "Gemma-3 1B": (gemma(1152, 26, 4, 1, 6912, vocab=262144, qk_norm=True), 999_885_952),
    "Phi-3 mini": (llama(32064, 3072, 32, 32, 32, 8192, 4096), 3_821_079_552),
    "OLMo-2 1B": (
        llama(100352, 2048, 16, 16, 16, 8192, 4096, norm_place="output", qk_norm=True, qk_norm_whole=True),
        1_484_916_736,
    ),
    "Pythia 160M": (plain(50304, 768, 12, 12, 2048, parallel=True, rotary_dim=16, tie=False), 162_322_944),
    "SmolLM3 3B": (llama(128256, 2048, 36, 16, 4, 11008, 65536, tie=True), 3_075_098_624),
}
GPT_3 = plain(50257, 12288, 96, 96, 2048, position="learned")
