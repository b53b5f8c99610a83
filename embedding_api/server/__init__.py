"""The HTTP server of a worker process. Gunicorn stops here.

The way of a request:
    in the worker's loop: socket -> Connections (reads) -> Parser -> Requests (refuses) -> Greenlets or Pool
    in a greenlet of the loop if it is short, else in a thread of the Pool: response -> Flask -> Outbox
    in the loop again: Outbox -> Connections -> socket
"""
