"""A script for mitmdump, after the balancer's: asyncio hands each chunk to its relay, without the short way past it."""

from __future__ import annotations

from unittest.mock import patch

from ollama_balancer.mitm.fastpath import relay

patch.object(relay, "install", return_value=None).start()
