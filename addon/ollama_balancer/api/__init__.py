"""The control API: what agents, operators and monitors call on the proxy's own port."""
