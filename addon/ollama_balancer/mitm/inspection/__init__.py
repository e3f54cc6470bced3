"""What people see of a balanced request in mitmweb and mitmproxy: the comment, the marker, the record."""
