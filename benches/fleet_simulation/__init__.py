"""The project's own fleet core in simulated time: registry, policies, waiting line and health under a fake clock."""
