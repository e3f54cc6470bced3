"""Management of models: pull, push, create, copy, delete and blob uploads.

An operation is an answer or a stream of progress lines; it takes effect just before its last line, so an aborted one
changes nothing.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from .answers import BARE_JSON, CRASHED, NDJSON, Answer, api_error, dumps, empty
from .connection import Connection
from .faults import Gate
from .library import Library, Registry, Upload
from .models import SimulatedModel, blob_digest, model_key
from .requests import Parsed, RefusedError, managed_name
from .timing import Scheduler

Lines = Iterator[dict[str, Any]]
Operation = Callable[[], Answer | Lines]
"""Begins an operation. Raises RefusedError."""

DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
NO_NETWORK = "dial tcp: lookup {host} on 10.255.255.53:53: no such host"
NO_MANIFEST = 'pull model manifest: Get "https://{host}/v2/{namespace}/{model}/manifests/{tag}": ' + NO_NETWORK
NO_PUSH = 'Head "https://{host}/v2/{namespace}/{model}/blobs/{digest}": ' + NO_NETWORK
SUCCESS = {"status": "success"}
CHANGES = ("system", "template", "parameters", "license", "messages", "adapters", "quantize")
"""What a model may be given that the one it is made from has not."""


class OperationFailedError(Exception):
    """A failed operation: status 500 before the first line, else an error line."""


class Management:
    """Carries out operations on one host's library."""

    def __init__(self, library: Library, registry: Registry, scheduler: Scheduler, gate: Gate) -> None:
        self._library = library
        self._registry = registry
        self._scheduler = scheduler
        self._gate = gate
        self._operations: dict[str, Callable[[Parsed], Answer | Lines]] = {
            "/api/pull": lambda parsed: self._pulling(managed_name(parsed)),
            "/api/push": self._push,
            "/api/create": self._create,
            "/api/copy": self._copy,
            "/api/delete": self._delete,
        }

    def operation(self, route: str, parsed: Parsed) -> Operation:
        """What a request wants, to be begun when its time has come."""
        return partial(self._operations[route], parsed)

    def upload(self, digest: str) -> Upload:
        """Take in a blob."""
        present = self._library.has_blob(digest.replace("-", ":"))
        return Upload(present=present, wanted=not present and DIGEST.fullmatch(digest) is not None)

    def blob(self, name: str, upload: Upload | None) -> Answer:
        """Answer an upload that is complete, or (`upload` None) whether there is such a blob."""
        if not DIGEST.fullmatch(name):
            return api_error(400, "invalid digest format")
        digest = name.replace("-", ":")
        if upload is None:
            if self._library.has_blob(digest):
                return empty()
            return api_error(404, f'blob "{digest}" not found')
        if upload.present:
            return empty()
        if upload.digest != digest:
            return api_error(400, f'digest mismatch, expected "{digest}", got "{upload.digest}"')
        self._library.blobs[digest] = upload.size
        return empty(201)

    async def serve(self, connection: Connection, operation: Operation, *, stream: bool = False) -> bool:
        """Answer one request; whether it succeeded. A client's disconnect breaks the operation off."""
        await self._gate.hang("hang_all")
        stopped = self._gate.intercept(connection, api_error)
        if stopped is not None:
            return stopped
        try:
            result = operation()
        except RefusedError as refused:
            result = refused.answer
        if isinstance(result, Answer):
            connection.answer(result)
            return result.status < 400
        return await (self._stream if stream else self._whole)(connection, result)

    async def _stream(self, connection: Connection, lines: Lines) -> bool:
        sent = 0
        try:
            for line in lines:
                await self._progress(sent)
                # The change has been made by the time of the last line: only the word of it can be lost.
                strike = self._gate.faults().strike(sent, at_end=line == SUCCESS)
                if strike == "error":
                    raise OperationFailedError(CRASHED)
                if strike is not None:
                    if not sent:
                        connection.begin(NDJSON)
                    connection.abort() if strike == "cut" else connection.end()
                    return False
                payload = dumps(line) + b"\n"
                if sent:
                    connection.write(connection.frame(payload))
                    await connection.drain()
                else:
                    connection.begin(NDJSON, payload)
                sent += 1
        except OperationFailedError as error:
            if sent:
                connection.end(dumps({"error": str(error)}) + b"\n")
            else:
                connection.answer(Answer(500, BARE_JSON, dumps({"error": str(error)}), chunked=True))
            return False
        connection.end()
        return True

    async def _whole(self, connection: Connection, lines: Lines) -> bool:
        line: dict[str, Any] = {}
        passed = 0
        try:
            for line in lines:
                await self._progress(passed)
                strike = self._gate.faults().strike(passed, at_end=line == SUCCESS)
                if strike == "cut":
                    connection.abort()
                    return False
                if strike == "error":
                    raise OperationFailedError(CRASHED)
                passed += 1
        except OperationFailedError as error:
            connection.answer(Answer(500, BARE_JSON, dumps({"error": str(error)})))
            return False
        connection.answer(Answer(200, BARE_JSON, dumps(line)))
        return True

    async def _progress(self, sent: int) -> None:
        if sent:
            await self._scheduler.tick(
                self._scheduler.clock() + self._scheduler.scaled(self._scheduler.timing.progress_pause)
            )

    # ---- operations

    def _pulling(self, spelling: str) -> Lines:
        yield _status("pulling manifest")
        model = self._registry.find(spelling)
        if model is None:
            raise OperationFailedError(_no_network(NO_MANIFEST, spelling))
        steps = self._scheduler.timing.pull_steps
        for digest, total in model.layers():
            line = _status(f"pulling {digest.removeprefix('sha256:')[:12]}") | {"digest": digest, "total": total}
            if self._library.has_blob(digest):
                yield line | {"completed": total}
                continue
            yield line
            for step in range(1, steps + 1):
                yield line | {"completed": total * step // steps}
        yield _status("verifying sha256 digest")
        yield _status("writing manifest")
        self._library.add(model)
        yield SUCCESS

    def _push(self, parsed: Parsed) -> Lines:
        spelling = managed_name(parsed)
        model = self._library.find(spelling)
        if model is None:
            raise RefusedError(api_error(404, f"model '{spelling}' not found"))
        return self._pushing(spelling, model)

    def _pushing(self, spelling: str, model: SimulatedModel) -> Lines:
        yield _status("retrieving manifest")
        raise OperationFailedError(_no_network(NO_PUSH, spelling, digest=model.layers()[0][0]))

    def _create(self, parsed: Parsed) -> Lines:
        name = managed_name(parsed)
        source, files = parsed.get("from") or "", parsed.get("files") or {}
        if source:
            return self._creating(name, source, parsed)
        if files:
            return self._importing(name, [str(digest) for digest in files.values()])
        message = dumps({"error": "neither 'from' or 'files' was specified"})
        raise RefusedError(Answer(400, BARE_JSON, message, chunked=parsed.get("stream") is not False))

    def _creating(self, name: str, source: str, parsed: Parsed) -> Lines:
        base = self._library.find(source)
        if base is None:
            yield _status("pulling manifest")
            raise OperationFailedError(_no_network(NO_MANIFEST, source))
        weights, template, parameters = (digest for digest, _ in base.layers())
        changed = {field: parsed[field] for field in CHANGES if parsed.get(field)}
        for digest in (weights, template):
            yield _status(f"using existing layer {digest}")
        added = json.dumps(changed, sort_keys=True, default=str)
        if changed:
            yield _status(f"creating new layer {blob_digest(added)}")
        yield _status(f"using existing layer {parameters}")
        yield _status("writing manifest")
        content = f"{base.made_of} {added}" if changed else base.made_of
        size = base.size + (len(added) if changed else 0)
        self._library.add(replace(base, name=name.strip(), size=size, content=content))
        yield SUCCESS

    def _importing(self, name: str, digests: Iterable[str]) -> Lines:
        yield _status("parsing GGUF")
        wanted = list(digests)
        for digest in wanted:
            if not self._library.has_blob(digest):
                path = f"/models/blobs/{digest.replace(':', '-')}"
                raise OperationFailedError(f"open {path}: no such file or directory")
        for digest in wanted:
            yield _status(f"using existing layer {digest}")
        yield _status("writing manifest")
        size = sum(self._library.blobs.get(digest, 0) for digest in wanted)
        self._library.add(SimulatedModel(name.strip(), size=size, content=" ".join(wanted)))
        yield SUCCESS

    def _copy(self, parsed: Parsed) -> Answer:
        source, destination = (parsed.get(field) or "" for field in ("source", "destination"))
        for field, spelling in (("source", source), ("destination", destination)):
            if model_key(spelling) is None:
                raise RefusedError(api_error(400, f'{field} "{spelling}" is invalid'))
        model = self._library.find(source)
        if model is None:
            raise RefusedError(api_error(404, f'model "{source}" not found'))
        self._library.add(replace(model, name=destination.strip(), content=model.made_of))
        return empty()

    def _delete(self, parsed: Parsed) -> Answer:
        spelling = managed_name(parsed)
        model = self._library.find(spelling)
        if model is None:
            raise RefusedError(api_error(404, f"model '{spelling}' not found"))
        self._library.remove(model)
        self._scheduler.unload(model)
        return empty()


def _status(text: str) -> dict[str, Any]:
    return {"status": text}


def _no_network(message: str, spelling: str, **more: str) -> str:
    host, namespace, model, tag = model_key(spelling) or ("", "", spelling, "latest")
    return message.format(host=host, namespace=namespace, model=model, tag=tag, **more)
