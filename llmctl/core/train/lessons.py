"""gather: files of records and of old text become what a fine-tuning learns from and is measured on."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llmctl.core.data.batch import Source
from llmctl.core.data.examples import Examples
from llmctl.core.data.labelled import labels_in
from llmctl.core.data.mixture import Mixture
from llmctl.core.data.old import read_old
from llmctl.core.data.prepare import encode_examples
from llmctl.core.data.sets import Record, divided, read_sets
from llmctl.core.data.written import Layout
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.classifier import with_classifier
from llmctl.spec.model import ModelConfig, Problem
from llmctl.spec.sets import Sets, Task, Weighted, shares, task_of
from llmctl.spec.tune import Keeping


class Lessons(NamedTuple):
    """What there is to learn and to measure.

    Attributes:
        task: of the examples.
        mixture: to learn from.
        heldout: to evaluate on; may be empty.
        retained: further sets to measure, by the name of their figures.
        old: text of the old kind to measure, by the name of its figures.
        replayed: text of the old kind to learn from among the examples, and its share of all tokens; or None.
        packed: rows hold several examples.
    """

    task: Task
    mixture: Mixture
    heldout: Examples
    retained: dict[str, Examples]
    old: dict[str, Source]
    replayed: tuple[Source, float] | None
    packed: bool

    @property
    def sizes(self) -> tuple[int, int | None, float, float]:
        """Tokens of the longest example; of the longest that an encoder beside a decoder reads, or None; of the mean
        example, both together; share of the former that is trained on. Parts count as often as they are drawn."""
        parts = [part for part in self.mixture.parts if len(part)]
        drawn = [times for times in self.mixture.times if times]
        sources = [int(part.source_lengths.max()) for part in parts if part.source_lengths is not None]

        def all_of(counts: Iterable[int]) -> float:
            return sum(times * count for times, count in zip(drawn, counts, strict=True))

        own = all_of(int(part.lengths.sum()) for part in parts)
        read, asked = (all_of(part.counts[name] for part in parts) for name in ("tokens", "trained_tokens"))
        longest = max(int(part.lengths.max()) for part in parts)
        return longest, max(sources, default=None), read / self.mixture.epoch, asked / max(1, own)

    @property
    def counts(self) -> dict[str, int]:
        """What the sets to learn from hold, together; see `Examples`."""
        return {
            name: sum(part.counts[name] for part in self.mixture.parts) for name in self.mixture.parts[0].counts
        } | {"heldout_examples": len(self.heldout)}


def gather(
    files: Sequence[Weighted],
    sets: Sets,
    keeping: Keeping,
    config: ModelConfig,
    tokenizer: Tokenizer,
    task: Task | None,
    problem: Problem | None,
    packs: bool,
    seed: int,
) -> tuple[Lessons, ModelConfig, Layout | None]:
    """Read all that a fine-tuning needs.

    Args:
        files: to learn from, with their weights.
        config: of the model.
        task: what is learned; None: what the records are about.
        problem: what labels of texts are; None: what they look like.
        packs: the method can learn from rows of several examples.
        seed: of phrasings and of the order.

    Returns:
        The data; the model's shape, with the head that the task needs; how records became texts, if they did.

    Raises:
        UserError: a file that cannot be read, a record that does not suit the task, examples that are too long, or
            nothing to learn from.
    """
    read = [list(read_sets([file.path], sets)) for file in files]
    fields = next((record.fields for records in read for record in records), {})
    if not fields:
        raise UserError(f"There are no records in {', '.join(file.path for file in files)}.", "One a line is wanted.")
    task = task or task_of(config.kind, config.classifier != "none", fields, sets.template)
    _suits(task, config)
    more = {name: list(read_sets([path], sets)) for name, path in _named(keeping.retain_task, "retain_task").items()}
    evaluated = [] if sets.eval is None else list(read_sets([sets.eval], sets))
    if sets.eval is not None and not evaluated:
        raise UserError(f"There are no records in {sets.eval}.", "Leave --eval out, and --split holds some out.")
    if problem is not None and task != "classify":
        raise UserError(f"--problem is about labels of texts, but the task is {task}.", "Leave it out.", Exit.USAGE)
    layout = None
    if task in ("classify", "tag"):
        everything = [record for records in (*read, evaluated) for record in records]
        fits = config.classifier == ("token" if task == "tag" else "sequence")
        fields_of, places = ([record[i] for record in everything] for i in range(2))
        names = labels_in(fields_of, task, problem, config if fits else None, places)
        if not fits or names != (config.labels, config.problem):
            config = with_classifier(config, task, names.names, names.problem)
    else:
        layout = Layout(tokenizer, sets, task, seed)

    def encoded(records: list[Record], may_lack: bool = False) -> Examples:
        return encode_examples(records, task, tokenizer, config, sets, layout, seed, may_lack)

    template = None if layout is None else layout.template
    halves = [divided(records, sets.trained, template) for records in read]
    parts = [encoded(kept) for kept, _ in halves]
    heldout = encoded(evaluated or [record for _, out in halves for record in out], not evaluated)
    old = {name: read_old(path, tokenizer, "heldout") for name, path in _named(keeping.retain, "retain").items()}
    replayed = None
    if keeping.mix_pretrain is not None:
        path, share = keeping.replayed
        replayed = read_old(path, tokenizer, "train"), share
    if (old or replayed) and not config.lm_head:
        raise UserError(
            "--retain and --mix-pretrain ask for tokens, but a model that labels has no head that scores them.",
            "Measure it on labelled data of another kind: --retain-task FILE",
            Exit.USAGE,
        )
    mixture = Mixture(parts, shares(files, [len(part) for part in parts]), seed)
    retained = {name: encoded(records) for name, records in more.items()}
    lessons = Lessons(task, mixture, heldout, retained, old, replayed, packs and sets.pack and task == "lm")
    return lessons, config, layout


def _named(paths: Sequence[str], name: str) -> dict[str, str]:
    """The files by the names of their figures: one alone is `name`, several are numbered from 1."""
    return {f"{name}_{i}" if len(paths) > 1 else name: path for i, path in enumerate(paths, start=1)}


def _suits(task: Task, config: ModelConfig) -> None:
    """Whether a model can learn a task."""
    wanted = {"lm": "decoder", "seq2seq": "encoder-decoder"}.get(task)
    if wanted is not None and config.kind != wanted:
        raise UserError(
            f"--task {task} is learned by an {wanted}, but the model is an {config.kind}.".replace("an dec", "a dec"),
            {
                "decoder": "Use --task lm, classify or tag.",
                "encoder": "Use --task classify or tag.",
                "encoder-decoder": "Use --task seq2seq, classify or tag.",
            }[config.kind],
            Exit.MISMATCH,
        )
    if wanted is not None and not config.lm_head:
        raise UserError("The model has no head that scores tokens.", "Use --task classify or tag.", Exit.MISMATCH)
