"""adapted_config: the shape of a base with its adapter on: the base's own, but for heads that the adapter brings."""

from collections.abc import Iterable
from pathlib import Path

from llmctl.errors import Exit, UserError
from llmctl.spec.classifier import Labelling, with_classifier
from llmctl.spec.families import config_of, family_read, read_config
from llmctl.spec.files import read_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.peft import base_of, part_of, read_adapter, weights_of
from llmctl.spec.safetensors import TensorInfo, read_header
from llmctl.spec.sites import sites

SHAPE = "adapted_config.json"  # transformers takes a directory that holds a config.json for a whole checkpoint
LABELLING: dict[str | None, Labelling] = {"SEQ_CLS": "classify", "TOKEN_CLS": "tag"}


def config_beside(directory: Path) -> dict | None:
    """The config of base and adapter together that lies with an adapter, if one does: ours, or a config.json.

    Some tools copy the base's there, with the few bits that they held it in while they trained; that tells nothing of
    the base that is here.
    """
    name = next((name for name in (SHAPE, "config.json") if (directory / name).is_file()), None)
    if name is None:
        return None
    return {key: value for key, value in read_json(directory / name, name).items() if key != "quantization_config"}


def adapted_config(directory: Path) -> ModelConfig:
    """The shape of the model that an adapter's directory stands for.

    A config beside the adapter says it, labels included. Without one it is the base's; where the adapter is for
    a classifier and the base has none, with as many labels as the adapter's own head scores.

    Raises:
        UserError: the base is not there, or one of the files cannot be read.
    """
    if (json := config_beside(directory)) is not None:
        return config_of(json)
    config, task = read_config(base_of(directory)), read_adapter(directory).task
    if task not in LABELLING or config.classifier != "none":
        return config
    found = with_head(config, task, read_header(weights_of(directory))[0].values())
    if found is None:
        raise UserError(
            f"{directory} is for a classifier, but holds no {_scores(config, task)}, nor does its base.",
            "Its head was not saved with it (modules_to_save); name a base that has the head.",
            Exit.MISMATCH,
        )
    return found


def with_head(config: ModelConfig, task: str | None, stored: Iterable[TensorInfo]) -> ModelConfig | None:
    """The shape of a base with the classifier that an adapter holds; None: it holds none.

    One that gives a single number is taken for a regression, as transformers takes it.

    Args:
        task: of the adapter, as PEFT calls it.
        stored: the adapter's tensors.
    """
    if task not in LABELLING:
        return None
    place = f"{_scores(config, task)}.weight"
    family = family_read(config)
    rows = next((one.shape[0] for one in stored if family.bare(".".join(part_of(one.name))) == place), None)
    if not rows:
        return None
    labels = tuple(f"LABEL_{i}" for i in range(rows))
    return with_classifier(config, LABELLING[task], labels, "regression" if rows == 1 else "single_label")


def _scores(config: ModelConfig, task: str) -> str:
    """The published name of the matrix whose rows are labels, without the family's prefix."""
    headed = with_classifier(config, LABELLING[task], ("LABEL_0",))
    return family_read(headed).bare(next(site.theirs for site in sites(headed) if site.ours == ("classifier.out",)))
