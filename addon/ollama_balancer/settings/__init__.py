"""The balancer's settings: the table of its options and the fleet file, without mitmproxy."""
