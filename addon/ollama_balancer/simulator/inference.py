"""Serves inference requests: queueing, loading, prefill and decoding, with faults."""

from collections.abc import Sequence

from . import text
from .answers import CRASHED
from .connection import Connection
from .faults import Gate
from .jobs import EmbedJob, TextJob
from .shapes import EmbeddingResult, Piece, Statistics
from .timing import Scheduler

ONE_TOKEN = 1e-6
"""Seconds that the real server tells for an answer of one token: its time counts as the prompt's."""


class Inference:
    """Serves jobs on one host. Each call returns whether the request succeeded; a client's disconnect cancels it."""

    def __init__(self, scheduler: Scheduler, gate: Gate, seed: int) -> None:
        self._scheduler = scheduler
        self._gate = gate
        self._faults = gate.faults
        self._seed = seed

    async def serve(self, connection: Connection, job: TextJob | EmbedJob) -> bool:
        """Answer one request."""
        await self._gate.hang("hang", "hang_all")
        stopped = self._gate.intercept(connection, job.error)
        if stopped is not None:
            return stopped
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
            connection.answer(job.write(EmbeddingResult(job.spelling, [])))
            return True
        scheduler = self._scheduler
        began = scheduler.clock()
        async with scheduler.slot(job.model, job.keep_alive) as load:
            count = sum(map(text.prompt_tokens, job.inputs))
            await scheduler.pause(scheduler.scaled(count / scheduler.timing.prefill_rate))
            vectors = [text.embed(self._seed, each) for each in job.inputs]
            embedded = EmbeddingResult(job.spelling, vectors, scheduler.clock() - began, load, count)
            connection.answer(job.write(embedded))
        return True

    async def _generate(self, connection: Connection, job: TextJob) -> bool:
        scheduler, timing = self._scheduler, self._scheduler.timing
        began = scheduler.clock()
        prompt_count = text.prompt_tokens(job.prompt)
        tokens, cut_short = text.generate(self._seed, job.prompt, timing.output_tokens, job.limit)
        pieces: Sequence[Piece] = tokens
        if job.call is not None:
            pieces, cut_short = [job.call], False
        async with scheduler.slot(job.model, job.keep_alive) as load:
            prefill = scheduler.scaled(prompt_count / timing.prefill_rate)
            await scheduler.pause(prefill)
            decoding = scheduler.clock()
            if job.stream:
                sent, strike = await self._stream(connection, job, pieces)
            else:
                sent, strike = await self._decode(len(pieces))
            if strike == "cut":
                connection.abort()
            elif strike == "error" and not (job.stream and sent):
                connection.answer(job.error(500, CRASHED))
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
                    output=scheduler.clock() - decoding if sent != 1 else ONE_TOKEN,
                )
                if job.stream:
                    connection.end(*job.shape.end(statistics))
                else:
                    connection.answer(job.shape.whole(pieces, statistics))
        return strike is None

    async def _stream(self, connection: Connection, job: TextJob, pieces: Sequence[Piece]) -> tuple[int, str | None]:
        """Send each piece when it is due; how many were sent, and the fault that stopped it."""
        scheduler, shape = self._scheduler, job.shape
        due = scheduler.clock()
        begun = False
        for sent, piece in enumerate(pieces):
            due += scheduler.scaled(1 / scheduler.timing.decode_rate)
            await scheduler.tick(due)
            if (strike := self._faults().strike(sent)) is not None:
                if not begun and strike != "error":
                    connection.begin(shape.stream_type, headers=job.stream_headers)
                return sent, strike
            if begun:
                connection.write(connection.frame(shape.piece(piece)))
                await connection.drain()
            else:
                opening = (*shape.opening(piece), shape.piece(piece))
                connection.begin(shape.stream_type, *opening, headers=job.stream_headers)
                begun = True
        return len(pieces), self._faults().strike(len(pieces), at_end=True)

    async def _decode(self, total: int) -> tuple[int, str | None]:
        """Let the time of decoding pass without sending anything, up to a fault that strikes before the end."""
        scheduler = self._scheduler
        now = self._faults()
        stops = [n for n in (now.cut_after_chunks, now.error_event_after_chunks) if n is not None]
        count = min([total, *stops])
        await scheduler.pause(scheduler.scaled(count / scheduler.timing.decode_rate))
        return count, self._faults().strike(count, at_end=count == total)
