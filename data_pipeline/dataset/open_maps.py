"""Memory maps that stay open, a bounded number per process: each keeps a file descriptor."""

import resource
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache
from threading import RLock
from typing import TypeVar

Map = TypeVar("Map")
# A quarter of the descriptors that the process may open, within these bounds.
FEWEST_MAPS, MOST_MAPS = 8, 1024


class OpenMaps:
    """Keeps the maps that were used last. A map that is dropped is closed once no array refers to it.

    Args:
        most: number of maps to keep.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: OrderedDict[tuple[int, Hashable], object] = OrderedDict()
        # Reentrant, because the garbage collector may call `_forget` while `get` runs.
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, owner: object, name: Hashable, open_map: Callable[[], Map]) -> Map:
        """The map that `open_map` returned for `owner` and `name`, opened again if it was dropped."""
        key = id(owner), name
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
            while len(self._open) >= self._most:
                self._open.popitem(last=False)
            opened = self._open[key] = open_map()
            return opened

    def drop_with(self, owner: object) -> None:
        """Drop the maps of `owner` when it is no longer used."""
        weakref.finalize(owner, self._forget, id(owner))

    def _forget(self, owner: int) -> None:
        with self._lock:
            for key in [key for key in self._open if key[0] == owner]:
                del self._open[key]


@cache
def process_maps() -> OpenMaps:
    """The maps of this process."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OpenMaps(min(MOST_MAPS, max(FEWEST_MAPS, allowed // 4)) if allowed > 0 else MOST_MAPS)
