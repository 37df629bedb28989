"""Adapter: an adapter_config.json, PEFT's or ours: every key honoured, known to mean nothing here, or refused."""

import re
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

from llmctl.errors import Exit, UserError
from llmctl.spec.files import read_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.peft_keys import ALL_LINEAR, COMMON, KEYS

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"


@dataclass(frozen=True)
class Adapter:
    """What an adapter_config.json says; names and patterns are those of the published model.

    Attributes:
        kind: its peft_type: LORA, IA3, ...; BOTTLENECK is ours.
        base: the checkpoint that it was made for, as the file names it.
        task: CAUSAL_LM, SEQ_2_SEQ_LM, SEQ_CLS, TOKEN_CLS ... or None.
        targets: names of adapted modules or ends of such names, a regular expression, or None: as the tensors say.
        excluded: the same of modules that are not adapted.
        saved: ends of names of modules that are trained as they are and stored whole (modules_to_save).
        rank, alpha: of modules that no pattern names.
        ranks, alphas: (pattern, value), the first that matches counts.
        layers: numbers of the layers that are adapted; None: all.
        layers_patterns: names before these numbers; empty: any.
        biases: which biases of the base are stored with it: none, all, lora_only.
        lora_bias: B has a bias.
        feeds: ia3: the modules whose input is scaled, not the output; as `targets`.
        virtual_tokens: of soft prompts.
        adapted_layers: of LLaMA-Adapter.
        depth: layers that the keys and values of a prefix were written for.
        width: of a bottleneck.
    """

    kind: str
    base: str | None = None
    task: str | None = None
    targets: tuple[str, ...] | str | None = None
    excluded: tuple[str, ...] | str | None = None
    saved: tuple[str, ...] = ()
    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    layers: tuple[int, ...] | None = None
    layers_patterns: tuple[str, ...] = ()
    biases: str = "none"
    lora_bias: bool = False
    feeds: tuple[str, ...] | str | None = None
    width: int = 64
    virtual_tokens: int = 0
    adapted_layers: int = 0
    depth: int = 0

    def targeted(self, name: str) -> bool:
        """Whether a module of the published model is adapted; of `all-linear`, any that is not kept out.

        Source: check_target_module_exists of peft 0.21.
        """
        if self.excluded is not None and _named(name, self.excluded):
            return False
        if any(re.match(rf"(^|.*\.){one}($|\..*)", name) for one in self.saved):
            return False
        if self.targets is None or self.all_linear:
            return True
        return _named(name, self.targets) and (isinstance(self.targets, str) or self._in_layers(name))

    @property
    def all_linear(self) -> bool:
        """Whether it is for every matrix but those of the heads."""
        return isinstance(self.targets, str) and self.targets.lower() == ALL_LINEAR

    def rank_of(self, name: str) -> int:
        """The rank of one module."""
        return _first(self.ranks, name, self.rank)

    def scale_of(self, name: str) -> float:
        """What the product of one module's B and A is multiplied by."""
        rank = self.rank_of(name)
        return _first(self.alphas, name, self.alpha) / (sqrt(rank) if self.rslora else rank)

    def feeding(self, name: str) -> bool:
        """ia3: whether what enters a module is scaled."""
        if isinstance(self.feeds, str):
            return re.fullmatch(self.feeds, name) is not None
        return any(name.endswith(end) for end in self.feeds or ())

    def _in_layers(self, name: str) -> bool:
        if not self.layers:
            return True
        for pattern in self.layers_patterns or (r".*?\.[^.]*",):
            place = rf"(?:^|.*?\.){pattern}" if self.layers_patterns else pattern
            if found := re.match(rf"{place}\.(\d+)\.", name):
                return int(found[1]) in self.layers
        return False


def is_adapter(path: Path | str) -> bool:
    """Whether it is the directory of an adapter."""
    return (Path(path) / CONFIG).is_file()


def read_adapter(path: Path | str) -> Adapter:
    """The adapter_config.json of a directory.

    Raises:
        UserError: it is absent or unreadable; of a kind that is not known; says what is not known, or what changes the
            result in a way that is not implemented. All that is wrong at once.
    """
    where = Path(path) / CONFIG
    json = read_json(where, "an adapter's config")
    kind = json.get("peft_type")
    if not isinstance(kind, str) or kind not in KEYS:
        raise UserError(
            f"{where}: peft_type is {_short(kind)}; llmctl knows {', '.join(KEYS)}.",
            "Merge such an adapter into its base with PEFT.",
            Exit.MISMATCH,
        )
    readers = COMMON | KEYS[kind]
    values: dict[str, object] = {}
    wrong, unknown = [], []
    for key, value in json.items():
        field, read = readers.get(key, (None, None))
        if read is None:
            if not _off(value):
                unknown.append(f"{key} ({_short(value)})")
            continue
        try:
            value = read(value)
        except ValueError as error:
            wrong.append(f"{key} is {_short(value)}, wanted {error}")
            continue
        if field is not None:
            values[field] = value
    if unknown:
        wrong.append(f"not known here: {', '.join(unknown)}")
    if wrong:
        hint = "Merge it into its base with the tool that made it, and use the merged checkpoint."
        raise UserError(f"{where}: {'; '.join(wrong)}.", hint, Exit.MISMATCH)
    return Adapter(kind, **{field: value for field, value in values.items() if value is not None})  # type: ignore[arg-type]


def base_of(path: Path | str, base: Path | None = None) -> Path:
    """The checkpoint that an adapter stands on; nothing is ever fetched.

    Args:
        path: of the adapter.
        base: the checkpoint, where the user names it; None: what adapter_config.json names, as it is or beside the
            adapter.

    Raises:
        UserError: there is no such directory, or it is that of an adapter.
    """
    if base is not None:
        _check_whole(path, Path(base))
        if not (Path(base) / "config.json").is_file():
            raise UserError(f"--base {base} has no config.json.", "Name the checkpoint that the adapter was made for.")
        return Path(base)
    named = read_adapter(path).base
    if not named:
        raise UserError(f"{path} does not say which checkpoint it is for.", _elsewhere(path), Exit.MISMATCH)
    last = re.split(r"[/\\]", named.rstrip("/\\"))[-1]
    beside = Path(path).resolve().parent / last
    for place in (Path(named), Path(path) / named, beside):
        if (place / "config.json").is_file() and place.resolve() != Path(path).resolve():
            _check_whole(path, place)
            return place
    raise UserError(
        f"{path} is for {named}, which is not here, nor is {last} beside it.",
        f"Link that checkpoint (ln -s MODEL {beside}), or {_elsewhere(path, 'merge')}",
        Exit.MISMATCH,
    )


def _elsewhere(path: Path | str, merge: str = "Merge") -> str:
    return f"{merge} into one that you name: llmctl lora-merge {path} --base MODEL -o MERGED"


def _check_whole(path: Path | str, base: Path) -> None:
    if is_adapter(base):
        raise UserError(
            f"{base}, which {path} is to stand on, is an adapter, not a checkpoint.",
            f"Merge it into its own base first: llmctl lora-merge {base} -o MERGED",
            Exit.MISMATCH,
        )


def within(path: Path | str, config: ModelConfig) -> ModelConfig:
    """The shape of a model for the texts that it reads: the virtual tokens of an adapter take places in its context.

    Args:
        path: of the checkpoint or the adapter.
        config: of the model.
    """
    if not is_adapter(path) or (adapter := read_adapter(path)).kind not in ("PROMPT_TUNING", "PREFIX_TUNING"):
        return config
    return replace(config, context=max(1, config.context - adapter.virtual_tokens))


def weights_of(path: Path | str) -> Path:
    """The file of an adapter's tensors.

    Raises:
        UserError: there is none, or it is a pickle, which could run code.
    """
    directory = Path(path)
    if (directory / WEIGHTS).is_file():
        return directory / WEIGHTS
    if (directory / _PICKLE).is_file():
        raise UserError(
            f"{directory} holds {_PICKLE}, a pickle, which can run code when it is read.",
            f"Convert it: torch.load(..., weights_only=True), then safetensors.torch.save_file to {WEIGHTS}.",
        )
    raise UserError(f"{directory} has no {WEIGHTS}.", "It may be incomplete; copy it again.", Exit.MISMATCH)


_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector|lora_embedding_A|lora_embedding_B|ia3_l|"
    r"bottleneck_down|bottleneck_up)(\.default)?(?P<leaf>\.weight|\.bias)?"
)
_SAVED = re.compile(r"\.modules_to_save(\.default)?(?=\.)")


def part_of(tensor: str) -> tuple[str, str]:
    """The module that a tensor of an adapter's file is for, by the published model's name, and what it is to it.

    What it is: lora_A, lora_B, lora_B.bias, lora_magnitude_vector, lora_embedding_A, lora_embedding_B, ia3_l;
    base.weight or base.bias for a parameter of the base under an adapter; weight or bias for one of a module that is
    stored whole.
    """
    name = _SAVED.sub("", re.sub(r"^base_model\.(model\.)?", "", tensor))
    if found := _PART.fullmatch(name):
        bias = ".bias" if found["leaf"] == ".bias" else ""
        return found["module"], found["part"] + bias
    module, _, leaf = name.rpartition(".")
    if module.endswith(".base_layer"):
        return module.removesuffix(".base_layer"), f"base.{leaf}"
    return module, leaf


def idle(tensor: str) -> bool:
    """Whether a tensor of an adapter's file is of a module in whose place another is stored whole.

    PEFT writes such a module's bias too where it is told to store all biases, and never reads it.
    """
    return ".original_module." in tensor


def _named(name: str, patterns: tuple[str, ...] | str) -> bool:
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in patterns)


def _first(patterns: tuple, name: str, otherwise):  # type: ignore[no-untyped-def]
    """The value of the first pattern that is the end of a name. Source: get_pattern_key of peft 0.21."""
    return next((value for pattern, value in patterns if re.match(rf"(.*\.)?({pattern})$", name)), otherwise)


def _off(value: object) -> bool:
    """Whether an option of a later version is switched off."""
    return value is None or value is False or value == {} or value == []


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
