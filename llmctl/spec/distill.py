"""DistillConfig: what a student learns from its teacher, on which text, and the presets of published methods."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig

Divergence = Literal["forward-kl", "reverse-kl", "jsd"]
Tail = Literal["rest", "renormalise"]
HiddenLoss = Literal["mse", "cosine"]
Text = Literal["data", "teacher", "student"]
DistillPreset = Literal["distilbert", "tinybert", "minilm", "minillm", "gkd", "sequence"]


@dataclass(frozen=True)
class DistillConfig:
    """Distillation.

    What is absent is that of the preset, or of plain distillation: the divergence of the teacher's distribution of
    tokens to the student's, on the text as it is. After construction no field but `preset`, `beta` and `cache` is None.

    Raises:
        UserError: a value out of range, or options that do not go together.
    """

    preset: Annotated[
        DistillPreset | None,
        "Options of a published method, in place of the defaults: distilbert, half of the layers under soft labels, "
        "hard ones and the direction of the last hidden state; tinybert, attention and hidden states of every layer; "
        "minilm, the last layer's relations; minillm, reverse KL on what the student writes, by its gradient; gkd, "
        "JSD on what it writes, half of the time; sequence, the text that the teacher writes.",
    ] = None
    loss: Annotated[
        Divergence | None,
        "How far two distributions of tokens are apart: forward-kl, KL(teacher||student); reverse-kl, the other way; "
        "jsd, both to their mixture. Default: forward-kl.",
    ] = None
    beta: Annotated[
        float | None, "jsd: share of the teacher in the mixture; near 0 it is like forward-kl. Default: 0.5."
    ] = None
    temperature: Annotated[float | None, "Both distributions are softened by it. Default: 1."] = None
    soft: Annotated[float | None, "Weight of the divergence. Default: 1 less --hard."] = None
    hard: Annotated[float | None, "Weight of the loss of the text's own tokens. Default: 0."] = None
    everywhere: Annotated[
        bool | None, "An encoder learns from the teacher at every token, not only where one is hidden. Default: no."
    ] = None
    hidden: Annotated[float | None, "Weight of the difference of hidden states. Default: 0."] = None
    hidden_loss: Annotated[
        HiddenLoss | None,
        "mse: of each mapped layer; cosine: 1 less the cosine, of the last layer. States of another width pass through "
        "a learned projection. Default: mse.",
    ] = None
    attention: Annotated[
        float | None, "Weight of the squared difference of attention scores of mapped layers. Default: 0."
    ] = None
    relations: Annotated[
        float | None,
        "Weight of the difference of the last layer's relations: queries to keys, and values to values; heads and "
        "widths may differ. Default: 0.",
    ] = None
    embedding: Annotated[float | None, "Weight of the squared difference of token vectors. Default: 0."] = None
    top_k: Annotated[int | None, "Keep the teacher's likeliest K tokens of each place; 0: all of them. Default: 0."] = (
        None
    )
    tail: Annotated[
        Tail | None,
        "What becomes of the teacher's other tokens with --top-k: one more outcome, or nothing, the K taken for all. "
        "The latter is biased; it is there to be compared with. Default: rest.",
    ] = None
    cache: Annotated[
        str | None,
        "Directory that keeps the teacher's answers (--top-k of each place; 64 where that is absent), made where it is "
        "absent and used again by other students on the same text; passes over the text then cut it alike.",
    ] = None
    text: Annotated[
        Text | None,
        "What is learned from: data, the text as it is; teacher, what the teacher writes after beginnings of it; "
        "student, what the student itself writes, judged by the teacher. Default: data.",
    ] = None
    on_policy: Annotated[float | None, "--text student: share of the rows that it writes. Default: 1."] = None
    prompt_tokens: Annotated[
        int | None, "Tokens of the beginnings that text is written after. Default: a quarter of a row."
    ] = None
    new_tokens: Annotated[int | None, "Tokens that are written, at most. Default: the rest of a row."] = None
    sampling: Annotated[float | None, "Temperature at which text is written; 0: the likeliest token. Default: 1."] = (
        None
    )
    mix: Annotated[
        float | None, "--text student: share of the teacher in the distribution that is written from. Default: 0."
    ] = None
    policy_gradient: Annotated[
        bool | None,
        "--text student: also what a token does to those after it counts, by the policy gradient of MiniLLM; rows that "
        "are not written are learned by their own tokens. Default: no.",
    ] = None

    def __post_init__(self) -> None:
        given = {field.name for field in fields(self) if getattr(self, field.name) is not None}
        known = DEFAULTS | (PRESETS[self.preset] if self.preset else {})
        for name, value in known.items():
            if name not in given:
                object.__setattr__(self, name, value)
        if self.soft is None:
            object.__setattr__(self, "soft", max(0.0, 1.0 - self.hard))
        if self.cache is not None and not self.top_k:
            object.__setattr__(self, "top_k", CACHED)
        if self.loss == "jsd" and self.beta is None:
            object.__setattr__(self, "beta", 0.5)
        self._check(given)

    @property
    def features(self) -> bool:
        """Whether anything inside the models is compared."""
        return any((self.hidden, self.attention, self.relations, self.embedding))

    @property
    def whole(self) -> bool:
        """Whether the teacher's whole distribution is used."""
        return not self.top_k

    def _check(self, given: set[str]) -> None:
        weights = ("soft", "hard", "hidden", "attention", "relations", "embedding")
        wanted = [
            ("beta", self.beta is None or 0 < self.beta < 1, "more than 0, less than 1"),
            ("temperature", self.temperature > 0, "more than 0"),
            *((name, getattr(self, name) >= 0, "0 or more") for name in weights),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("on_policy", 0 < self.on_policy <= 1, "more than 0, at most 1"),
            ("prompt_tokens", self.prompt_tokens >= 0, "1 or more"),
            ("new_tokens", self.new_tokens >= 0, "1 or more"),
            ("sampling", self.sampling >= 0, "0 or more"),
            ("mix", 0 <= self.mix < 1, "0 or more, less than 1"),
        ]
        bad = [f"--{_flag(name)} is {getattr(self, name)}, wanted {what}" for name, good, what in wanted if not good]
        if bad:
            raise UserError("; ".join(bad) + ".", code=Exit.USAGE)
        if not any(getattr(self, name) for name in weights):
            raise UserError("Nothing is to be learned: every weight is 0.", "Raise --soft or another.", Exit.USAGE)
        student, own = self.text == "student", self.text != "data"
        for names, good, wants in (
            (("beta",), self.loss == "jsd", "--loss jsd"),
            (("tail",), self.top_k > 0, "--top-k"),
            (("hidden_loss",), self.hidden > 0, "--hidden"),
            (("on_policy", "mix", "policy_gradient"), student, "--text student"),
            (("prompt_tokens", "new_tokens", "sampling"), own, "--text teacher or student"),
        ):
            for name in names:
                if name in given and not good:
                    raise UserError(f"--{_flag(name)} means nothing without {wants}.", "Leave it out.", Exit.USAGE)
        if self.tail == "renormalise" and self.loss != "forward-kl":
            raise UserError(f"--tail renormalise does not go with --loss {self.loss}.", "Use rest.", Exit.USAGE)
        if self.cache is not None and (self.text != "data" or self.features or not self.soft):
            problem = "--cache keeps what the teacher says of the text as it is, and nothing of its inside."
            raise UserError(problem, "Leave --cache out, or --text and the weights of features.", Exit.USAGE)
        if self.policy_gradient and (self.loss != "reverse-kl" or not self.whole or self.temperature != 1):
            problem = "--policy-gradient is of the reverse KL at temperature 1, of whole distributions."
            raise UserError(problem, "Use --loss reverse-kl, without --top-k and --temperature.", Exit.USAGE)
        if student and self.on_policy == 1 and self.hard and not self.policy_gradient:
            problem = "--hard is about the text's own tokens, but the student writes all of it."
            raise UserError(problem, "Lower --on-policy, or leave --hard out.", Exit.USAGE)


CACHED = 64  # tokens of each place that a cache keeps, unless --top-k says otherwise
DEFAULTS: dict[str, Any] = {
    "loss": "forward-kl",
    "temperature": 1.0,
    "hard": 0.0,
    "everywhere": False,
    "hidden": 0.0,
    "hidden_loss": "mse",
    "attention": 0.0,
    "relations": 0.0,
    "embedding": 0.0,
    "top_k": 0,
    "tail": "rest",
    "text": "data",
    "on_policy": 1.0,
    "prompt_tokens": 0,
    "new_tokens": 0,
    "sampling": 1.0,
    "mix": 0.0,
    "policy_gradient": False,
}
# distilbert: Sanh et al., arXiv:1910.01108, and the weights 5, 2, 1 of its published command, as shares of the first
# two. tinybert: Jiao et al., arXiv:1909.10351, equation 11 with every weight 1. minilm: Wang et al., arXiv:2002.10957,
# equation 8. minillm: Gu et al., arXiv:2306.08543, algorithm 1; half of the rows are its text for L_PT. gkd: Agarwal et
# al., arXiv:2306.13649, algorithm 1. sequence: Kim & Rush, arXiv:1606.07947, section 3.2.
PRESETS: dict[DistillPreset, dict[str, Any]] = {
    "distilbert": {
        "temperature": 2.0,
        "soft": 5 / 7,
        "hard": 2 / 7,
        "hidden": 1 / 7,
        "hidden_loss": "cosine",
        "everywhere": True,
    },
    "tinybert": {"attention": 1.0, "hidden": 1.0, "embedding": 1.0, "everywhere": True},
    "minilm": {"soft": 0.0, "relations": 1.0},
    "minillm": {
        "loss": "reverse-kl",
        "text": "student",
        "on_policy": 0.5,
        "mix": 0.2,
        "policy_gradient": True,
        "hard": 1.0,
        "soft": 1.0,
    },
    "gkd": {"loss": "jsd", "text": "student", "on_policy": 0.5},
    "sequence": {"text": "teacher", "soft": 0.0, "hard": 1.0},
}


def check_insides(teacher: ModelConfig, student: ModelConfig, config: DistillConfig) -> None:
    """Whether what is to be compared can be.

    Raises:
        UserError: it cannot.
    """
    problem = hint = ""
    if config.attention and teacher.heads != student.heads:
        problem = f"--attention compares head with head, but the teacher has {teacher.heads} and the student "
        problem += f"{student.heads}."
        hint = f"Add --heads {teacher.heads} to a student made here, or use --relations in place of --attention."
    if (config.attention or config.relations) and "linear" in (teacher.attention, student.attention):
        problem = "Linear attention has no attention scores to compare."
        hint = "Leave the weights of --attention and --relations at 0."
    if problem:
        raise UserError(problem, hint, Exit.MISMATCH)


def _flag(name: str) -> str:
    return name.replace("_", "-")
