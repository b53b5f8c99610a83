"""When a request is there as a whole: as Gunicorn's parser has it, of which each test asks the same."""

import random
import time

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.parser import RequestParser

from embedding_api.request import MAX_HEAD_BYTES
from embedding_api.server.framing import Framing, Verdict

CONFIG = Config()
MAX_LINE, MAX_BODY = CONFIG.limit_request_line, 1000
POST = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = {
    "no headers": b"GET / HTTP/1.1\r\n\r\n",
    "no body": b"GET /health/live HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n",
    "an empty line before": b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a length": POST + b"Content-Length: 5\r\n\r\n12345",
    "a length in other letters and spaces": POST + b"cONTENT-lENGTH:\t 5 \r\n\r\n12345",
    "a length of zero": POST + b"Content-Length: 0\r\n\r\n",
    "a body like a head": POST + b"Content-Length: 8\r\n\r\n\r\n\r\n\r\n\r\n",
    "a header that only ends like a length": POST + b"X-Content-Length: 5\r\n\r\n",
    "a header that is dropped": POST + b"Content_Length: 5\r\n\r\n",
    "HTTP/1.0": b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
    "expectation": POST + b"Expect: 100-Continue\r\nContent-Length: 2\r\n\r\n{}",
    "chunks": CHUNKED + b"5\r\n12345\r\n0000a\r\n0123456789\r\n0\r\n\r\n",
    "no chunks": CHUNKED + b"0\r\n\r\n",
    "chunks with extensions": CHUNKED + b'2 ;a=b;c="d"\r\n{}\r\n0;e\r\n\r\n',
    "chunks with trailers": CHUNKED + b"2\r\n{}\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
    "chunks like ends": CHUNKED + b"7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n",
    "codings in a list": POST + b"Transfer-Encoding: gzip, Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "codings in two headers": POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}
# Where the head is whole, and refused without a body.
REFUSED = {
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\n",
    "a signed length": POST + b"Content-Length: +5\r\n\r\n",
    "a length that is no number": POST + b"Content-Length: \xb2\r\n\r\n",
    "a length with a space before the colon": POST + b"Content-Length : 5\r\n\r\n",
    "a length in a second line": POST + b"Content-Length:\r\n 5\r\n\r\n",
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "no chunks at the end": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: zip\r\n\r\n",
    "another expectation": POST + b"Expect: wonders\r\nContent-Length: 5\r\n\r\n",
    "no request line": b"nonsense\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\n",
}
MALFORMED = {
    "a handshake of TLS": b"\x16\x03\x01",
    "two empty lines": b"\r\n\r\n",
    "a bare line feed": b"GET / HTTP/1.1\nHost: x\r\n",
    "a long request line": b"GET /" + b"a" * MAX_LINE,
    "a long request line that ends": b"GET /" + b"a" * MAX_LINE + b" HTTP/1.1\r\nHost",
    "a size that is no number": CHUNKED + b"zz\r\n",
    "no size": CHUNKED + b"\r\n",
    "a negative size": CHUNKED + b"-1\r\n",
    "a size with spaces": CHUNKED + b" 1\r\n",
    "a long size line": CHUNKED + b"1;" + b"a" * 8190,
    "a chunk longer than its size": CHUNKED + b"1\r\nab\r\n",
}


def framing(max_body_bytes=MAX_BODY) -> Framing:
    return Framing(MAX_LINE, max_body_bytes)


class Stream:
    """A source for Gunicorn's parser; it knows whether it was read beyond its end."""

    def __init__(self, data):
        self.data, self.position, self.has_run_dry = data, 0, False

    def recv(self, n_bytes):
        piece = self.data[self.position : self.position + n_bytes]
        self.position += len(piece)
        self.has_run_dry |= not piece
        return piece


def parsed(data: bytes) -> int | str:
    """Where Gunicorn's parser finds the end of a request; or "refused", or "more"."""
    stream = Stream(data)
    parser = RequestParser(CONFIG, stream, ("127.0.0.1", 1))
    try:
        request = next(parser)
        request.body.read()
    except (NoMoreData, StopIteration):
        return "more"
    except ParseException:
        return "more" if stream.has_run_dry else "refused"
    return "more" if stream.has_run_dry else stream.position - len(parser.unreader.take_buffered())


def verdicts(data: bytes, step=1):
    """The verdict after each piece, until one is final; and the framing."""
    said, it, buffer = [], framing(), bytearray()
    for start in range(0, len(data), step):
        buffer += data[start : start + step]
        said.append(it.look(buffer))
        if said[-1] is not Verdict.UNDER_WAY:
            break
    return said, it


@pytest.mark.parametrize("request_", WHOLE.values(), ids=WHOLE.keys())
def test_a_request_is_whole_with_its_last_byte_however_it_comes(request_):
    assert parsed(request_ + b"GET") == len(request_)
    for step in (1, 2, 3, 7, len(request_)):
        said, it = verdicts(request_, step)
        assert said[:-1] == [Verdict.UNDER_WAY] * (len(said) - 1)
        assert said[-1] is Verdict.WHOLE
        assert len(said) == -(-len(request_) // step)
        assert it.n_bytes == len(request_)


@pytest.mark.parametrize("request_", WHOLE.values(), ids=WHOLE.keys())
def test_what_follows_is_not_part_of_it(request_):
    it = framing()
    assert it.look(bytearray(request_ + WHOLE["chunks"])) is Verdict.WHOLE
    assert it.n_bytes == len(request_)


@pytest.mark.parametrize("head", REFUSED.values(), ids=REFUSED.keys())
def test_a_head_that_the_parser_refuses_waits_for_no_body(head):
    assert parsed(head) == "refused"
    said, it = verdicts(head)
    assert (said[-1], it.n_bytes) == (Verdict.WHOLE, len(head))


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_malformed_is_so_before_its_end(request_):
    assert parsed(request_ + b"GET / HTTP/1.1\r\n\r\n" * 600) == "refused"
    assert verdicts(request_)[0][-1] is Verdict.MALFORMED


def test_a_head_without_end_is_too_large():
    head = b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_HEAD_BYTES // 6)
    assert framing().look(bytearray(head[:MAX_HEAD_BYTES])) is Verdict.UNDER_WAY
    assert framing().look(bytearray(head + b"X: y")) is Verdict.HEAD_TOO_LARGE


@pytest.mark.parametrize("n_digits", [4, 20, 5000])
def test_a_body_that_is_announced_too_large_is_not_waited_for(n_digits):
    assert framing().look(bytearray(POST + b"Content-Length: 1000\r\n\r\n")) is Verdict.UNDER_WAY
    head = POST + b"Content-Length: " + b"9" * n_digits + b"\r\n\r\n"
    assert framing().look(bytearray(head)) is Verdict.BODY_TOO_LARGE


def test_a_chunked_body_is_too_large_once_too_much_has_come():
    """The application counts what it can read, and finds the same."""
    body = bytearray(CHUNKED + b"1000\r\n" + b"a" * 1000)
    it = framing()
    assert it.look(body) is Verdict.UNDER_WAY
    assert it.look(body + b"a") is Verdict.BODY_TOO_LARGE
    assert framing().look(bytearray(CHUNKED + b"1f4\r\n%s\r\n" % (b"a" * 500) * 2)) is Verdict.UNDER_WAY
    small = bytearray(CHUNKED + b"3e9\r\n" + b"a" * 1001 + b"\r\n0\r\n\r\n")
    assert framing().look(small) is Verdict.BODY_TOO_LARGE


def test_chunks_may_not_cost_much_more_than_they_carry():
    fine = CHUNKED + b"1;%s\r\na\r\n" % (b"x" * 1000) * 80
    assert framing().look(bytearray(fine)) is Verdict.MALFORMED
    assert framing().look(bytearray(CHUNKED + b"1\r\na\r\n" * 900)) is Verdict.UNDER_WAY


@pytest.mark.parametrize(
    ("head", "expects"),
    [
        (WHOLE["expectation"][:-2], True),
        (CHUNKED[:-2] + b"Expect: 100-continue\r\n\r\n", True),
        (POST + b"Content-Length: 2\r\n\r\n", False),
        (POST + b"Expect: 100-continue\r\n\r\n", False),
        (b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n", False),
    ],
)
def test_who_waits_for_leave_to_send_a_body_is_known(head, expects):
    it = framing()
    it.look(bytearray(head))
    assert it.expects_continue is expects


def test_a_body_is_announced_or_not():
    for name in ("no body", "a length of zero", "a header that is dropped"):
        it = framing()
        it.look(bytearray(WHOLE[name]))
        assert not it.has_body
    it = framing()
    it.look(bytearray(CHUNKED))
    assert it.has_body


def test_it_never_disagrees_with_the_parser_about_where_a_request_ends():
    """Requests cut, joined and damaged at random: what the parser takes, framing cuts out at the same place."""
    choose = random.Random(0)
    samples = [*WHOLE.values(), *REFUSED.values()]
    pieces = [
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"0",
        b"5",
        b":",
        b";",
        b",",
        b"chunked",
        b"Content-Length: 3\r\n",
        b"A",
    ]
    n_taken = 0
    for _ in range(8_000):
        data = choose.choice(samples) + choose.choice(samples)
        for _ in range(choose.randrange(3)):
            start = choose.randrange(len(data))
            data = data[:start] + choose.choice(pieces) + data[start + choose.randrange(4) :]
        end = parsed(data)
        it, buffer = framing(), bytearray()
        for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
            buffer += piece
            verdict = it.look(buffer)
            if verdict is not Verdict.UNDER_WAY:
                break
        if isinstance(end, int):
            n_taken += 1
            assert (verdict, it.n_bytes) == (Verdict.WHOLE, end), data
        elif verdict is Verdict.WHOLE:
            assert parsed(data[: it.n_bytes]) == "refused", data
    assert n_taken > 2000


@pytest.mark.parametrize("spaces", [b" " * 60_000, b" \t" * 30_000])
@pytest.mark.parametrize("end", [b"", b"y", b"\rx"])
def test_white_space_costs_no_time(spaces, end):
    """Given what made a search try every cut of the white space, a few KB were minutes."""
    head = b"POST / HTTP/1.1\r\nExpect:" + spaces + b"x" + spaces + end + b"\r\n\r\n"
    started = time.process_time()
    Framing(0, 100).look(bytearray(head))
    assert time.process_time() - started < 1
