"""Search: how a text is looked for otherwise than one token after the other: beams, groups of beams, contrast."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.sample import Sampling

EarlyStopping = Literal["false", "true", "never"]
Strategy = Literal["tokens", "beams", "contrastive"]

# What generation_config.json says by early_stopping.
STOPPINGS: dict[Any, EarlyStopping] = {False: "false", True: "true", "never": "never"}


@dataclass(frozen=True)
class Search:
    """Search.

    What is left out is None until `filled` has asked the checkpoint; then every field has a value.

    Raises:
        UserError: a value out of range, or an option that nothing would look at.
    """

    beams: Annotated[
        int | None,
        "Continue this many texts side by side, the likeliest at each step. Default: the checkpoint's, or 1.",
    ] = None
    beam_groups: Annotated[
        int | None, "Groups of beams, each searching apart from those before it; for texts that differ."
    ] = None
    diversity: Annotated[
        float | None, "Taken off a token's score for each beam of an earlier group that has just written it."
    ] = None
    length_penalty: Annotated[
        float | None,
        "A text's score is its log-probability over its tokens to this power: above 0 favours long texts. Default: 1.",
    ] = None
    early_stopping: Annotated[
        EarlyStopping | None,
        "End when as many texts as beams have ended (true), when no beam would beat them at its present length "
        "(false), or when none could at any length (never). Default: false.",
    ] = None
    contrastive: Annotated[
        float | None,
        "Contrastive search: weight, from 0 to 1, of how much a token's state is like an earlier one's, against its "
        "probability; 0.6 is usual.",
    ] = None
    candidates: Annotated[int | None, "Likeliest tokens among which contrastive search chooses. Default: 4."] = None

    def __post_init__(self) -> None:
        wrong = [
            f"--{name.replace('_', '-')} is {value}, wanted {wanted}"
            for name, good, wanted in (
                ("beams", lambda x: x >= 1, "1 or more"),
                ("beam_groups", lambda x: x >= 1, "1 or more"),
                ("diversity", lambda x: 0 <= x < float("inf"), "0 or more"),
                ("length_penalty", lambda x: abs(x) < float("inf"), "a number"),
                ("contrastive", lambda x: 0 <= x <= 1, "from 0 to 1"),
                ("candidates", lambda x: x >= 2, "2 or more"),
            )
            if (value := getattr(self, name)) is not None and not good(value)
        ]
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)
        if self.contrastive and (self.beams or 1) > 1:
            raise UserError("--contrastive keeps one text, --beams several.", "Leave one out.", Exit.USAGE)
        groups = self.beam_groups or 1
        if self.beams is not None and self.beams % groups:
            raise UserError(
                f"--beams {self.beams} cannot be divided into --beam-groups {groups}.",
                f"Use a multiple of {groups}.",
                Exit.USAGE,
            )

    @property
    def strategy(self) -> Strategy:
        """Which search this is."""
        return "beams" if (self.beams or 1) > 1 else "contrastive" if self.contrastive else "tokens"

    def filled(self, said: dict[str, Any], plain: bool = False) -> "Search":
        """This search with a value in every field: as asked, else as the checkpoint says, else the default.

        Args:
            said: generation_config.json; or config.json, where older checkpoints say the same.
            plain: something is asked for that goes token by token (sampling, a draft): then a search that only the
                checkpoint asks for is not made.

        Raises:
            UserError: values of the checkpoint that mean nothing, or options that nothing would look at.
        """
        theirs, strategy = _said(said), self.strategy
        if self.beams is None and self.contrastive is None and not plain:
            contrast: Strategy = "contrastive" if theirs.get("contrastive") else "tokens"
            strategy = "beams" if theirs.get("beams", 1) > 1 else contrast
            taken = set(USES)
        else:  # how it is searched is asked for; the checkpoint may still say what its scores are
            taken = {"length_penalty", "early_stopping", "candidates"}
        theirs = {name: value for name, value in theirs.items() if name in taken and USES[name] == strategy}
        asked = {name: value for name, value in vars(self).items() if value is not None}
        made = Search(**{**DEFAULTS, **theirs, **asked})
        idle = [name for name in asked if name not in _CHOOSING and made.strategy != USES[name]]
        if idle:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
            needed = {"beams": "--beams 2 or more", "contrastive": "--contrastive 0.6"}[USES[idle[0]]]
            raise UserError(f"Nothing would look at {flags}.", f"Add {needed}.", Exit.USAGE)
        if (made.beam_groups > 1) != (made.diversity > 0):
            alone = "--diversity" if made.diversity else "--beam-groups"
            other = "--beam-groups 2 or more" if made.diversity else "--diversity 0.5, else all groups find the same"
            raise UserError(f"{alone} means nothing alone.", f"Add {other}.", Exit.USAGE)
        return made

    def settled(self, sampling: Sampling, said: dict[str, Any], plain: bool = False) -> tuple["Search", Sampling]:
        """The search with a value in every field, and the choice of tokens that goes with it.

        Several completions are the best texts that a search of beams finds, which takes no chance unless a
        temperature or a filter is asked for: then the beams are drawn.

        Args:
            said: generation_config.json; or config.json, where older checkpoints say the same.
            plain: something else is asked for that goes token by token: a search that only the checkpoint asks for is
                not made.

        Raises:
            UserError: options that do not go together, and as for `filled`.
        """
        drawn = not sampling.greedy and not sampling.counted
        search = self.filled(said, plain or drawn or sampling.best_of > 0)
        if search.strategy == "tokens":
            return search, sampling
        what = "--contrastive" if search.contrastive else "--beams"
        if sampling.best_of:
            raise UserError(f"{what} gives the best that it finds; --best-of draws.", "Leave one out.", Exit.USAGE)
        if drawn and search.contrastive:
            raise UserError("--contrastive takes no chance.", "Leave out what asks for sampling.", Exit.USAGE)
        if drawn and search.beam_groups > 1:
            raise UserError("--beam-groups take no chance.", "Leave out what asks for sampling.", Exit.USAGE)
        n = search.returned(sampling.n, said)
        return search, replace(sampling, n=n, temperature=sampling.temperature if drawn else 0.0)

    def returned(self, n: int, said: dict[str, Any]) -> int:
        """How many texts of each prompt: `n`, or as many as the checkpoint says where n is 1.

        Raises:
            UserError: more than there are beams.
        """
        theirs = said.get("num_return_sequences")
        if n == 1 and self.strategy == "beams" and type(theirs) is int and theirs > 1:
            return min(theirs, self.beams)
        if self.strategy == "beams" and n > self.beams:
            raise UserError(f"--n is {n}, but there are {self.beams} beams.", f"Use --beams {n}.", Exit.USAGE)
        if self.strategy == "contrastive" and n > 1:
            raise UserError("--contrastive gives one text of each prompt.", "Leave --n out.", Exit.USAGE)
        return n

    @property
    def group(self) -> "Search":
        """The search of one group of beams."""
        return replace(self, beams=self.beams // self.beam_groups, beam_groups=1, diversity=0.0)


DEFAULTS: dict[str, Any] = {
    "beams": 1,
    "beam_groups": 1,
    "diversity": 0.0,
    "length_penalty": 1.0,
    "early_stopping": "false",
    "contrastive": 0.0,
    "candidates": 4,
}
# The strategy that looks at an option.
USES: dict[str, Strategy] = {
    "beams": "beams",
    "beam_groups": "beams",
    "diversity": "beams",
    "length_penalty": "beams",
    "early_stopping": "beams",
    "contrastive": "contrastive",
    "candidates": "contrastive",
}
_CHOOSING = ("beams", "contrastive")  # those that choose it


def _said(said: dict[str, Any]) -> dict[str, Any]:
    """The fields that a checkpoint gives a value to.

    Raises:
        UserError: a value that means nothing.
    """
    wanted: dict[str, tuple[str, Any]] = {
        "num_beams": ("beams", lambda x: type(x) is int and x >= 1),
        "num_beam_groups": ("beam_groups", lambda x: type(x) is int and x >= 1),
        "diversity_penalty": ("diversity", lambda x: _number(x) and x >= 0),
        "length_penalty": ("length_penalty", _number),
        "early_stopping": ("early_stopping", lambda x: isinstance(x, (bool, str)) and x in STOPPINGS),
        "penalty_alpha": ("contrastive", lambda x: _number(x) and 0 <= x <= 1),
    }
    found: dict[str, Any] = {}
    for key, (name, good) in wanted.items():
        value = said.get(key)
        if value is None:
            continue
        if not good(value):
            raise UserError(
                f"generation_config.json: {key} is {value!r}, which means nothing.", "Mend it.", Exit.MISMATCH
            )
        found[name] = STOPPINGS[value] if name == "early_stopping" else value
    top_k = said.get("top_k")
    if found.get("contrastive") and type(top_k) is int and top_k > 1:
        found["candidates"] = top_k
    else:  # as transformers has it: without candidates there is no contrast
        found.pop("contrastive", None)
    return found


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")
