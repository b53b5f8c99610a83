"""What a process must do to load models and then fork. Imports neither torch nor tokenizers."""

import ctypes
import gc
import os
import sys

# Overwritten, not defaulted. Any OpenMP or tokenizer thread in the master makes forked workers hang for ever, and
# OpenMP threads that spin while they wait made two workers with two threads each on two cores 14 times slower.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}

# From glibc's malloc.h. Two arenas instead of eight a core halve a worker's private memory; MALLOC_ARENA_MAX has no
# effect from inside a running process.
_M_ARENA_MAX, _ARENAS = -8, 2


def prepare() -> None:
    """Makes this process safe to load models in and to fork from; call it before anything imports torch."""
    os.environ.update(_ENVIRONMENT)
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)(_M_ARENA_MAX, _ARENAS)


def freeze() -> None:
    """Puts everything loaded so far out of the garbage collector's reach.

    A full collection in a worker would otherwise write to, and so copy, about 109 MB that it shares with the master.
    """
    gc.collect()
    gc.freeze()
