"""What is fast and private to mitmproxy and asyncio; each part can be off."""
