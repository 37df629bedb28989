"""Tokenizers in the files of before tokenizer.json: vocab.json and merges.txt (GPT-2, RoBERTa), vocab.txt (BERT)."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llmctl.errors import UserError

ROBERTA = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
BERT = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}


def read_older(directory: Path, config: dict, added: dict) -> tuple[Tokenizer, dict] | None:
    """The tokenizer of such a directory and its roles ("mask_token": "[MASK]"), or None where it has no such files.

    Args:
        config: what special_tokens_map.json and tokenizer_config.json say.
        added: added_tokens.json, token to id.

    Raises:
        UserError: the files are damaged.
    """
    try:
        if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
            return _bytes(directory, added)
        if (directory / "vocab.txt").is_file():
            return _wordpiece(directory, config, added)
    except UserError:
        raise
    except Exception as error:  # the library raises nothing narrower
        hint = "They are cut short or of another kind; save or fetch them again."
        raise UserError(f"{directory}: its vocabulary cannot be read: {error}.", hint) from error
    return None


def _bytes(directory: Path, added: dict) -> tuple[Tokenizer, dict]:
    """Byte-level BPE; with RoBERTa's special tokens if they are in the vocabulary, else with GPT-2's."""
    backend = Tokenizer(models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt")))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    ids = {token: backend.token_to_id(token) for token in dict.fromkeys(ROBERTA.values())}
    if None not in ids.values():
        special = [AddedToken(token, special=True, lstrip=token == ROBERTA["mask"]) for token in ids]
        ends = [(token, ids[token]) for token in ("</s>", "<s>")]
        backend.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
        roles = _roles(ROBERTA)
    else:
        special = [one for one in ("<|endoftext|>",) if backend.token_to_id(one) is not None]
        roles = {}
    backend.add_special_tokens([*special, *_in_order(added)])
    return backend, roles


def _wordpiece(directory: Path, config: dict, added: dict) -> tuple[Tokenizer, dict]:
    """BERT's WordPiece; tokenizer_config.json may say do_lower_case, strip_accents and tokenize_chinese_chars.

    Source: Devlin et al., arXiv:1810.04805; the options are those of transformers' BertTokenizer.
    """
    lines = (directory / "vocab.txt").read_text(encoding="utf-8").split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    named = {role: _spelled(config.get(f"{role}_token")) or token for role, token in BERT.items()}
    vocab = {token.rstrip("\r"): id for id, token in enumerate(lines)}
    if missing := [token for token in named.values() if token not in vocab and token not in added]:
        hint = "It is of another tokenizer, or tokenizer_config.json names them otherwise."
        raise UserError(f"{directory}/vocab.txt lacks {', '.join(missing)}, which BERT's vocabularies have.", hint)
    backend = Tokenizer(models.WordPiece(vocab, unk_token=named["unk"], max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True) is not False,
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True) is not False,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([*_in_order(added), *named.values()])
    ends = [(named[role], backend.token_to_id(named[role])) for role in ("sep", "cls")]
    backend.post_processor = processors.BertProcessing(*ends)
    return backend, _roles(named)


def _roles(named: dict[str, str]) -> dict[str, str]:
    return {f"{role}_token": token for role, token in named.items()}


def _spelled(token: object) -> str | None:
    """A token as a config spells it: as text, or as an object with its content."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _in_order(added: dict) -> list[str]:
    return [token for token, _ in sorted(added.items(), key=lambda item: item[1])]
