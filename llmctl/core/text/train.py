"""Training of tokenizers: byte-level BPE, WordPiece, Unigram, words, characters, bytes."""

import json
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmctl.core.text import tokenizer as text
from llmctl.core.text.patterns import PATTERNS
from llmctl.errors import Exit, UserError
from llmctl.spec.data import ROLES, Algorithm, Normalize, TokenizerConfig

SPACE = "\u2581"  # what Unigram writes for a space
ALPHABET = 1000  # WordPiece: characters beyond the most frequent ones are [UNK]
ENDLESS = int(1e30)  # model_max_length that means none, as transformers writes it


def train_tokenizer(
    texts: Iterable[str],
    algorithm: Algorithm = "bpe",
    vocab_size: int | None = None,
    specials: tuple[str, ...] = (),
    min_frequency: int = 2,
    normalize: Normalize = "none",
    words: str = "gpt2",
) -> "text.Tokenizer":
    """A tokenizer trained on texts; the same texts give the same tokenizer.

    Args: those of spec.data.TokenizerConfig; specials come after the algorithm's own.

    Raises:
        UserError: a value out of range, or more distinct characters than the vocabulary has room for.
    """
    config = TokenizerConfig(algorithm, vocab_size, specials, min_frequency, normalize, words)
    backend = TRAINERS[algorithm](iter(texts), config)
    if config.size is not None and (size := backend.get_vocab_size()) > config.size:
        raise UserError(
            f"--vocab-size is {config.size}, but the characters and special tokens alone are {size} tokens.",
            f"Use --vocab-size {size} or more, or --algorithm bpe.",
            Exit.USAGE,
        )
    roles = {f"{role}_token": token for role, token in ROLES[algorithm].items()}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "additional_special_tokens": list(specials),
        "model_max_length": ENDLESS,
        "clean_up_tokenization_spaces": False,
    }
    if algorithm != "wordpiece":
        about["model_input_names"] = ["input_ids", "attention_mask"]
    return text.Tokenizer(backend, about)


def _bpe(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """Byte-level BPE: every text has tokens, and they give it back byte for byte.

    The words are GPT-2's by default, the split that every reader of tokenizer.json and GGUF knows by name.

    Source: Sennrich et al., arXiv:1508.07909, on bytes as in Radford et al., "Language Models are Unsupervised
    Multitask Learners", 2019, section 2.2.
    """
    backend = Tokenizer(models.BPE())
    if config.words == "gpt2":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        cut = pre_tokenizers.Split(Regex(PATTERNS[config.words].pattern), "isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, rest])
    backend.normalizer = _normalizer(config.normalize)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.size,
        min_frequency=config.min_frequency,
        special_tokens=config.specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # without it, bytes not seen here would vanish
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _wordpiece(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """WordPiece as BERT has it: longest match first, ## inside words, [CLS] text [SEP].

    Source: Devlin et al., arXiv:1810.04805; words over 100 characters are [UNK], and spaces are not kept.
    """
    lower = config.normalize == "lower"
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    bert = normalizers.BertNormalizer(lowercase=lower, strip_accents=lower)
    first = None if lower else _normalizer(config.normalize)
    backend.normalizer = bert if first is None else normalizers.Sequence([first, bert])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.size,
        min_frequency=config.min_frequency,
        special_tokens=config.specials,
        limit_alphabet=ALPHABET,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return backend


def _unigram(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """Unigram language model with byte tokens for characters it has not seen.

    Source: Kudo, arXiv:1804.10959. The trainer forgets byte_fallback, makes the byte tokens special (so that
    decoding drops them) and scores them so well that a typed "<0x41>" would be one: all three are mended here.
    """
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.Unigram(byte_fallback=True))
    backend.normalizer = _normalizer(config.normalize)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "never")
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.UnigramTrainer(
        vocab_size=config.size,
        special_tokens=config.specials + bytes_,
        unk_token="<unk>",
        initial_alphabet=list(string.printable),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    parts = json.loads(backend.to_str())
    parts["model"]["byte_fallback"] = True
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] not in bytes_]
    worst = min(score for _, score in parts["model"]["vocab"])
    unlikely = dict.fromkeys(bytes_, 100 * worst - 1000)
    parts["model"]["vocab"] = [[token, unlikely.get(token, score)] for token, score in parts["model"]["vocab"]]
    return Tokenizer.from_str(json.dumps(parts))


def _word(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """Words and runs of punctuation as tokens, the most frequent ones; spaces are not kept."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.normalizer = _normalizer(config.normalize)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.size,
        min_frequency=config.min_frequency,
        special_tokens=config.specials,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _char(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """Characters as tokens, the most frequent ones, in order of code point: BPE without merges."""
    normalizer = _normalizer(config.normalize)
    counts: Counter[str] = Counter()
    for one in texts:
        counts.update(one if normalizer is None else normalizer.normalize_str(one))
    kept = [char for char, count in counts.items() if count >= config.min_frequency]
    kept.sort(key=lambda char: (-counts[char], char))
    room = None if config.size is None else config.size - len(config.specials)
    vocab = {token: i for i, token in enumerate([*config.specials, *sorted(kept[:room])])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.normalizer = normalizer
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(config.specials)
    return backend


def _byte(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """UTF-8 bytes as tokens: id 0 is byte 0, id 255 byte 255, then the special tokens; nothing is trained."""
    vocab = {char: byte for byte, char in enumerate(byte_characters())}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.normalizer = _normalizer(config.normalize)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(config.specials)
    return backend


def byte_characters() -> list[str]:
    """(256,) the character that a byte-level vocabulary writes for each byte.

    Source: GPT-2's bytes_to_unicode: printable bytes of Latin-1 stand for themselves, the others for the
    characters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


def _normalizer(name: Normalize) -> normalizers.Normalizer | None:
    return {
        "none": lambda: None,
        "nfc": normalizers.NFC,
        "nfkc": normalizers.NFKC,
        "lower": normalizers.Lowercase,
    }[name]()


TRAINERS: dict[Algorithm, Callable[[Iterator[str], TokenizerConfig], Tokenizer]] = {
    "bpe": _bpe,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
    "word": _word,
    "char": _char,
    "byte": _byte,
}
