"""What the clients do, and what happens to the hosts: a module a scene."""

from .burst import Burst
from .chats import Chats
from .jobs import Jobs
from .killed import Killed
from .prefixes import Prefixes
from .scene import Scene

SCENES: dict[str, tuple[Scene, ...]] = {
    "chats": (Chats(),),
    "killed": (Killed(),),
    "burst": (Burst(),),
    "jobs": (Jobs(),),
    "prefixes": (Prefixes(8_000, load=0.2), Prefixes(32_000, load=0.4)),
}
"""By name; each of the scenes under a name has tables of its own."""
