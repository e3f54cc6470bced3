"""Tests that drive a real mitmdump over real sockets."""
