"""Calls: functions that a model calls in its own words: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

import secrets
from typing import Any

import orjson

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def calls_of(text: str) -> tuple[str | None, list[dict[str, Any]]]:
    """The text around the calls, None where there is none, and the calls as OpenAI's interface has them.

    What is between the marks and no call stays text.

    Source: the format of NousResearch's Hermes models, which Qwen's and others took over.
    """
    filter = CallFilter()
    text, calls = filter.push(text, last=True)
    return (text or None) if calls else text, [call for _, call in calls]


class CallFilter:
    """Parts calls from the text around them, while it arrives.

    Attributes:
        count: calls so far.
    """

    def __init__(self) -> None:
        self._held = ""
        self.count = 0

    def push(self, text: str, last: bool) -> tuple[str, list[tuple[int, dict[str, Any]]]]:
        """What has become final: text, and calls with their numbers.

        Args:
            last: nothing follows.
        """
        self._held += text
        ready, calls = "", []
        while (at := self._held.find(OPEN)) >= 0:
            end = self._held.find(CLOSE, at)
            if end < 0 and not last:
                break
            inner = self._held[at + len(OPEN) : end if end >= 0 else None]
            stop = end + len(CLOSE) if end >= 0 else len(self._held)
            call = _call(inner)
            before = self._held[:at] if call else self._held[:stop]
            ready += before.rstrip() if call else before
            self._held = self._held[stop:]
            if call:
                calls.append((self.count, call))
                self.count += 1
        if at < 0:
            keep = 0 if last else _open(self._held)
            cut = len(self._held) - keep
            ready, self._held = ready + self._held[:cut], self._held[cut:]
        if self.count and not ready.strip():
            ready = ""
        return ready, calls


def _call(inner: str) -> dict[str, Any] | None:
    """The call that is written there, or None."""
    try:
        made = orjson.loads(inner.strip())
    except orjson.JSONDecodeError:
        return None
    if not isinstance(made, dict) or not isinstance(made.get("name"), str):
        return None
    given = made.get("arguments", made.get("parameters", {}))
    arguments = given if isinstance(given, str) else orjson.dumps(given).decode()
    function = {"name": made["name"], "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _open(text: str) -> int:
    """How many characters at the end may be the beginning of a call, and the space before it."""
    mark = next((size for size in range(min(len(OPEN) - 1, len(text)), 0, -1) if text.endswith(OPEN[:size])), 0)
    return len(text) - len(text[: len(text) - mark].rstrip())
