"""The balancer, nginx, HAProxy and an oracle before the same simulated hosts, over real HTTP: see `__main__`."""
