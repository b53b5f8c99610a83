"""Refuses combinations of settings with which the service cannot run. Each message names the cure."""

import sys
from pathlib import Path

from embedding_api.errors import SettingsError
from embedding_api.machine import cores
from embedding_api.settings import parsing
from embedding_api.settings.table import Settings


def default_workers(device: str) -> int:
    """Return the number of workers if WORKERS is unset: one per usable core of a CPU, or a few for a device."""
    return cores.count() if device == "cpu" else _max_workers_on_device()


def require_consistent(settings: Settings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        SettingsError: Two settings contradict each other. The message names both, and the cure.
    """
    _require_usable_key(settings)
    _require_time_after_drain(settings)
    _require_known_code(settings)
    _require_possible_device(settings)
    _require_possible_precision(settings)


def _require_usable_key(settings: Settings) -> None:
    if settings.require_auth and not settings.api_key_secret:
        raise SettingsError(
            "REQUIRE_AUTH=true without API_KEY_SECRET: every client would be refused; set API_KEY_SECRET to the key "
            "that clients send, or set REQUIRE_AUTH=false"
        )


def _require_time_after_drain(settings: Settings) -> None:
    if settings.drain_s >= settings.graceful_timeout_s:
        raise SettingsError(
            f"DRAIN_S={settings.drain_s} must be less than GRACEFUL_TIMEOUT_S={settings.graceful_timeout_s}, which "
            "includes it: running requests would have no time left; lower DRAIN_S or raise GRACEFUL_TIMEOUT_S"
        )


def _require_known_code(settings: Settings) -> None:
    known = {name for spec in settings.supported_models for name in spec.names}
    # Repositories of code cannot be checked here: models name them, and are not loaded yet.
    unknown = [name for name in settings.trust_remote_code if name not in known and not parsing.is_repository(name)]
    if unknown:
        raise SettingsError(
            f"TRUST_REMOTE_CODE={unknown[0]!r} is not in SUPPORTED_MODELS, which holds {', '.join(sorted(known))}; "
            "write a repository of code with its commit, as organisation/name@<40 hexadecimal digits>"
        )


def _require_possible_device(settings: Settings) -> None:
    if settings.device == "cpu":
        return
    if settings.workers > _max_workers_on_device() == 1:
        raise SettingsError(
            f"WORKERS={settings.workers} with DEVICE={settings.device}: one worker owns the device, and others "
            "can send to it only on Linux; unset WORKERS, or set it to 1"
        )
    if settings.backend == "openvino":
        raise SettingsError(
            f"BACKEND=openvino with DEVICE={settings.device}: OpenVINO computes on the CPU only; "
            "unset BACKEND, or set DEVICE=cpu"
        )


def _require_possible_precision(settings: Settings) -> None:
    if settings.precision != "int8":
        return
    if settings.backend == "torch" or settings.device != "cpu":
        other = "BACKEND=torch" if settings.backend == "torch" else f"DEVICE={settings.device}"
        raise SettingsError(
            f"PRECISION=int8 with {other}: only OpenVINO on a CPU computes in int8; "
            f"set PRECISION to float32 or bfloat16, or unset {other.partition('=')[0]}"
        )
    if settings.calibration_texts is not None:
        _require_texts(settings.calibration_texts)


def _require_texts(file: Path) -> None:
    """Refuse a calibration file without text."""
    try:
        flaw = "" if file.read_text(encoding="utf-8").strip() else "holds no text"
    except FileNotFoundError:
        flaw = "does not exist"
    except UnicodeDecodeError:
        flaw = "is not UTF-8"
    except OSError as error:
        flaw = f"cannot be read ({error.strerror})"
    if flaw:
        raise SettingsError(f"CALIBRATION_TEXTS={file} {flaw}; name a file of UTF-8 texts, one a line, or unset it")


def _max_workers_on_device() -> int:
    """Return how many workers keep one device busy with tokenized texts; 1 where workers cannot reach each other."""
    return min(4, cores.count()) if sys.platform == "linux" else 1
