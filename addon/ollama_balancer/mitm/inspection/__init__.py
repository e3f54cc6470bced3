"""What mitmweb and mitmproxy show of a request: comment, marker, record and content view."""
