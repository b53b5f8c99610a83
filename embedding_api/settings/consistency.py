"""Refuses combinations of settings with which the service cannot run. Each message names the cure."""

import sys
from pathlib import Path

from embedding_api.errors import SettingsError
from embedding_api.machine import cores
from embedding_api.settings import parsing
from embedding_api.settings.table import Settings


def default_workers(device: str) -> int:
    """Return the number of workers if WORKERS is unset: one more than a CPU has usable cores, or a few for a device."""
    if device != "cpu":
        return _max_workers_on_device()
    n_cores = cores.count()
    # The further one computes on all cores what waits alone. Other systems have no exchange over which others reach it.
    return n_cores + 1 if n_cores > 1 and sys.platform == "linux" else n_cores


def require_consistent(settings: Settings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        SettingsError: Two settings contradict each other. The message names both, and the cure.
    """
    if settings.require_auth and not settings.api_key_secret:
        raise SettingsError(
            "REQUIRE_AUTH=true without API_KEY_SECRET: every client would be refused; set API_KEY_SECRET to the key "
            "that clients send, or set REQUIRE_AUTH=false"
        )
    if settings.drain_s >= settings.graceful_timeout_s:
        raise SettingsError(
            f"DRAIN_S={settings.drain_s} must be less than GRACEFUL_TIMEOUT_S={settings.graceful_timeout_s}, which "
            "includes it: running requests would have no time left; lower DRAIN_S or raise GRACEFUL_TIMEOUT_S"
        )
    known = {name for spec in settings.supported_models for name in spec.names}
    for name in settings.trust_remote_code:
        # Repositories of code cannot be checked here: models name them, and are not loaded yet.
        if name not in known and not parsing.is_repository(name):
            raise SettingsError(
                f"TRUST_REMOTE_CODE={name!r} is not in SUPPORTED_MODELS, which holds {', '.join(sorted(known))}; "
                "write a repository of code with its commit, as organisation/name@<40 hexadecimal digits>"
            )
    _require_computable(settings)


def _require_computable(settings: Settings) -> None:
    """Refuse a device, a backend and a precision that contradict each other."""
    device = f"DEVICE={settings.device}"
    if settings.device != "cpu" and settings.workers > _max_workers_on_device() == 1:
        raise SettingsError(
            f"WORKERS={settings.workers} with {device}: one worker owns the device, and others can send to it only on "
            "Linux; unset WORKERS, or set it to 1"
        )
    if settings.device != "cpu" and settings.backend == "openvino":
        raise SettingsError(
            f"BACKEND=openvino with {device}: OpenVINO computes on the CPU only; unset BACKEND, or set DEVICE=cpu"
        )
    if settings.precision == "int8" and (settings.backend == "torch" or settings.device != "cpu"):
        other = "BACKEND=torch" if settings.backend == "torch" else device
        raise SettingsError(
            f"PRECISION=int8 with {other}: only OpenVINO on a CPU computes in int8; "
            f"set PRECISION to float32 or bfloat16, or unset {other.partition('=')[0]}"
        )
    # On a CPU it gains nothing over bfloat16. On mps it may overflow: each start compares a model's vectors on the CPU,
    # which adds in float32, as cuda does here. Nobody has checked how mps adds.
    if settings.precision == "float16" and settings.device != "cuda":
        raise SettingsError(
            f"PRECISION=float16 with {device}: this service computes in float16 on cuda only; "
            "set PRECISION to bfloat16 or float32, or set DEVICE=cuda"
        )
    file = settings.calibration_texts
    if settings.precision == "int8" and file is not None and (flaw := _flaw(file)):
        raise SettingsError(f"CALIBRATION_TEXTS={file} {flaw}; name a file of UTF-8 texts, one a line, or unset it")


def _flaw(file: Path) -> str:
    """Return what is wrong with a calibration file; empty if it has texts."""
    try:
        return "" if file.read_text(encoding="utf-8").strip() else "holds no text"
    except UnicodeDecodeError:
        return "is not UTF-8"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _max_workers_on_device() -> int:
    """Return how many workers keep one device busy with tokenized texts; 1 where workers cannot reach each other."""
    return min(4, cores.count()) if sys.platform == "linux" else 1
