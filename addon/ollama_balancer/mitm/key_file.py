"""Follows the file with the client keys."""

import asyncio
import logging
from pathlib import Path

from ..core.access import Keyring
from ..core.events import EventKind
from ..storage.keys import FILE_NAME, KeyFileError, KeyStore
from ..storage.sqlite_file import DamagedError
from .balancer import Balancer
from .connections import Connections

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Seconds between two looks whether the command line has changed a key."""


GONE = "the key file is gone: put it back, or restart the balancer to begin without keys"


class KeyFile:
    """Reads the keys at the start and whenever they change."""

    def __init__(self, balancer: Balancer, connections: Connections) -> None:
        self.balancer = balancer
        self.connections = connections
        self.store: KeyStore | None = None

    def open(self, folder: Path) -> None:
        """Read the file in that folder, unless it is the one that is read already."""
        path = folder / FILE_NAME
        if self.store is not None and self.store.path == path:
            return
        if self.store is not None:
            self.store.close()
        self.store = KeyStore(path)
        self._use(_load(self.store, whole=True) or Keyring())

    async def follow(self) -> None:
        """Read the keys again whenever they have changed, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.reload()

    async def reload(self, *, whole: bool = False) -> None:
        """Read the keys if somebody else has changed them, or `whole`: in any case."""
        if self.store is None:
            return
        store, problem = self.store, self.balancer.access.keyring.problem
        keyring = await asyncio.to_thread(_load, store, whole=whole or problem is not None)
        if keyring is not None and store is self.store:
            self._use(keyring)

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
            self.store = None

    def _use(self, keyring: Keyring) -> None:
        access, networks = self.balancer.access, self.balancer.networks
        if keyring.problem is not None and keyring.problem != access.keyring.problem:
            logger.warning("Nobody gets in with a key: %s.", keyring.problem)
        if access.keyring.had_keys and not keyring.had_keys and keyring.problem is None:
            # What closed the door is gone, perhaps with its disk: that opens nothing.
            keyring = Keyring(problem=GONE, had_keys=True)
            if access.keyring.problem != GONE:
                logger.warning("Nobody gets in with a key: %s.", GONE)
        access.keyring = keyring
        if keyring.problem is None:
            access.limiter.keep(keyring.names)
        if networks.any_allowed != access.needs_key:
            networks.any_allowed = access.needs_key
            self.connections.recheck_clients()
            if self.balancer.running:
                text = "calls need a key from now on" if access.needs_key else "open: calls need no key"
                logger.info("Access: %s.", text)
                self.balancer.events.add(EventKind.ACCESS, text)


def _load(store: KeyStore, *, whole: bool) -> Keyring | None:
    """All keys, or not `whole`: None if they have not changed. A damaged file is renamed, and then no key is valid."""
    try:
        return store.load() if whole else store.load_changed()
    except DamagedError as e:
        try:
            store.set_aside(str(e))
            return store.load()
        except KeyFileError as error:
            return Keyring(problem=str(error))
    except KeyFileError as e:
        return Keyring(problem=str(e))
