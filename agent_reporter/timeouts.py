"""`asyncio.timeout`, on Python 3.10 as well."""

import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    import asyncio
    from collections.abc import AsyncIterator
    from contextlib import asynccontextmanager

    import async_timeout

    @asynccontextmanager
    async def timeout(delay: float) -> AsyncIterator[None]:
        """Cancel what takes longer than `delay` seconds, and raise TimeoutError."""
        try:
            async with async_timeout.timeout(delay):
                yield
        except asyncio.TimeoutError as error:  # another class than the built-in one there
            raise TimeoutError from error


__all__ = ["timeout"]
