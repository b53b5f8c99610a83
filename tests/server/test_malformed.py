"""For any bytes, the server answers with the error body, never with 5xx, never hangs, and keeps running."""

import base64
import gzip
import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.server.conftest import MINILM
from tests.server.wire import Answer, Connection, chunked, error, post

N_REFUSED, N_CONNECTIONS = 10_000, 8


def document(**fields) -> bytes:
    return json.dumps({"model": MINILM, "input": "a", **fields}).encode()


class Request(NamedTuple):
    """Bytes to send. `is_last` is True if nothing marks the end of the request, so that no other request can follow."""

    wire: bytes
    is_last: bool


# Short texts and few dimensions, so that inference and the writing of numbers take little of the time.
VALID = [
    document(dimensions=1),
    document(input=["b", "\u00e9\ud800"], dimensions=2, encoding_format="base64", truncate=True, user="u"),
    json.dumps({"input": ["\U0001f600 \x00"], "model": MINILM, "dimensions": 1.0}, ensure_ascii=False).encode(),
]
MONSTERS = [
    *("NaN", "Infinity", "-Infinity", "1e999", "-0.0", "1e-999", "9" * 5000, "1" + "0" * 25, "0." + "1" * 999),
    *("01", "+1", ".5", "1.", "0x10", "1_000", "nul", "True", "None", "undefined", "", "'a'", '"\\x41"', '"\\ud800"'),
    *('"\\udc00\\ud800"', '"\\u00"', '"a', '"\t"', '"\x00"', "[1,]", "{,}", '{"a"}', "[]", "{}", '""', "/**/1"),
]
GOOD_VALUES = [json.dumps(value) for value in (MINILM, "a", ["a"], [1, 2], [[3]], "float", "base64", 2, 4.0, True)]
FIELDS = ["input", "model", "encoding_format", "dimensions", "truncate", "user", "input_type", "Input", "in\ud800put"]


def an_object(pairs) -> str:
    """Return a JSON object. It is made of pairs, because a name may occur twice."""
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in pairs) + "}"


scalars = st.sampled_from(MONSTERS) | (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
).map(json.dumps)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(st.text(max_size=3), inner), max_size=3).map(an_object)
    ),
    max_leaves=6,
)
near_the_schema = st.lists(
    st.tuples(st.sampled_from(FIELDS) | st.text(max_size=4), st.sampled_from(GOOD_VALUES) | values), max_size=6
).map(lambda pairs: an_object(pairs).encode("utf-8", "surrogatepass"))


def mutate(body: bytes, changes) -> bytes:
    for place, how, byte in changes:
        start = place % len(body) if body else 0
        middle = {"lose": b"", "change": bytes([byte]), "insert": body[start : start + 1] + bytes([byte])}
        rest = body[start + 1 :]
        body = body[:start] + (middle[how] + rest if how in middle else rest + body[:start])
    return body


a_change = st.tuples(st.integers(0, 999), st.sampled_from(["lose", "change", "insert", "turn"]), st.integers(0, 255))
mutated = st.builds(mutate, st.sampled_from(VALID), st.lists(a_change, min_size=1, max_size=4))
brackets = st.builds(
    lambda opening, n, rest: opening * n + rest,
    st.sampled_from([b"[", b'{"input":', b'[{"\\ud800":', b'{"model":"x","input":[']),
    st.integers(1, 3000),
    st.sampled_from([b"", b"1", b'"a"', b"]", b"}" * 99]),
)
ENCODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "cp037", "utf-7"]
encoded = st.builds(
    lambda text, encoding: json.dumps({"model": MINILM, "input": text}, ensure_ascii=False).encode(encoding, "replace"),
    st.text(min_size=1, max_size=6).map(lambda text: text + "ü"),
    st.sampled_from(ENCODINGS),
)
bodies = st.one_of(near_the_schema, values.map(str.encode), mutated, mutated, brackets, encoded)
bodies |= st.binary(max_size=60)

HEADER_VALUES = [
    *(b"", b"application/json", b"application/json; charset=utf-16", b"text/html", b"multipart/form-data"),
    *(b"multipart/form-data; boundary=x", b"application/x-www-form-urlencoded", b";=;\xff", b"identity", b"gzip"),
    *(
        b"gzip, br",
        b"\xff",
        b"x" * 500,
        b"nan",
        b"inf",
        b"-1",
        b"1e999",
        b"\xb2",
        b"Bearer",
        b"100-continue",
        b"[",
        b"*",
    ),
]
HEADERS = [b"Content-Type", b"Content-Encoding", b"Accept", b"Expect", b"Authorization", b"X-Request-ID"]
HEADERS += [b"x-stainless-read-timeout", b"x-stainless-timeout", b"Cookie", b"Range", b"Accept-Encoding"]
HEADERS += [b"X-Forwarded-Proto", b"Upgrade"]
header_lines = st.lists(
    st.builds(
        lambda name, value: name + b": " + value,
        st.sampled_from(HEADERS),
        st.sampled_from(HEADER_VALUES) | st.binary(max_size=8).map(lambda value: value.translate(None, b"\r\n")),
    ),
    max_size=2,
).map(tuple)
LENGTHS = [
    b"",
    b"-1",
    b"+5",
    b"0",
    b"1",
    b"40",
    b"9999",
    b"9" * 20,
    b"9" * 5000,
    b"0x5",
    b"\xb2",
    b"1.0",
    b"5, 5",
    b"5 5",
]
BAD_CHUNKS = [
    b"zz\r\n{}\r\n0\r\n\r\n",
    b"5\r\n{}",
    b"-5\r\n{}",
    b"5;a=\x01\r\n{}\r\n",
    b"f" * 40 + b"\r\n{}",
    b"2\r\n{}0\r\n\r\n",
]

on_kept_connections = st.builds(
    lambda body, headers: Request(post(body, *headers), is_last=False), bodies, header_lines
)
on_kept_connections |= st.builds(
    lambda body, cut, headers: Request(
        chunked(*filter(None, (body[:cut], body[cut:])), b"", headers=headers), is_last=False
    ),
    bodies,
    st.integers(0, 60),
    header_lines,
)
badly_framed = st.builds(
    lambda body, length: Request(post(body, length=length), is_last=True), bodies, st.sampled_from(LENGTHS)
) | st.builds(lambda body, bad: Request(chunked(body) + bad, is_last=True), bodies, st.sampled_from(BAD_CHUNKS))
requests = st.integers(0, 7).flatmap(lambda eighth: on_kept_connections if eighth else badly_framed)


def generate(n: int) -> list[Request]:
    """Return nearly `n` different requests. They are the same in every run of the same tests."""
    generated: dict[Request, None] = {}

    @hypothesis.settings(
        max_examples=n,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(requests)
    def keep(request):
        generated[request] = None

    keep()
    return list(generated)


def assert_right(answer: Answer) -> None:
    """Assert that an answer has vectors of finite numbers, or is a refusal with the error body."""
    if answer.status != 200:
        assert 400 <= answer.status < 500, answer
        assert error(answer)["type"] == "invalid_request_error"
        return
    for item in answer.json["data"]:
        vector = item["embedding"]
        if isinstance(vector, str):
            vector = np.frombuffer(base64.b64decode(vector), "<f4").tolist()
        assert vector
        assert all(math.isfinite(number) for number in vector), answer


def assert_unharmed(server, workers) -> None:
    assert len(server.embed("still here")[0]) == 384
    assert {worker.pid for worker in server.workers} == workers
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log


@pytest.mark.fault("malformed")
@pytest.mark.slow
def test_ten_thousand_malformed_bodies_are_each_refused_in_the_envelope(launch, tmp_path, observed):
    # By default hypothesis leaves a folder in the working folder of the tests.
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path)
    server = launch(WORKERS="2")
    workers = {worker.pid for worker in server.workers}
    wanted = generate(N_REFUSED + N_REFUSED // 5)

    def send(share) -> Counter:
        statuses = Counter()
        with Connection(server.port) as connection:
            for request in share:
                answer = (connection.ask_last if request.is_last else connection.ask)(request.wire)
                try:
                    assert_right(answer)
                except Exception as failure:
                    raise AssertionError(f"{request.wire[:2000]!r} was answered with {answer}") from failure
                statuses[answer.status] += 1
            # Most connections must carry several requests. Otherwise the test would not show that a refusal leaves the
            # connection usable.
            assert connection.n_opened < len(share) / 2
        return statuses

    with ThreadPoolExecutor(N_CONNECTIONS) as clients:
        shares = [wanted[start::N_CONNECTIONS] for start in range(N_CONNECTIONS)]
        statuses = sum(clients.map(send, shares), Counter())
    assert statuses.total() - statuses[200] >= N_REFUSED, statuses
    assert statuses.keys() >= {200, 400, 415, 422}
    assert_unharmed(server, workers)
    observed(
        f"{statuses.total():,} requests: "
        + ", ".join(f"{n:,} times {status}" for status, n in sorted(statuses.items()))
    )


LONE, REPLACED = r'"cat \ud800 \udc00\ud83d"', '"cat \ufffd \ufffd\ufffd"'


@pytest.fixture
def connection(server):
    with Connection(server.port) as connection:
        yield connection


def embed(connection, body: bytes) -> list[list[float]]:
    answer = connection.ask(post(body))
    assert answer.status == 200, answer
    return [item["embedding"] for item in answer.json["data"]]


@pytest.mark.fault("malformed")
def test_half_a_surrogate_pair_is_read_as_the_replacement_character(connection, observed):
    bodies = [f'{{"model":"{MINILM}","input":{text}}}'.encode() for text in (LONE, REPLACED, '"dog"')]
    lone, replaced, other = (embed(connection, body) for body in bodies)
    np.testing.assert_allclose(lone, replaced, atol=1e-6)
    assert not np.allclose(lone, other, atol=1e-2)
    observed("half a surrogate pair: read as U+FFFD")


@pytest.mark.fault("malformed")
@pytest.mark.parametrize(
    ("texts", "like"),
    [
        pytest.param(["cat\x00\x01\x7f"], ["cat"], id="NUL and control characters are no part of a word"),
        pytest.param(["x" * 200_000], ["y" * 200_000], id="one word of 200 KB"),
        pytest.param([" " * 200_000 + "a cat sat"], ["a cat sat"], id="200,000 spaces before a sentence"),
        pytest.param([*"abcd" * 512], [*"abcd"], id="2048 one-letter texts"),
    ],
)
def test_odd_texts_are_embedded_as_the_model_reads_them(connection, texts, like, observed):
    got, wanted = embed(connection, document(input=texts)), embed(connection, document(input=like))
    np.testing.assert_allclose(got, wanted * (len(texts) // len(like)), atol=1e-5)
    observed("odd texts: embedded as the model reads them")


INVALID, MISSING, WRONG = ((400, "invalid_json"), (422, "missing_field"), (422, "invalid_type"))


@pytest.mark.fault("malformed")
@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        pytest.param(b"", *INVALID, None, id="empty"),
        pytest.param(b" \r\n\t" * 9, *INVALID, None, id="white space alone"),
        pytest.param(b"null", *INVALID, None, id="null"),
        pytest.param(b'"input"', *INVALID, None, id="a string"),
        pytest.param(b"\xef\xbb\xbf" + VALID[0], *INVALID, None, id="byte order mark"),
        pytest.param(VALID[0].decode().encode("utf-16"), *INVALID, None, id="UTF-16"),
        pytest.param('{"input": "ü"}'.encode("latin-1"), *INVALID, None, id="latin-1"),
        pytest.param(b'{"input": "\xed\xa0\x80"}', *INVALID, None, id="a surrogate as UTF-8"),
        pytest.param(b"[" * 100_000, *INVALID, None, id="100,000 brackets"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, *INVALID, None, id="100,000 brackets and their ends"),
        pytest.param(b'{"a":' * 100_000 + b'"\\ud800"', *INVALID, None, id="100,000 braces and a lone surrogate"),
        pytest.param(b'{"dimensions":' + b"9" * 5000 + b"}", *INVALID, None, id="5,000 digits"),
        pytest.param(
            b'{"user":"\\ud800","dimensions":' + b"9" * 5000 + b"}", *INVALID, None, id="both, and a lone surrogate"
        ),
        pytest.param(b'{"dimensions":NaN}', *INVALID, None, id="NaN"),
        pytest.param(b'{"user":"\\ud800","dimensions":NaN}', *INVALID, None, id="NaN and a lone surrogate"),
        pytest.param(b'{"user":"\\ud800","dimensions":1e999}', *INVALID, None, id="infinite, and a lone surrogate"),
        pytest.param(b'{"\\ud800":1}', *MISSING, "input", id="a lone surrogate as a name"),
        pytest.param(document(model="\ud800"), 400, "model_not_found", "model", id="a lone surrogate as the model"),
        pytest.param(
            document(encoding_format="\ud800"), 422, "invalid_value", "encoding_format", id="or as the format"
        ),
        pytest.param(document(input=["a", "b", "\udc00", ["\ud800"]]), *WRONG, "input[3]", id="or in input[3]"),
        pytest.param(document(dimensions=1e300), 400, "unsupported_dimensions", "dimensions", id="1e300 dimensions"),
        pytest.param(b'{"input":"a","input":7}', *WRONG, "input", id="a name twice: the last counts"),
    ],
)
def test_an_odd_body_is_refused_and_its_connection_goes_on(connection, body, status, code, param, observed):
    answer = connection.ask(post(body))
    told = error(answer)
    assert (answer.status, told["code"], told["param"]) == (status, code, param)
    assert len(embed(connection, VALID[0])) == 1
    assert connection.n_opened == 1
    observed(f"{status} {code}")


def test_what_is_echoed_of_a_lone_surrogate_is_the_replacement_character(connection):
    assert "'\ufffd'" in error(connection.ask(post(document(model="\ud800"))))["message"]


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(post(gzip.compress(VALID[0]), b"Content-Encoding: gzip"), id="gzip"),
        pytest.param(chunked(gzip.compress(VALID[0]), b"", headers=(b"Content-Encoding: gzip",)), id="in chunks"),
    ],
)
def test_a_compressed_body_is_415_and_its_connection_goes_on(connection, request_):
    answer = connection.ask(request_)
    assert (answer.status, error(answer)["code"]) == (415, "unsupported_encoding")
    assert len(embed(connection, VALID[0])) == 1
    assert connection.n_opened == 1


def test_a_compressed_transfer_coding_is_415(connection):
    request = chunked(gzip.compress(VALID[0]), b"").replace(b"Encoding: chunked", b"Encoding: gzip, chunked")
    answer = connection.ask(request)
    assert (answer.status, error(answer)["code"]) == (415, "unsupported_encoding")
    assert len(embed(connection, VALID[0])) == 1


def test_expect_100_continue_and_a_refusal_leave_a_good_connection(connection):
    for body, status in ((b"{}", 422), (VALID[0], 200)):
        assert connection.ask(post(body, b"Expect: 100-continue")).status == status
    assert connection.n_opened == 1


def test_a_key_that_is_not_ascii_opens_as_utf_8_alone(launch):
    server = launch(WORKERS="1", API_KEY_SECRET="schlüssel")
    with Connection(server.port) as connection:
        for encoding, status in (("utf-8", 200), ("latin-1", 401), ("utf-16", 400)):
            request = post(VALID[0], "Authorization: Bearer schlüssel".encode(encoding))
            assert connection.ask(request).status == status
