"""The way of one request through mitmproxy: choosing, connecting, retrying, streaming.

`dispatch` decides, `context` is one request's record, `layer` does it in mitmproxy's proxy core.
"""
