"""The HTTP server of a worker process. Gunicorn stops here.

The walk of a request, whose first line is the worker's loop:
    socket -> Connections (reads) -> Parser -> Requests (refuses) -> Pool
    a thread of the Pool: response -> Flask; what it returns goes to the Outbox
    the loop again: Outbox -> Connections -> socket
"""
