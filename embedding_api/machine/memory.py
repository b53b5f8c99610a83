"""Prepare a process to load models, to fork and to stay small. Imports neither torch nor tokenizers."""

import ctypes
import gc
import itertools
import os

from embedding_api.machine import scratch

# These overwrite the environment. Any OpenMP or tokenizer thread in the master makes forked workers hang for ever.
# OpenMP threads that spin while they wait made two workers with two threads each, on two cores, 14 times slower.
# Without MKL_DISABLE_FAST_MM MKL keeps its buffers, a few MB, in a pool of its own.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_DISABLE_FAST_MM": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
}

# From glibc's malloc.h. Threads that allocate get up to eight arenas a core, each with holes of its own: see
# docs/decisions/0002. MALLOC_ARENA_MAX has no effect on a process that already runs.
_M_ARENA_MAX, _ARENAS = -8, 2
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 65_536

# Calls of glibc. Other systems, and Linux with another C library, do nothing instead.
_libc = ctypes.CDLL(None)
_mallopt = getattr(_libc, "mallopt", lambda *_: None)
_malloc_trim = getattr(_libc, "malloc_trim", lambda *_: None)

# Batches between two trims: a few seconds of work, so that a trim, about a millisecond, costs next to nothing.
_TRIM_EVERY = 64
_batches = itertools.count(1)


def prepare() -> None:
    """Make this process safe to load models in and to fork from. Call it before anything imports torch."""
    os.environ.update(_ENVIRONMENT)
    scratch.prepare()
    _mallopt(_M_ARENA_MAX, _ARENAS)


def map_large_pieces() -> None:
    """Let malloc give each large piece its own pages, so that it leaves no hole: see docs/decisions/0004."""
    _mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def freeze() -> None:
    """Exclude all present objects from garbage collection.

    A full collection in a worker would otherwise write to, and so copy, about 109 MB that it shares with the master.
    """
    gc.collect()
    # Loading leaves free memory behind, of which each worker would copy some.
    trim()
    gc.freeze()


def trim() -> None:
    """Return free memory between used pieces to the system. Takes about a millisecond."""
    _malloc_trim(0)


def trim_regularly() -> None:
    """Trim the memory of a worker after every _TRIM_EVERY calls. Call it after each batch."""
    if next(_batches) % _TRIM_EVERY == 0:
        trim()
