"""Schemes: the spans that tags mark when they are read strictly, by IOB2 and its kin."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from llmctl.core.metrics.labels import OUTSIDE, spans
from llmctl.errors import Exit, UserError
from llmctl.spec.benchmark import Scheme, Strict

Spans = set[tuple[str, int, int]]  # kind, first word, one past the last


class _Rules(NamedTuple):
    """Two neighbours each: prefix before, prefix now, and = for the same kind, ! for another one, * for any.

    Attributes:
        prefixes: that the scheme has.
        begins: a span begins with the second.
        goes_on: the second is in the first one's span.
        ends: a span may end with the first.
    """

    prefixes: str
    begins: frozenset[str]
    goes_on: frozenset[str]
    ends: frozenset[str]


def _rules(prefixes: str, begins: str, goes_on: str, ends: str) -> _Rules:
    """Rules; ? stands for any prefix."""
    found = []
    for text in (begins, goes_on, ends):
        wide = [rule.replace("?", one, 1) for rule in text.split() for one in (prefixes if "?" in rule else "?")]
        found.append(
            frozenset(one for rule in wide for one in ((rule[:2] + "=", rule[:2] + "!") if rule[2] == "*" else (rule,)))
        )
    return _Rules(prefixes, *found)


_STRICT: dict[Strict, _Rules] = {
    "IOB1": _rules("IOB", "OI* II! BI* IB= BB=", "BI= II=", "II! IO* IB* BO* BI! BB="),
    "IOB2": _rules("IOB", "?B*", "BI= II=", "IO* II! IB* BO* BI! BB*"),
    "IOE1": _rules("IOE", "OI* II! EI* EE=", "II= IE=", "II! IO* IE! EI= EE="),
    "IOE2": _rules("IOE", "OI* OE* EI* EE* II! IE!", "IE= II=", "E?*"),
    "IOBES": _rules("IOBES", "?B* ?S*", "BI= BE= II= IE=", "S?* E?*"),
    "BILOU": _rules("BILOU", "?B* ?U*", "BI= BL= II= IL=", "U?* L?*"),
}


def strict_spans(tagged: Sequence[str], scheme: Strict) -> Spans:
    """The spans in the tags of a text's words, read by a scheme: what does not begin or end as it says is none.

    Raises:
        UserError: a tag whose prefix the scheme does not have.

    Source: the rules of each scheme are those of seqeval's mode "strict", whose F1 is then ours; the schemes: Ramshaw
    and Marcus, arXiv:cmp-lg/9505040; Tjong Kim Sang and Veenstra, arXiv:cs/9907006; BILOU: Ratinov and Roth, 2009.
    """
    rules = _STRICT[scheme]
    parts = [_parts(tag, rules, scheme) for tag in [*tagged, OUTSIDE]]
    found, at, before = set(), 0, _parts(OUTSIDE, rules, scheme)
    while at < len(parts):
        first = at
        at += 1
        if _pair(before, parts[first]) in rules.begins:
            while at < len(parts) and _pair(parts[at - 1], parts[at]) in rules.goes_on:
                at += 1
            if at < len(parts) and _pair(parts[at - 1], parts[at]) in rules.ends:
                found.add((parts[first][1], first, at))
        before = parts[at - 1]
    return found


def _pair(before: tuple[str, str], now: tuple[str, str]) -> str:
    return before[0] + now[0] + ("=" if before[1] == now[1] else "!")


def _parts(tag: str, rules: _Rules, scheme: Strict) -> tuple[str, str]:
    """A tag's prefix and kind; a prefix alone has the kind "_"."""
    prefix = tag[:1]
    if prefix not in rules.prefixes or tag[1:2] not in ("", "-"):
        allowed = ", ".join(rules.prefixes)
        raise UserError(
            f"the tag {tag!r} is not of the scheme {scheme}, which has the prefixes {allowed}.",
            "Name another --scheme; lenient reads any.",
            Exit.MISMATCH,
        )
    return prefix, tag[2:] or "_"


def reader_of(scheme: Scheme) -> Callable[[Sequence[str]], Spans]:
    """What finds the spans in tags."""
    return spans if scheme == "lenient" else partial(strict_spans, scheme=scheme)
