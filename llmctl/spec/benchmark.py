"""Benchmark: what a task asks a model, how it is put, and what the answers are measured by.

A task is a file of JSON lines, a record each. Fields other than these are kept and can be named in a template, and
`--map OURS=THEIRS` says which field of a record stands for one of ours.

| kind       | what the model does         | fields                                |
|------------|-----------------------------|---------------------------------------|
| `choice`   | finds the likeliest text    | `prompt`, `choices`, `answer`         |
|            | after a prompt, or before   | `prompts`, `completion`, `answer`     |
| `generate` | writes an answer            | `prompt`, `reference` or `references` |
| `foretell` | finds the answer likely     | `prompt`, `reference`                 |
| `classify` | labels a text, or two       | `text` (and `text_pair`), `label`     |
| `tag`      | labels the words of a text  | `tokens`, `tags`                      |

A choice's likelihood is that of its tokens after the prompt; to an encoder, their pseudo-log-likelihood. Labels are
asked of a classifier's head. A language model has none: it is given the labels as choices after the
prompt, those of `--choice`, else all that the records have; words are tagged by a head alone.

* `prompt` is what the model reads. Where a record has none, `question` (and `context`) are put as the template qa/1
  puts them, `instruction` as alpaca; `--template` puts any record, by Jinja.
* `choices` is a list of texts, or `{"text": [...], "label": [...]}`; `--choice` gives the same ones to all records.
* `prompts` is a list of texts, such as a sentence up to its gap, filled by one name or the other; the right one makes
  the `completion` likeliest, the rest of the sentence, which is the same after each (Winogrande, ReCoRD).
* `answer` (else `label`, `gold`, `target`, `answerKey`) is the number of the right choice from 0, its label, its text,
  or its letter; or a list of those, of which each is right.
* `reference` is a text, `references` (else `answers`) a list of them, of which the nearest counts; else the
  completion that the template gives, or the record has, is the reference.
* `label` is one of the model's labels or its number; a list where several may hold; a number where labels are
  quantities.
* `tags` are B-X, I-X, O and the like, a tag a word.
"""

import re
from dataclasses import dataclass
from os.path import realpath
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.shots import Choice, Order

Kind = Literal["choice", "generate", "foretell", "classify", "tag"]
AskedKind = Literal["auto", "choice", "generate", "foretell", "classify", "tag"]
Normal = Literal["none", "strip", "lower", "squad"]
Strict = Literal["IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU"]
Scheme = Literal["lenient", "IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU"]
Taken = Literal["first", "last"]

CHOICES, PROMPTS = "choices", "prompts"
ANSWERS = ("answer", "label", "gold", "target", "answerKey")  # where the right choice is looked for
REFERENCES = ("references", "reference", "answers")  # where the right texts are looked for

# The figures of each kind, those that are given by default first.
USUAL: dict[Kind, tuple[str, ...]] = {
    "choice": ("acc", "acc_norm"),
    "generate": ("exact_match", "f1"),
    "foretell": ("acc", "perplexity"),
    "classify": ("acc", "f1", "macro_f1", "mcc", "pearson", "spearman", "rmse"),
    "tag": ("f1", "precision", "recall", "acc"),
}
METRICS: dict[Kind, tuple[str, ...]] = {
    "choice": (*USUAL["choice"], "acc_bytes", "acc_mutual_info", "f1", "macro_f1", "mcc", "brier_score"),
    "generate": (
        *USUAL["generate"], "contains", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "chrf++", "ter",
    ),
    "foretell": (*USUAL["foretell"], "bits_per_byte"),
    "classify": (*USUAL["classify"], "brier_score"),
    "tag": USUAL["tag"],
}  # fmt: skip
ROUGE = re.compile("rouge([1-9][0-9]?|L|Lsum|W)")  # figures of texts that are written, besides those listed
LOWER = frozenset({"brier_score", "ter", "rmse", "perplexity", "bits_per_byte"})  # figures of which less is better


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Task.

    How the records of a file are put to a model, and what its answers are measured by. After construction escapes
    are characters: `\\n` of --separator and --stop is a newline.

    Raises:
        UserError: a value out of range, or a figure that the kind of task does not have.
    """

    kind: Annotated[
        AskedKind,
        "choice: which of some texts is likeliest; generate: what it writes; foretell: how likely the right text is, "
        "and whether it would write that; classify, tag: labels of texts, of words; auto: by the fields of the first "
        "record.",
    ] = "auto"
    template: Annotated[
        str | None,
        "How a record becomes a prompt and its answer: alpaca, summarise, translate, qa, nli, sentiment, entities, "
        "each with /2 for its second phrasing; or Jinja, itself or in a file, with ||| between the two.",
    ] = None
    map: Annotated[
        tuple[str, ...], "OURS=THEIRS: the field of a record that stands for one of ours; answers.text.0 looks inside; "
        "repeatable.",
    ] = ()  # fmt: skip
    choice: Annotated[
        tuple[str, ...], "A choice that every record has, such as a label in words, in the order of their numbers; "
        "repeatable.",
    ] = ()  # fmt: skip
    delimiter: Annotated[str, "Text between the prompt and a choice or an answer; none in a chat."] = " "
    metrics: Annotated[
        tuple[str, ...],
        "Figures; the first is the main one. choice: acc, acc_norm (likelihood over characters), acc_bytes, "
        "acc_mutual_info, f1, macro_f1, mcc, brier_score. generate: exact_match, f1 (of words), contains, "
        "rouge1, rouge2 (or any n), rougeL, rougeLsum, bleu, chrf, chrf++, ter. foretell: acc, perplexity, "
        "bits_per_byte. classify: acc, f1, macro_f1, mcc, brier_score, pearson, spearman, rmse. tag: f1, precision, "
        "recall (of spans), acc. Default: the usual ones.",
    ] = ()
    normalise: Annotated[
        Normal, "Before exact_match, f1 and contains compare texts: squad drops case, punctuation and articles; "
        "strip the white space around them.",
    ] = "squad"  # fmt: skip
    extract: Annotated[
        str | None, "The answer is what this regular expression finds in what was written (its first group, if it has "
        "one); where it finds nothing, the answer is empty.",
    ] = None  # fmt: skip
    take: Annotated[Taken, "With --extract: the first or the last place where it is found."] = "first"
    scheme: Annotated[
        Scheme, "How tags mark spans: lenient, as seqeval by default; or strictly by a scheme, as its mode strict."
    ] = "lenient"
    threshold: Annotated[float, "Where several labels may hold: those with this probability do."] = 0.5
    shots: Annotated[int, "Answered examples before each prompt; 0: none."] = 0
    examples: Annotated[
        str | None, "File that examples are taken from; default: the task's own, never the record that is asked."
    ] = None
    choose: Annotated[
        Choice,
        "seed: at random, anew for each record; first: the first ones; similar: those that share the most telling "
        "words.",
    ] = "seed"
    order: Annotated[Order, "seed: as drawn; first: as in the file; similar: the most similar last."] = "auto"
    instruction: Annotated[str, "Text before the examples."] = ""
    separator: Annotated[str, "Text between the examples; \\n is a newline."] = "\\n\\n"
    seed: Annotated[int, "Of the choice of examples, of phrasings and of the bootstrap."] = 0
    chat_template: Annotated[
        str | None,
        "Put prompts as conversations, examples as turns: own (the tokenizer's layout), chatml, llama2, llama3, "
        "zephyr, plain, or a file in Jinja.",
    ] = None
    system: Annotated[str | None, "System message of the conversations; wants --chat-template."] = None
    stop: Annotated[tuple[str, ...], "generate: an answer ends before this text; \\n is a newline; repeatable."] = ()
    max_tokens: Annotated[int, "generate: an answer has no more tokens, nor more than half of the model's context."] = (
        128
    )
    temperature: Annotated[float, "generate: 0 takes the likeliest token."] = 0.0
    limit: Annotated[int | None, "Ask no more than so many records, the first ones."] = None
    group: Annotated[str | None, "Field that says to which group a record belongs; dotted names look inside."] = None

    def __post_init__(self) -> None:
        wrong = {
            f"--shots is {self.shots}, wanted 0 or more": self.shots < 0,
            f"--limit is {self.limit}, wanted 1 or more": self.limit is not None and self.limit < 1,
            f"--max-tokens is {self.max_tokens}, wanted 1 or more": self.max_tokens < 1,
            f"--temperature is {self.temperature}, wanted 0 or more": not 0 <= self.temperature < float("inf"),
            f"--threshold is {self.threshold}, wanted 0 to 1": not 0 <= self.threshold <= 1,
            f"--seed is {self.seed}, wanted a number of 64 bits": not -(2**63) <= self.seed < 2**63,
            "--stop is empty": "" in self.stop,
            "--choice is given once; wanted several": len(self.choice) == 1,
            "--choice is empty": "" in self.choice,
            "--system wants a --chat-template": self.system is not None and self.chat_template is None,
        }
        known = METRICS[self.kind] if self.kind != "auto" else tuple({n: None for row in METRICS.values() for n in row})
        for name in self.metrics:
            overlap = self.kind in ("auto", "generate") and ROUGE.fullmatch(name) is not None
            wrong[f"--metrics {name} is none of {', '.join(known)}"] = name not in known and not overlap
        if self.extract is not None:
            wrong[f"--extract is {self.extract!r}, which is no regular expression"] = not _compiles(self.extract)
        for pair in self.map:
            ours, _, theirs = pair.partition("=")
            wrong[f"--map is {pair!r}, wanted OURS=THEIRS"] = not ours.strip() or not theirs.strip()
        if any(wrong.values()):
            raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
        object.__setattr__(self, "separator", _unescaped(self.separator))
        object.__setattr__(self, "stop", tuple(map(_unescaped, self.stop)))
        if self.order == "auto":
            object.__setattr__(self, "order", self.choose)

    @property
    def mapping(self) -> dict[str, str]:
        """The fields of `map`: ours to theirs."""
        pairs = (pair.partition("=") for pair in self.map)
        return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


@dataclass(frozen=True, kw_only=True)
class Task(Asking):
    """A file of records and how they are put.

    Attributes:
        file: of JSON lines; "-" is stdin.
        name: of the task in reports.
    """

    file: str
    name: str

    @property
    def own(self) -> bool:
        """Whether examples come from the file that is asked."""
        return self.examples is None or realpath(self.examples) == realpath(self.file)


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")
