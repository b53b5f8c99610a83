"""A request is parsed once, in pieces of any size, with the same result as from Gunicorn's blocking parser."""

import contextlib
import random
import time

import pytest
from gunicorn.config import Config
from gunicorn.http import errors
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.parser import RequestParser

from embedding_api.errors import BodyTooLargeError, InvalidBodyError, ServiceError
from embedding_api.request import MAX_HEAD_BYTES
from embedding_api.server.parser import Parser

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
# Complete heads that the parser refuses before the body arrives.
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
MALFORMED_HEADS = {
    "a handshake of TLS": b"\x16\x03\x01",
    "two empty lines": b"\r\n\r\n",
    "a bare line feed": b"GET / HTTP/1.1\nHost: x\r\n",
    "a long request line": b"GET /" + b"a" * MAX_LINE,
    "a long request line that ends": b"GET /" + b"a" * MAX_LINE + b" HTTP/1.1\r\nHost",
}
MALFORMED_CHUNKS = {
    "a size that is no number": CHUNKED + b"zz\r\n",
    "no size": CHUNKED + b"\r\n",
    "a negative size": CHUNKED + b"-1\r\n",
    "a size with spaces": CHUNKED + b" 1\r\n",
    "a long size line": CHUNKED + b"1;" + b"a" * 8190,
    "a chunk longer than its size": CHUNKED + b"1\r\nab\r\n",
    "a size of twenty digits": CHUNKED + b"f" * 20 + b"\r\n",
    "a bad extension": CHUNKED + b"1;a=\x01\r\n",
    "a line feed in an extension": CHUNKED + b"1;a\nb\r\n",
    "a bad trailer": CHUNKED + b"0\r\nno trailer\r\n\r\n",
    "a trailer that is forbidden": CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n",
}


def new_parser(max_body_bytes=MAX_BODY, file_bodies=None) -> Parser:
    return Parser(CONFIG, ("127.0.0.1", 1), max_body_bytes, file_bodies or {})


class Stream:
    """A source for Gunicorn's parser. `has_run_dry` is True after a read beyond its end."""

    def __init__(self, data):
        self.data, self.position, self.has_run_dry = data, 0, False

    def recv(self, n_bytes):
        piece = self.data[self.position : self.position + n_bytes]
        self.position += len(piece)
        self.has_run_dry |= not piece
        return piece


def parsed_by_gunicorn(data: bytes):
    """Return the request's end and its body by Gunicorn's blocking parser, or "refused", or "more"."""
    stream = Stream(data)
    parser = RequestParser(CONFIG, stream, ("127.0.0.1", 1))
    try:
        request = next(parser)
        body = request.body.read()
    except (NoMoreData, StopIteration):
        return "more"
    except ParseException:
        return "more" if stream.has_run_dry else "refused"
    return "more" if stream.has_run_dry else (stream.position - len(parser.unreader.take_buffered()), body)


def parsed(data: bytes, step=None, *, has_ended=False, **options):
    """Return the same by our parser, with the bytes in pieces of `step`."""
    parser = new_parser(**options)
    step = step or max(len(data), 1)
    for start in range(0, len(data), step):
        parser.buffer += data[start : start + step]
        is_last = start + step >= len(data)
        try:
            if parser.parse(has_ended=has_ended and is_last):
                n_rest_bytes = len(parser.buffer) + max(0, len(data) - start - step)
                return len(data) - n_rest_bytes, parser.body.getvalue()
        except (ParseException, ServiceError):
            return "refused"
    return "more"


def error_of(data: bytes, **options):
    parser = new_parser(**options)
    parser.buffer += data
    with contextlib.closing(parser), pytest.raises((ParseException, ServiceError)) as raised:
        parser.parse(has_ended=False)
    return raised.value


@pytest.mark.parametrize("request_", WHOLE.values(), ids=WHOLE.keys())
def test_a_request_is_complete_with_its_last_byte_however_it_comes(request_):
    wanted = parsed_by_gunicorn(request_ + b"GET")
    assert wanted[0] == len(request_)
    for step in (1, 2, 3, 7, len(request_)):
        assert parsed(request_[:-1], step) == "more"
        assert parsed(request_, step) == wanted


@pytest.mark.parametrize("request_", WHOLE.values(), ids=WHOLE.keys())
def test_what_follows_stays_in_the_buffer(request_):
    parser = new_parser()
    parser.buffer += request_ + WHOLE["chunks"]
    assert parser.parse(has_ended=False)
    assert parser.buffer == WHOLE["chunks"]


@pytest.mark.parametrize("head", REFUSED.values(), ids=REFUSED.keys())
def test_a_head_that_gunicorn_refuses_waits_for_no_body(head):
    assert parsed_by_gunicorn(head) == "refused"
    assert isinstance(error_of(head), ParseException)


@pytest.mark.parametrize("half", MALFORMED_HEADS.values(), ids=MALFORMED_HEADS.keys())
def test_a_malformed_head_is_refused_before_its_end(half):
    assert parsed_by_gunicorn(half + b"GET / HTTP/1.1\r\n\r\n" * 600) == "refused"
    assert isinstance(error_of(half), ParseException)


@pytest.mark.parametrize("half", MALFORMED_CHUNKS.values(), ids=MALFORMED_CHUNKS.keys())
def test_malformed_chunks_are_refused_before_their_end(half):
    assert isinstance(error_of(half), InvalidBodyError)
    assert isinstance(error_of(half, file_bodies={("POST", "/v1/embeddings"): MAX_BODY}), InvalidBodyError)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET /" + b"a" * MAX_LINE, errors.LimitRequestLine),
        (b"GET / HTTP/1.1\nHost: x\r\n", errors.InvalidRequestLine),
        (b"GET / HTTP/1.1\r\nHost: x\n", errors.InvalidHeader),
        (b"\x16\x03\x01", errors.InvalidRequestLine),
        (WHOLE["a length"].replace(b"POST", b"post"), errors.InvalidRequestMethod),
        (REFUSED["another expectation"], errors.ExpectationFailed),
        (POST + b"X: y\r\n" * 100 + b"\r\n", errors.LimitRequestHeaders),
    ],
)
def test_a_refusal_has_gunicorns_own_reason(data, error):
    assert type(error_of(data)) is error


def test_a_head_without_end_is_too_large():
    head = b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_HEAD_BYTES // 6)
    assert parsed(head[:MAX_HEAD_BYTES]) == "more"
    assert isinstance(error_of(head + b"X: y"), errors.LimitRequestHeaders)


@pytest.mark.parametrize("step", [None, 30_000, 1000])
def test_a_head_has_one_limit_however_it_comes(step):
    def head(n_bytes):
        lines = b"GET / HTTP/1.1\r\n" + b"X: %s\r\n" % (b"y" * 8000) * 8
        return lines + b"X: %s\r\n\r\n" % (b"y" * (n_bytes - len(lines) - 7))

    assert parsed(head(MAX_HEAD_BYTES), step) == (MAX_HEAD_BYTES, b"")
    assert parsed(head(MAX_HEAD_BYTES + 1), step) == "refused"


def test_a_long_request_line_is_told_as_such_though_its_head_is_too_large():
    assert isinstance(error_of(b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n"), errors.LimitRequestLine)


@pytest.mark.parametrize("n_digits", [4, 20, 4000])
def test_a_body_that_is_announced_too_large_is_not_waited_for(n_digits):
    assert parsed(POST + b"Content-Length: 1000\r\n\r\n") == "more"
    assert isinstance(error_of(POST + b"Content-Length: " + b"9" * n_digits + b"\r\n\r\n"), BodyTooLargeError)


def test_a_chunked_body_is_too_large_once_too_much_has_come():
    body = CHUNKED + b"1000\r\n" + b"a" * 1000
    assert parsed(body) == "more"
    assert isinstance(error_of(body + b"a"), BodyTooLargeError)
    assert parsed(CHUNKED + b"1f4\r\n%s\r\n" % (b"a" * 500) * 2) == "more"
    small = CHUNKED + b"3e9\r\n" + b"a" * 1001 + b"\r\n0\r\n\r\n"
    assert isinstance(error_of(small), BodyTooLargeError)


def test_chunks_may_not_cost_much_more_than_they_carry():
    fine = CHUNKED + b"1;%s\r\na\r\n" % (b"x" * 1000) * 80
    assert isinstance(error_of(fine), InvalidBodyError)
    assert parsed(CHUNKED + b"1\r\na\r\n" * 900) == "more"


@pytest.mark.parametrize("name", ["a length", "chunks", "chunks with trailers", "expectation"])
def test_a_body_that_breaks_off_is_refused_and_its_head_known(name):
    parser = new_parser()
    parser.buffer += WHOLE[name][:-1]
    with pytest.raises(InvalidBodyError):
        parser.parse(has_ended=True)
    assert parser.head.method == "POST"


def test_a_head_that_breaks_off_is_refused():
    parser = new_parser()
    parser.buffer += b"GET / HTTP/1.1\r\nHost"
    with pytest.raises(errors.InvalidRequestLine):
        parser.parse(has_ended=True)


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
def test_it_is_known_which_client_waits_for_leave_to_send_its_body(head, expects):
    parser = new_parser()
    parser.buffer += head
    parser.parse(has_ended=False)
    assert parser.expects_continue is expects


def test_it_is_known_how_much_of_a_body_is_missing():
    for name in ("no body", "a length of zero", "a header that is dropped"):
        parser = new_parser()
        parser.buffer += WHOLE[name]
        assert parser.parse(has_ended=False)
        assert not parser.has_body
    for rest, n_missing_bytes in ((b"Content-Length: 9\r\n\r\n12", 7), (b"Transfer-Encoding: chunked\r\n\r\n", None)):
        parser = new_parser()
        parser.buffer += POST + rest
        assert not parser.parse(has_ended=False)
        assert parser.has_body
        assert parser.n_missing_bytes == n_missing_bytes


def test_an_empty_line_after_a_body_is_not_the_beginning_of_a_request():
    parser = new_parser()
    for data, has_begun in ((b"", False), (b"\r\n", False), (b"G", True)):
        parser.buffer += data
        assert parser.has_begun is has_begun


@pytest.mark.parametrize("name", ["a length", "chunks"])
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_the_body_of_a_route_for_files_goes_to_a_file_and_not_into_memory(name, step):
    parser, data = new_parser(max_body_bytes=1, file_bodies={("POST", "/v1/embeddings"): MAX_BODY}), WHOLE[name]
    for start in range(0, len(data), step):
        parser.buffer += data[start : start + step]
        is_complete = parser.parse(has_ended=False)
        assert parser.n_held_bytes == len(parser.buffer) < 120
    assert is_complete
    parser.body.seek(0)
    assert parser.body.read() == parsed_by_gunicorn(data + b"GET")[1]
    parser.body.close()


def test_it_never_disagrees_with_gunicorns_parser():
    """Given requests cut, joined and damaged at random, when Gunicorn accepts one, then ours has the same result."""
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
        wanted, got = parsed_by_gunicorn(data), parsed(data, len(data) // 2 + 1)
        n_taken += isinstance(wanted, tuple)
        if isinstance(wanted, tuple):
            assert got == wanted, data
        elif isinstance(got, tuple):
            # Gunicorn waited for the next request.
            assert wanted == "more", data
            assert parsed_by_gunicorn(data[: got[0]] + b"GET") == got, data
    assert n_taken > 2000


@pytest.mark.parametrize("spaces", [b" " * 60_000, b" \t" * 30_000])
@pytest.mark.parametrize("end", [b"", b"y", b"\rx"])
def test_white_space_costs_no_time(spaces, end):
    """Given white space for which a naive search tries every split and takes minutes, then parsing is fast."""
    head = b"POST / HTTP/1.1\r\nExpect:" + spaces + b"x" + spaces + end + b"\r\n\r\n"
    extension = CHUNKED + b"1;a" + spaces[:4000] + b"=b" + spaces[:4000] + end + b"\r\n"
    for data in (head, extension):
        started = time.process_time()
        parsed(data)
        assert time.process_time() - started < 1
