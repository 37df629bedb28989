"""Sandbox: Jinja templates, which are rendered without access to anything but what they are given."""

import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmctl.core.text.marks import CLOSE, OPEN
from llmctl.errors import UserError


class Generation(Extension):
    """{% generation %} ... {% endgeneration %} puts OPEN and CLOSE around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 wants a set here

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        """The block as a call that gets what is inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


class _Space(jinja2.utils.Namespace):
    """namespace() whose names do not begin with an underscore."""

    def __init__(*args: object, **names: object) -> None:
        for name in dict(*args[1:], **names):
            _Space._allowed(name)
        jinja2.utils.Namespace.__init__(*args, **names)

    def __setitem__(self, name: str, value: object) -> None:
        _Space._allowed(name)
        super().__setitem__(name, value)

    @staticmethod
    def _allowed(name: object) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a template may not set {name} on a namespace")


def compiled(source: str, name: str, strict: bool = False) -> jinja2.Template:
    """A template, compiled once; what is not defined is an error if `strict`, else empty.

    Raises:
        UserError: it is not Jinja.
    """
    try:
        return _compiled(source, strict)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{name} line {error.lineno} is not Jinja: {error.message}.", "Mend the template.") from error


@lru_cache(maxsize=64)
def _compiled(source: str, strict: bool) -> jinja2.Template:
    return environment(strict).from_string(source)


@lru_cache(maxsize=2)
def environment(strict: bool) -> ImmutableSandboxedEnvironment:
    """Where templates are rendered: as transformers sets it up for chat templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
        undefined=jinja2.StrictUndefined if strict else jinja2.Undefined,
    )
    made.filters["tojson"] = _to_json
    made.globals.update(raise_exception=_refuse, strftime_now=_now, namespace=_Space)
    return made


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter writes <, > and & as escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    """The date; SOURCE_DATE_EPOCH, in seconds, fixes it, so that what is made today can be made again."""
    return datetime.fromtimestamp(float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())).strftime(form)
