"""What `pretrain` trains: a fresh model or a checkpoint, on rows of packed documents."""

from functools import partial
from pathlib import Path

import torch

from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.data.batch import TrainingOrder, in_order
from llmctl.core.data.rows import builder
from llmctl.core.data.shards import Tokens
from llmctl.core.data.vocabulary import Vocabulary
from llmctl.core.device import Place
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.objectives import OBJECTIVES
from llmctl.core.train.optim import optimizers
from llmctl.core.train.run import Run
from llmctl.core.train.wrap import compile_layers, recompute
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.noise import NoiseConfig, Objective
from llmctl.spec.plan import TrainPlan
from llmctl.spec.train import TrainConfig, Watch


def prepare(
    directory: Path,
    tokens: Tokens,
    start: Path | None,
    plan: TrainPlan,
    config: TrainConfig,
    watch: Watch,
    place: Place,
    objective: Objective,
    noise: NoiseConfig,
    seed: int,
) -> Run:
    """A run ready to go, or to go on from what an interrupted one left in `directory`.

    Args:
        directory: where it is made; it exists.
        tokens: to train on, and to evaluate on.
        start: a checkpoint to go on from; None: fresh weights drawn with `seed`.
        plan: the sizes of the run.
        config: options of the loop.
        watch: options of evaluation and records.
        place: device and precision; weights are float32 whatever the precision.
        objective: what is learned; it suits the model's kind.
        noise: how the objective corrupts text.
        seed: of fresh weights, of the order of the data and of its noise.

    Raises:
        UserError: the tokens were made with another tokenizer than the checkpoint's, or hold ids it has not; or the
            tokenizer lacks a special token that the objective needs.
    """
    tokens.check_ids()
    if start is None:
        model = initialise(Transformer(_begun(plan.model, tokens), place.device, torch.float32), seed)
    else:
        _check_tokenizer(start, tokens)
        model = Checkpoint.open(start).model(place.device, torch.float32, writable=True)
        model.config = plan.model
    model.train()
    shape, made = model.config, optimizers(model, config)
    if config.recompute:
        recompute(model)
    if config.compile:
        compile_layers(model)
    vocabulary = Vocabulary.of(tokens.tokenizer(), shape.vocab)
    build = builder(objective, shape.kind, noise, vocabulary, seed, shape.decoder_start)
    order = TrainingOrder(tokens.splits["train"], plan.block, plan.rows, seed, build)
    heldout = tokens.splits["heldout"]
    pairs = {"pair_weight": noise.mask_rate * plan.block} if objective == "mlm+nsp" else {}
    generation = Checkpoint.open(start).generation if start else None
    return Run(
        directory=directory,
        model=model,
        optimizers=made,
        config=config,
        objective=partial(OBJECTIVES[objective], cross_document=config.cross_document, **pairs),
        place=place,
        steps=plan.steps,
        batches=lambda step: order.batches(step, plan.micro),
        heldout=partial(in_order, heldout, plan.block, plan.micro, watch.eval_tokens, build)
        if heldout.tokens > 1 and watch.eval_tokens > 1
        else None,
        bytes_per_token=heldout.bytes / max(1, heldout.tokens) if objective == "clm" else None,
        eval_every=watch.every(plan.steps),
        save_every=watch.save_every,
        write=lambda to: save_checkpoint(to, model, shape, tokenizer_from=tokens.path, generation=generation),
        flops_per_token=plan.flops_per_token,
        seed=seed,
    )


def _begun(shape: ModelConfig, tokens: Tokens) -> ModelConfig:
    """The shape with the special ids of the tokens' tokenizer, so that generation knows where texts begin and end.

    A decoder beside an encoder begins with padding, as T5's, or where the tokenizer opens texts, with the end of one,
    as BART's.
    """
    tokenizer = tokens.tokenizer()
    pad, eos = tokenizer.pad, (tokens.eos,)
    if shape.kind == "encoder":
        return shape.resized(pad=pad)
    if shape.kind == "encoder-decoder":
        first = tokens.eos if pad is None or tokenizer.bos is not None else pad
        return shape.resized(bos=tokenizer.bos, eos=eos, pad=pad, decoder_start=first)
    return shape.resized(bos=tokens.eos if tokenizer.bos is None else tokenizer.bos, eos=eos, pad=pad)


def _check_tokenizer(start: Path, tokens: Tokens) -> None:
    found = Checkpoint.open(start).tokenizer().sha256
    if found != tokens.tokenizer_sha256:
        raise UserError(
            f"{tokens.path} was made with another tokenizer than that of {start}.",
            f"llmctl tokenize ... --tokenizer {start}",
            Exit.MISMATCH,
        )
