"""Noised: how well an encoder-decoder undoes the noise that it was trained to undo: its loss on held-out text."""

from collections.abc import Iterator, Sequence

import numpy as np

from llmctl.core.data.corrupt import denoised, noise_spans, take_spans
from llmctl.core.data.rows import Rule
from llmctl.core.data.vocabulary import Vocabulary
from llmctl.core.decode.prompt import check_known
from llmctl.core.decode.rules import opening
from llmctl.core.metrics.likelihood import passes
from llmctl.core.metrics.passages import Passage
from llmctl.core.metrics.scored import Asked, Found
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.noise import NoiseConfig
from llmctl.spec.scoring import Undone


class Noised:
    """Encoder-decoders: a document in blocks, each with noise that is the same every time.

    Args:
        window: tokens of a block.
        undone: the noise: spans that sentinels stand for (T5), or that of BART; None: by the tokenizer's tokens.
        seed: of the noise, with the document's text and the number of the block in it: what else is scored changes
            nothing.

    Raises:
        UserError: the tokenizer lacks the tokens of that noise.

    Source: Raffel et al., T5, arXiv:1910.10683, section 3.1.4; Lewis et al., BART, arXiv:1910.13461, section 2.2.
    """

    whole = False  # the scored tokens are the spans, or a text that is seen with noise

    def __init__(self, model: Transformer, tokenizer: Tokenizer, window: int, undone: Undone | None, seed: int = 0):
        vocabulary = Vocabulary.of(tokenizer, model.config.vocab)
        undone = undone or ("span" if vocabulary.sentinels else "denoise")
        vocabulary.need(undone)
        if vocabulary.closing is None:
            hint = 'Name one as "eos_token" in its tokenizer_config.json.'
            raise UserError("The tokenizer has no end-of-text token.", hint, Exit.MISMATCH)
        self.model, self.undone, self.seed = model, undone, seed
        noise = NoiseConfig()
        self.rule = Rule("encoder-decoder", noise, vocabulary, seed, opening(model.config))
        self.sentinels = np.array(vocabulary.sentinels, np.int64)
        self.block = window - self.rule.frame
        self.least = 2 if undone == "span" else 1
        if self.block < self.least:
            raise UserError(f"--window is {window}, wanted {self.least + self.rule.frame} or more.", code=Exit.USAGE)
        density = {"density": noise.noise_density} if undone == "span" else {"rate": noise.denoise_rate}
        self.signature: dict[str, object] = {
            "window": window,
            "score": undone,
            **density,
            "mean_span": noise.mean_span,
            "seed": seed,
        }

    def parts(self, passage: Passage) -> Iterator[Asked]:
        """What encoder and decoder read of each block."""
        check_known(passage.ids, self.model.config)
        ids = np.array(passage.ids, np.int64)
        for number, begin in enumerate(range(0, len(ids), self.block)):
            block = ids[begin : begin + self.block]
            if len(block) < self.least:
                continue
            key = np.concatenate(([self.seed, number], block))
            generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key.tolist())))
            if self.undone == "span":
                taken = noise_spans(len(block), self.rule.noise, len(self.sentinels), generator)
                read, said = take_spans(block, taken, self.sentinels)
            else:
                read, said = denoised(block, self.rule.vocabulary, self.rule.noise, generator), block
            answer = self.rule.answered(said).tolist()
            yield Asked([self.rule.start, *answer], len(answer), self.rule.framed(read).tolist())

    def size(self, part: Asked) -> int:
        """Tokens that encoder and decoder read."""
        return part.size

    def passes(self, pool: Sequence[Asked], batch_tokens: int, each: bool) -> Iterator[Found]:
        """What each pass scored of a pool."""
        return passes(self.model, pool, batch_tokens, each)
