"""What the clients do, and what happens to the hosts: a module a scene."""

from .chats import Chats
from .killed import Killed
from .scene import Scene

SCENES: dict[str, tuple[Scene, ...]] = {
    "chats": (Chats(),),
    "killed": (Killed(),),
}
"""By name; each of the scenes under a name has tables of its own."""
