"""The threads of TBB, with which OpenVINO computes. A fork loses threads, so a process that forks must not start any.

A limit holds TBB to the calling thread, in this process and in those that it forks. A forked process may raise the
limit, once: TBB would keep threads awake that it may not use any more.
"""

import ctypes
import functools
import importlib.util
import logging
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

_LIBRARY = "libtbb.12.dylib" if sys.platform == "darwin" else "libtbb.so.12"
# `max_allowed_parallelism` in oneTBB's global_control.h.
_MAX_PARALLELISM = 0
# tbb::detail::r1::create and destroy, each of a tbb::detail::d1::global_control&.
_CREATE = "_ZN3tbb6detail2r16createERNS0_2d114global_controlE"
_DESTROY = "_ZN3tbb6detail2r17destroyERNS0_2d114global_controlE"


class _Control(ctypes.Structure):
    """oneTBB's `global_control`: the lowest value of all that exist is in force."""

    _fields_ = (("value", ctypes.c_size_t), ("reserved", ctypes.c_size_t), ("parameter", ctypes.c_int))


class Limit:
    """A limit on the threads of TBB in this process, the calling one included: one thread until it is raised.

    Args:
        library: The file of the TBB that OpenVINO loads.

    Raises:
        OSError: There is no such file.
        AttributeError: It is another version of TBB.
    """

    def __init__(self, library: Path) -> None:
        tbb = ctypes.CDLL(str(library))
        self._create, self._destroy = tbb[_CREATE], tbb[_DESTROY]
        self._n_threads = 1
        self._control = self._created(1)

    def raise_to(self, n_threads: int) -> None:
        """Let one inference use so many threads from now on. A lower number than before changes nothing."""
        if n_threads > self._n_threads:
            before, self._control = self._control, self._created(n_threads)
            self._destroy(ctypes.byref(before))
            self._n_threads = n_threads

    def _created(self, n_threads: int) -> _Control:
        control = _Control(n_threads, 0, _MAX_PARALLELISM)
        self._create(ctypes.byref(control))
        return control


@functools.cache
def limit() -> Limit | None:
    """Return the limit of this process, made at the first call; None if TBB cannot be limited here."""
    package = importlib.util.find_spec("openvino")
    if package is None or package.origin is None:
        return None
    try:
        return Limit(Path(package.origin).parent / "libs" / _LIBRARY)
    except (OSError, AttributeError) as error:
        logger.warning("one text is computed on one core, because the threads of OpenVINO cannot be limited: %s", error)
        return None
