"""writer: what completes prompts, for everything that can be asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.core.decode.batch import Desk
from llmctl.core.decode.beam_desk import BeamDesk
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.contrastive import ContrastiveDesk
from llmctl.core.decode.generate import Scribe
from llmctl.core.decode.guide import Grammar
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.search import Seeker
from llmctl.core.decode.speculate.desk import GuessingDesk
from llmctl.core.decode.speculate.source import Source
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.spec.sample import Sampling
from llmctl.spec.search import Search


@dataclass(frozen=True)
class Manner:
    """How prompts are completed.

    Attributes:
        rules: of the checkpoint, with the user's words.
        search: as `Search.filled` gives it.
        keep: texts that each prompt gets.
        eos: ids that end a text.
        stops: strings that end one.
        special: show special tokens.
        grammar: what texts are held to, or None.
        source: of guesses, or None.
        rows: texts, or beams, at a time.
        kv_bits: as for `Rows`.
        memory: bytes that keys and values may take, or None.
    """

    sampling: Sampling
    rules: Rules
    search: Search
    keep: int
    eos: frozenset[int]
    stops: Sequence[str] = ()
    special: bool = False
    grammar: Grammar | None = None
    source: Source | None = None
    rows: int = 16
    kv_bits: int = 0
    memory: int | None = None


def writer(model: Transformer, tokenizer: Tokenizer, manner: Manner) -> Scribe:
    """What completes prompts in that manner; none has begun."""
    sizes = (manner.rows, manner.kv_bits, manner.rules, manner.memory)
    search = manner.search
    if search.strategy == "beams":
        desk: Desk = BeamDesk(model, search, *sizes)
    elif search.strategy == "contrastive":
        desk = ContrastiveDesk(model, search, *sizes)
    else:
        desk = Desk(model, *sizes) if manner.source is None else GuessingDesk(model, manner.source, *sizes)
    choice = (model.config.vocab, tokenizer.size, manner.eos, desk.rows.device, manner.grammar)
    how = (desk, tokenizer, Chooser(manner.sampling, manner.rules, *choice), manner.eos, manner.stops, manner.special)
    return Seeker(*how, keep=manner.keep) if search.strategy == "beams" else Scribe(*how)
