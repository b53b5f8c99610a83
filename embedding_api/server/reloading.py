"""SIGHUP and SIGTTIN. A reload with a mistake changes nothing; without this, it would end Gunicorn and the service."""

import contextlib
import dataclasses
import logging
import os
from typing import Any, NoReturn

from embedding_api.errors import SettingsError, StartError
from embedding_api.settings import Settings, load_settings
from embedding_api.telemetry import log

logger = logging.getLogger(__name__)

# The settings that Gunicorn uses. A reload changes only these, since it does not load the application again.
_GUNICORNS = {"host", "port", "workers", "threads", "graceful_timeout_s", "log_level", "log_format"}

# True while the settings are read again, after SIGHUP.
_is_reload = False
# The settings from which Gunicorn's configuration was made last.
_read: Settings | None = None


class _UnchangedError(BaseException):
    """A reload that ended before it changed anything, with the reason.

    It is no `Exception`: of any that its configuration file raises, Gunicorn prints a traceback and ends itself.
    """


def refuse(error: StartError) -> NoReturn:
    """Refuse a start or a reload. A start ends in one line, and the process with it."""
    if _is_reload:
        raise _UnchangedError(error.message) from error
    log.refuse(error)


def read_settings() -> Settings:
    """Return the settings for Gunicorn's configuration. At a start, also configure the log from them.

    After a reload Gunicorn itself configures the log, once nothing is refused.

    Raises:
        SettingsError: A setting is wrong.
    """
    global _read
    settings = load_settings()
    if not _is_reload:
        log.take_over(settings)
    _read = settings
    return settings


def guard(arbiter: Any, running: Settings) -> None:
    """Let a reload that cannot succeed log one line and change nothing. Call it in the master, once it handles signals.

    Gunicorn has no hook between SIGHUP and the reading of its configuration, and a mistake there ends it.

    Args:
        arbiter: Gunicorn's.
        running: The settings with which the application was started.
    """
    app, read, handle = arbiter.app, arbiter.app.reload, arbiter.handle_hup

    def read_again() -> None:
        global _is_reload
        before, _is_reload = app.cfg, True
        try:
            read()
            _refuse_what_cannot_run(app.cfg, before, running)
            # This timeout follows INFERENCE_TIMEOUT_S, which the workers' own watchdog keeps.
            app.cfg.set("timeout", before.timeout)
        except (SystemExit, StartError, _UnchangedError) as error:
            app.cfg = before
            # Gunicorn has unset the variables of its --env.
            os.environ.update(before.env)
            # The folder may be gone. All code that runs has been loaded from it already.
            with contextlib.suppress(OSError):
                os.chdir(before.chdir)
            is_gunicorns = isinstance(error, SystemExit)
            reason = "Gunicorn cannot read its configuration; see above" if is_gunicorns else str(error)
            raise _UnchangedError(reason) from error
        finally:
            _is_reload = False

    def handle_hup() -> None:
        try:
            handle()
        except _UnchangedError as error:
            logger.error("SIGHUP changes nothing, and the service goes on as it was: %s", error)  # noqa: TRY400 - in one line

    app.reload, arbiter.handle_hup = read_again, handle_hup


def guard_number_of_workers(arbiter: Any, running: Settings) -> None:
    """Refuse SIGTTIN, which starts one worker more, when there is no room for one. Call it in the master.

    Args:
        arbiter: Gunicorn's.
        running: The settings with which the application was started.
    """
    handle, most = arbiter.handle_ttin, _most_workers(running)

    def handle_ttin() -> None:
        if arbiter.num_workers < most:
            handle()
        else:
            logger.error(
                "SIGTTIN changes nothing: there are %d workers, and a service that was started with WORKERS=%d has "
                "room for no more; restart it with more",
                arbiter.num_workers,
                running.workers,
            )

    arbiter.handle_ttin = handle_ttin


def _most_workers(running: Settings) -> int:
    # For a while, a worker and the one that replaces it both have a seat and a slot.
    return running.max_workers // 2


def _refuse_what_cannot_run(cfg: Any, before: Any, running: Settings) -> None:
    """Refuse values that contradict settings which a reload does not change."""
    if cfg.worker_class_str != before.worker_class_str:
        raise SettingsError("gunicorn.conf.py is not where it was, and Gunicorn's own defaults would hold; put it back")
    most = _most_workers(running)
    if cfg.workers > max(before.workers, most):
        raise SettingsError(
            f"WORKERS={cfg.workers} is more than the {most} for which a service that was started with "
            f"WORKERS={running.workers} has room; lower it, or restart the service"
        )
    if cfg.reuse_port and cfg.address != before.address:
        # Gunicorn's master would open the new sockets as well as its workers, and never accept from them.
        raise SettingsError("HOST and PORT do not change while it runs with --reuse-port; restart the service")
    if cfg.graceful_timeout != before.graceful_timeout and cfg.graceful_timeout <= running.drain_s:
        raise SettingsError(
            f"GRACEFUL_TIMEOUT_S={cfg.graceful_timeout} is no more than the DRAIN_S={running.drain_s} with which the "
            "service was started; raise it, or restart the service"
        )


def say_what_waits(running: Settings) -> None:
    """Warn of changed settings that a reload does not apply.

    Args:
        running: The settings with which the application was started.
    """
    names = [field.name for field in dataclasses.fields(Settings) if field.name not in _GUNICORNS]
    if changed := [name.upper() for name in names if getattr(running, name) != getattr(_read, name)]:
        logger.warning("SIGHUP does not take a change of %s; restart the service for it", ", ".join(changed))
