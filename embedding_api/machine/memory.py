"""What a process must do to load models, fork, and stay small. Imports neither torch nor tokenizers."""

import ctypes
import gc
import os

from embedding_api.machine import scratch

# Overwritten, not defaulted. Any OpenMP or tokenizer thread in the master makes forked workers hang for ever, and
# OpenMP threads that spin while they wait made two workers with two threads each on two cores 14 times slower.
# MKL keeps its buffers, a few MB, in a pool of its own unless it is told not to.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_DISABLE_FAST_MM": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
}

# From glibc's malloc.h. Threads that allocate get up to eight arenas a core, each with holes of its own; see
# docs/decisions/0002. MALLOC_ARENA_MAX has no effect from inside a running process.
_M_ARENA_MAX, _ARENAS = -8, 2
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 65_536

# glibc's own calls; other systems, and Linux with another C library, do without.
_libc = ctypes.CDLL(None)
_mallopt = getattr(_libc, "mallopt", lambda *_: None)
_malloc_trim = getattr(_libc, "malloc_trim", lambda *_: None)


def prepare() -> None:
    """Makes this process safe to load models in and to fork from; call it before anything imports torch."""
    os.environ.update(_ENVIRONMENT)
    scratch.prepare()
    _mallopt(_M_ARENA_MAX, _ARENAS)


def map_large_pieces() -> None:
    """Gives each large piece of memory pages of its own, so that it leaves no hole; see docs/decisions/0004."""
    _mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def freeze() -> None:
    """Puts everything loaded so far out of the garbage collector's reach.

    A full collection in a worker would otherwise write to, and so copy, about 109 MB that it shares with the master.
    """
    gc.collect()
    # What loading left behind, or workers would each copy some of it.
    trim()
    gc.freeze()


def trim() -> None:
    """Gives memory that is free, but lies between pieces in use, back to the system; takes about a millisecond."""
    _malloc_trim(0)
