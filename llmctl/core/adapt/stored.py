"""save_adapter, load_adapter: adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors."""

from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmctl.core.adapt.forms import FORMS, Parts
from llmctl.core.adapt.kept import save_kept, set_kept, twins
from llmctl.core.adapt.soft import has_soft, load_soft, save_soft
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError
from llmctl.spec.account import FLOATS
from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.families import family_read
from llmctl.spec.files import write_json
from llmctl.spec.peft import CONFIG, WEIGHTS, Adapter, idle, part_of, read_adapter, weights_of
from llmctl.spec.safetensors import read_header
from llmctl.spec.sites import Site, adaptable

WRAPPED, PROMPTED = "base_model.model.", "base_model."  # before names of the base; of prompts PEFT wraps it once


def save_adapter(directory: Path, model: Transformer, config: AdaptConfig, base: Path, task: str | None) -> None:
    """Write a model's adapter into an existing directory; the same adapter always gives the same bytes.

    What of the base is trained as it is goes with it: whole modules as modules_to_save, biases under their names.

    Args:
        directory: where to write.
        model: with the adapter attached, or with parameters of its own that are trained.
        config: of the method.
        base: the checkpoint that the model was read from.
        task: lm, seq2seq, classify, tag; None: none of these.

    Raises:
        ValueError: adapters that one file cannot hold.
    """
    kind, family = PEFT_TYPES[config.method], family_read(model.config)
    targets = [site for site in adaptable(model.config) if _adapters(model, site)]
    if kind not in FORMS:
        said, tensors = save_soft(model)
    else:
        tensors = {}
        for site in targets:
            parts = FORMS[kind].parts(site, [model.get_submodule(name) for name in site.ours], model.config.heads)
            for name in (site.theirs, *twins(model.config).get(site.theirs, ())):
                tensors |= {f"{WRAPPED}{family.in_class(name)}.{part}": tensor for part, tensor in parts.items()}
        said = _said(model, config, kind, targets)
    kept, whole, biases = save_kept(model, {site.theirs for site in targets})
    prefix = PROMPTED if kind in PROMPTS else WRAPPED
    tensors |= {f"{prefix}{family.in_class(name)}": tensor for name, tensor in kept.items()}
    common = {
        "peft_type": kind,
        "task_type": _task(task, model),
        "base_model_name_or_path": str(Path(base).resolve()),
        "inference_mode": True,
        **({"modules_to_save": [family.in_class(name) for name in whole]} if whole else {}),
        **({"bias": "all" if biases else "none"} if kind == "LORA" else {}),
    }
    write_json(Path(directory) / CONFIG, common | said)
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(stored, Path(directory) / WEIGHTS, metadata={"format": "pt"})


def load_adapter(model: Transformer, directory: Path | str) -> None:
    """Attach the adapter that a directory holds, ours or PEFT's.

    Parameters of the base that it stores replace the model's. A tied embedding or head that it stores alone, or both
    with different numbers, unties the model.

    Raises:
        UserError: a config that is not honoured in full; a tensor that nothing takes, or that something lacks; shapes
            that do not fit; there is an adapter already.
    """
    adapter, path = read_adapter(directory), weights_of(directory)
    if has_soft(model) or any(name.endswith(".adapter") for name, _ in model.named_modules()):
        raise UserError("This model has an adapter already.", "Merge it first: llmctl lora-merge.", Exit.MISMATCH)
    header, _ = read_header(path)
    wrong = [f"{one.name} is {one.dtype}, no float" for one in header.values() if one.dtype not in FLOATS]
    if wrong:
        raise _misfit(path, wrong)
    tensors = {name: tensor for name, tensor in load_file(path).items() if not idle(name)}
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        hint = "Its training diverged, or the file is broken: use an earlier state of it."
        raise UserError(f"{path}: {broken[0]} holds numbers that are not finite.", hint)
    KINDS[adapter.kind](model, adapter, path, tensors)


def load_sites(model: Transformer, adapter: Adapter, path: Path, tensors: dict[str, Tensor]) -> None:
    """Attach what stands at modules of the published model; every tensor has its place, every place its tensors."""
    form, family, by_name = FORMS[adapter.kind], family_read(model.config), _by_name(model)
    found: dict[str, Parts] = {}
    kept: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, tensor in tensors.items():
        module, part = part_of(name)
        if part not in form.known:
            kept[name] = tensor
        elif family.module(module) not in by_name:
            wrong.append(f"{module} is nothing that can be adapted in this model")
        elif not adapter.targeted(module):
            wrong.append(f"{module} has an adapter, but {CONFIG} does not target it")
        else:
            found.setdefault(module, {})[part] = tensor
    wrong += _lacking(model, adapter, found)
    wrong += _joined(model, adapter, found)
    if not found and not kept:
        wrong.append("it holds no adapter")
    made: list[tuple[nn.Module, nn.Module]] = []
    taken: dict[str, str] = {}
    for module, parts in found.items():
        site = by_name[family.module(module)]
        if (other := taken.setdefault(site.theirs, module)) != module:
            wrong.append(f"{other} and {module} are one module here")
        layers = [model.get_submodule(name) for name in site.ours]
        try:
            adapters = form.attached(adapter, module, site, layers, parts, model.config.heads)
        except ValueError as error:
            wrong.append(f"{module}: {error}")
        else:
            made += zip(layers, adapters, strict=True)
    if wrong:
        raise _misfit(path, wrong)
    _set_kept(model, adapter, path, kept)
    for layer, one in made:
        layer.adapter = one.to(model.embed.tokens.weight.device).train(model.training)


def load_prompts(model: Transformer, adapter: Adapter, path: Path, tensors: dict[str, Tensor]) -> None:
    """Attach a soft prompt; what else there is are parameters of the base."""
    left = dict(tensors)
    load_soft(model, adapter, left)
    _set_kept(model, adapter, path, left)


def _set_kept(model: Transformer, adapter: Adapter, path: Path, tensors: dict[str, Tensor]) -> None:
    kept: dict[bool, dict[str, Tensor]] = {True: {}, False: {}}
    for name, tensor in tensors.items():
        module, part = part_of(name)
        based = part.startswith("base.")
        kept[based][".".join(filter(None, (module, part.removeprefix("base."))))] = tensor
    if wrong := set_kept(model, adapter, kept[False], kept[True]):
        raise _misfit(path, wrong)


def _by_name(model: Transformer) -> dict[str, Site]:
    """Sites by every name that the published model has for them, without the family's prefix."""
    family, others = family_read(model.config), twins(model.config)
    return {
        family.bare(name): site
        for site in adaptable(model.config)
        for name in (site.theirs, *others.get(site.theirs, ()))
    }


def _lacking(model: Transformer, adapter: Adapter, found: Iterable[str]) -> list[str]:
    """Matrices of the layers that the config targets and the file has nothing for."""
    family, names = family_read(model.config), set(found)
    full = {site.theirs for site in adaptable(model.config)}
    spelled: Callable[[str], str] = family.bare if names and not names & full else str
    if adapter.targets is None:
        return []
    wanted = [spelled(site.theirs) for site in adaptable(model.config) if ".layers." in site.ours[0] and not site.table]
    return [
        f"{name} is targeted, but has no tensors" for name in wanted if adapter.targeted(name) and name not in names
    ]


def _joined(model: Transformer, adapter: Adapter, found: dict[str, Parts]) -> list[str]:
    """Put together what a file has for a table under the names that it is read as, which is one table here."""
    wrong = []
    for table, others in twins(model.config).items():
        given = {name: found.pop(name) for name in (*others, table) if name in found}
        if not given:
            continue
        first, some = given.get(others[0]), others[0]
        if first is None or any(name not in given for name in others):
            absent = [name for name in others if name not in given]
            wrong.append(
                f"{', '.join(given)} has an adapter, but {', '.join(absent)}, which is the same table, has none"
            )
        elif any(adapter.scale_of(name) != adapter.scale_of(some) or not _same(given[name], first) for name in others):
            wrong.append(f"the adapters of {', '.join(others)} differ, and these are one table here")
        else:
            found[some] = first
    return wrong


def _same(one: Parts, other: Parts) -> bool:
    return one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())


def _misfit(path: Path, wrong: list[str]) -> UserError:
    wrong = [*dict.fromkeys(wrong)]
    more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    hint = f"Check that base_model_name_or_path in {CONFIG} names the checkpoint that it was made for."
    return UserError(f"{path} does not fit this model: {'; '.join(wrong[:4])}{more}.", hint, Exit.MISMATCH)


def _task(task: str | None, model: Transformer) -> str | None:
    """As PEFT calls it."""
    if task == "lm" and model.config.kind != "decoder":
        task = "seq2seq" if model.config.kind == "encoder-decoder" else None
    return TASKS.get(task) if task else None


def _adapters(model: Transformer, site: Site) -> list[nn.Module]:
    """Those of our modules at a site."""
    found = [model.get_submodule(name).adapter for name in site.ours]
    return [one for one in found if one is not None]


def _said(model: Transformer, config: AdaptConfig, kind: str, targets: list[Site]) -> dict[str, object]:
    """What adapter_config.json says of adapters at sites."""
    others, family = twins(model.config), family_read(model.config)

    def names(site: Site) -> list[str]:
        return [family.in_class(name) for name in (site.theirs, *others.get(site.theirs, ()))]

    every = [name for site in adaptable(model.config) for name in names(site)]
    at = {name: site for site in targets for name in names(site)}
    own = FORMS[kind].said(config, {name: _adapters(model, site)[0] for name, site in at.items()}, every)
    return {"fan_in_fan_out": any(site.transposed for site in targets), **own}


KINDS: dict[str, Callable[[Transformer, Adapter, Path, dict[str, Tensor]], None]] = {
    **dict.fromkeys(FORMS, load_sites),
    "PROMPT_TUNING": load_prompts,
    "PREFIX_TUNING": load_prompts,
    "ADAPTION_PROMPT": load_prompts,
}
PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING")
PEFT_TYPES = {
    "lora": "LORA",
    "rslora": "LORA",
    "dora": "LORA",
    "qlora": "LORA",
    "ia3": "IA3",
    "adapter": "BOTTLENECK",
    "prompt": "PROMPT_TUNING",
    "prefix": "PREFIX_TUNING",
    "llama-adapter": "ADAPTION_PROMPT",
}
TASKS = {"lm": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classify": "SEQ_CLS", "tag": "TOKEN_CLS"}
