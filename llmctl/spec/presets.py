"""PRESETS: the shapes that --preset knows by size, and the config of a fresh model of each family."""

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.model import AttentionKind, Kind, ModelConfig, Position

PresetName = Literal["1m", "5m", "15m", "30m", "60m", "124m", "350m", "1b", "3b", "8b"]
FamilyName = Literal["llama", "gpt2", "bloom", "bert", "t5", "bart", "native"]
Head = Literal["tied", "own"]


@dataclass(frozen=True)
class Preset:
    """The dimensions of one model size; the vocabulary comes from the tokenizer.

    `layers` are those of all stacks together: an encoder and a decoder have half of them each, so that the size
    is about that of its name whatever the kind. `context` is of the rows of either. `ff` is for gated MLPs (three
    matrices) and `kv_heads` for families that can share them; plain MLPs have 4 x width, and other families as many
    kv heads as heads.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    ff: int
    context: int
    tie: bool = True
    rope_theta: float = 10000.0


PRESETS: dict[str, Preset] = {
    "1m": Preset(layers=4, width=128, heads=4, kv_heads=2, ff=352, context=256),
    "5m": Preset(layers=6, width=256, heads=8, kv_heads=4, ff=704, context=256),
    "15m": Preset(layers=8, width=384, heads=6, kv_heads=3, ff=1024, context=512),
    "30m": Preset(layers=10, width=512, heads=8, kv_heads=4, ff=1408, context=512),
    "60m": Preset(layers=12, width=640, heads=10, kv_heads=5, ff=1728, context=1024),
    "124m": Preset(layers=12, width=768, heads=12, kv_heads=12, ff=2048, context=1024),
    "350m": Preset(layers=24, width=1024, heads=16, kv_heads=8, ff=2816, context=2048),
    "1b": Preset(layers=16, width=2048, heads=32, kv_heads=8, ff=8192, context=4096, rope_theta=5e5),
    "3b": Preset(layers=28, width=3072, heads=24, kv_heads=8, ff=8192, context=4096, rope_theta=5e5),
    "8b": Preset(layers=32, width=4096, heads=32, kv_heads=8, ff=14336, context=8192, tie=False, rope_theta=5e5),
}

# Of the published models, where no tokenizer is at hand.
VOCABULARIES = {"gpt2": 50257, "bloom": 250880, "bert": 30522, "t5": 32128, "bart": 50265}
PLAIN = {  # what the families that came before Llama share
    "norm": "layer",
    "gated": False,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "kv_heads": 0,
    "tie": True,
}
POST = {"norm_place": "post", "embed_norm": True, "activation": "gelu", "position": "learned", "head_bias": True}
FRESH: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama"},
    "gpt2": {"model_type": "gpt2", "position": "learned", "activation": "gelu_tanh", **PLAIN},
    "bloom": {"model_type": "bloom", "position": "alibi", "activation": "gelu_tanh", "embed_norm": True, **PLAIN},
    "bert": {
        "model_type": "bert",
        "kind": "encoder",
        "norm_eps": 1e-12,
        "token_types": 2,
        "head_transform": True,
        **PLAIN,
        **POST,
    },
    # Of the two T5s the later, 1.1: after 200 steps of 1m it was at 4.90 nats where 1.0 (relu, tied) was at 5.31, with
    # Muon at 4.72 and 5.19; most of it comes from the head of its own.
    "t5": {
        "model_type": "t5",
        "kind": "encoder-decoder",
        "norm_eps": 1e-6,
        "activation": "gelu_tanh",
        "kv_heads": 0,
        "position": "relative",
        "tie": False,
    },
    "bart": {"model_type": "bart", "kind": "encoder-decoder", "position_offset": 2, **PLAIN, **POST},
    "native": {"model_type": "llmctl", "position": "sinusoidal"},
}


@dataclass(frozen=True)
class Shape:
    """Model.

    A preset and what differs from it; None leaves the preset's value.
    """

    preset: Annotated[PresetName | None, "Size of a fresh model."] = None
    family: Annotated[FamilyName, "Conventions of a fresh model: norm, MLP, biases, positions."] = "llama"
    kind: Annotated[Kind | None, "What the model is, in place of the family's."] = None
    layers: Annotated[int | None, "Layers, in place of the preset's; beside an encoder, the decoder's."] = None
    encoder_layers: Annotated[int | None, "Layers of the encoder beside a decoder; default: as --layers."] = None
    width: Annotated[int | None, "Channels of the residual stream."] = None
    heads: Annotated[int | None, "Attention heads."] = None
    kv_heads: Annotated[int | None, "Heads of keys and values; they divide --heads."] = None
    head_dim: Annotated[int | None, "Channels of a head; default: width over heads."] = None
    ff: Annotated[int | None, "Channels inside the MLP."] = None
    context: Annotated[int | None, "Most tokens of a row."] = None
    window: Annotated[int | None, "Tokens that one token sees, itself included; default: all before it."] = None
    position: Annotated[Position | None, "How positions enter, in place of the family's way."] = None
    attention: Annotated[AttentionKind | None, "Weights by softmax, or linear: in time that grows with the row."] = None
    head: Annotated[Head | None, "tied: the embedding's matrix again; own: one of its own."] = None

    @property
    def overrides(self) -> dict[str, object]:
        """What is set besides preset and family, as fields of ModelConfig."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if self.head:
            given["tie"] = self.head == "tied"
        return {name: value for name, value in given.items() if name not in ("preset", "family", "head")}

    def config(self, vocab: int | None = None) -> ModelConfig:
        """The config that `shape` makes of it; without a vocabulary, with that of the published models.

        Raises:
            UserError: no preset, or numbers that do not fit each other.
        """
        if self.preset is None:
            raise UserError("--preset is not given.", f"Add one of {', '.join(PRESETS)}.", Exit.USAGE)
        if vocab is None:
            vocab = VOCABULARIES.get(self.family, 32000 if self.preset.endswith("m") else 128256)
        return shape(self.preset, vocab, self.family, self.overrides)


def shape(name: str, vocab: int, family: str = "llama", overrides: dict[str, object] | None = None) -> ModelConfig:
    """The config of a fresh model.

    Args:
        name: of a preset.
        vocab: rows of the embedding.
        family: whose conventions: norm, MLP, biases, positions.
        overrides: fields of ModelConfig that differ from the preset; those that are None do not count. A new width
            takes along ff (8/3 of it rounded up to 64, or 4 times it), new heads the kv heads where the preset's
            do not divide them, and new layers those of the encoder.

    Raises:
        UserError: an unknown preset, family or field, or numbers that do not fit each other.

    Source: the sizes from 1b on are those of Llama 3.2 1B and 3B and of Llama 3 8B; gpt2 at 124m is GPT-2's, and bert
    and bart there have the dimensions of BERT-base and BART-base.
    """
    for word, value, known in (("--preset", name, PRESETS), ("--family", family, FRESH)):
        if value not in known:
            raise UserError(f"{word} is {value!r}, which is not known.", f"Take one of {', '.join(known)}.", Exit.USAGE)
    changes = {field: value for field, value in (overrides or {}).items() if value is not None}
    unknown = changes.keys() - {field.name for field in fields(ModelConfig)}
    if unknown:
        hint = f"Its fields are {', '.join(field.name for field in fields(ModelConfig))}."
        raise UserError(f"ModelConfig has no {', '.join(sorted(unknown))}.", hint, Exit.USAGE)
    wanted: dict[str, Any] = asdict(PRESETS[name]) | FRESH[family]
    known = {"gated": True, "kind": "decoder"} | wanted | changes
    width, heads = known["width"], known["heads"]
    if known.get("position") == "relative":  # as T5, whose first weights such a model has: see core/model/init
        wanted |= {"attention_scale": 1.0, "logit_scale": width**-0.5 if known["tie"] else 1.0}
    if known["kind"] == "encoder-decoder":
        wanted["layers"] = max(1, wanted["layers"] // 2)
        wanted["encoder_layers"] = changes.get("layers", wanted["layers"])
    if not known["gated"]:
        wanted["ff"] = 4 * width
    elif width != wanted["width"]:
        wanted["ff"] = -(-8 * width // (3 * 64)) * 64
    if not known["gated"] or (wanted["kv_heads"] and heads % wanted["kv_heads"]):
        wanted["kv_heads"] = heads
    return ModelConfig(**{**wanted, "vocab": vocab, **changes})
