"""The hosts of the fleet as the balancer reaches them by itself: probes, announcements, the demo."""
