"""One inference request from its arrival to its last byte: the phases, and the faults that strike in them."""

import asyncio
from collections.abc import Callable

from . import text
from .answers import BUSY, CRASHED, Answer, Statistics, api_answer, nanoseconds
from .connection import Connection
from .faults import Faults
from .requests import EmbedJob, TextJob
from .timing import Scheduler


class Inference:
    """Serves jobs on one host. Each call returns whether the request succeeded; a client's disconnect cancels it."""

    def __init__(self, scheduler: Scheduler, faults: Callable[[], Faults], seed: int) -> None:
        self._scheduler = scheduler
        self._faults = faults
        self._seed = seed
        self._changed = asyncio.Event()

    def faults_changed(self) -> None:
        """Whoever hangs looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def hang(self, *names: str) -> None:
        """Wait as long as one of the faults is on."""
        while any(getattr(self._faults(), name) for name in names):
            await self._changed.wait()

    async def serve(self, connection: Connection, job: TextJob | EmbedJob) -> bool:
        """Answer one request."""
        await self.hang("hang", "hang_all")
        now = self._faults()
        if now.reset_before_head or now.close_before_head:
            connection.abort(reset=now.reset_before_head)
            return False
        if now.status is not None:
            message = BUSY if now.status == 503 else "a simulated failure"
            connection.answer(_error(job, now.status, message))
            return now.status < 400
        if isinstance(job, EmbedJob):
            return await self._embed(connection, job)
        if job.empty:
            return await self._load(connection, job)
        return await self._generate(connection, job)

    async def _load(self, connection: Connection, job: TextJob) -> bool:
        if job.keep_alive == 0:
            self._scheduler.unload(job.model)
            connection.answer(job.shape.done("unload"))
            return True
        if not self._scheduler.touch(job.model, job.keep_alive):
            async with self._scheduler.slot(job.model, job.keep_alive):
                pass
        connection.answer(job.shape.done("load"))
        return True

    async def _embed(self, connection: Connection, job: EmbedJob) -> bool:
        if not job.inputs:
            connection.answer(api_answer({"model": job.spelling, "embeddings": []}))
            return True
        scheduler = self._scheduler
        began = scheduler.clock()
        async with scheduler.slot(job.model, job.keep_alive) as load:
            count = sum(map(text.prompt_tokens, job.inputs))
            await scheduler.pause(scheduler.scaled(count / scheduler.timing.prefill_rate))
            value = {
                "model": job.spelling,
                "embeddings": [text.embed(self._seed, each) for each in job.inputs],
                "total_duration": nanoseconds(scheduler.clock() - began),
                "load_duration": nanoseconds(load),
                "prompt_eval_count": count,
            }
            connection.answer(api_answer(value))
        return True

    async def _generate(self, connection: Connection, job: TextJob) -> bool:
        scheduler, timing = self._scheduler, self._scheduler.timing
        began = scheduler.clock()
        prompt_count = text.prompt_tokens(job.prompt)
        tokens, cut_short = text.generate(self._seed, job.prompt, timing.output_tokens, job.limit)
        async with scheduler.slot(job.model, job.keep_alive) as load:
            prefill = scheduler.scaled(prompt_count / timing.prefill_rate)
            await scheduler.pause(prefill)
            decoding = scheduler.clock()
            if job.stream:
                sent, strike = await self._stream(connection, job, tokens)
            else:
                sent, strike = await self._decode(tokens)
            if strike == "cut":
                connection.abort()
            elif strike == "error" and not (job.stream and sent):
                connection.answer(job.shape.error(500, CRASHED))
            elif strike == "error":
                connection.end(job.shape.crash())
            elif strike == "end" and job.stream:
                connection.end()
            else:
                strike = None
                statistics = Statistics(
                    done_reason="length" if cut_short else "stop",
                    total=scheduler.clock() - began,
                    load=load,
                    prompt_count=prompt_count,
                    prompt=prefill,
                    output_count=sent,
                    output=scheduler.clock() - decoding,
                )
                if job.stream:
                    connection.end(job.shape.end(statistics))
                else:
                    connection.answer(job.shape.whole("".join(tokens), statistics))
        return strike is None

    async def _stream(self, connection: Connection, job: TextJob, tokens: list[str]) -> tuple[int, str | None]:
        """Send each token when it is due; how many were sent, and the fault that stopped it."""
        scheduler, shape = self._scheduler, job.shape
        due = scheduler.clock()
        begun = False
        for sent, token in enumerate(tokens):
            due += scheduler.scaled(1 / scheduler.timing.decode_rate)
            await scheduler.tick(due)
            if (strike := self._faults().strike(sent)) is not None:
                if not begun and strike != "error":
                    connection.begin(shape.stream_type)
                return sent, strike
            if begun:
                connection.write(connection.frame(shape.token(token)))
                await connection.drain()
            else:
                connection.begin(shape.stream_type, shape.token(token))
                begun = True
        return len(tokens), self._faults().strike(len(tokens), at_end=True)

    async def _decode(self, tokens: list[str]) -> tuple[int, str | None]:
        """Let the time of decoding pass without sending anything, up to a fault that strikes before the end."""
        scheduler = self._scheduler
        now = self._faults()
        stops = [n for n in (now.cut_after_chunks, now.error_event_after_chunks) if n is not None]
        count = min([len(tokens), *stops])
        await scheduler.pause(scheduler.scaled(count / scheduler.timing.decode_rate))
        return count, self._faults().strike(count, at_end=count == len(tokens))


def _error(job: TextJob | EmbedJob, status: int, message: str) -> Answer:
    if isinstance(job, TextJob):
        return job.shape.error(status, message)
    return api_answer({"error": message}, status)
