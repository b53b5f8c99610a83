"""The server for development. tests/server runs the command itself."""

import sys

from embedding_api.web import development


def test_flask_serves_on_the_port_of_the_settings_without_watchdog(monkeypatch, clean_settings):
    monkeypatch.setenv("PORT", "8123")
    monkeypatch.setattr(sys, "argv", ["development"])
    monkeypatch.setitem(sys.modules, "watchdog", sys)
    monkeypatch.setattr(development, "flask", lambda: None)
    development.main()
    assert sys.argv == ["development", "--app", "wsgi", "run", "--debug", "--port", "8123"]
    assert sys.modules["watchdog"] is None
