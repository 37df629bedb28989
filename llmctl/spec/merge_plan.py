"""MergePlan: which tensor of a checkpoint each part of an adapter changes, and what the merged checkpoint holds."""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.account import account, rules, their_shape
from llmctl.spec.adapted import LABELLING, config_beside, with_head
from llmctl.spec.edits import Edit, Given, Made, edits_of, unfit
from llmctl.spec.families import config_of, family_for, family_read, read_config, read_config_json
from llmctl.spec.families.family import Family
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.peft import Adapter, idle, read_adapter, weights_of
from llmctl.spec.remade import HEAD, NAMED, apart, check_plain, remade, some
from llmctl.spec.safetensors import TensorInfo, read_header, read_tensors
from llmctl.spec.sites import sites
from llmctl.spec.sizes import shapes

Precision = Literal["stored", "nf4", "nf4-dq"]
MERGED = ("LORA", "IA3")  # kinds of adapters that weights alone can express
_EMBEDDING = "embed.tokens.weight"


@dataclass(frozen=True)
class MergePlan:
    """What a merged checkpoint is made of, as headers and configs say.

    Attributes:
        base: directory of the checkpoint.
        given: the adapters.
        config: of the merged model.
        json: its config.json.
        tensors: in the order they are written.
        dropped: tensors of the base that the merged model has no place for.
        notes: what a user should know.
        precision: in which the base's matrices count.
    """

    base: Path
    given: tuple[Given, ...]
    config: ModelConfig
    json: dict
    tensors: tuple[Made, ...]
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    precision: Precision = "stored"

    @classmethod
    def of(
        cls, base: Path, given: list[Given], dtype: str | None = None, precision: Precision = "stored"
    ) -> "MergePlan":
        """Reads headers and configs, and checks that all fits.

        Args:
            dtype: of the floats: fp32, bf16, fp16; None: as the base's.
            precision: stored: weights of the base are what its files hold; nf4, nf4-dq: matrices of the layers are what
                is left of them in 4 bits (with scales that are quantized, too), as in training by QLoRA.

        Raises:
            UserError: a base that is quantized or an adapter itself, an adapter of a kind that cannot be merged,
                tensors of an adapter that have no place in the base, or do not fit it.
        """
        json = read_config_json(base)
        check_plain(base, json)
        adapters = [read_adapter(one.path) for one in given]
        _check_kinds(given, adapters)
        headers = {one: read_header(weights_of(one.path))[0] for one in given}
        stored = {one: {name: it for name, it in header.items() if not idle(name)} for one, header in headers.items()}
        config = read_config(base)
        headed, said = _headed(config, given, adapters, stored)
        found: dict[str, list[Edit]] = {}
        for number, (one, adapter) in enumerate(zip(given, adapters, strict=True)):
            for name, edits in edits_of(number, one, adapter, stored[one], headed).items():
                found.setdefault(name, []).extend(edits)
        target, notes = _untied(headed, found, given)
        tensors, dropped = _tensors(base, config, target, given, found, NAMED[dtype] if dtype else None)
        if precision != "stored":
            tensors = [
                _packed(one, rule) for one, rule in zip(tensors, rules(target, _family(config, target)), strict=True)
            ]
        if dropped:
            notes.append(f"left out, as the merged model has no use for it: {some(dropped)}.")
        if target.classifier == "none" and (headless := [a.task for a in adapters if a.task in LABELLING]):
            notes.append(f"an adapter of task {headless[0]} brings no head for it: the merged model has the base's.")
        json = remade({**json, **(said or {})}, config, target, dtype)
        return cls(base, tuple(given), target, json, tuple(tensors), tuple(dropped), tuple(notes), precision)

    @property
    def bytes(self) -> int:
        """Size of all its tensors."""
        return sum(made.bytes for made in self.tensors)

    def facts(self) -> dict[str, int]:
        """Counts of tensors and bytes, for a report."""
        edited = [made for made in self.tensors if made.edits and made.source]
        return {
            "tensors": len(self.tensors),
            "merged": len(edited),
            "added": sum(made.source is None for made in self.tensors),
            "dropped": len(self.dropped),
            "parameters": sum(prod(made.shape) for made in self.tensors),
            "bytes": self.bytes,
            "largest_tensor_bytes": max(made.bytes for made in self.tensors),
        }


def _check_kinds(given: list[Given], adapters: list[Adapter]) -> None:
    for one, adapter in zip(given, adapters, strict=True):
        if adapter.kind not in MERGED:
            raise UserError(
                f"{one.path} is of kind {adapter.kind}, which no change of the base's weights can express.",
                f"Use it beside its base: llmctl generate {one.path} ...; merged are {', '.join(MERGED)}.",
                Exit.MISMATCH,
            )


def _headed(
    config: ModelConfig, given: list[Given], adapters: list[Adapter], stored: dict[Given, dict[str, TensorInfo]]
) -> tuple[ModelConfig, dict | None]:
    """The base's shape with the classifier that an adapter brings, and the config.json that says so, if one does."""
    for one, adapter in zip(given, adapters, strict=True):
        if (json := config_beside(one.path)) is not None:
            said = config_of(json)
            if said.labels and said != config:
                return said, json
        elif config.classifier == "none" and (headed := with_head(config, adapter.task, stored[one].values())):
            return headed, None
    return config, None


def _untied(config: ModelConfig, found: dict[str, list[Edit]], given: list[Given]) -> tuple[ModelConfig, list[str]]:
    """The config of the merged model: a head apart from its embedding where they come to differ; and what to say."""
    changed = [name for name in (_EMBEDDING, HEAD) if name in found]
    if not (config.tie and config.lm_head and changed):
        return config, []
    if len(changed) == 2 and config.logit_scale == 1 and _alike(found[_EMBEDDING], found[HEAD], given):
        return config, []
    untied = apart(config)
    if untied is None:
        raise UserError(
            f"The adapter changes the embedding or the head, which the base ties, and no config.json of model_type "
            f"{config.model_type} keeps the two apart.",
            "Merged into one, they would not be the adapter's model; use the adapter beside its base.",
            Exit.MISMATCH,
        )
    note = (
        f"{' and '.join(name.removesuffix('.weight') for name in changed)} changed, and the base ties the two: they "
        "are stored apart (tie_word_embeddings false), or the merged model would not be that of the adapter."
    )
    return untied, [note]


def _alike(one: list[Edit], other: list[Edit], given: list[Given]) -> bool:
    """Whether the edits put the same bytes in place of two tensors."""
    if [(edit.given, edit.kind) for edit in one] != [(edit.given, edit.kind) for edit in other]:
        return False
    for first, second in zip(one, other, strict=True):
        a, b = first.parts.get("whole"), second.parts.get("whole")
        if a is None or b is None or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        with open(weights_of(given[first.given].path), "rb") as file, open(file.name, "rb") as again:
            file.seek(a.start), again.seek(b.start)
            left = a.bytes
            while left:
                size = min(left, 1 << 20)
                if file.read(size) != again.read(size):
                    return False
                left -= size
    return True


def _family(config: ModelConfig, target: ModelConfig) -> Family:
    """Whose names the merged checkpoint has."""
    return family_read(config) if target == config else family_for(target)


def _packed(made: Made, rule: Name) -> Made:
    """A tensor that counts as it is in 4 bits, where it holds matrices of a layer."""
    return replace(made, packed=rule) if ".layers." in rule.ours[0] and len(made.shape) == 2 else made


def _tensors(
    base: Path,
    config: ModelConfig,
    target: ModelConfig,
    given: list[Given],
    found: dict[str, list[Edit]],
    dtype: str | None,
) -> tuple[list[Made], list[str]]:
    """The tensors of the merged checkpoint, and those of the base that are left out."""
    family = _family(config, target)
    stored = account(read_tensors(base), config, str(base)).stored
    sources = {rule.ours: (rule, info) for rule, info in stored.items()}
    tables = {site.ours for site in sites(target, family) if site.table}
    wanted = shapes(target)
    usual = max((info.dtype for info in stored.values()), key=[info.dtype for info in stored.values()].count)
    made, used, wrong = [], set(), []
    for rule in rules(target, family):
        split = rule.ours == (HEAD,) and rule.ours not in sources and config.tie
        ours = (_EMBEDDING,) if split else rule.ours
        like, source = sources.get(ours, (rule, None))
        used.add(ours)
        edits = tuple(found.get(rule.ours[0], ()))
        turned = rule.transposed or tuple(name.removesuffix(".weight") for name in rule.ours) in tables
        one = Made(
            rule.theirs,
            their_shape(rule, {name: wanted[name] for name in rule.ours}),
            dtype or (source.dtype if source else usual),
            source,
            edits,
            turned,
            config.logit_scale / target.logit_scale if split else 1.0,
        )
        if (like.transposed, like.fusion, like.row) != (rule.transposed, rule.fusion, rule.row):
            wrong.append(f"{rule.theirs} would be stored otherwise than {like.theirs}")
        wrong += unfit(one, given)
        made.append(one)
    if wrong:
        hint = "Name the checkpoint that the adapter was made for: --base MODEL."
        raise UserError(f"The adapter does not fit {base}: {some(wrong, '; ')}.", hint, Exit.MISMATCH)
    return made, [rule.theirs for rule in stored if rule.ours not in used]
