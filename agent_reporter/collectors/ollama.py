"""Ollama: whether the local server answers, which models it has and which are loaded."""

import asyncio
import logging
from typing import Any

from pydantic import ValidationError

from ..http import CallError, call, parse_json
from ..limits import MAX_MODELS
from ..states import StateLog
from ..wire import ModelEntry
from .base import Fields, Host

CALL_TIMEOUT = 2.0
"""Seconds per call."""

ANSWER_LIMIT = 4 * 1024 * 1024
"""The largest answer that is read, in bytes."""

MODELS_LIMIT = MAX_MODELS
"""Models kept of a list: as many as a balancer accepts."""


class OllamaCollector:
    """Collects `ollama_ok` and, if it is true, `ollama_version`, `models` and `loaded_models`, as far as available."""

    def __init__(self, host: Host) -> None:
        self._url = host.ollama.url
        self._server = host.server
        self._state = StateLog("answers")

    async def collect(self) -> Fields:
        version, models, loaded = await asyncio.gather(
            self._ask("/api/version"), self._ask("/api/tags"), self._ask("/api/ps"), return_exceptions=True
        )
        answers = (version, models, loaded)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, CallError | ValueError):
                raise answer
        failure = next((answer for answer in answers if isinstance(answer, BaseException)), None)
        answered = not isinstance(version, BaseException)
        self._say(answered, failure)
        self._server.heard(answers=answered)
        if not answered:
            return {"ollama_ok": False}
        return {
            "ollama_ok": True,
            "ollama_version": version,
            "models": None if isinstance(models, BaseException) else models,
            "loaded_models": None if isinstance(loaded, BaseException) else loaded,
        }

    async def _ask(self, path: str) -> object:
        answer = await call("GET", self._url + path, timeout=CALL_TIMEOUT, limit=ANSWER_LIMIT)
        if answer.status != 200:
            raise CallError(f"{path} returned status {answer.status}")
        parsed = parse_json(answer.body)
        return parse_version(parsed) if path == "/api/version" else parse_models(parsed)

    def _say(self, answered: bool, failure: BaseException | None) -> None:
        if failure is None:
            self._state.say("answers", logging.INFO, f"Ollama at {self._url} answers again")
        elif answered:
            self._state.say("partly", logging.WARNING, f"Ollama at {self._url} does not list its models: {failure}")
        else:
            self._state.say(
                "silent", logging.WARNING, f"Ollama at {self._url} does not answer ({failure}); it is reported as down"
            )


def parse_version(answer: Any) -> str:
    """The version in /api/version's answer. Raises ValueError."""
    version = answer.get("version") if isinstance(answer, dict) else None
    if not isinstance(version, str) or len(version) > 256:
        raise ValueError("its answer has no version: is it an Ollama?")
    return version


def parse_models(answer: Any) -> list[ModelEntry]:
    """The models in an answer of /api/tags or /api/ps; invalid entries are skipped. Raises ValueError."""
    models = answer.get("models", []) if isinstance(answer, dict) else None
    if models is None and isinstance(answer, dict):
        models = []  # a server without models may say null
    if not isinstance(models, list):
        raise ValueError("its answer has no list of models")
    entries = []
    for model in models[:MODELS_LIMIT]:
        try:
            entries.append(ModelEntry.model_validate(model))
        except ValidationError:
            continue
    return entries
