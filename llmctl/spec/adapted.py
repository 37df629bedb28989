"""adapted_config: the shape of a base with its adapter on: the base's own, but for heads that the adapter brings."""

from pathlib import Path

from llmctl.errors import Exit, UserError
from llmctl.spec.classifier import Labelling, with_classifier
from llmctl.spec.families import config_of, family_read, read_config
from llmctl.spec.files import read_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.peft import base_of, part_of, read_adapter, weights_of
from llmctl.spec.safetensors import read_header
from llmctl.spec.sites import sites

_LABELLING: dict[str | None, Labelling] = {"SEQ_CLS": "classify", "TOKEN_CLS": "tag"}


def config_beside(directory: Path) -> dict | None:
    """The config.json that lies with an adapter, if one does.

    Some tools copy the base's there, with the few bits that they held it in while they trained; that tells nothing of
    the base that is here.
    """
    path = directory / "config.json"
    if not path.is_file():
        return None
    return {key: value for key, value in read_json(path, "config.json").items() if key != "quantization_config"}


def adapted_config(directory: Path) -> ModelConfig:
    """The shape of the model that an adapter's directory stands for.

    A config.json beside the adapter says it, labels included. Without one it is the base's; where the adapter is for
    a classifier and the base has none, with as many labels as the adapter's own head scores.

    Raises:
        UserError: the base is not there, or one of the files cannot be read.
    """
    if (json := config_beside(directory)) is not None:
        return config_of(json)
    config, task = read_config(base_of(directory)), _LABELLING.get(read_adapter(directory).task)
    if task is None or config.classifier != "none":
        return config
    config = with_classifier(config, task, ("LABEL_0",))
    out = next(site.theirs for site in sites(config) if site.ours == ("classifier.out",))
    family = family_read(config)
    for name, info in read_header(weights_of(directory))[0].items():
        module, part = part_of(name)
        if part == "weight" and family.bare(module) == family.bare(out):
            return config.resized(labels=tuple(f"LABEL_{i}" for i in range(info.shape[0])))
    raise UserError(
        f"{directory} is for a classifier, but holds no {out}, nor does its base.",
        "Its head was not saved with it (modules_to_save); name a base that has the head.",
        Exit.MISMATCH,
    )
