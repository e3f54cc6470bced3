"""GET /api/openapi.json: the OpenAPI 3.1 document of the control API, made from the table of its calls."""

import json
import re
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .. import __version__
from .calls import CALLS, JSON, Answer, Call, answers_of

_REFERENCE = "#/components/schemas/{model}"


@cache
def document() -> bytes:
    """Its JSON."""
    return json.dumps(_document(), separators=(",", ":")).encode()


def _document() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for call in CALLS:
        item = paths.setdefault(call.path, {"parameters": _path_parameters(call.path)})
        item[call.method.lower()] = _operation(call, call.operation)
        if call.method == "GET":
            item["head"] = _operation(call, f"{call.operation}_head", bare=True)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "ollama-balancer",
            "version": __version__,
            "description": "The control API of a load balancer for Ollama hosts. It is served on the "
            "proxy's own port, next to Ollama's API.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "The balancer's token (balancer_token)."}
            },
        },
    }


def _operation(call: Call, operation: str, *, bare: bool = False) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation,
        "summary": call.text,
        "responses": {str(status): _response(answer, bare=bare) for status, answer in answers_of(call).items()},
        "security": [{"token": []}] if call.always else [{"token": []}, {}] if call.rights else [],
    }
    if call.query:
        described["parameters"] = [
            {"name": parameter.name, "in": "query", "description": parameter.text, "schema": parameter.schema}
            for parameter in call.query
        ]
    if call.body is not None:
        described["requestBody"] = {
            "required": call.body_required,
            "content": {JSON: {"schema": _reference(call.body)}},
        }
    return described


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "description": "An id or a name.", "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _response(answer: Answer, *, bare: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.text}
    if answer.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    if isinstance(answer.content, tuple):
        content: dict[str, Any] = {media_type: {} for media_type in answer.content}
    else:
        content = {JSON: {"schema": _reference(answer.content)}} if answer.content is not None else {}
        content |= {media_type: {} for media_type in answer.also}
    if content and not bare:
        described["content"] = content
    return described


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _schemas() -> dict[str, Any]:
    models: dict[type[BaseModel], None] = {}
    for call in CALLS:
        bodies = [answer.content for answer in answers_of(call).values()]
        models |= {model: None for model in (call.body, *bodies) if isinstance(model, type)}
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    defined: dict[str, Any] = schemas["$defs"]
    return defined
