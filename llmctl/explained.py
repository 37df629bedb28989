"""How --explain and --logprobs are shown: tables for people, records for machines."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llmctl.console import PICTURES

if TYPE_CHECKING:
    import rich.table

    from llmctl.console import Console
    from llmctl.core.decode.beam import Branch
    from llmctl.core.decode.choose import Picked
    from llmctl.core.decode.explain import Explained
    from llmctl.core.text.texts import Texts

TAIL = 24  # characters of a text that are shown before a token


def logprobs(picked: "Sequence[Picked]", texts: "Texts") -> list[dict[str, Any]]:
    """A record for each token: its log-probability in nats, and the likeliest ones beside it."""
    return [
        {
            **_named(one.id, texts),
            "logprob": one.logprob,
            "top_logprobs": [{**_named(id, texts), "logprob": logprob} for id, logprob in one.top],
        }
        for one in picked
    ]


def steps(picked: "Sequence[Picked]", texts: "Texts") -> list[dict[str, Any]]:
    """A record for each step that has an explanation: every candidate with its chances after each filter."""
    return [_step(one.shown, texts) for one in picked if one.shown is not None]


def branches(tree: "Sequence[Branch]", texts: "Texts") -> list[dict[str, Any]]:
    """A record for each branch of a search; `parent` counts these records from 0, and is -1 at the prompt."""
    return [{**branch._asdict(), **_named(branch.id, texts)} for branch in tree]


def step_tables(console: "Console", picked: "Sequence[Picked]", texts: "Texts") -> "Iterator[rich.table.Table]":
    """A table for each step: the candidates down, the filters across; what a filter took away is a dash."""
    for one in picked:
        if (shown := one.shown) is not None:
            how = "the likeliest" if shown.greedy else "drawn"
            names = [f"{stage.name} {stage.setting}".strip().replace("_", " ") for stage in shown.stages]
            if shown.worth:  # of a contrastive search
                how, names = "the one of most worth", [*names, "alike", "worth"]
            rows = [
                [
                    "→" if id == shown.chosen else "",
                    _quoted(texts(id)),
                    *(_chance(stage.chances[place]) for stage in shown.stages),
                    *(f"{part[place]:.4f}" for part in (shown.alike, shown.worth) if part),
                ]
                for place, id in enumerate(shown.candidates)
            ]
            rest = [""] * (len(names) - len(shown.stages))
            rows.append(["", "tokens left", *(f"{stage.left:,}" for stage in shown.stages), *rest])
            yield console.table(f"token {shown.step + 1}: {how}", ["", "token", *names], rows)


def branch_tables(
    console: "Console", tree: "Sequence[Branch]", texts: "Texts", best: int = -1
) -> "Iterator[rich.table.Table]":
    """A table for each step of a search: its branches, those of the best scores first.

    Args:
        best: the branch that the text ends with whose way is shown by arrows; -1: none.
    """
    way = set()
    while best >= 0:
        way.add(best)
        best = tree[best].parent
    told: list[str] = []
    for branch in tree:
        told.append((told[branch.parent] if branch.parent >= 0 else "") + texts(branch.id))
    grouped = any(branch.group for branch in tree)
    for step in range(max((branch.step for branch in tree), default=-1) + 1):
        here = [(place, branch) for place, branch in enumerate(tree) if branch.step == step]
        here.sort(key=lambda one: (one[1].group, -one[1].score))
        rows = []
        for place, branch in here:
            before = told[branch.parent] if branch.parent >= 0 else ""
            row = [
                "→" if place in way else "",
                _end(before),
                _quoted(texts(branch.id)),
                _chance(math.exp(branch.logprob)),
            ]
            rows.append([*row, *([branch.group + 1] if grouped else []), f"{branch.score:.3f}", branch.fate])
        columns = ["", "after", "token", "chance", *(["group"] if grouped else []), "score", "then"]
        yield console.table(f"token {step + 1}: {len(here)} branches", columns, rows)


def _named(id: int, texts: "Texts") -> dict[str, Any]:
    return {"id": id, "token": texts.token(id), "text": texts(id)}


def _step(shown: "Explained", texts: "Texts") -> dict[str, Any]:
    return {
        "step": shown.step,
        "chosen": _named(shown.chosen, texts),
        "greedy": shown.greedy,
        "stages": [{"name": one.name, "setting": one.setting, "left": one.left} for one in shown.stages],
        "candidates": [
            {
                **_named(id, texts),
                "chances": [stage.chances[place] for stage in shown.stages],
                **({"alike": shown.alike[place], "worth": shown.worth[place]} if shown.worth else {}),
            }
            for place, id in enumerate(shown.candidates)
        ],
    }


def _chance(chance: float) -> str:
    return "-" if chance == 0 else f"{chance:.4f}" if chance >= 0.0001 else f"{chance:.1e}"


def _quoted(text: str) -> str:
    """A text between marks that show where it begins and ends, its line breaks as pictures."""
    return "“" + text.translate(PICTURES).replace("\n", "␊").replace("\t", "␉") + "”"


def _end(text: str) -> str:
    shown = text if len(text) <= TAIL else "…" + text[1 - TAIL :]
    return _quoted(shown) if shown else ""
