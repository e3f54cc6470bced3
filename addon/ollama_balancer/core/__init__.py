"""The core: which agents there are, how they are, and which one gets the next request. No I/O, no mitmproxy."""
