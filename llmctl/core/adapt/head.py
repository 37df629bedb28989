"""rehead: the same stacks under other heads."""

import torch

from llmctl.core.model.init import first
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig

HEADS = ("head", "pooler", "next_sentence", "classifier")


def rehead(model: Transformer, config: ModelConfig, seed: int) -> tuple[Transformer, list[str]]:
    """A model of another config that differs in its heads alone, with the same tensors wherever there were such.

    Args:
        model: its stacks and embeddings, and heads of the same name and shape, serve the new one; nothing is copied. A
            classifier serves only the same labels. A decoder is left out where the new one is an encoder alone.
        seed: of the first weights of heads that are new.

    Returns:
        The model, and the modules whose weights are new.

    Raises:
        ValueError: they differ in more than heads.
    """
    old = dict(model.named_parameters())
    made = Transformer(config, device="meta")
    state, fresh = {}, []
    like = old["embed.tokens.weight"]
    other = (model.config.classifier, model.config.labels) != (config.classifier, config.labels)
    for name, parameter in made.named_parameters():
        if name in old and old[name].shape == parameter.shape and not (other and name.startswith("classifier")):
            state[name] = old[name]
        elif name.startswith(HEADS):
            state[name] = first(config, name, parameter.shape, seed).to(like.device, like.dtype)
            fresh.append(name.rpartition(".")[0])
        else:
            raise ValueError(f"{name} is not in the model, and is of no head")
    known = HEADS if config.kind == model.config.kind else (*HEADS, "decoder.")
    if left := [name for name in old.keys() - state.keys() if not name.startswith(known)]:
        raise ValueError(f"{left[0]} of the model is of no head, and has no place in the new one")
    made.load_state_dict(state, strict=True, assign=True)
    with torch.no_grad():
        made.requires_grad_()
    return made.train(model.training), [*dict.fromkeys(fresh)]
