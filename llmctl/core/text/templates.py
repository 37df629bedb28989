"""Templates: a record becomes a prompt and its completion, as Jinja says, phrased in one of several ways."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import orjson
from jinja2 import meta

from llmctl.core.text.phrasings import ALIASES, LABEL_WORDS, LANGUAGES, OPTIONAL, SEPARATOR, TEMPLATES
from llmctl.core.text.sandbox import compiled, environment
from llmctl.errors import Exit, UserError
from llmctl.spec.sets import TAGS

Record = Mapping[str, Any]


class Prompted(NamedTuple):
    """A record as text; a decoder reads one after the other, with nothing between.

    Attributes:
        prompt: what is given.
        completion: what answers it; None where the record has no answer.
    """

    prompt: str
    completion: str | None


@dataclass(frozen=True)
class Template:
    """A task in one or several phrasings.

    Attributes:
        name: as it was asked for.
        phrasings: Jinja, each with ||| between prompt and completion, or a prompt alone.
        seed: of the choice of the phrasing of each record.
        labels: what labels are called in the text.
    """

    name: str
    phrasings: tuple[str, ...]
    seed: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, record: Record) -> Prompted:
        """A record as text.

        Raises:
            UserError: it lacks a field of the prompt, or the template refuses it.
        """
        values = self.values(record)
        return self.filled(self.chosen(values), values, record)

    def values(self, record: Record) -> dict[str, Any]:
        """The fields that the phrasings speak of, by our names, in the form in which they are said."""
        found = {name: _found(record, name) for name in self.fields}
        return {name: _worded(name, value, self.labels) for name, value in found.items() if value is not None}

    def chosen(self, values: Record) -> str:
        """The phrasing of a record: a pure function of the seed and of what is given in it, whether answered or not."""
        if len(self.phrasings) == 1:
            return self.phrasings[0]
        given = {name: value for name, value in values.items() if name in self.given}
        return self.phrasings[hashed(given, self.seed) % len(self.phrasings)]

    def filled(self, phrasing: str, values: Record, record: Record, more: Record | None = None) -> Prompted:
        """A phrasing with values in it.

        The space before ||| is said with the completion, for a token begins with the space before its word; a newline
        there ends the prompt.

        Args:
            more: further names, such as eos_token.
        """
        names = {**(more or {}), **dict.fromkeys(OPTIONAL, ""), **values}
        halves = [self._rendered(half, names) for half in _halves(phrasing)]
        if halves[0] is None:
            lacking = [name for name in sorted(meta_names(_halves(phrasing)[0])) if name not in names]
            known = ", ".join(f"{name!r}{_or(name)}" for name in lacking) or "what its template needs"
            raise UserError(
                f"the record has no {known}; its fields are {', '.join(map(repr, record)) or 'none'}.",
                f"Name the field that stands for it: --map {lacking[0] if lacking else 'OURS'}=THEIRS",
            )
        return Prompted(halves[0], halves[1] if len(halves) > 1 else None)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the values that any phrasing speaks of, sorted."""
        return tuple(sorted(set().union(*map(meta_names, self.phrasings))))

    @cached_property
    def given(self) -> frozenset[str]:
        """Names of the values that any prompt speaks of."""
        return frozenset().union(*(meta_names(_halves(phrasing)[0]) for phrasing in self.phrasings))

    def _rendered(self, half: str, names: Record) -> str | None:
        """The text; None where a name in it has no value."""
        try:
            return compiled(half + "\n", f"--template {self.name}", strict=True).render(
                names
            )  # Jinja drops the last one
        except jinja2.UndefinedError:
            return None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise UserError(f"--template {self.name} cannot be rendered: {error}.", "Mend the template.") from error


def template_of(
    name: str | None, seed: int = 0, mapping: Mapping[str, str] | None = None
) -> Callable[[Record], Prompted]:
    """What makes a prompt and a completion of a record: a named template, or what the record itself says.

    Args:
        name: NAME, NAME/2 for the second phrasing, a file, or None.
        seed: of the choice of phrasings.
        mapping: fields of records that stand for ours: ours to theirs.

    Raises:
        UserError: no such template.
    """
    template = None if name is None else open_template(name, seed)
    return lambda record: prompt_of(mapped(record, mapping or {}), template)


def open_template(name: str, seed: int = 0) -> Template:
    """A built-in template, or that of a file.

    Raises:
        UserError: no such template or phrasing.
    """
    base, slash, number = name.rpartition("/")
    known, ways = (base, number) if slash and base in TEMPLATES else (name, "")
    if known in TEMPLATES:
        phrasings, labels = TEMPLATES[known], LABEL_WORDS.get(known, {})
        if not ways:
            return Template(name, phrasings, seed, labels)
        if not ways.isdecimal() or not 1 <= int(ways) <= len(phrasings):
            raise UserError(
                f"--template {name}: it has phrasings from {known}/1 to {known}/{len(phrasings)}.",
                code=Exit.USAGE,
            )
        return Template(name, (phrasings[int(ways) - 1],), seed, labels)
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"--template {name} is neither a file nor one of {', '.join(TEMPLATES)}.",
            "A file holds a prompt and a completion in Jinja, such as: Question: {{ question }} ||| {{ answer }}",
            Exit.USAGE,
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template {name} cannot be read: {error}.") from error
    if not text.strip() or text.count(SEPARATOR) > 1:
        raise UserError(
            f"--template {name} is to hold a prompt, and once {SEPARATOR} and a completion.", code=Exit.USAGE
        )
    for half in _halves(text):
        compiled(half, name, strict=True)
    return Template(name, (text,), seed)


def template_for(record: Record, template: Template | None = None, seed: int = 0) -> Template | None:
    """The template of a record: the built-in one that its field `template` names, else that of all, if there is one.

    So tasks can be mixed in a file. A record names no file: it may come from anywhere.
    """
    name = record.get("template")
    if isinstance(name, str) and name.partition("/")[0] in TEMPLATES:
        return _named(name, seed if template is None else template.seed)
    return template


def prompt_of(record: Record, template: Template | None = None) -> Prompted:
    """A record as a prompt and its completion.

    Without a template: as they stand in the record; an instruction with its input and output as alpaca puts it; else
    its text, which is then the prompt. A record may name a template of its own.

    Raises:
        UserError: the record says neither.
    """
    template = template_for(record, template)
    if template is not None:
        return template(record)
    if isinstance(prompt := record.get("prompt"), str):
        completion = record.get("completion")
        return Prompted(prompt, completion if isinstance(completion, str) else None)
    if isinstance(record.get("instruction"), str):
        return ALPACA(record)
    if isinstance(text := record.get("text"), str):
        return Prompted(text, None)
    raise UserError(
        f"the record has none of 'prompt', 'instruction' and 'text' as text; its fields are "
        f"{', '.join(map(repr, record)) or 'none'}.",
        f"Say how it is put into words: --template {'|'.join(TEMPLATES)}|FILE",
    )


def mapped(record: Record, mapping: Mapping[str, str]) -> dict[str, Any]:
    """A record with our names beside its own; `answers.text.0` is looked up part by part.

    Where `source` or `target` is a field called as a language is, such as translation.de, the language is named too.

    Raises:
        UserError: it has no such field.
    """
    made = dict(record)
    for ours, theirs in mapping.items():
        value = record.get(theirs)
        if value is None and theirs not in record:
            value = _at(record, theirs)
        made[ours] = value
        language = LANGUAGES.get(theirs.rpartition(".")[2])
        if ours in ("source", "target") and language is not None:
            made.setdefault(f"{ours}_language", language)
    return made


def hashed(value: object, seed: int | None = None) -> int:
    """A number of 64 bits that depends on a value, and the seed, alone; not on the order of names in a dict."""
    try:
        data = orjson.dumps([seed, value], default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # half a surrogate pair, a number of more than 64 bits
        data = repr([seed, value]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def meta_names(source: str) -> set[str]:
    """The names that a template takes from outside."""
    made = environment(True)
    return meta.find_undeclared_variables(made.parse(source)) - set(made.globals)


def _halves(phrasing: str) -> list[str]:
    """A phrasing's prompt, and its completion if it has one; blanks between the two go with the completion."""
    prompt, bar, completion = phrasing.partition(SEPARATOR)
    if not bar:
        return [prompt.removesuffix("\n")]
    space = " " if prompt.endswith(" ") or completion.startswith(" ") else ""
    return [prompt.rstrip(" \t"), space + completion.strip()]


def _at(record: Record, path: str) -> Any:
    value: Any = record
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise UserError(
                f"the record has no field {path!r}, only {', '.join(map(repr, record)) or 'none'}.",
                "See --map.",
            )
    return value


def _found(record: Record, name: str) -> Any:
    """The value of a field of ours in a record, under whichever name it has there."""
    if name == "entities":
        return _entities(record)
    for one in (name, *ALIASES.get(name, ())):
        if record.get(one) is not None:
            return record[one]
    return None


def _entities(record: Record) -> str | None:
    """The entities of a record in words: those it lists, or those that the tags of its words make up."""
    found = record.get("entities")
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        named = [(_first(one, "text", "word", "name"), _first(one, "type", "label", "entity", "kind")) for one in found]
    else:
        tags = next((record[name] for name in TAGS if isinstance(record.get(name), list)), None)
        if not isinstance(record.get("tokens"), list) or tags is None:
            return None
        named, goes_on = [], False
        for word, tag in zip(map(str, record["tokens"]), map(str, tags), strict=False):
            begins, _, kind = tag.rpartition("-")
            if begins == "I" and named and named[-1][1] == kind and goes_on:
                named[-1] = (f"{named[-1][0]} {word}", kind)
            elif kind != "O":
                named.append((word, kind))
            goes_on = kind != "O"
    return "; ".join(f"{text} ({kind})" for text, kind in named) or "none"


def _first(one: Any, *names: str) -> str:
    """The first of some fields that there is, of an entity that is a dict; of a pair, its text and its kind."""
    if isinstance(one, Mapping):
        return str(next((one[name] for name in names if name in one), ""))
    return str(one[0 if "text" in names else 1]) if isinstance(one, (list, tuple)) and len(one) > 1 else str(one)


def _or(name: str) -> str:
    others = ALIASES.get(name, ())
    return f" (nor {', '.join(map(repr, others))})" if others else ""


def _worded(name: str, value: Any, labels: Mapping[str, str]) -> Any:
    """A value as it is said: labels in words, the first of several answers, words joined, entities listed."""
    if name == "label" and not isinstance(value, (list, Mapping)):
        said = str(value).strip() if not isinstance(value, bool) else str(int(value))
        return labels.get(said.lower(), said)
    if name == "answer":
        value = value.get("text", value) if isinstance(value, Mapping) else value
        return (value[0] if value else "unanswerable") if isinstance(value, list) else value
    if name == "text" and isinstance(value, list):
        return " ".join(map(str, value))
    return value


@lru_cache(maxsize=256)
def _named(name: str, seed: int) -> Template:
    return open_template(name, seed)


ALPACA = Template("alpaca", TEMPLATES["alpaca"])
