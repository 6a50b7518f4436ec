"""What does a tool allow? Descriptions of tools, and their arguments' JSON Schemas checked with the package `jsonschema`."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vantage.errors import UserError
from vantage.verifiers.jsontext import JsonError, decode

_FORMS = "a list of {'name': …, 'parameters': {SCHEMA}}, of {'type': 'function', 'function': {…}}, or {NAME: {SCHEMA}}"


class ToolsError(ValueError):
    """A description of tools that can not be read."""


@dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes:
        validator: A `jsonschema` validator of its arguments.
        defaults: Arguments that have a default, with it.
    """

    validator: Any
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def allows(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the schema allows these arguments; a reference that leads nowhere allows nothing."""
        from referencing.exceptions import Unresolvable

        try:
            return bool(self.validator.is_valid(dict(arguments)))
        except (Unresolvable, RecursionError, OverflowError):
            return False


def read_tools(described: Any, column: str = "tools") -> Mapping[str, Tool]:
    """Tools by name.

    Args:
        described: A list of `{"name", "parameters"}` or of OpenAI's `{"type": "function", "function": {…}}`, one such, a
            mapping of names to schemas, or JSON of one of these in a string. A tool without `parameters` takes any arguments.
        column: Where it comes from, for messages.

    Raises:
        ToolsError: it is nothing of the kind, or a schema is no JSON Schema.
        UserError: the package `jsonschema` is missing.
    """
    try:
        text = described if isinstance(described, str) else json.dumps(described, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolsError(f"column {column!r} is not JSON: {error}") from error
    return _read(text, column)


@functools.lru_cache(maxsize=256)
def _read(text: str, column: str) -> Mapping[str, Tool]:
    try:
        schemas = _schemas(decode(text))
    except (JsonError, TypeError, KeyError, AttributeError) as error:
        raise ToolsError(f"column {column!r} describes no tools ({error}); it must be {_FORMS}") from error
    return {name: _tool(name, schema, column) for name, schema in schemas.items()}


def _schemas(value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and (isinstance(value.get("name"), str) or value.get("type") == "function"):
        value = [value]
    if isinstance(value, dict):
        return value
    found = {}
    for item in value:
        tool = item.get("function", item)
        found[str(tool["name"])] = tool.get("parameters") or {}
    return found


def _tool(name: str, schema: Any, column: str) -> Tool:
    try:
        import jsonschema
        import referencing
    except ImportError as error:
        raise UserError(
            f"column {column!r} describes tools and the package jsonschema is missing: pip install 'vantage-rl[tools]'"
        ) from error
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ToolsError(f"column {column!r}: the schema of {name!r} is no JSON Schema: {error.message}") from error
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    # A registry of its own keeps a `$ref` from being fetched over the network.
    return Tool(
        kind(schema, registry=referencing.Registry()),
        {key: value["default"] for key, value in properties.items() if isinstance(value, dict) and "default" in value},
    )
