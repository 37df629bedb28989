"""What `distill` trains: a student, from its teacher's layers, from a checkpoint or fresh, on rows of plain text."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.compress.slim.cut import cut
from llmctl.core.data.batch import Batch, Build, Source, TrainingOrder, in_order
from llmctl.core.data.old import read_old, rows_of
from llmctl.core.decode.sample import stream_key
from llmctl.core.device import Place
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.core.train.cached import Cache, Repeated, answering
from llmctl.core.train.distill import response
from llmctl.core.train.divergence import Aim
from llmctl.core.train.features import Compared, Pupil
from llmctl.core.train.loop import Objective
from llmctl.core.train.optim import optimizers
from llmctl.core.train.run import Run
from llmctl.core.train.wrap import compile_layers, recompute
from llmctl.core.train.writing import Written, as_batch, prompts, write
from llmctl.errors import Exit, UserError
from llmctl.spec.distill import DistillConfig
from llmctl.spec.distill_plan import DistillPlan
from llmctl.spec.model import ModelConfig
from llmctl.spec.student import StudentTraining
from llmctl.spec.tokens import is_tokens
from llmctl.spec.train import Watch

WRITTEN = ".written.jsonl"  # in the run's directory: what the teacher wrote, which an interrupted run keeps


@dataclass(frozen=True, eq=False)
class Lesson:
    """Text as a student learns from it.

    Attributes:
        train: what it is trained on.
        heldout: what it is evaluated on, or None.
        build: makes rows of them.
        tokenizer: that encoded them.
        known: ids that are tokens, and that both models have rows for.
        path: where it lies.
    """

    train: Source
    heldout: Source | None
    build: Build
    tokenizer: Tokenizer
    known: int
    path: str

    @classmethod
    def of(cls, path: str, tokenizer: Tokenizer, student: ModelConfig, teacher: ModelConfig, seed: int) -> "Lesson":
        """Of a text, or of a directory of tokens.

        Raises:
            UserError: nothing there, or tokens of another tokenizer; a tokenizer without what hides text.
        """
        train, heldout = read_old(path, tokenizer, "train"), None
        if is_tokens(path):
            from llmctl.core.data.shards import Tokens

            heldout = Tokens.open(Path(path)).splits["heldout"]
        build = rows_of(student, tokenizer, seed)
        known = min(tokenizer.size, student.vocab, teacher.vocab)
        if heldout is not None and heldout.tokens < 2:
            heldout = None
        return cls(train, heldout, build, tokenizer, known, path)


def shared_tokenizer(teacher: Tokenizer, student: Tokenizer, rows: int) -> Tokenizer:
    """The tokenizer of two models that give the same ids to the same text; one may have more tokens at its end.

    Args:
        rows: ids that both models have a row for.

    Raises:
        UserError: they are not of one tokenizer, or tokens have no row.
    """
    fewer = min(teacher, student, key=lambda one: one.size)
    if teacher.sha256 != student.sha256:
        other = _differing(teacher, student, fewer.size)
        if other:
            raise UserError(
                f"Teacher and student are not of one tokenizer: {other}.",
                "Make the student with the teacher's: llmctl tokenize ... --tokenizer TEACHER, then pretrain.",
                Exit.MISMATCH,
            )
    if fewer.size > rows:
        problem = f"The tokenizer has {fewer.size} tokens, but a model has rows for {rows} only."
        raise UserError(problem, "Extend its embedding first.", Exit.MISMATCH)
    return fewer


def _differing(teacher: Tokenizer, student: Tokenizer, size: int) -> str:
    """What two tokenizers do otherwise, besides tokens from `size` on; empty: nothing."""
    for id in range(size):
        if teacher.token(id) != student.token(id):
            return f"id {id} is {teacher.token(id)!r} in one and {student.token(id)!r} in the other"
    one, other = (json.loads(tokenizer.backend.to_str()) for tokenizer in (teacher, student))
    for part in ("normalizer", "pre_tokenizer"):
        if one[part] != other[part]:
            return f"their {part} differs"
    for key in one["model"].keys() | other["model"].keys():
        if key != "vocab" and one["model"].get(key) != other["model"].get(key):
            return f"{key} of their models differs"
    return ""


def first_student(
    start: Path, shape: ModelConfig, layers: dict[str, tuple[int, ...]] | None, place: Place, seed: int
) -> Transformer:
    """The student as it begins, float32.

    Args:
        start: a checkpoint: the student's own, or its teacher's.
        layers: of the teacher's that it begins with, by stack; {}: fresh weights drawn with `seed`; None: `start` is
            its own checkpoint.
    """
    if layers is None:
        return Checkpoint.open(start).model(place.device, torch.float32, writable=True)
    if not layers:
        return initialise(Transformer(shape, place.device, torch.float32), seed)
    made = cut(Checkpoint.open(start).model(), shape, {}, layers)
    with torch.no_grad():
        state = {name: tensor.to(place.device, torch.float32, copy=True) for name, tensor in made.state_dict().items()}
    made.load_state_dict(state, assign=True)
    return made.requires_grad_()


class Preparing:
    """What is made before the first step: the teacher's answers, or the text that it writes.

    Attributes:
        total: rows that are to be done.
        done: rows that are done.
    """

    def __init__(self, lesson: Lesson, plan: DistillPlan, config: DistillConfig, watch: Watch, seed: int):
        self.lesson, self.plan, self.config, self.watch = lesson, plan, config, watch
        train = plan.train
        self.order = TrainingOrder(lesson.train, train.block, train.rows, seed, lesson.build)
        self.repeated = Repeated(self.order)
        self.rows = min(train.steps * train.rows, self.repeated.rows)

    def heldout(self) -> Iterator[Batch]:
        """What is evaluated on."""
        train, source = self.plan.train, self.lesson.heldout
        if source is not None and self.watch.eval_tokens > 1:
            yield from in_order(source, train.block, train.micro, self.watch.eval_tokens, self.lesson.build)

    def lacks(self, cache: Cache) -> bool:
        """Whether the teacher has not yet answered everything."""
        wanted = sum(len(batch.tokens) for batch in self.heldout())
        return cache.rows["train"] < self.rows or cache.rows["heldout"] < wanted

    def missing(self, done: int) -> Iterator[Batch]:
        """The rows of the first pass that follow the first `done`."""
        micro = self.plan.train.micro
        for first in range(done, self.rows, micro):
            yield self.repeated.batch(range(first, min(first + micro, self.rows)))


def fill(preparing: Preparing, cache: Cache, teacher: Transformer, place: Place) -> Iterator[int]:
    """Have the teacher answer whatever the cache lacks; yields the rows that are done.

    Held-out text is answered first, anew where an earlier run asked for less of it.
    """
    config, vocab = preparing.config, cache.key["vocab"]
    aim = Aim(config.loss, config.beta, config.temperature, config.tail, vocab)
    answer = answering(teacher, aim, cache.k, place)
    if cache.rows["heldout"] < sum(len(batch.tokens) for batch in preparing.heldout()):
        cache.rows["heldout"] = 0
        for _ in cache.fill("heldout", preparing.heldout(), answer):
            yield cache.rows["train"]
    yield from cache.fill("train", preparing.missing(cache.rows["train"]), answer)


def write_all(preparing: Preparing, written: Written, teacher: Transformer, place: Place, seed: int) -> Iterator[int]:
    """Have the teacher write after the beginnings of every row; yields the rows that are done."""
    for batch in preparing.missing(len(written.rows)):
        first = len(written.rows)
        made = _written(preparing, [(teacher, 1.0)], batch, range(first, first + len(batch.tokens)), seed)
        texts = iter(made[1])
        written.add([[next(texts) for _ in one] for one in made[0]])
        yield len(written.rows)


def prepare(
    directory: Path,
    teacher: Transformer | None,
    student: Transformer,
    preparing: Preparing,
    config: StudentTraining,
    place: Place,
    write_to: Callable[[Path], None],
    seed: int,
    cache: Cache | None = None,
    written: Written | None = None,
) -> Run:
    """A run ready to go, or to go on from what an interrupted one left in `directory`.

    Args:
        directory: where it is made; it exists.
        teacher: on the device; None where it is not needed any more.
        student: float32, on the device.
        preparing: the text, with everything made that is made beforehand.
        config: options of the loop, its learning rate settled.
        place: device and precision.
        write_to: writes the student as a checkpoint into a directory.
        seed: of projections, of the order of the text and of what the student writes.
        cache: the teacher's answers; None: it is asked in each step.
        written: what the teacher wrote; None: it writes nothing.
    """
    distill, plan, watch = preparing.config, preparing.plan, preparing.watch
    whole, objective = _learned(teacher, student, preparing, seed, cache)
    whole.train()
    made = optimizers(whole, config)
    if config.recompute:
        recompute(student)
    if config.compile:
        compile_layers(student)
    heldout: Callable[[], Iterator[Batch]] | None = None
    if preparing.lesson.heldout is not None and watch.eval_tokens > 1:
        heldout = partial(_answered_heldout, preparing, cache)
    if cache is not None:
        batches: Callable[[int], Iterator[Batch]] = partial(_cached, preparing, cache)
    elif written is not None:
        batches = partial(_by_teacher, preparing, written, student)
    elif distill.text == "student":
        batches = partial(_by_student, preparing, teacher, student, seed)
    else:
        batches = partial(_as_it_is, preparing)
    return Run(
        directory=directory,
        model=whole,
        optimizers=made,
        config=config,
        objective=objective,
        place=place,
        steps=plan.train.steps,
        batches=batches,
        heldout=heldout,
        bytes_per_token=None,
        eval_every=watch.every(plan.train.steps),
        save_every=watch.save_every,
        write=write_to,
        flops_per_token=plan.flops_per_token,
        seed=seed,
        labelled=True,  # the loss is no nats of tokens
    )


def prompt_length(preparing: Preparing) -> int:
    """Tokens of the beginnings that text is written after."""
    return preparing.config.prompt_tokens or max(1, preparing.plan.train.block // 4)


def _learned(
    teacher: Transformer | None, student: Transformer, preparing: Preparing, seed: int, cache: Cache | None
) -> tuple[torch.nn.Module, Objective]:
    """What is trained, and by what."""
    config = preparing.config
    if not config.features:
        return student, response(teacher, config, None if cache is None else cache.key["vocab"])
    train = preparing.plan.train
    shares = dict.fromkeys(student.config.stacks, 1.0)
    shares[student.config.last_stack] = train.scored
    if student.config.kind == "encoder-decoder":
        shares["encoder"] = train.target / train.source
    objective = Compared(teacher, student.config, config, shares)
    return Pupil(student, teacher.config, config, seed), objective


def _as_it_is(preparing: Preparing, step: int) -> Iterator[Batch]:
    yield from preparing.order.batches(step, preparing.plan.train.micro)


def _cached(preparing: Preparing, cache: Cache, step: int) -> Iterator[Batch]:
    """The rows of a step with their answers."""
    numbers, micro = preparing.repeated.numbers(step), preparing.plan.train.micro
    for first in range(0, len(numbers), micro):
        some = numbers[first : first + micro]
        yield preparing.repeated.batch(some)._replace(answers=cache.read("train", some))


def _by_teacher(preparing: Preparing, written: Written, student: Transformer, step: int) -> Iterator[Batch]:
    """What the teacher wrote for the rows of a step."""
    numbers, micro = preparing.repeated.numbers(step), preparing.plan.train.micro
    for first in range(0, len(numbers), micro):
        some = numbers[first : first + micro]
        given = prompts(preparing.repeated.batch(some), prompt_length(preparing))
        yield from _rows(preparing, given, [text for number in some for text in written.rows[number]], student, False)


def _by_student(
    preparing: Preparing, teacher: Transformer, student: Transformer, seed: int, step: int
) -> Iterator[Batch]:
    """The rows of a step: as they are, or what the student, as it is now, writes after their beginnings.

    Source: Agarwal et al., arXiv:2306.13649, algorithm 1, which draws for a whole batch what is drawn here for a row.
    """
    order, micro, config = preparing.order, preparing.plan.train.micro, preparing.config
    places = list(enumerate(order.places(step), (step - 1) * order.rows))
    own = [(number, place) for number, place in places if _share(seed, number) < config.on_policy]
    rest = [place for number, place in places if _share(seed, number) >= config.on_policy]
    for at in range(0, len(rest), micro):
        yield order.build(order.source, rest[at : at + micro], order.block)
    models = [(student, 1.0 - config.mix)] + ([(teacher, config.mix)] if config.mix else [])
    training = student.training
    student.eval()
    for at in range(0, len(own), micro):
        some = own[at : at + micro]
        batch = order.build(order.source, [place for _, place in some], order.block)
        given, texts = _written(preparing, models, batch, [number for number, _ in some], seed)
        yield from _rows(preparing, given, texts, student, own=True)
    student.train(training)


def _written(
    preparing: Preparing, models: list[tuple[Transformer, float]], batch: Batch, numbers: Sequence[int], seed: int
) -> tuple[list[list[list[int]]], list[list[int]]]:
    """The prompts of rows with these numbers, by row, and what models write after each, one after another.

    No more rows are written at a time than are trained on.
    """
    train, config, lesson = preparing.plan.train, preparing.config, preparing.lesson
    rows = prompts(batch, prompt_length(preparing))
    given = [prompt for one in rows for prompt in one]
    keys = [stream_key(seed, number, 1 + i) for number, one in zip(numbers, rows, strict=True) for i in range(len(one))]
    decoder, made = models[0][0].config.kind == "decoder", []
    most = config.new_tokens or train.target
    eos = frozenset({lesson.tokenizer.eos})
    for first in range(0, len(given), train.micro):
        some = given[first : first + train.micro]
        limits = [min(most, train.target + (1 - len(prompt)) * decoder) for prompt in some]
        made += write(models, some, limits, config.sampling, keys[first : first + train.micro], eos, lesson.known)
    return rows, made


def _rows(
    preparing: Preparing, given: list[list[list[int]]], texts: list[list[int]], student: Transformer, own: bool
) -> Iterator[Batch]:
    """What was written after prompts, as a batch; none where nothing was."""
    start = student.config.opens if student.config.kind == "encoder-decoder" else None
    flat = [prompt for one in given for prompt in one]
    if flat:
        yield as_batch(flat, texts, start, preparing.lesson.tokenizer.pad or 0, own)


def _answered_heldout(preparing: Preparing, cache: Cache | None) -> Iterator[Batch]:
    row = 0
    for batch in preparing.heldout():
        rows = range(row, row + len(batch.tokens))
        yield batch if cache is None else batch._replace(answers=cache.read("heldout", rows))
        row += len(batch.tokens)


def _share(seed: int, number: int) -> float:
    """A number of a row, from 0 to 1, the same for a seed."""
    return (stream_key(seed, number, 0) & (1 << 53) - 1) / (1 << 53)
