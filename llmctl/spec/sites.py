"""Sites: the modules of a published model by their own names, and the modules of ours that each of them is."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from llmctl.spec.account import module_kind, rules
from llmctl.spec.families import family_read
from llmctl.spec.families.family import Family
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Fusion


@dataclass(frozen=True)
class Site:
    """A module of a published model that has a weight of two dimensions: a matrix or a table.

    Attributes:
        theirs: its name in the class that the checkpoint is saved from: "transformer.h.0.attn.c_attn".
        ours: our modules that share its output rows, in their order: q, k and v.
        transposed: it holds (in, out), as GPT-2's Conv1D does.
        fusion: how several of ours share the rows.
        table: it is an embedding.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool
    fusion: Fusion
    table: bool


def sites(config: ModelConfig, family: Family | None = None) -> list[Site]:
    """Every site of a model, in the order of its files.

    Args:
        family: whose names; None: that in which the model is written.
    """
    found = []
    for rule in rules(config, family):
        if (kind := module_kind(rule)) is None:
            continue  # a bias, or the weight of a norm
        ours = tuple(name.removesuffix(".weight") for name in rule.ours)
        table = kind == "Embedding"
        found.append(Site(rule.theirs.removesuffix(".weight"), ours, rule.transposed, rule.fusion, table))
    return found


def adaptable(config: ModelConfig) -> list[Site]:
    """Every site of a model as it was read; a tied head too, which has no matrix of its own but can have an adapter."""
    found = sites(config, family_read(config))
    return [*found, *_heads(config)] if config.tie and config.lm_head else found


def head_names(config: ModelConfig) -> list[str]:
    """What a published model calls the matrix of its head, whether it is tied or not, or there is none here."""
    return [site.theirs for site in _heads(config)]


def _heads(config: ModelConfig) -> list[Site]:
    bare = {"classifier": "none", "classifier_dense": "none", "labels": ()}
    untied = replace(config, tie=False, lm_head=True, logit_scale=1.0, **bare)  # T5's scaled heads are all tied
    return [site for site in sites(untied, family_read(config)) if site.ours == ("head",)]


def matches(name: str, pattern: str) -> bool:
    """Whether a shell pattern is a name of ours, or a run of its parts: attention.q, mlp, decoder.layers.0."""
    return any(fnmatchcase(f".{name}.", wanted) for wanted in (f".{pattern}.", f"*.{pattern}.*"))
