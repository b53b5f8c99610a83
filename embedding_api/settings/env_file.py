"""Reads the file `.env`, and refuses lines that set nothing. Knows the names of settings, but not their meaning."""

import difflib
import re
from collections.abc import Collection
from pathlib import Path

from embedding_api.errors import SettingsError

_ASSIGNMENT = re.compile(r"\s*(?P<name>(?:export\s+)?[\w.-]+)\s*=(?P<value>.*)", re.ASCII)
# A value in quotes may contain " #". A value without quotes ends where white space and # begin a comment.
_QUOTED = re.compile(r"""((["']).*?\2)(?:\s+#.*)?""")
_COMMENT = re.compile(r"\s#.*")

# Longer than any name in this module.
_LONGEST_NAME = 40

_VARIABLE = re.compile(r"\$(\{|[A-Za-z_])")

# Names that Docker Compose reads from the same file, for itself and for other services.
_OTHERS = re.compile(r"(COMPOSE|DOCKER|GF)_\w+|TZ|LANG")

# Names that libraries and child processes read from the environment. None of them reads this file.
_ENVIRONMENT = re.compile(
    r"(HF|HUGGING_?FACE|TRANSFORMERS|SENTENCE_TRANSFORMERS|TOKENIZERS|SAFETENSORS|TORCH\w*|PYTORCH|CUDA|NVIDIA|NCCL"
    r"|OMP|GOMP|KMP|MKL|OPENBLAS|DNNL|ONEDNN|OV|OPENVINO|MALLOC|LD|OTEL|FLASK|WERKZEUG|XDG|LC|LISTEN)_\w+"
    r"|PYTHON\w+|GUNICORN_(CMD_ARGS|FD|PID)|SENDFILE|NOTIFY_SOCKET|\w+_PROXY|SSL_CERT_(FILE|DIR)|SSLKEYLOGFILE"
    r"|(REQUESTS|CURL)_CA_BUNDLE|TMPDIR|TEMP|TMP|HOME|PATH|USER|LANGUAGE"
)

# Names that other embedding servers give to a setting: text-embeddings-inference, infinity, vLLM and others.
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
_SETTING_OF = {name: setting for setting, names in _OTHER_SERVERS.items() for name in names.split()}
_PREFIX = re.compile(r"(INFINITY|VLLM|TEI|OPENAI|GUNICORN|UVICORN|EMBEDDINGS?|MEMEMENTOR|SERVER|SERVICE|APP|API)_")


def read_values(file: Path, settings: Collection[str]) -> dict[str, str]:
    """Return the values that a file sets, without quotes and comments; empty if there is no file.

    Args:
        file: Lines of `NAME=value` in UTF-8, comments and empty lines.
        settings: The names that it may set.

    Raises:
        SettingsError: A line sets nothing, or sets a name for the second time. The message never shows its value.
        OSError: The file cannot be read.
        ValueError: The file is not UTF-8, or is a pipe.
    """
    # A dangling link is a mistake, unlike a file that does not exist.
    if not file.exists() and not file.is_symlink():
        return {}
    values: dict[str, str] = {}
    for number, line in enumerate(_read_lines(file), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"line {number} of {file}"
        if (assignment := _ASSIGNMENT.fullmatch(line)) is None:
            # The message does not quote the line: it may be a part of a secret.
            meant = next((word for word in re.findall(r"\w+", line.upper()) if word in settings), "NAME")
            raise SettingsError(f"{where} is not NAME=value; write {meant}=...")
        name, value = assignment["name"], assignment["value"]
        if name in values:
            raise SettingsError(f"{where} sets {name!r} a second time; keep one of the two")
        if name in settings:
            values[name] = _clean_value(value, f"{where} sets {name!r}")
        elif not _OTHERS.fullmatch(name):
            raise SettingsError(_refusal_message(name, file, where, settings))
    return values


def value_of(name: str, file: Path) -> str:
    """Return the value of one setting, even if other lines of the file are wrong; empty if it cannot be found."""
    try:
        assignments = map(_ASSIGNMENT.fullmatch, _read_lines(file))
        values = [assignment["value"] for assignment in assignments if assignment and assignment["name"] == name]
        return _clean_value(values[-1], "") if values else ""
    except (OSError, ValueError, SettingsError):
        return ""


def unquoted(text: str) -> str:
    """Return the text without one pair of quotes around it. `docker run --env-file` passes them on as well."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" else text


def _read_lines(file: Path) -> list[str]:
    if file.is_fifo():
        # Reading it would block.
        raise ValueError("it is a pipe")
    # Some editors write a byte order mark.
    return file.read_text(encoding="utf-8-sig").split("\n")


def _clean_value(text: str, where: str) -> str:
    """Return the text after a name without its comment and quotes."""
    quoted = _QUOTED.fullmatch(text.strip())
    value = quoted[1] if quoted else _COMMENT.sub("", text).strip()
    if quoted is None and value.startswith(("'", '"')):
        raise SettingsError(f"{where} to a value with an opening quote and no closing quote at its end; close it")
    # Docker Compose, which reads the same file, would replace a variable unless it is in single quotes.
    if _VARIABLE.search(value) and not value.startswith("'"):
        raise SettingsError(
            f"{where} to a value that holds $NAME, which is not replaced here; write the value, or put it in single "
            "quotes"
        )
    return unquoted(value)


def _refusal_message(name: str, file: Path, where: str, settings: Collection[str]) -> str:
    """Return where a name that is no setting belongs, or which setting was probably meant."""
    upper = name.removeprefix("export").strip().upper()
    short = _PREFIX.sub("", upper, count=1)
    known = _SETTING_OF | {setting: setting for setting in settings}
    meant = known.get(upper) or known.get(short) or _closest(upper, settings, cutoff=0.9)
    if meant is None and _ENVIRONMENT.fullmatch(upper):
        return f"{file} sets {name!r}, which is read from the environment alone; set it there"
    if meant := meant or _closest(upper, settings, cutoff=0.75):
        return f"{file} sets {name!r}, which is no setting; write {meant}=..."
    # A base64 secret alone on a line ends in "=" and so looks like a name. Real names are short and have one case.
    is_name = len(name) <= _LONGEST_NAME and (name.isupper() or name.islower())
    shown = f"{file} sets {name!r}" if is_name else f"{where} sets a name"
    return f"{shown}, which is no setting; .env.example lists them all"


def _closest(name: str, settings: Collection[str], *, cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name, settings, n=1, cutoff=cutoff)), None)
