"""NoiseConfig: what a model can learn from plain text, which kind of model learns what, and how text is corrupted."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.model import Kind, ModelConfig

Objective = Literal["clm", "mlm", "mlm+nsp", "span", "denoise", "prefix", "fim"]

# Objective -> the kinds of model that learn by it.
SUITS: dict[Objective, tuple[Kind, ...]] = {
    "clm": ("decoder",),
    "mlm": ("encoder",),
    "mlm+nsp": ("encoder",),
    "span": ("encoder-decoder",),
    "denoise": ("encoder-decoder",),
    "prefix": ("decoder", "encoder-decoder"),
    "fim": ("decoder",),
}

# Kind of model -> what it learns by unless something else is asked for.
USUAL: dict[Kind, Objective] = {"decoder": "clm", "encoder": "mlm", "encoder-decoder": "span"}


def suited(objective: Objective | None, kind: Kind) -> Objective:
    """The objective, or for None the usual one of that kind of model.

    Raises:
        UserError: such a model does not learn by it.
    """
    if objective is None:
        return USUAL[kind]
    if kind not in SUITS[objective]:
        fitting = [name for name, kinds in SUITS.items() if kind in kinds]
        raise UserError(
            f"--objective {objective} trains {' or '.join(_a(one) for one in SUITS[objective])}, "
            f"but the model is {_a(kind)}.",
            f"{_a(kind).capitalize()} learns by --objective {' or '.join(fitting)}.",
            Exit.USAGE,
        )
    return objective


def made_for(objective: Objective, model: ModelConfig) -> ModelConfig:
    """A fresh model's shape with what an objective needs, and without heads that it would not train."""
    if model.kind == "encoder":
        pairs = objective == "mlm+nsp"
        types = max(model.token_types, 2) if pairs else model.token_types
        return model.resized(pooler=pairs, next_sentence=pairs, token_types=types)
    return model.resized(prefix_lm=True) if objective == "prefix" and model.kind == "decoder" else model


@dataclass(frozen=True)
class NoiseConfig:
    """Corruption of text.

    The defaults are those of the papers: BERT and RoBERTa for mlm, T5 for span, BART for denoise, and half of the
    documents for fim.

    Raises:
        UserError: a value out of range, or no noise at all.
    """

    mask_rate: Annotated[float, "mlm: share of the tokens that the model is asked for."] = 0.15
    whole_word: Annotated[bool, "mlm: ask for all tokens of a word or for none."] = False
    random_share: Annotated[float, "mlm: share of those in whose place a random token stands."] = 0.1
    keep_share: Annotated[float, "mlm: share of those that stay as they are; a mask hides the rest."] = 0.1
    noise_density: Annotated[float, "span: share of the tokens that are taken out."] = 0.15
    mean_span: Annotated[float, "span and --text-infilling: tokens of a span, on average."] = 3.0
    denoise_rate: Annotated[float, "denoise: share of tokens that infilling, masking or deletion takes."] = 0.3
    text_infilling: Annotated[bool, "denoise: a mask in the place of each span, some of them empty."] = True
    sentence_permutation: Annotated[bool, "denoise: sentences in another order."] = True
    token_masking: Annotated[bool, "denoise: a mask in the place of each token taken."] = False
    token_deletion: Annotated[bool, "denoise: nothing in the place of each token taken."] = False
    document_rotation: Annotated[bool, "denoise: begin at any token, and end with what was before it."] = False
    fim_rate: Annotated[float, "fim: share of the documents whose middle comes last."] = 0.5
    spm_rate: Annotated[float, "fim: share of those in which the suffix comes first, not the prefix."] = 0.5

    def __post_init__(self) -> None:
        bad = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in (
                ("mask_rate", 0 < self.mask_rate <= 1, "more than 0, at most 1"),
                ("random_share", 0 <= self.random_share <= 1, "from 0 to 1"),
                ("keep_share", 0 <= self.keep_share <= 1, "from 0 to 1"),
                ("noise_density", 0 < self.noise_density < 1, "more than 0, less than 1"),
                ("mean_span", 1 <= self.mean_span <= 1000, "from 1 to 1000"),
                ("denoise_rate", 0 < self.denoise_rate < 1, "more than 0, less than 1"),
                ("fim_rate", 0 <= self.fim_rate <= 1, "from 0 to 1"),
                ("spm_rate", 0 <= self.spm_rate <= 1, "from 0 to 1"),
            )
            if not good
        ]
        if bad:
            raise UserError("; ".join(bad) + ".", code=Exit.USAGE)
        if self.random_share + self.keep_share > 1:
            raise UserError(
                f"--random-share {self.random_share:g} and --keep-share {self.keep_share:g} are more than 1 together.",
                "What they leave is masked; the paper has 0.1 and 0.1.",
                Exit.USAGE,
            )
        kinds = ("text_infilling", "sentence_permutation", "token_masking", "token_deletion", "document_rotation")
        if not any(getattr(self, name) for name in kinds):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in kinds)
            raise UserError("denoise has no noise left.", f"Keep one of {flags}.", Exit.USAGE)

    def lengths(self, objective: Objective, block: int) -> tuple[int, int]:
        """Tokens of an encoder's row and of its decoder's that come of `block` tokens of one text, at most."""
        if objective != "span":
            return block, block
        noise = round(block * self.noise_density)
        spans = round(noise / self.mean_span)
        return min(block, block - noise + spans + 2), min(block, noise + spans + 2)


def _a(kind: Kind) -> str:
    return f"{'a' if kind == 'decoder' else 'an'} {kind}"
