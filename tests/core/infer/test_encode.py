"""Texts as rows: special tokens where the tokenizer or the training of the model puts them, pairs, cuts, padding."""

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from llmctl.core.infer.encode import Encoder, padded
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat"]
SHAPE = {"vocab": 8, "width": 16, "layers": 1, "heads": 2, "ff": 16, "context": 16}
CONFIG = ModelConfig(kind="encoder", token_types=2, pad=0, **SHAPE)


def words(template=None, specials=WORDS[:5], roles=("cls", "sep", "mask", "pad", "unk")) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(specials))
    if template:
        backend.post_processor = processors.TemplateProcessing(*template, [("[CLS]", 2), ("[SEP]", 3)])
    return Tokenizer(backend, {f"{role}_token": f"[{role.upper()}]" for role in roles})


def ids(tokenizer, *texts, config=CONFIG, **how):
    return Encoder(tokenizer, config, **how)([texts if len(texts) > 1 else texts[0]])[0].ids


def test_the_tokenizers_own_frame_is_used():
    own = words(("[SEP] $A", "[SEP] $A $B:1"))
    assert ids(own, "the cat") == [3, 5, 6] and ids(own, "the", "cat") == [3, 5, 6]
    assert own.frame == ((3,), ())
    assert words(("[CLS] $A [SEP]", None)).frame == ((2,), (3,))


def test_without_one_an_encoders_texts_are_framed_as_in_training():
    bare = words()
    assert ids(bare, "the cat") == [2, 5, 6, 3] and bare.frame == ((2,), (3,))
    pair = Encoder(bare, CONFIG)([("the", "cat sat")])[0]
    assert pair.ids == [2, 5, 3, 6, 7, 3] and pair.encoding.type_ids == [0, 0, 0, 1, 1, 1]
    assert ids(words(roles=("sep",)), "the") == [5, 3]
    decoder = ModelConfig(**SHAPE)
    assert ids(bare, "the cat", config=decoder) == [5, 6]
    assert Encoder(bare, decoder).row("") == "the text has no tokens"


def test_typed_special_tokens_are_text_but_those_that_are_asked_for():
    bare = words()
    assert ids(bare, "the [SEP] [MASK]")[1:-1] == [5, 3, 4]  # a model of whole words knows no other spelling
    split = words()
    split.backend.pre_tokenizer = pre_tokenizers.Punctuation()
    assert ids(split, "[MASK]")[1:-1] == [1, 1, 1]
    assert ids(split, "[MASK]", special=True)[1:-1] == [4]
    assert ids(split, "[MASK][SEP]", only=4)[1:-1] == [4, 1, 1, 1]


def test_a_cut_keeps_the_frame_and_is_told():
    encoder = Encoder(words(), CONFIG, limit=4)
    long, short = encoder(["the cat sat", "the cat"])
    assert (long.ids, long.cut) == ([2, 5, 6, 3], True) and (short.ids, short.cut) == ([2, 5, 6, 3], False)
    with pytest.raises(UserError, match="special tokens alone take 3"):
        Encoder(words(), CONFIG, limit=3)


def test_ids_that_the_model_does_not_know_are_refused():
    with pytest.raises(UserError, match="below 7"):
        ids(words(), "sat", config=CONFIG.resized(vocab=7))


def test_padding_is_on_the_right_and_kinds_only_where_there_are_some():
    encoder = Encoder(words(), CONFIG)
    one, two = encoder(["the cat", ("the", "cat sat")])
    batch = padded([one, two], CONFIG)
    assert batch.tokens.tolist() == [[2, 5, 6, 3, 0, 0], [2, 5, 3, 6, 7, 3]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch.types.tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1]] and batch.last.tolist() == [3, 5]
    alone = padded([one], CONFIG)
    assert alone.segments is None and alone.types is None and alone.last.tolist() == [3]
    assert padded([two], CONFIG.resized(token_types=1)).types is None
