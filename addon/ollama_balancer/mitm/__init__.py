"""The adapter to mitmproxy.

Small addons handle the hooks; `layer`, `stream` and `shared_stream` extend its proxy core, `compat` and `patches` hold
everything private, `fastpath` what is fast and optional.
"""
