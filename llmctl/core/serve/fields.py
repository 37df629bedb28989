"""Fields: the members of a JSON object, each read once with its kind and range; what nobody reads is refused."""

import difflib
from collections.abc import Iterable
from typing import Any

from llmctl.core.serve.refusal import Refusal


class Fields:
    """A JSON object on its way to something typed.

    A member that is null counts as absent, as OpenAI's clients mean it.

    Args:
        body: what came.
        where: the path to the object, for errors; "" for the whole request.

    Raises:
        Refusal: it is no object.
    """

    def __init__(self, body: object, where: str = ""):
        if not isinstance(body, dict):
            raise Refusal(f"{where or 'The request'} is {_shown(body)}; wanted an object.", param=where or None)
        self._body, self._where, self._known = body, where, set[str]()

    def raw(self, name: str) -> Any:
        """A member as it is, or None."""
        self._known.add(name)
        return self._body.get(name)

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number, or None; 3.0 is one."""
        value = self.raw(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        good = type(value) is int and low <= value <= high
        return self._checked(name, value, good, f"a whole number from {low} to {high}")

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number, or None."""
        value = self.raw(name)
        good = type(value) in (int, float) and low <= value <= high
        return self._checked(name, value, good, f"a number from {low:g} to {high:g}")

    def flag(self, name: str) -> bool:
        """true or false; False where it is absent."""
        value = self.raw(name)
        return bool(self._checked(name, value, type(value) is bool, "true or false"))

    def text(self, name: str) -> str | None:
        """A string, or None."""
        value = self.raw(name)
        return self._checked(name, value, isinstance(value, str), "a string")

    def choice(self, name: str, choices: Iterable[str]) -> str | None:
        """One of some words, or None."""
        value, listed = self.raw(name), list(choices)
        return self._checked(name, value, value in listed, f"one of {', '.join(listed)}")

    def inner(self, name: str) -> "Fields | None":
        """An object, or None."""
        value = self.raw(name)
        return None if value is None else Fields(value, self.path(name))

    def need(self, name: str) -> Any:
        """A member that must be there.

        Raises:
            Refusal: it is not.
        """
        value = self.raw(name)
        if value is None:
            raise Refusal(f"The request has no {self.path(name)}.", param=self.path(name))
        return value

    def wrong(self, name: str, wanted: str) -> Refusal:
        """What is said of a member that is not as it should be."""
        path = self.path(name)
        return Refusal(f"{path} is {_shown(self._body.get(name))}; wanted {wanted}.", param=path)

    def path(self, name: str) -> str:
        """How a member is called in an error: response_format.json_schema."""
        return f"{self._where}.{name}" if self._where else name

    def end(self, idle: Iterable[str] = ()) -> None:
        """Check that every member was read.

        Args:
            idle: names that mean nothing here and do no harm.

        Raises:
            Refusal: one is neither known nor idle.
        """
        known = self._known | set(idle)
        for name in self._body:
            if name not in known and self._body[name] is not None:
                near = difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.7)
                meant = f" Did you mean {near[0]}?" if near else ""
                raise Refusal(f"The request has an unknown field {_shown(name)}.{meant}", param=self.path(str(name)))

    def _checked(self, name: str, value: Any, good: bool, wanted: str) -> Any:
        if value is not None and not good:
            raise self.wrong(name, wanted)
        return value


def _shown(value: object) -> str:
    """A value in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
