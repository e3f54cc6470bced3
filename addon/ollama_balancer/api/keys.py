"""The client keys: GET, POST, PATCH and DELETE below /api/keys."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent_reporter.wire import check_size, describe

from ..core.access import Key, Limits, changes_of
from ..core.priority import Priority
from ..core.rate_limits import RateLimiter
from ..gateway.audit import AuditTrail
from ..ollama.compact_json import compact
from ..storage.keys import KeyExistsError, KeyFileError, KeyStore, UnknownKeyError
from .callers import caller_of
from .models import AddKey, ChangeKey, KeySettings, RotateKey

_LIMITS = tuple(field.name for field in fields(Limits))


class KeyFile(Protocol):
    """The file with the keys. `reload` puts what has changed in force."""

    store: KeyStore | None

    async def reload(self, *, whole: bool) -> None: ...


class KeysApi:
    """`limiter` knows what each key uses now, `audit` is told of changes, `wall` gives seconds since 1970."""

    def __init__(
        self, file: KeyFile, limiter: RateLimiter, audit: AuditTrail, wall: Callable[[], float] = time.time
    ) -> None:
        self.file = file
        self.limiter = limiter
        self.audit = audit
        self.wall = wall
        self.handlers: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "keys": self.keys,
            "add_key": self.add,
            "key": self.key,
            "change_key": self.change,
            "remove_key": self.remove,
            "rotate_key": self.rotate,
        }

    async def keys(self, request: Request) -> Response:
        running = self.limiter.running_now()
        body = await self._call(lambda store: self._list(store, running))
        return Response(body, media_type="application/json")

    def _list(self, store: KeyStore, running: dict[str, int]) -> bytes:
        return compact({"keys": [self._describe(key, running.get(key.name, 0)) for key in store.list_keys()]})

    async def add(self, request: Request) -> Response:
        body = await _read(request, AddKey)
        key = Key(body.name, created=self.wall(), **_settings(body, body.model_fields_set))
        try:
            secret = await self._call(lambda store: store.add(key))
        except KeyExistsError as e:
            raise HTTPException(409, str(e)) from e
        self.audit.changed(caller_of(request), "key.add", key.name, settings=changes_of(Key(key.name), key))
        return await self._changed(key, 201, secret=secret)

    async def key(self, request: Request) -> Response:
        return JSONResponse(self._describe(await self._find(request)))

    async def change(self, request: Request) -> Response:
        body = await _read(request, ChangeKey)
        known = await self._find(request)
        changes = _settings(body, body.model_fields_set, known)
        key = await self._call(lambda store: store.set(known.name, **changes))
        self.audit.changed(caller_of(request), "key.set", key.name, settings=changes_of(known, key))
        return await self._changed(key, 200)

    async def remove(self, request: Request) -> Response:
        known = await self._find(request)
        await self._call(lambda store: store.remove(known.name))
        self.audit.changed(caller_of(request), "key.remove", known.name)
        await self.file.reload(whole=True)
        return Response(status_code=204)

    async def rotate(self, request: Request) -> Response:
        body = await _read(request, RotateKey, empty=RotateKey())
        known = await self._find(request)
        secret = await self._call(lambda store: store.rotate(known.name, body.overlap))
        self.audit.changed(caller_of(request), "key.rotate", known.name, overlap=body.overlap)
        return await self._changed(known, 200, secret=secret)

    async def _find(self, request: Request) -> Key:
        name = request.path_params["name"]
        return await self._call(lambda store: store.get(name))

    async def _changed(self, key: Key, status: int, **more: str) -> Response:
        await self.file.reload(whole=True)
        return JSONResponse(self._describe(key) | more, status, {"Cache-Control": "no-store"})

    async def _call[T](self, call: Callable[[KeyStore], T]) -> T:
        """Use the file in a thread."""
        store = self.file.store
        if store is None:
            raise HTTPException(503, "the balancer is not running")
        try:
            return await asyncio.to_thread(call, store)
        except UnknownKeyError as e:
            raise HTTPException(404, f"no key is called {str(e)[:80]!r}: GET /api/keys lists them") from e
        except KeyFileError as e:
            raise HTTPException(503, str(e)) from e
        except KeyExistsError:
            raise
        except ValueError as e:
            raise HTTPException(400, str(e)) from e

    def _describe(self, key: Key, running: int | None = None) -> dict[str, Any]:
        return {
            "name": key.name,
            "rights": sorted(key.rights),
            "models": list(key.models),
            **{name: getattr(key.limits, name) for name in _LIMITS},
            "priority": key.priority.label,
            "created": _time(key.created),
            "expires": None if key.expires is None else _time(key.expires),
            "disabled": key.disabled,
            "note": key.note,
            "problem": key.problem(self.wall()),
            "agent": key.agent,
            "running": self.limiter.running(key.name) if running is None else running,
        }


def _settings(body: KeySettings, given: set[str], known: Key | None = None) -> dict[str, Any]:
    """The given fields of the body as those of a key."""
    limits = {name: getattr(body, name) for name in _LIMITS if name in given}
    changes: dict[str, Any] = {name: getattr(body, name) for name in ("disabled", "note") if name in given}
    if "rights" in given:
        changes["rights"] = frozenset(body.rights)
    if "priority" in given:
        changes["priority"] = Priority.parse(body.priority)
    if "models" in given:
        changes["models"] = tuple(body.models)
    if "expires" in given:
        changes["expires"] = None if body.expires is None else body.expires.timestamp()
    if limits:
        before = {name: getattr(known.limits, name) for name in _LIMITS} if known is not None else {}
        changes["limits"] = Limits(**(before | limits))
    return changes


async def _read[M: BaseModel](request: Request, model: type[M], empty: M | None = None) -> M:
    body = await request.body()
    if empty is not None and not body.strip():
        return empty
    try:
        return model.model_validate_json(check_size(body))
    except ValidationError as e:
        raise HTTPException(400, describe(e.errors())) from e
    except ValueError as e:
        raise HTTPException(400, f"body: {e}") from e


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
