"""The file `.env`: its lines, of which each must set something. Knows the names of settings, and not what they mean."""

import difflib
import re
from collections.abc import Collection
from pathlib import Path

from embedding_api.errors import SettingsError

_ASSIGNMENT = re.compile(r"\s*(?P<name>(?:export\s+)?[\w.-]+)\s*=(?P<value>.*)", re.ASCII)
# A value in quotes may hold the sign of a comment; one without ends where a comment begins, behind white space.
_QUOTED = re.compile(r"""(["'])(.*?)\1(?:\s+#.*)?""")
_COMMENT = re.compile(r"\s#.*")

# Longer than any that is known here.
_LONGEST_NAME = 40

_VARIABLE = re.compile(r"\$(\{|[A-Za-z_])")

# Docker Compose keeps such names in the same file, for itself and for the services beside this one.
_OTHERS = re.compile(r"(COMPOSE|DOCKER|GF)_\w+|TZ|LANG")

# Names that libraries read, and programs that this service starts; none of them reads this file.
_ENVIRONMENT = re.compile(
    r"(HF|HUGGING_?FACE|TRANSFORMERS|SENTENCE_TRANSFORMERS|TOKENIZERS|SAFETENSORS|TORCH\w*|PYTORCH|CUDA|NVIDIA|NCCL"
    r"|OMP|GOMP|KMP|MKL|OPENBLAS|DNNL|ONEDNN|OV|OPENVINO|MALLOC|LD|OTEL|FLASK|WERKZEUG|XDG|LC|LISTEN)_\w+"
    r"|PYTHON\w+|GUNICORN_(CMD_ARGS|FD|PID)|SENDFILE|NOTIFY_SOCKET|\w+_PROXY|SSL_CERT_(FILE|DIR)|SSLKEYLOGFILE"
    r"|(REQUESTS|CURL)_CA_BUNDLE|TMPDIR|TEMP|TMP|HOME|PATH|USER|LANGUAGE"
)

# What other servers call a setting: text-embeddings-inference, infinity, vLLM, and those that speak OpenAI's API.
_OTHER_SERVERS = {
    "SUPPORTED_MODELS": "MODEL MODELS MODEL_ID MODEL_IDS MODEL_NAME MODEL_NAMES MODEL_PATH MODEL_DIR MODEL_REPO"
    " REVISION EMBEDDING_MODEL EMBEDDING_MODELS SERVED_MODEL_NAME SERVED_MODELS ALIAS",
    "API_KEY_SECRET": "KEY KEYS API_KEY API_KEYS API_TOKEN API_SECRET AUTH_TOKEN AUTH_KEY BEARER_TOKEN SECRET"
    " SECRET_KEY TOKEN ACCESS_TOKEN",
    "REQUIRE_AUTH": "AUTH AUTH_ENABLED ENABLE_AUTH",
    "HF_TOKEN": "HF_API_TOKEN HF_HUB_TOKEN HF_ACCESS_TOKEN HUGGING_FACE_HUB_TOKEN HUGGING_FACE_TOKEN HUGGINGFACE_TOKEN"
    " HUGGINGFACE_HUB_TOKEN HUGGINGFACE_API_TOKEN HUGGINGFACE_API_KEY HUGGINGFACEHUB_API_TOKEN",
    "HOST": "HOSTNAME HOST_IP ADDRESS BIND LISTEN LISTEN_HOST LISTEN_ADDRESS",
    "PORT": "LISTEN_PORT HTTP_PORT",
    "WORKERS": "WEB_CONCURRENCY NUM_WORKERS N_WORKERS MAX_WORKERS UVICORN_WORKERS",
    "THREADS": "NUM_THREADS MAX_CONCURRENT_REQUESTS MAX_CONCURRENCY",
    "LOG_LEVEL": "LOGLEVEL LOGGING_LEVEL",
    "LOG_FORMAT": "LOG_JSON JSON_LOGS JSON_OUTPUT",
    "CACHE_DIR": "CACHE CACHE_FOLDER CACHE_PATH",
    "PRECISION": "DTYPE QUANTIZATION",
    "BACKEND": "ENGINE",
    "MAX_INPUTS": "MAX_CLIENT_BATCH_SIZE",
    "MAX_BODY_BYTES": "PAYLOAD_LIMIT MAX_BODY_SIZE MAX_REQUEST_SIZE",
    "REQUEST_TIMEOUT_S": "TIMEOUT TIMEOUT_S",
    "TRUNCATE": "AUTO_TRUNCATE",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "OTLP_ENDPOINT OTLP_TRACES_ENDPOINT",
}
_MEANT = {name: setting for setting, names in _OTHER_SERVERS.items() for name in names.split()}
_PREFIX = re.compile(r"(INFINITY|VLLM|TEI|OPENAI|GUNICORN|UVICORN|EMBEDDINGS?|MEMEMENTOR|SERVER|SERVICE|APP|API)_")


def read(file: Path, settings: Collection[str]) -> dict[str, str]:
    """The values that a file sets, without their quotes and the comments behind them; none if there is no file.

    Args:
        file: Lines of `NAME=value` in UTF-8, comments and empty lines.
        settings: The names that it may set.

    Raises:
        SettingsError: A line sets nothing, or is not the only one for its setting; names it, and never its value.
        OSError: The file cannot be read.
        ValueError: It is not UTF-8.
    """
    try:
        text = _text(file)
    except FileNotFoundError:
        # A link to nowhere is a file that cannot be read.
        if file.is_symlink():
            raise
        return {}
    values: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"line {number} of {file}"
        name, value = _split(line, where, settings)
        if name in values:
            raise SettingsError(f"{where} sets {name!r} a second time; keep one of the two")
        if name in settings:
            values[name] = _value(value, f"{where} sets {name!r}")
        elif not _OTHERS.fullmatch(name):
            raise SettingsError(_refusal(name, file, where, settings))
    return values


def _text(file: Path) -> str:
    if file.is_fifo():
        # It would be waited for.
        raise ValueError("it is a pipe")
    # Editors may begin it with a byte order mark.
    return file.read_text(encoding="utf-8-sig")


def value(file: Path, name: str) -> str:
    """The value of one setting, whatever else is wrong with the file; empty if it cannot be told."""
    try:
        lines = _text(file).split("\n")
        found = [match["value"] for line in lines if (match := _ASSIGNMENT.fullmatch(line)) and match["name"] == name]
        return _value(found[-1], "") if found else ""
    except (OSError, ValueError, SettingsError):
        return ""


def _split(line: str, where: str, settings: Collection[str]) -> tuple[str, str]:
    """Name and value of a line. What is no name may be a part of a secret, and is not repeated."""
    assignment = _ASSIGNMENT.fullmatch(line)
    if assignment is None:
        first = re.match(r"\W*(?:export\s+)?(\w*)", line)
        setting = first[1].upper() if first else ""
        raise SettingsError(f"{where} is not NAME=value; write {setting if setting in settings else 'NAME'}=...")
    return assignment["name"], assignment["value"]


def _value(text: str, where: str) -> str:
    """What stands behind a name, without quotes and comment."""
    quoted = _QUOTED.fullmatch(text.strip())
    if quoted is not None:
        if quoted[1] == '"':
            _require_no_variable(quoted[2], where)
        return quoted[2]
    if text.strip().startswith(("'", '"')):
        raise SettingsError(f"{where} to what begins with a quote and does not end with it; close it")
    plain = _COMMENT.sub("", text).strip()
    _require_no_variable(plain, where)
    return plain


def _require_no_variable(value: str, where: str) -> None:
    """Refuses what Docker Compose would replace, which reads the same file: here it would be taken as it stands."""
    if _VARIABLE.search(value):
        raise SettingsError(
            f"{where} to what holds $NAME, which is not replaced here; write the value, or put it in single quotes"
        )


def _refusal(name: str, file: Path, where: str, settings: Collection[str]) -> str:
    """Says where a name that is not a setting belongs, or which setting was probably meant."""
    upper = name.removeprefix("export").strip().upper()
    short = _PREFIX.sub("", upper, count=1)
    known = _MEANT | {setting: setting for setting in settings}
    meant = known.get(upper) or known.get(short) or _closest(upper, settings, cutoff=0.9)
    if meant is None and _ENVIRONMENT.fullmatch(upper):
        return f"{file} sets {name!r}, which is read from the environment alone; set it there"
    if meant := meant or _closest(upper, settings, cutoff=0.75):
        return f"{file} sets {name!r}, which is no setting; write {meant}=..."
    # A line that holds a secret alone, in base64, ends in the sign behind a name. Names have one case, and are short.
    is_name = len(name) <= _LONGEST_NAME and (name.isupper() or name.islower())
    shown = f"{file} sets {name!r}" if is_name else f"{where} sets a name"
    return f"{shown}, which is no setting; .env.example lists them all"


def _closest(name: str, settings: Collection[str], *, cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name, settings, n=1, cutoff=cutoff)), None)
