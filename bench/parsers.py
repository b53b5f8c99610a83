"""Time of parsing one request: by the server's own parser, by Gunicorn's parser for ASGI, and by h11.

.venv/bin/python -m bench.parsers
"""

import importlib.util
import time
from collections.abc import Callable

from gunicorn.asgi.parser import PythonProtocol
from gunicorn.config import Config

from embedding_api.server.parser import Parser

CONFIG, CLIENT = Config(), ("127.0.0.1", 1)
HEAD = (
    b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept-Encoding: gzip, deflate, zstd\r\n"
    b"Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
    b"User-Agent: OpenAI/Python 1.109.1\r\nAuthorization: Bearer sk-0123456789abcdef\r\n"
    b"X-Stainless-Read-Timeout: 600\r\nContent-Length: %d\r\n\r\n"
)
# Size of the first read.
PIECE_BYTES = 65_536


def request(n_body_bytes: int) -> list[bytes]:
    """Return the pieces in which a request arrives."""
    whole = HEAD % n_body_bytes + b"x" * n_body_bytes
    return [whole[start : start + PIECE_BYTES] for start in range(0, len(whole), PIECE_BYTES)]


def ours(pieces: list[bytes]) -> None:
    """Parse a request as the worker does."""
    parser = Parser(CONFIG, CLIENT, 2**30, {})
    for piece in pieces:
        parser.buffer += piece
        is_complete = parser.parse(has_ended=False)
    assert is_complete


def for_asgi(pieces: list[bytes]) -> None:
    """Parse a request by the parser of Gunicorn's ASGI worker."""
    body: list[bytes] = []
    parser = PythonProtocol(on_body=body.append)
    for piece in pieces:
        parser.feed(piece)
    assert parser.is_complete
    b"".join(body)


def h11(pieces: list[bytes]) -> None:
    """Parse a request by h11, which is not installed everywhere."""
    import h11

    connection, body = h11.Connection(h11.SERVER), []
    for piece in pieces:
        connection.receive_data(piece)
        while (event := connection.next_event()) is not h11.NEED_DATA and not isinstance(event, h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body.append(event.data)
    assert isinstance(event, h11.EndOfMessage)
    b"".join(body)


def seconds(parse: Callable[[list[bytes]], None], pieces: list[bytes], n: int) -> float:
    """Return the seconds that one request takes, in the best of seven rounds."""
    rounds = []
    for _ in range(7):
        started = time.perf_counter()
        for _ in range(n):
            parse(pieces)
        rounds.append((time.perf_counter() - started) / n)
    return min(rounds)


def main() -> None:
    """Print the times."""
    parsers = {"ours": ours, "gunicorn.asgi": for_asgi}
    if importlib.util.find_spec("h11"):
        parsers["h11"] = h11
    for name, parse in parsers.items():
        small, large = seconds(parse, request(200), 2000), seconds(parse, request(2**20), 30)
        print(f"{name:14} 200 bytes: {small * 1e6:5.1f} us   1 MiB: {2**20 / large / 1e6:6.0f} MB/s")


if __name__ == "__main__":
    main()
