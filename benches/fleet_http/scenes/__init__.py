"""What the clients do, and what happens to the hosts: a module a scene."""

from .burst import Burst
from .chats import Chats
from .killed import Killed
from .scene import Scene

SCENES: dict[str, tuple[Scene, ...]] = {
    "chats": (Chats(),),
    "killed": (Killed(),),
    "burst": (Burst(),),
}
"""By name; each of the scenes under a name has tables of its own."""
