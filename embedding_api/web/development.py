"""Serve for development, with Flask's debugger: `python -m embedding_api.web.development`, in a checkout."""

import sys

from flask.cli import main as flask

from embedding_api.settings import load_settings


def main() -> None:
    """Serve from one process on PORT, which restarts when code changes."""
    # With this package, which builds the manual, Werkzeug would watch all files that any process opens below Python's
    # folders, lose count of them and miss changes. Without it, it looks at the times of the files that are loaded.
    sys.modules["watchdog"] = None  # type: ignore[assignment] # how Python spells "cannot be imported"
    sys.argv[1:] = ["--app", "wsgi", "run", "--debug", "--port", str(load_settings().port)]
    flask()


if __name__ == "__main__":
    main()
