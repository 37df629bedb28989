"""Training of tokenizers: byte-level BPE, WordPiece, Unigram, words, characters, bytes."""

import json
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import orjson
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmctl.core.text import tokenizer as text
from llmctl.core.text.patterns import PATTERNS, byte_characters
from llmctl.core.text.unigram import train_unigram
from llmctl.errors import Exit, UserError
from llmctl.spec.data import TEMPLATES, Algorithm, Normalize, Roles, TokenizerConfig, Words

SPACE = "\u2581"  # what Unigram writes for a space
ALPHABET = 1000  # WordPiece: characters beyond the most frequent ones are [UNK]
SPOOL_BYTES = 64 << 20  # of text that WordPiece keeps in memory; more goes to a temporary file
ENDLESS = int(1e30)  # model_max_length that means none, as transformers writes it


def train_tokenizer(
    texts: Iterable[str],
    algorithm: Algorithm = "bpe",
    vocab_size: int | None = None,
    specials: tuple[str, ...] = (),
    min_frequency: int = 2,
    normalize: Normalize = "none",
    words: Words = "gpt2",
    roles: Roles | None = None,
) -> "text.Tokenizer":
    """`train` with its options one by one; `specials` are those of --special."""
    return train(texts, TokenizerConfig(algorithm, vocab_size, specials, min_frequency, normalize, words, roles))


def train(texts: Iterable[str], config: TokenizerConfig) -> "text.Tokenizer":
    """A tokenizer trained on texts, each read once; the same texts give the same tokenizer.

    Raises:
        UserError: no text, or more distinct characters than the vocabulary has room for.
    """
    texts = iter(texts)
    first = next(texts, None) if config.algorithm != "byte" else ""
    if first is None:
        raise UserError("There is no text to train on.", "The files are empty, or hold white space alone.")
    backend = TRAINERS[config.algorithm](chain([first], texts), config)
    backend.add_special_tokens([_added(token, config) for token in config.specials])
    if config.size is not None and (size := backend.get_vocab_size()) > config.size:
        raise UserError(
            f"--vocab-size is {config.size}, but the characters and special tokens alone are {size} tokens.",
            f"Use --vocab-size {size} or more, or --algorithm bpe.",
            Exit.USAGE,
        )
    if template := TEMPLATES[config.family]:
        ends = [(token, backend.token_to_id(token)) for token in config.first if token in template[0]]
        backend.post_processor = processors.TemplateProcessing(*template, ends)
    taken = set(config.roles_of.values())
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": token for role, token in config.roles_of.items()},
        "additional_special_tokens": [token for token in config.last if token not in taken],
        "model_max_length": ENDLESS,
        "clean_up_tokenization_spaces": False,
    }
    if config.family != "bert":
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
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([_cut(config.words), rest])
    backend.normalizer = _normalizer(config.normalize)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.size - len(config.last),
        min_frequency=config.min_frequency,
        special_tokens=config.first,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # without it, bytes not seen here would vanish
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _wordpiece(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """WordPiece as BERT has it: longest match first, ## inside words; spaces are not kept.

    The trainer numbers the ## characters in the order of a randomised hash map, and with them breaks its ties:
    so they are counted first, and passed in a fixed order as special tokens, which they then cease to be.

    Source: Devlin et al., arXiv:1810.04805.
    """
    lower = config.normalize == "lower"
    backend = Tokenizer(models.WordPiece(unk_token=config.roles_of["unk"]))
    bert = normalizers.BertNormalizer(lowercase=lower, strip_accents=lower)
    first = None if lower else _normalizer(config.normalize)
    backend.normalizer = bert if first is None else normalizers.Sequence([first, bert])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        counts: Counter[str] = Counter()
        for one in texts:
            counts.update(backend.normalizer.normalize_str(one))
            spool.write(orjson.dumps(one) + b"\n")
        frequent = sorted(counts, key=lambda char: (-counts[char], char))
        alphabet = sorted([char for char in frequent if not char.isspace()][:ALPHABET])
        inside = [char for char in alphabet if len(_words(backend, f"a{char}a")) == 1]
        trainer = trainers.WordPieceTrainer(
            vocab_size=max(config.size - len(config.last), 0),
            min_frequency=config.min_frequency,
            special_tokens=[*config.first, *(f"##{char}" for char in inside)],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        spool.seek(0)
        backend.train_from_iterator(map(orjson.loads, spool), trainer)
    parts = json.loads(backend.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] in config.first]
    return Tokenizer.from_str(json.dumps(parts))


def _unigram(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """Unigram language model with byte tokens for characters it has not seen; a text comes back exactly, but U+2581.

    The trainer is ours: the library's adds up in a random order, so that its pieces differ from run to run. The byte
    tokens are not special, or decoding would drop them, and are scored so low that a typed "<0x41>" is never one.

    Source: Kudo, arXiv:1804.10959.
    """
    normalizer = _normalizer(config.normalize)
    cut = pre_tokenizers.Sequence([_cut(config.words), pre_tokenizers.Metaspace(SPACE, "never", split=False)])
    counts: Counter[str] = Counter()
    for one in texts:
        normal = one if normalizer is None else normalizer.normalize_str(one)
        counts.update(word for word, _ in cut.pre_tokenize_str(normal))
    first = [*config.first, *(f"<0x{byte:02X}>" for byte in range(256))]
    room = config.size - len(config.last) - len(first)
    pieces = train_unigram(counts, room, string.printable.replace(" ", SPACE))
    never = 100 * round(min(score for _, score in pieces)) - 1000.0
    unknown = first.index(config.roles_of["unk"])
    scored = [*((token, never) for token in first), *pieces]
    backend = Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=True))
    backend.normalizer = normalizer
    backend.pre_tokenizer = cut
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _word(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """Words and runs of punctuation as tokens, the most frequent ones; spaces are not kept."""
    backend = Tokenizer(models.WordLevel(unk_token=config.roles_of["unk"]))
    backend.normalizer = _normalizer(config.normalize)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.size - len(config.last),
        min_frequency=config.min_frequency,
        special_tokens=config.first,
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
    vocab = {token: i for i, token in enumerate([*config.first, *sorted(kept[:room])])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=config.roles_of["unk"]))
    backend.normalizer = normalizer
    backend.decoder = decoders.Fuse()
    return backend


def _byte(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """UTF-8 bytes as tokens: id 0 is byte 0, id 255 byte 255, then the special tokens; nothing is trained.

    With other roles than GPT's, their tokens come first: with T5's, byte 0 has id 3, as in ByT5.
    """
    vocab = {token: id for id, token in enumerate([*config.first, *byte_characters()])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.normalizer = _normalizer(config.normalize)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _added(token: str, config: TokenizerConfig) -> AddedToken:
    """A special token; one that stands for words takes in the space before it, as the words do that it stands for."""
    hides = token == config.roles_of.get("mask") or token in config.sentinels
    spaced = config.algorithm not in ("wordpiece", "word")  # these drop spaces
    return AddedToken(token, special=True, normalized=False, lstrip=hides and spaced)


def _cut(words: Words) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(PATTERNS[words].pattern), "isolated")


def _words(backend: Tokenizer, one: str) -> list[str]:
    normal = backend.normalizer.normalize_str(one)
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


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
