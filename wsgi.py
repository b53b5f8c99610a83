"""The WSGI application. Its import reads the settings and loads the models, before Gunicorn forks."""

import sys

from embedding_api.app import create_app
from embedding_api.errors import StartError
from embedding_api.settings import load_settings
from embedding_api.telemetry import log

try:
    settings = load_settings()
    log.configure(settings)
    # Models' code and libraries may print. Their output belongs in the log, too.
    sys.stdout = sys.stderr
    app = create_app(settings)
except StartError as error:
    log.refuse(error)
except KeyboardInterrupt:
    log.refuse(StartError("it was interrupted"))
