"""What the balancer changes on mitmweb's page: the flow list tells where each request went, in a column that is wide.

mitmweb's comment column is off by default and has room for two words.
"""

from typing import Any

from mitmproxy import ctx
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import OutputTransform

from ..compat.names import Patches

COLUMNS = ["icon", "timestamp", "path", "comment", "status", "size", "time"]

STYLE = b"<style>.flow-table .col-comment{width:55%}.flow-table .col-timestamp{width:200px}</style></head>"


class WideComments(OutputTransform):
    """Puts a style into the page."""

    def __init__(self, request: HTTPServerRequest) -> None:
        super().__init__(request)
        self._is_page = request.path == "/"

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        if self._is_page and finishing:
            chunk = chunk.replace(b"</head>", STYLE, 1)
            if "Content-Length" in headers:
                headers["Content-Length"] = str(len(chunk))
        return status_code, headers, chunk


_patches = Patches()


def show_comments() -> None:
    """Have mitmweb's list show the comments, unless the user has chosen its columns."""
    application: Any = getattr(ctx.master, "app", None)
    if application is None or not hasattr(ctx.options, "web_columns"):
        return
    if not _patches:
        application.transforms.insert(0, WideComments)
        _patches.on_restore(lambda: application.transforms.remove(WideComments))
    if ctx.options.web_columns == ctx.options.default("web_columns"):
        ctx.options.update(web_columns=COLUMNS)


def hide_comments() -> None:
    """Have it be as it was."""
    if _patches:
        _patches.restore()
        if ctx.options.web_columns == COLUMNS:
            ctx.options.update(web_columns=ctx.options.default("web_columns"))
