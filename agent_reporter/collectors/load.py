"""Load average and number of processors."""

import psutil

from .base import Fields, Host


class LoadCollector:
    """Collects `load_average`, over 1, 5 and 15 minutes, and `cpu_count`.

    On Windows psutil starts to measure at the first call, so the first report has zeros.
    """

    def __init__(self, host: Host) -> None:
        del host

    async def collect(self) -> Fields:
        averages = [max(0.0, round(value, 2)) for value in psutil.getloadavg()]
        return {"load_average": averages, "cpu_count": psutil.cpu_count()}
