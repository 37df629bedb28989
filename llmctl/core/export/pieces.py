"""Pieces: tokenizers of tokenizer.json as llama.cpp would have them, one function for each kind."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from llmctl.core.text.patterns import PATTERNS
from llmctl.errors import Exit, UserError

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's kinds of tokens
LOWEST = -1e4  # times ten thousand it is an int32 still, as one reader has it
NO_MERGE = "<none> <none>"  # of two that no text begins with: readers want at least one

_DIGIT = r"\p{N}"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# How a text is cut into words, by llama.cpp's name for it and whether a whole word that is a token stays one:
# patterns that are applied one after another.
CUTS: dict[tuple[str, bool], tuple[str, ...]] = {
    ("gpt-2", False): (PATTERNS["gpt2"].pattern,),
    ("smaug-bpe", False): (PATTERNS["llama3"].pattern,),
    ("llama-bpe", True): (PATTERNS["llama3"].pattern,),
    ("qwen2", False): (PATTERNS["qwen2"].pattern,),
    ("smollm", False): (_DIGIT, PATTERNS["gpt2"].pattern),
    ("gpt-4o", False): (_CASED % (_SHORT, _SHORT, "{1,3}"),),
    ("tekken", True): (_CASED % ("", "", ""),),
    ("bloom", False): (r" ?[^(\s|[.,!?…。，、।۔،])]+",),
}


@dataclass
class Pieces:
    """A tokenizer as llama.cpp reads it.

    Attributes:
        model: `tokenizer.ggml.model`.
        tokens: by id.
        kinds: of the tokens.
        pre: how texts are cut into words.
        scores: of the tokens, or none.
        merges: pairs with a space between, first come first merged, or none.
        keys: more of the file's keys.
        notes: where it is not quite the tokenizer that it was made of.
    """

    model: str
    tokens: list[str]
    kinds: list[int]
    pre: str = "default"
    scores: list[float] | None = None
    merges: list[str] | None = None
    keys: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def pieces_of(parts: dict, tokens: list[str], kinds: list[int]) -> Pieces:
    """The tokenizer of a parsed tokenizer.json.

    Args:
        tokens: its tokens by id; an id that it does not use has a name that is no token's.
        kinds: of its tokens: special ones are CONTROL, other added ones USER, names of unused ids UNUSED.

    Raises:
        UserError: llama.cpp knows no such tokenizer.
    """
    model = parts["model"]
    kind = model.get("type", "BPE")
    if kind == "BPE":
        kind = "SPM" if model.get("byte_fallback") else "BPE"
    make = _KINDS.get(kind)
    if make is None:
        raise unknown(f"its model is {kind}")
    return make(parts, tokens, kinds)


def unknown(why: str) -> UserError:
    """The error of a tokenizer that llama.cpp does not have."""
    return UserError(
        f"llama.cpp has no such tokenizer: {why}.",
        "Use the checkpoint itself; or train with byte-level BPE (train-tokenizer, --algorithm bpe), which it has.",
        Exit.MISMATCH,
    )


def steps_of(part: dict | None, inner: str) -> list[dict]:
    """The steps of a normalizer or a pre-tokenizer, those of sequences in a row."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for one in part[inner] for step in steps_of(one, inner)]


def _byte_level(parts: dict, tokens: list[str], kinds: list[int]) -> Pieces:
    """BPE on bytes."""
    model, notes = parts["model"], []
    for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise unknown(f"its BPE has {name} {model[name]!r}")
    for step in steps_of(parts["normalizer"], "normalizers"):
        if step["type"] != "NFC":
            raise unknown(f"it normalizes texts ({step['type']})")
        notes.append("llama.cpp does not compose characters: text that is not in Unicode's NFC has other tokens there.")
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    cuts, kept = _cuts(parts["pre_tokenizer"]), bool(model.get("ignore_merges"))
    if not merges and not cuts:  # bytes are tokens: words do not matter
        cuts = CUTS["gpt-2", False]
    wanted = [key for key, patterns in CUTS.items() if patterns == cuts]
    if not wanted:
        raise unknown(f"it cuts texts into words by {' then '.join(cuts) or 'nothing'}")
    key = next((key for key in wanted if key[1] == kept), None)
    if key is None and not _all_merged(model):
        what = "stays one" if kept else "is merged from its bytes"
        raise unknown(f"a word that is a token {what}, with the words of {wanted[0][0]}")
    pre, _ = key or wanted[0]
    made = Pieces("gpt2", tokens, kinds, pre, merges=merges or [NO_MERGE], notes=notes)
    _check(parts, _rebuilt_bpe(made, cuts, kept))
    return made


def _cuts(part: dict | None) -> tuple[str, ...]:
    """The patterns that cut a text into words before it becomes bytes."""
    found: list[str] = []
    for step in steps_of(part, "pretokenizers"):
        kind = step["type"]
        if kind == "ByteLevel":
            if step.get("add_prefix_space"):
                raise unknown("it puts a space before each text")
            if step.get("use_regex", True):
                found.append(PATTERNS["gpt2"].pattern)
        elif kind == "Split" and not step.get("invert") and step["behavior"] == "Isolated":
            found.append(step["pattern"].get("Regex") or re.escape(step["pattern"]["String"]))
        elif kind == "Digits" and step.get("individual_digits"):
            found.append(_DIGIT)
        else:
            raise unknown(f"it cuts texts into words by {kind}")
    return tuple(found)


def _all_merged(model: dict) -> bool:
    """Whether every token that is a word comes out of merging, so that taking words whole changes nothing."""
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ", 1)) for pair in model["merges"]]
    plain = tokenizers.Tokenizer(models.BPE(vocab=model["vocab"], merges=merges))
    words = list(model["vocab"])
    return all(len(found.ids) == 1 for found in plain.encode_batch_fast(words, add_special_tokens=False))


def _rebuilt_bpe(made: Pieces, cuts: tuple[str, ...], kept: bool) -> tokenizers.Tokenizer:
    """What llama.cpp makes of a file's tokens, merges and words."""
    vocab = {token: i for i, token in enumerate(made.tokens)}
    pairs = [tuple(pair.split(" ", 1)) for pair in made.merges or []]
    pairs = [pair for pair in pairs if pair[0] + pair[1] in vocab]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=kept))
    splits = [pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts]
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, bare])
    return backend


def _sentencepiece(parts: dict, tokens: list[str], kinds: list[int]) -> Pieces:
    """BPE of sentencepiece: on characters, spaces among them, with tokens for the bytes of those that it lacks.

    llama.cpp has scores in place of merges: of all neighbours that are a token together, the highest goes first.
    """
    model = parts["model"]
    prefixed = _spaced(parts)
    pairs = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ", 1)) for pair in model["merges"]]
    rank: dict[str, int] = {}
    last = None
    for left, right in pairs:
        whole = left + right
        if whole != last and whole in rank:
            raise unknown(f"its merges make {whole!r} at two places among those of other tokens")
        rank.setdefault(whole, len(rank))
        last = whole
    lacking = set(_splits(model["vocab"], rank)) - set(pairs)
    if lacking:
        raise unknown(f"{len(lacking)} of its merges are left out, such as {' '.join(min(lacking))}")
    kinds = _with_bytes(tokens, kinds, model.get("unk_token"))
    scores = [-float(rank[token]) if token in rank else LOWEST for token in tokens]
    keys = {"tokenizer.ggml.add_space_prefix": prefixed}
    return Pieces("llama", tokens, kinds, scores=scores, keys=keys)


def _splits(vocab: dict[str, int], rank: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that a merged token can be made of."""
    pairs = ((token[:i], token[i:]) for token in rank for i in range(1, len(token)))
    return [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]


def _spaced(parts: dict) -> bool:
    """Whether a text begins with a space that is not its own, of a tokenizer that writes spaces as U+2581."""
    prefixed, replaced = False, False
    steps = steps_of(parts["normalizer"], "normalizers") + steps_of(parts["pre_tokenizer"], "pretokenizers")
    for step in steps:
        kind = step["type"]
        if kind == "Prepend" and step["prepend"] == SPACE:
            prefixed = True
        elif kind == "Replace" and step["pattern"].get("String") == " " and step["content"] == SPACE:
            replaced = True
        elif kind == "Metaspace" and not step.get("split", True):
            prefixed, replaced = step.get("prepend_scheme", "always") != "never", True
        elif not (kind == "Split" and step["pattern"].get("String") == " " and replaced):  # nothing is left to split
            raise unknown(f"it treats texts by {kind} before it cuts them into pieces")
    if not replaced:
        raise unknown("its spaces are not written as U+2581")
    return prefixed


def _unigram(parts: dict, tokens: list[str], kinds: list[int]) -> Pieces:
    """Unigram: the likeliest pieces."""
    model, keys, notes = parts["model"], {}, []
    for step in steps_of(parts["normalizer"], "normalizers"):
        if step["type"] == "Precompiled":
            keys["tokenizer.ggml.precompiled_charsmap"] = base64.b64decode(step["precompiled_charsmap"])
        elif step["type"] == "Replace" and step["pattern"].get("Regex") == " {2,}":
            keys["tokenizer.ggml.remove_extra_whitespaces"] = True
        else:
            raise unknown(f"it normalizes texts ({step['type']})")
    prefixed = False
    for step in steps_of(parts["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "WhitespaceSplit":
            keys["tokenizer.ggml.remove_extra_whitespaces"] = True
        elif step["type"] == "Metaspace":
            prefixed = step.get("prepend_scheme", "always") != "never"
        elif step["type"] == "Split" and step["behavior"] == "Isolated":
            notes.append(
                "llama.cpp does not cut texts into words before it takes the likeliest pieces: here and there, in runs "
                "of spaces and line ends, the same text has other tokens."
            )
        else:
            raise unknown(f"it cuts texts into words by {step['type']}")
    scores = [LOWEST] * len(tokens)
    for i, (_, score) in enumerate(model["vocab"]):
        scores[i] = score
    unk = None if model.get("unk_id") is None else tokens[model["unk_id"]]
    kinds = _with_bytes(tokens, kinds, unk)
    if model.get("byte_fallback") and not prefixed and not keys and kinds.count(BYTE) == 256:
        # Of its two tokenizers of this kind, this one spells bytes; it keeps spaces as they are.
        plain = [
            token.replace(SPACE, " ") if kind == NORMAL else token for token, kind in zip(tokens, kinds, strict=True)
        ]
        return Pieces("plamo2", plain, kinds, scores=scores, notes=notes)
    if model.get("byte_fallback"):
        notes.append("llama.cpp has the unknown token for characters that no token holds; llmctl spells their bytes.")
    keys["tokenizer.ggml.add_space_prefix"] = prefixed
    keys.setdefault("tokenizer.ggml.remove_extra_whitespaces", False)
    return Pieces("t5", tokens, kinds, scores=scores, keys=keys, notes=notes)


def _with_bytes(tokens: list[str], kinds: list[int], unk: str | None) -> list[int]:
    """The kinds of tokens, those that stand for bytes and the unknown one told apart."""
    special = {unk: UNKNOWN} if unk else {}
    spelled = re.compile("<0x[0-9A-F]{2}>")
    return [
        BYTE if spelled.fullmatch(token) and kind in (NORMAL, USER) else special.get(token, kind)
        for token, kind in zip(tokens, kinds, strict=True)
    ]


def _wordpiece(parts: dict, tokens: list[str], kinds: list[int]) -> Pieces:
    """WordPiece as BERT has it: in llama.cpp a word begins with U+2581, and what follows in it bears no mark."""
    model = parts["model"]
    if model.get("continuing_subword_prefix", "##") != "##":
        raise unknown(f"its pieces within words begin with {model['continuing_subword_prefix']!r}")
    steps = steps_of(parts["normalizer"], "normalizers")
    cut = [step["type"] for step in steps_of(parts["pre_tokenizer"], "pretokenizers")]
    if [step["type"] for step in steps] != ["BertNormalizer"] or cut != ["BertPreTokenizer"]:
        raise unknown("it does not normalize and cut texts as BERT does")
    lower = bool(steps[0].get("lowercase"))
    strip = steps[0].get("strip_accents")
    keys = {
        "tokenizer.ggml.normalizer.lowercase": lower,
        "tokenizer.ggml.normalizer.strip_accents": lower if strip is None else bool(strip),
    }
    marked = [
        token if kind != NORMAL else token[2:] if token.startswith("##") else SPACE + token
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    return Pieces("bert", marked, kinds, keys=keys)


_KINDS: dict[str, Callable[[dict, list[str], list[int]], Pieces]] = {
    "BPE": _byte_level,
    "SPM": _sentencepiece,
    "Unigram": _unigram,
    "WordPiece": _wordpiece,
}

# What differs between ways to cut texts: contractions, digits, runs of spaces, line ends, scripts, signs.
PROBE = (
    "It's what they'LL say: don't, I'd've... 3 apples, 1234567890 (3.14159) or 12,345.67?\n\n\n"
    "\tdef f(x):\n        return {'a': x ** 2,  \"b\": [1, 2]}   # done!!\r\n  \n"
    "Füße, naïve café, Ελληνικά, русский, العربية، हिन्दी। 日本語。中文，한국어 ไทย 🙂👩‍👩‍👧 e=mc² ½ x_1\u00a0€5\n"
    " leading, trailing  \n<|endoftext|> </s> ▁ ##a   a\t\tb"
)


def _check(parts: dict, rebuilt: tokenizers.Tokenizer) -> None:
    """Whether a text with all that differs has the same tokens in the tokenizer and in what the file says.

    Raises:
        UserError: it has not.
    """
    bare = {**parts, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    given = tokenizers.Tokenizer.from_str(json.dumps(bare))
    if given.encode(PROBE, add_special_tokens=False).ids != rebuilt.encode(PROBE, add_special_tokens=False).ids:
        raise unknown("a text with all sorts of words has other tokens there")
