"""Keys and texts stay out of logs and answers, model names out of the file system, and other users out of the workers.

The service sends nothing to other hosts.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.conftest import MINILM, ROOT, until
from tests.server.wire import Connection, chunked, error, post

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

# A part of each secret, which must not appear in a log. It has only letters, so that it can also be an HTTP method.
MARK = "QZMARKQZ"
KEY, TOKEN = f"key-{MARK}", f"token-{MARK}"
BEARER = f"Authorization: Bearer {KEY}".encode()
BODY = json.dumps({"model": MINILM, "input": f"text {MARK}"}).encode()


def get(target: str, *lines: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"{method} {target} {version}", "Host: x", *lines, "", ""]).encode("latin-1")


def body(**fields) -> bytes:
    return json.dumps({"model": MINILM, "input": "a", **fields}).encode()


# A client's mistakes: each request has a key or a text in a wrong place.
LEAKY = {
    "the right key": post(BODY, BEARER),
    "a wrong key": post(BODY, BEARER + b"x"),
    **{
        f"scheme {scheme!r}": post(BODY, f"Authorization: {scheme}{KEY}".encode())
        for scheme in ("", "Basic ", "Token ", "Bearer:", "Bearer\t", "Bearer Bearer ", "Digest username=")
    },
    "a key twice": post(BODY, BEARER, BEARER),
    "a header without a colon": post(BODY, BEARER.replace(b":", b"")),
    "a header with a space": post(BODY, BEARER.replace(b":", b" :")),
    "a folded header": post(BODY, BEARER.replace(b"Bearer ", b"Bearer\r\n ")),
    "a header with NUL": post(BODY, BEARER + b"\0"),
    "a header's name": post(BODY, f"X-{MARK}: a".encode()),
    "a header's bad name": post(BODY, f"X({MARK}): a".encode()),
    "an over-long header": post(BODY, BEARER + b"x" * 20_000),
    "too many headers": post(BODY, *[b"%s-%d: %s" % (KEY.encode(), n, KEY.encode()) for n in range(200)]),
    **{
        f"header {name}": post(BODY, f"{name}: {value} {KEY}".strip().encode())
        for name in (
            "Content-Type",
            "Content-Encoding",
            "Expect",
            "Cookie",
            "User-Agent",
            "Script_Name",
            "X-Request-ID",
        )
        for value in ("", "x")
        # A valid request id is logged and returned, as it should be.
        if (name, value) != ("X-Request-ID", "")
    },
    **{
        f"header {name}": post(BODY, f"{name}: {KEY}".encode())
        for name in ("x-stainless-read-timeout", "x-stainless-timeout")
    },
    "contradicting schemes": post(BODY, b"X-Forwarded-Proto: https", f"X-Forwarded-Ssl: {KEY}".encode()),
    "Transfer-Encoding": post(BODY, f"Transfer-Encoding: {KEY}".encode()),
    "Content-Length": post(BODY, length=KEY.encode()),
    "Host": post(BODY, f"X: y\r\nHost: {KEY}".encode()),
    "the query": get(f"/v1/models?key={KEY}"),
    "the query of a POST": post(BODY, path=f"/v1/embeddings?key={KEY}&input={MARK}".encode()),
    "the path": get(f"/v1/{KEY}"),
    "a path that is encoded": get(f"/v1/%0a%00%ff{KEY}%zz"),
    "a model's page": get(f"/v1/models/{KEY}\xff"),
    "a path with a line break": get(f"/a\n{KEY}"),
    "an absolute address": get(f"http://{KEY}@127.0.0.1/{MARK}"),
    "an over-long address": get(f"/{KEY}" + "x" * 20_000),
    "a method that is none": get("/v1/models", method=MARK),
    "a method in small letters": get("/v1/models", method=MARK.lower()),
    "a method for a path that is not": get(f"/{MARK}", method=MARK),
    "a version that is none": get("/", version=f"HTTP/{MARK}"),
    "no version": f"GET /{MARK}\r\n\r\n".encode(),
    "no HTTP": f"{MARK}\r\n\r\n".encode(),
    "no end": f"GET /{MARK} HTTP/1.1\r\nX: {KEY}".encode(),
    "the name of a field": post(body(**{MARK: MARK}), BEARER),
    "a text that is none": post(body(input=["a", {MARK: MARK}]), BEARER),
    "a text beside what is none": post(body(input=[MARK, 1]), BEARER),
    "a text that is too long": post(body(input=f"{MARK} " * 400, truncate=False), BEARER),
    "a text and too many dimensions": post(body(input=MARK, dimensions=9999), BEARER),
    "a text where a number should be": post(body(dimensions=MARK), BEARER),
    "broken JSON": post(BODY[:-2], BEARER),
    "bare text": post(MARK.encode(), BEARER),
    "another encoding": post(BODY.decode().encode("utf-16"), BEARER),
    "a body that breaks off": post(BODY, BEARER, length=b"9999"),
    "a body that goes on": post(BODY + BODY, BEARER, length=b"%d" % len(BODY)),
    "a bad chunk": chunked(BODY, headers=(BEARER,)) + f"{MARK}\r\n{MARK}".encode(),
    "a bad chunk extension": chunked(BODY, headers=(BEARER,)) + f"5;{MARK}=\0\r\n".encode(),
    "a bad trailer": chunked(BODY, headers=(BEARER,)) + f"0\r\n{MARK}\r\n\r\n".encode(),
    "chunks that break off": chunked(BODY, headers=(BEARER,))[:-9],
}
MODEL = post(body(model=KEY), BEARER)


def everything(port: int, request: bytes) -> bytes:
    """Return all bytes that the server sends for one request; they may be none."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        try:
            return b"".join(iter(lambda: client.recv(65_536), b""))
        except ConnectionResetError:
            return b""


def holds_mark(shown: bytes | str) -> bool:
    shown = shown if isinstance(shown, bytes) else shown.encode()
    return MARK.lower().encode() in shown.lower()


@only_linux
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_key_and_no_text_is_in_log_answer_or_command_line(launch, log_format):
    server = launch(
        WORKERS="1",
        LOG_LEVEL="DEBUG",
        LOG_FORMAT=log_format,
        GRACEFUL_TIMEOUT_S="2",
        API_KEY_SECRET=KEY,
        HF_TOKEN=TOKEN,
    )
    for name, request in LEAKY.items():
        answer = everything(server.port, request)
        assert not holds_mark(answer), f"{name}: {answer!r}"
    with Connection(server.port) as connection:
        # The answer repeats the model's name to the client, and no other place has it.
        assert KEY in error(connection.ask(MODEL))["message"]
        assert connection.ask(post(BODY, BEARER)).status == 200
    for process in (server.process.pid, *(worker.pid for worker in server.workers)):
        assert not holds_mark(Path(f"/proc/{process}/cmdline").read_bytes())
    with Connection(server.port) as unfinished:
        unfinished.send(post(BODY, BEARER, length=b"9999"))
        server.stop()
    lines = server.log.splitlines()
    assert sum("status" in line for line in lines) > len(LEAKY) / 2
    assert [line for line in lines if holds_mark(line)] == []
    if log_format == "json":
        assert all(json.loads(line)["level"] for line in lines)


def test_no_text_is_in_the_log_where_the_engine_fails(launch, tmp_path):
    (tmp_path / "wsgi.py").write_text(
        "from embedding_api.app import create_app\n"
        "from tests.fakes import fake_engine, fake_model\n"
        "raising, spoiling = fake_model('raising'), fake_model('spoiling')\n"
        "raising.route.backend.error = RuntimeError('inner details')\n"
        "spoiling.route.backend.value = float('nan')\n"
        "app = create_app(engine=fake_engine(raising, spoiling))\n"
    )
    server = launch(
        *("-c", str(ROOT / "gunicorn.conf.py")),
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
        WORKERS="1",
        LOG_LEVEL="DEBUG",
        API_KEY_SECRET=KEY,
    )
    with Connection(server.port) as connection:
        for model in ("raising", "spoiling"):
            answer = connection.ask(post(body(model=model, input=f"a {MARK}"), BEARER))
            assert (answer.status, error(answer)["code"]) == (500, "internal_error")
            assert not holds_mark(answer.body)
            assert b"inner details" not in answer.body
    server.stop()
    assert "inner details" in server.log
    assert "NaN" in server.log
    assert not holds_mark(server.log)


STRACE = shutil.which("strace")


@pytest.mark.skipif(STRACE is None, reason="needs strace")
def test_no_name_that_a_client_sends_reaches_the_file_system(launch, tmp_path):
    server = launch(WORKERS="1", API_KEY_SECRET=KEY)
    (worker,) = server.workers
    trace = tmp_path / "trace"
    # All system calls that take a path.
    tracer = subprocess.Popen([STRACE, "-f", "-q", "-e", "trace=%file", "-o", trace, "-p", str(worker.pid)])

    def n_heartbeats() -> int:
        return trace.read_text().count("utimensat") if trace.exists() else 0

    names = [
        *("../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "~/passwd", "passwd\0", "./passwd", "passwd/"),
        *(
            "%2e%2e/%2e%2e/etc/passwd",
            "..%2f..%2fetc%2fpasswd",
            "..\\..\\passwd",
            "$HOME/passwd",
            "|passwd",
            "`passwd`",
        ),
        *(f"{ROOT}/passwd", f"{MINILM}/../passwd", f"{MINILM}@passwd", f"passwd={MINILM}"),
    ]
    try:
        # Gunicorn's heartbeats before and after the requests show that the tracer sees the worker's calls.
        until(n_heartbeats, what="the tracer")
        with Connection(server.port) as connection:
            for name in names:
                answer = connection.ask(post(body(model=name), BEARER))
                assert (answer.status, error(answer)["code"]) == (400, "model_not_found")
                for path in (f"/v1/models/{name}", f"/{name}"):
                    raw = path.encode().replace(b"\0", b"%00").replace(b" ", b"%20")
                    answer = connection.ask(b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (raw, BEARER))
                    assert answer.status == 404
                for header in (b"X-Request-ID", b"Content-Encoding", b"Content-Type", b"Host", b"Cookie"):
                    connection.ask(post(body(), BEARER, header + b": " + name.encode().replace(b"\0", b"")))
        before = n_heartbeats()
        until(lambda: n_heartbeats() > before + 1, what="a later sign of life")
    finally:
        tracer.terminate()
        tracer.wait(30)
    assert [line for line in trace.read_text().splitlines() if "passwd" in line] == []


# Prints what another user than the server's can do with the server's processes and files, and with their own process.
STRANGER = r"""
import ctypes, json, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
asked = json.load(sys.stdin)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
PTRACE_ATTACH, PTRACE_DETACH, PR_SET_DUMPABLE = 16, 17, 4
libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)

def can(act, *arguments):
    try:
        act(*arguments)
    except OSError:
        return False
    return True

def opens(path, flags):
    os.close(os.open(path, flags))

def attach(pid):
    if libc.ptrace(PTRACE_ATTACH, pid, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0)
    libc.ptrace(PTRACE_DETACH, pid, None, None)

def can_do(pid):
    return {
        "list descriptors": can(os.listdir, f"/proc/{pid}/fd"),
        "open descriptors": any(can(opens, f"/proc/{pid}/fd/{fd}", os.O_RDONLY) for fd in range(64)),
        "read memory": can(opens, f"/proc/{pid}/mem", os.O_RDONLY),
        "list mappings": can(lambda: open(f"/proc/{pid}/maps").read()),
        "read its environment": can(lambda: open(f"/proc/{pid}/environ").read()),
        "trace": can(attach, pid),
    }

os.open("/dev/null", os.O_RDONLY)
child = os.fork()
if not child:
    while True:
        signal.pause()
try:
    print(json.dumps({
        "own": can_do(child),
        "theirs": [can_do(pid) for pid in asked["pids"]],
        "readable": [path for path in asked["made"] if can(opens, path, os.O_RDONLY)],
        "writable": [path for path in asked["opened"] if can(opens, path, os.O_WRONLY)],
    }))
finally:
    os.kill(child, signal.SIGKILL)
"""


@only_linux
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_no_other_user_can_read_or_write_what_passes_between_workers(launch):
    server = launch(WORKERS="2")
    server.embed([f"{n} " + "word " * 200 for n in range(64)])
    pids = [server.process.pid, *(worker.pid for worker in server.workers)]
    paths = {path for pid in pids for path in opened(pid)}
    # Everyone may read programs and libraries. Other users must not read the files that this test makes.
    installed = ("/usr/", "/lib", *(str(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix)))
    made = {path for path in paths if not path.startswith(installed)}
    assert made
    asked = json.dumps({"pids": pids, "made": sorted(made), "opened": sorted(paths)})
    done = subprocess.run([sys.executable, "-c", STRANGER], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    # The user can do all of this with their own process, so the checks themselves work.
    assert all(told["own"].values()), told["own"]
    assert [able for able in told["theirs"] if any(able.values())] == []
    assert (told["readable"], told["writable"]) == ([], [])


@only_linux
def test_what_workers_share_has_no_name_that_another_process_could_open(launch):
    server = launch(WORKERS="2")
    pids = [server.process.pid, *(worker.pid for worker in server.workers)]
    table = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    names = {columns[6]: columns[7:] for columns in table}
    for pid in pids:
        links = descriptors(pid)
        inodes = {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", link))}
        ours = inodes & names.keys()
        assert len(ours) >= 4, "two seats have two sockets each"
        assert [names[inode] for inode in ours if names[inode]] == []
    # Writable shared memory belongs to no file, or to a deleted one.
    shared = {path for pid in pids for path in writably_shared(pid)}
    assert shared
    assert [path for path in shared if not path.endswith(" (deleted)")] == []


def descriptors(pid: int) -> set[str]:
    """Return the open descriptors of a process, as /proc names them."""
    return {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}


def opened(pid: int) -> set[str]:
    """Return the paths of the existing files that a process has open or mapped."""
    links = descriptors(pid)
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    links |= {line.split(maxsplit=5)[5] for line in maps if "/" in line}
    return {link for link in links if link.startswith("/") and Path(link).is_file()}


def writably_shared(pid: int) -> set[str]:
    maps = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {"".join(columns[5:]) for columns in maps if columns[1][1] == "w" and columns[1][3] == "s"}


# A library that each program loads before the C library. It records each connection and each host name that a program
# looks up, and blocks connections to other machines.
RECORDER = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void tell(const char *what, const char *whom) {
    char line[600];
    int length = snprintf(line, sizeof line, "%s %.500s\n", what, whom ? whom : "-");
    int file = open(RECORD, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || write(file, line, length) != length) _exit(99);
    close(file);
}

__attribute__((constructor)) static void tell_program(void) {
    char words[500];
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    int length = file < 0 ? 0 : read(file, words, sizeof words - 1);
    for (int at = 0; at < length; at++)
        if (words[at] < ' ') words[at] = ' ';
    words[length > 0 ? length : 0] = 0;
    close(file);
    tell("program", words);
}

/* Whether it leads out of this machine. */
static int told(const char *what, const struct sockaddr *to) {
    char whom[200] = "";
    int is_out = 0;
    if (to->sa_family == AF_UNIX) {
        strcpy(whom, "unix");
    } else if (to->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)to;
        inet_ntop(AF_INET, &in->sin_addr, whom, sizeof whom);
        is_out = strncmp(whom, "127.", 4) != 0;
    } else if (to->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const void *)to;
        inet_ntop(AF_INET6, &in->sin6_addr, whom, sizeof whom);
        is_out = strcmp(whom, "::1") != 0;
    } else {
        snprintf(whom, sizeof whom, "family %d", to->sa_family);
    }
    tell(what, whom);
    if (is_out) errno = ENETUNREACH;
    return is_out;
}

int connect(int fd, const struct sockaddr *to, socklen_t n) {
    return told("connect", to) ? -1 : NEXT(connect)(fd, to, n);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t n) {
    return to && told("send", to) ? -1 : NEXT(sendto)(fd, data, size, flags, to, n);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    return message->msg_name && told("send", message->msg_name) ? -1 : NEXT(sendmsg)(fd, message, flags);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *wish, struct addrinfo **found) {
    struct addrinfo numeric = {0};
    if (wish) numeric = *wish;
    numeric.ai_flags |= AI_NUMERICHOST;
    tell("look up", name);
    return NEXT(getaddrinfo)(name, service, &numeric, found);
}

struct hostent *gethostbyname(const char *name) { tell("look up", name); return NULL; }
struct hostent *gethostbyname2(const char *name, int family) { (void)family; tell("look up", name); return NULL; }

int gethostbyname_r(const char *name, struct hostent *a, char *b, size_t c, struct hostent **found, int *code) {
    (void)a; (void)b; (void)c;
    tell("look up", name);
    *found = NULL;
    *code = HOST_NOT_FOUND;
    return 0;
}

int gethostbyname2_r(const char *name, int f, struct hostent *a, char *b, size_t c, struct hostent **found, int *code) {
    (void)f;
    return gethostbyname_r(name, a, b, c, found, code);
}

int res_query(const char *name, int a, int b, unsigned char *c, int d) {
    (void)a; (void)b; (void)c; (void)d;
    tell("look up", name);
    return -1;
}
int res_search(const char *name, int a, int b, unsigned char *c, int d) { return res_query(name, a, b, c, d); }
"""

# A program that contacts other hosts in each way, from a program that it starts.
CALLING = r"""
import contextlib, socket, sys
for act in (
    lambda: socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close(),
    lambda: socket.create_connection(("192.0.2.1", 443)),
    lambda: socket.create_connection(("2001:db8::1", 443)),
    lambda: socket.create_connection(("home.invalid", 443)),
    lambda: socket.gethostbyname("old.invalid"),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.2", 53)),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, ("192.0.2.3", 53)),
):
    with contextlib.suppress(OSError):
        act()
"""


@pytest.fixture
def recorder(tmp_path):
    """Variables that make a program record its connections, and the file of the records."""
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    source, library, record = (tmp_path / name for name in ("recorder.c", "recorder.so", "connections"))
    source.write_text(RECORDER)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Werror", f'-DRECORD="{record}"', "-o", library, source, "-ldl"],
        check=True,
    )
    return {"LD_PRELOAD": str(library)}, record


@only_linux
def test_nothing_calls_home(launch, recorder, tmp_path):
    variables, record = recorder
    with socket.create_server(("127.0.0.1", 0)) as home:
        command = [sys.executable, "-W", "ignore", "-c", CALLING, str(home.getsockname()[1])]
        outer = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *command]
        subprocess.run(outer, env=os.environ | variables, check=True)
    told = set(record.read_text().splitlines())
    assert told >= {
        *("connect 127.0.0.1", "connect 192.0.2.1", "connect 2001:db8::1"),
        *("look up home.invalid", "look up old.invalid", "send 192.0.2.2", "send 192.0.2.3"),
    }
    record.unlink()

    # An empty cache, so that the conversion runs. It is a separate program.
    server = launch(WORKERS="2", CACHE_DIR=str(tmp_path / "cache"), LOG_LEVEL="DEBUG", **variables)
    assert len(server.embed(["a cat", "a dog " * 300])) == 2
    with Connection(server.port) as connection:
        for request in (post(body(model="org/other")), post(b"{"), get("/v1/models"), get("/"), get("/health/ready")):
            assert connection.ask(request).status in {200, 400}
    assert server.stop() == 0
    told = record.read_text().splitlines()
    programs = [line for line in told if line.startswith("program ")]
    for part in ("gunicorn", "backends.convert"):
        assert any(part in program for program in programs), part
    assert [line for line in told if line not in (*programs, "connect unix")] == []
