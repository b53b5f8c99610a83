"""Gunicorn stops here: connections, a request's way to a thread, and the life of a worker."""
