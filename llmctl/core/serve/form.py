"""Form: what an answer is held to (a JSON schema, a pattern, a function's arguments), and the talk that it answers."""

import json
from dataclasses import dataclass
from typing import Any

import orjson

from llmctl.core.serve.fields import Fields
from llmctl.core.serve.refusal import Refusal

Function = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """What the text of an answer is.

    Attributes:
        schema: JSON schema that it follows, as JSON; or None.
        regex: regular expression that it matches; or None.
        function: name of the function whose arguments it is; "" for an object of name and arguments; None for text.
        free: functions that it may call or not.
    """

    schema: str | None = None
    regex: str | None = None
    function: str | None = None
    free: bool = False


def form_of(fields: Fields) -> Form:
    """What `response_format`, `tools` and `tool_choice` ask for.

    Raises:
        Refusal: they are wrong, or contradict each other.
    """
    form, choice = _format(fields), fields.raw("tool_choice")
    tools = tools_of(fields)
    by_name = {tool["function"]["name"]: tool["function"] for tool in tools}
    if choice in (None, "none", "auto"):
        return Form(form.schema, form.regex, free=bool(tools) and choice != "none")
    if form != Form():
        raise Refusal("tool_choice and response_format both say what the answer is.", param="tool_choice")
    if choice == "required":
        if not tools:
            raise Refusal("tool_choice is 'required', but there are no tools.", param="tool_choice")
        if len(by_name) > 1:
            return Form(_text(_either(list(by_name.values()))), function="")
        name = next(iter(by_name))
    else:
        called = Fields(choice, "tool_choice")
        inner = called.inner("function")
        name = inner.need("name") if inner is not None and called.raw("type") == "function" else None
    if not isinstance(name, str) or name not in by_name:
        wanted = "none, auto, required, or {type: function, function: {name: one of tools}}"
        raise fields.wrong("tool_choice", wanted)
    return Form(_text(_arguments(by_name[name])), function=name)


def tools_of(fields: Fields) -> tuple[dict[str, Any], ...]:
    """The functions that may be called, as they came.

    Raises:
        Refusal: one is no function with a name.
    """
    tools = fields.raw("tools") or []
    if not isinstance(tools, list):
        raise fields.wrong("tools", "an array of functions")
    for at, tool in enumerate(tools):
        where = f"tools[{at}]"
        one = Fields(tool, where)
        if one.raw("type") != "function":
            raise one.wrong("type", "function")
        function = Fields(one.need("function"), f"{where}.function")
        if not function.text("name"):
            raise function.wrong("name", "a name")
        function.inner("parameters")
    return tuple(tools)


def messages_of(fields: Fields) -> tuple[dict[str, Any], ...]:
    """The conversation as templates read it: text as one string, arguments of calls as objects.

    Raises:
        Refusal: there is none, or a message is not text.
    """
    found = fields.need("messages")
    if not isinstance(found, list) or not found:
        raise fields.wrong("messages", "an array of messages")
    made = []
    for at, one in enumerate(found):
        message = Fields(one, f"messages[{at}]")
        if not isinstance(message.need("role"), str):
            raise message.wrong("role", "a string")
        if message.raw("content") is None and not one.get("tool_calls"):
            message.need("content")
        made.append({**one, "content": _content(message), **_calls(message)})
    return tuple(made)


def _content(message: Fields) -> str:
    """The text of a message, which may come in parts."""
    content = message.raw("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise message.wrong("content", "a string, or an array of parts of text")
    texts = []
    for at, part in enumerate(content):
        one = Fields(part, f"{message.path('content')}[{at}]")
        if one.raw("type") not in ("text", "refusal"):
            raise one.wrong("type", "text, which is all that this model reads")
        texts.append(one.need(one.raw("type")))
        if not isinstance(texts[-1], str):
            raise one.wrong(one.raw("type"), "a string")
    return "".join(texts)


def _calls(message: Fields) -> dict[str, Any]:
    """The calls of a message, whose arguments come as text and are read by templates as objects."""
    calls = message.raw("tool_calls")
    if calls is None:
        return {}
    if not isinstance(calls, list) or not all(isinstance(one, dict) for one in calls):
        raise message.wrong("tool_calls", "an array of calls")
    return {"tool_calls": [{**one, "function": _read(one.get("function"))} for one in calls]}


def _read(function: Any) -> Any:
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            return {**function, "arguments": orjson.loads(function["arguments"])}
        except orjson.JSONDecodeError:
            return function
    return function


def _format(fields: Fields) -> Form:
    """What `response_format` asks for; also {"type": "regex", "regex": "..."}, which OpenAI does not have."""
    found = fields.inner("response_format")
    if found is None:
        return Form()
    kind = found.choice("type", ("text", "json_object", "json_schema", "regex"))
    if kind == "regex":
        regex = found.text("regex")
        if not regex:
            raise found.wrong("regex", "a regular expression")
        return Form(regex=regex)
    if kind == "json_object":
        return Form(_text({"type": "object"}))
    if kind == "json_schema":
        named = Fields(found.need("json_schema"), found.path("json_schema"))
        schema = named.need("schema")
        if not isinstance(schema, dict):
            raise named.wrong("schema", "a JSON schema")
        return Form(_text(schema))
    if kind is None:
        found.need("type")
    return Form()


def _arguments(function: Function) -> dict[str, Any]:
    return function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}


def _either(functions: list[Function]) -> dict[str, Any]:
    """The schema of a call of any of them: {"name": ..., "arguments": {...}}."""
    shared: dict[str, dict[str, Any]] = {}
    options = []
    for one in functions:
        arguments = dict(_arguments(one))
        for place in ("$defs", "definitions"):  # what "#/$defs/..." refers to has to lie at the root
            found = arguments.pop(place, None) or {}
            if not isinstance(found, dict):
                raise Refusal(f"{place} of the tool {one['name']!r} is no object.", param="tools")
            for name, what in found.items():
                if shared.setdefault(place, {}).setdefault(name, what) != what:
                    raise Refusal(f"Two tools define {name!r}, and not alike; rename one.", param="tools")
        fields = {"name": {"const": one["name"]}, "arguments": arguments}
        options.append(
            {"type": "object", "properties": fields, "required": ["name", "arguments"], "additionalProperties": False}
        )
    return {"anyOf": options, **shared}


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, ensure_ascii=False)
