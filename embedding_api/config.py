"""Settings: what the service can be told, read once. The only reader of python-decouple.

Each setting is a field of `Settings` with its meaning, unit and default beside it;
`.env.example` is made from them (`memementor-embeddings settings`).
"""

import dataclasses
import functools
import ipaddress
import os
import pwd
import re
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import decouple

from embedding_api import cores, env_file, model_spec
from embedding_api.errors import SettingsError

T = TypeVar("T")

# What `.env.example` shows in the place of secrets; everybody knows them.
_KEY_PLACEHOLDER, _TOKEN_PLACEHOLDER = "your_secret_key_here", "your_huggingface_token_here"


def setting(default: str, parse: Callable[[str], Any], doc: str, *, example: str = "", secret: bool = False) -> Any:
    """A field of `Settings`, read from the variable of the same name in capitals.

    Args:
        default: What an unset or empty variable means, as it would be written.
        parse: Text to value; raises ValueError with the rule.
        doc: Meaning and unit, and what too little and too much do; a line each.
        example: What `.env.example` shows in the place of an empty default.
        secret: Whether the value must never be shown.
    """
    metadata = {"default": default, "parse": parse, "doc": doc, "example": example, "secret": secret}
    return dataclasses.field(metadata=metadata, repr=not secret)


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        for word in words:
            if text.lower() == word.lower():
                return word
        raise ValueError(f"must be one of {', '.join(words)}")

    return parse


def _file(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError("begins with ~ and a user whose home nobody knows; write the whole path") from error


def _cache_folder(text: str) -> Path:
    """A folder, by default one in the user's cache, where the XDG base directory specification has it."""
    if text:
        return _file(text)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # It says that a relative path is to be ignored.
    base = Path(xdg) if xdg.startswith("/") else _home() / ".cache"
    return base / "memementor-embeddings"


def _home() -> Path:
    """The user's; services often have no HOME though their user has one. Without any, a folder that nobody can make."""
    try:
        return Path(os.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return Path(os.devnull)


def _require_texts(file: Path) -> None:
    """Refuses a file that calibration could read no text from."""
    try:
        flaw = "" if file.read_text(encoding="utf-8").strip() else "holds no text"
    except FileNotFoundError:
        flaw = "is not there"
    except UnicodeDecodeError:
        flaw = "is not UTF-8"
    except OSError as error:
        flaw = f"cannot be read ({error.strerror})"
    if flaw:
        raise SettingsError(f"CALIBRATION_TEXTS={file} {flaw}; name a file of texts in UTF-8, one a line, or unset it")


def _boolean(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise ValueError(f"must be one of {', '.join(words)}")
    return words[text.lower()]


def _optional(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    return lambda text: parse(text) if text else None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _require_text(text: str) -> None:
    """Refuses what is no text in UTF-8, and the one character that no path or header can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be text in UTF-8") from error
    if "\0" in text:
        raise ValueError("must not hold a NUL character")


def _is_repository(name: str) -> bool:
    """Whether it may name a repository on the hub, at a commit or without saying which."""
    return re.fullmatch(rf"{model_spec.REPOSITORY}(@{model_spec.COMMIT})?", name) is not None


def _secret(text: str) -> str:
    """A secret of the operator's own, which the one that `.env.example` shows is not."""
    if text.lower() in (_KEY_PLACEHOLDER, _TOKEN_PLACEHOLDER):
        raise ValueError("is what .env.example shows in its place; set your own, or unset it")
    return text


def _keys(text: str) -> tuple[str, ...]:
    keys = tuple(map(_secret, _words(text)))
    if text and not keys:
        raise ValueError("must hold at least one key")
    if any(any(character.isspace() or character in "\"'" for character in key) for key in keys):
        raise ValueError("must hold keys without white space and quotes; separate several with commas")
    return keys


def _host(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not re.fullmatch(r"[\w.-]+", text):
            raise ValueError("must be an IP address or a host name, without port, scheme and brackets") from None
    return text


def _has_host_and_port(address: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(address)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        # What is none.
        return False


def _collector(text: str) -> str:
    """An address of HTTP, or nothing."""
    if text and not (re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", text) and _has_host_and_port(text)):
        raise ValueError(
            "must be an address as http://host:port, without user name and password; those go to "
            "OTEL_EXPORTER_OTLP_HEADERS"
        )
    return text


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the service was told. Made by `load_settings`."""

    supported_models: tuple[model_spec.ModelSpec, ...] = setting(
        "sentence-transformers/all-MiniLM-L6-v2",
        model_spec.parse,
        "The models to serve, comma-separated. Each is a Hugging Face name, name@revision or a local folder,\n"
        "optionally as alias=source; requests choose one by its name or its alias. All are loaded at start-up.",
    )
    log_level: str = setting(
        "INFO",
        _choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
        "From which level on this service and Gunicorn log: DEBUG, INFO, WARNING, ERROR or CRITICAL.\n"
        "Texts and keys are logged at no level.",
    )
    log_format: str = setting("text", _choice("text", "json"), "Log lines as text or as json, one object a line.")
    hf_token: str = setting(
        "",
        _secret,
        "The Hugging Face token with which private and gated models are downloaded.",
        example=_TOKEN_PLACEHOLDER,
        secret=True,
    )
    device: str = setting(
        "cpu",
        _choice("cpu", "cuda", "mps"),
        "Where the models compute: cpu, cuda or mps. With cuda or mps one worker owns the device, and the\n"
        "others send to it.",
    )
    backend: str = setting(
        "auto",
        _choice("auto", "torch", "openvino"),
        "What computes. openvino: the model is converted once, in seconds, and is two to four times faster on a CPU.\n"
        "torch: sentence-transformers' own modules. auto: openvino on a CPU, and torch, with a warning that says why,\n"
        "for a model that cannot be converted or whose vectors would differ.",
    )
    precision: str = setting(
        "float32",
        _choice("float32", "bfloat16", "int8"),
        "What the models compute in. float32 gives sentence-transformers' own vectors. bfloat16 is about 1.7 times\n"
        "faster on a CPU that has it, its vectors at a cosine of 0.9995 or more to them; int8, with OpenVINO alone,\n"
        "about 2.5 times, at 0.98 or more. Index and queries need not share bfloat16: one of them may be in float32.",
    )
    cache_dir: Path = setting(
        "",
        _cache_folder,
        "The folder for converted models, about as large as their weights. It may be deleted; the next start makes it\n"
        "again. What a changed model or another version leaves there is not removed by itself.\n"
        "Unset: memementor-embeddings in the user's own cache folder, $XDG_CACHE_HOME or ~/.cache.",
        example="/var/cache/memementor-embeddings",
    )
    calibration_texts: Path | None = setting(
        "",
        _optional(_file),
        "A file of texts like those to be embedded, one a line, by which PRECISION=int8 sets its scales; a few\n"
        "hundred do. Unset: texts of this service's own, in several languages. Other precisions do not read it.",
        example="texts.txt",
    )
    api_key_secret: tuple[str, ...] = setting(
        "",
        _keys,
        "The keys that clients may send as `Authorization: Bearer <key>`; comma-separated, so that they can rotate.",
        example=_KEY_PLACEHOLDER,
        secret=True,
    )
    require_auth: bool = setting(
        "",
        _optional(_boolean),
        "Whether a key is needed: true or false. Unset: true if API_KEY_SECRET is set.",
        example="false",
    )
    host: str = setting(
        "127.0.0.1", _host, "The address to listen on. 0.0.0.0 is every interface; think of API_KEY_SECRET then."
    )
    port: int = setting("8000", _integer(1, 65535), "The port to listen on.")
    workers: int = setting(
        "",
        _optional(_integer(1, 1024)),
        "Worker processes. Unset: one per usable core (control group quota and affinity); with cuda or mps at most\n"
        "four, one of which computes. With fewer than cores, cores stay idle, or with torch inference takes several\n"
        "threads each, which is slower; of more, only as many compute as there are cores.",
        example="2",
    )
    threads: int = setting(
        "64",
        _integer(1, 4096),
        "Requests that a worker works on at once, those included whose texts wait. More wait in line for a thread,\n"
        "and count in MAX_QUEUED_TOKENS by a guess. Too many cost memory, a thread and a parsed body each; too few\n"
        "leave texts out of the queue that could be computed together.",
    )
    max_inputs: int = setting(
        "2048", _integer(1, 1_000_000), "Texts that one request may hold. OpenAI's own limit is 2048."
    )
    max_body_bytes: int = setting(
        "33554432",
        _integer(1024, 2**32),
        "Bytes that one request body may have. All workers together hold two such bodies, or 32 bytes for each token\n"
        "of MAX_QUEUED_TOKENS if that is more; beyond it, 429.",
    )
    max_queued_tokens: int = setting(
        "",
        _optional(_integer(1, 10**12)),
        "Tokens of texts that may wait, in all workers together. What comes while more wait is refused with 429, and\n"
        "told when to come again. A request that comes while fewer wait is taken whole, however large it is. Too few\n"
        "refuse what could be answered in time; too many are answered after their clients have given up.\n"
        "Unset: what 30 seconds can compute, measured at the start; with cuda or mps, which it cannot measure, 900000.",
        example="400000",
    )
    request_timeout_s: int = setting(
        "60",
        _integer(1, 3600),
        "Seconds after which a request that is not answered gets 504, and its texts are dropped. A client that says\n"
        "how long it waits may shorten it, as OpenAI's SDKs do: in x-stainless-read-timeout (Python) or\n"
        "x-stainless-timeout (JavaScript, if the call names a timeout).",
    )
    client_timeout_s: int = setting(
        "30",
        _integer(1, 3600),
        "Seconds in which a request must have arrived whole, from its first byte on, or it gets 408; and in which its\n"
        "client must have read the answer. Too little cuts off slow links.",
    )
    drain_s: int = setting(
        "",
        _optional(_integer(0, 3600)),
        "Seconds for which the service, told to stop, still accepts connections and answers readiness and new work\n"
        "with 503, so that load balancers notice. Part of GRACEFUL_TIMEOUT_S; 0 stops listening at once.\n"
        "Unset: 5, or half of GRACEFUL_TIMEOUT_S if that is less.",
        example="5",
    )
    graceful_timeout_s: int = setting(
        "30",
        _integer(1, 3600),
        "Seconds that running requests have to finish when the service stops. What is not done by then is cut off.",
    )
    inference_timeout_s: int = setting(
        "30",
        _integer(1, 3600),
        "Seconds after which a batch counts as stuck: its worker hands its other work on and is replaced. After half\n"
        "of them GET /health/ready answers 503. A batch takes 0.03 s with MiniLM and seconds with the largest models:\n"
        "too little replaces workers that are busy.",
    )
    truncate: bool = setting(
        "true",
        _boolean,
        "Whether a text over the model's window is cut to it (and the answer says so), or refused with 400.\n"
        "A request may say otherwise with its own `truncate`.",
    )
    token_ids: str = setting(
        "reject",
        _choice("reject", "model"),
        "What to do with token ids in `input`: reject, since most come from another model's tokenizer and would give\n"
        "wrong vectors without an error; or model: take them as the model's own ids.",
    )
    metrics_public: bool = setting(
        "false",
        _boolean,
        "Whether GET /metrics is open to all, or needs a key as embeddings do, if those need one.",
    )
    trust_remote_code: tuple[str, ...] = setting(
        "",
        _words,
        "Names of the models, as in SUPPORTED_MODELS, whose own Python code may run. Comma-separated; read it first.\n"
        "Where that code lies in another repository, name that too, at the commit that you have read:\n"
        "your-organisation/your-model,organisation/code@<40 hexadecimal digits>.",
        example="your-organisation/your-model",
    )
    allow_pickle: bool = setting(
        "false",
        _boolean,
        "Whether weights in pickle files (pytorch_model.bin) may be loaded, for models that have no safetensors.",
    )

    otel_exporter_otlp_endpoint: str = setting(
        "",
        _collector,
        "Where traces are sent: the address of a collector that speaks OTLP over HTTP, without /v1/traces. Needs\n"
        "opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http, which read more from OpenTelemetry's other\n"
        "variables, in the environment alone. Unset: nothing is traced.",
        example="http://127.0.0.1:4318",
        # Somebody may write a password into it; it is refused, and must not be shown for it.
        secret=True,
    )

    def __post_init__(self) -> None:
        """Fills what depends on other settings, and refuses contradictions.

        Raises:
            SettingsError: Two settings contradict each other.
        """
        fill = functools.partial(object.__setattr__, self)
        if self.require_auth is None:
            fill("require_auth", bool(self.api_key_secret))
        if self.workers is None:
            fill("workers", cores.count() if self.device == "cpu" else self._most_on_a_device)
        if self.drain_s is None:
            fill("drain_s", min(5, self.graceful_timeout_s // 2))
        self._refuse_contradictions()
        self._refuse_impossible_computing()

    def _refuse_contradictions(self) -> None:
        if self.require_auth and not self.api_key_secret:
            raise SettingsError(
                "REQUIRE_AUTH=true without API_KEY_SECRET: nobody could ever get in; set API_KEY_SECRET to the key "
                "that clients shall send, or REQUIRE_AUTH to false"
            )
        if self.drain_s >= self.graceful_timeout_s:
            raise SettingsError(
                f"DRAIN_S={self.drain_s} is no less than GRACEFUL_TIMEOUT_S={self.graceful_timeout_s}, of which it is "
                "a part: running requests would have no time left; lower DRAIN_S or raise GRACEFUL_TIMEOUT_S"
            )
        known = {name for spec in self.supported_models for name in spec.names}
        # Which repositories hold code is known once the models are there.
        if unknown := [name for name in self.trust_remote_code if name not in known and not _is_repository(name)]:
            raise SettingsError(
                f"TRUST_REMOTE_CODE={unknown[0]!r} is not in SUPPORTED_MODELS, which has {', '.join(sorted(known))}; "
                "a repository of code is named with its commit, as organisation/name@<40 hexadecimal digits>"
            )

    def _refuse_impossible_computing(self) -> None:
        if self.device != "cpu" and self.workers > self._most_on_a_device == 1:
            raise SettingsError(
                f"WORKERS={self.workers} with DEVICE={self.device}: one worker owns the device, and only on Linux can "
                "others send to it; unset WORKERS, or set it to 1"
            )
        if self.backend == "openvino" and self.device != "cpu":
            raise SettingsError(
                f"BACKEND=openvino with DEVICE={self.device}: OpenVINO computes on the CPU here; "
                "unset BACKEND, or set DEVICE=cpu"
            )
        if self.precision == "int8" and (self.backend == "torch" or self.device != "cpu"):
            other = "BACKEND=torch" if self.backend == "torch" else f"DEVICE={self.device}"
            raise SettingsError(
                f"PRECISION=int8 with {other}: only OpenVINO on a CPU computes in int8; "
                f"set PRECISION to float32 or bfloat16, or unset {other.partition('=')[0]}"
            )
        if self.precision == "int8" and self.calibration_texts is not None:
            _require_texts(self.calibration_texts)

    @property
    def _most_on_a_device(self) -> int:
        """Workers that keep one device busy by reading and answering for it; only on Linux do they reach each other."""
        return min(4, cores.count()) if sys.platform == "linux" else 1

    @property
    def bind(self) -> str:
        """`HOST:PORT` as Gunicorn writes it, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def max_workers(self) -> int:
        """The most at one time that have a place among the others; those that are replaced overlap with the new."""
        return 4 * self.workers + 4


def load_settings(file: Path = Path(".env")) -> Settings:
    """Reads the settings from the environment and, for what it does not hold, from a file.

    Args:
        file: A file of `KEY=value` lines, by default `.env` in the working folder; it need not exist.

    Raises:
        SettingsError: A value breaks its rule, two contradict each other, or a line of the file sets nothing; names
            key, value and rule.
    """
    try:
        told = env_file.read(file, [field.name.upper() for field in dataclasses.fields(Settings)])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"{file.absolute()} cannot be read as UTF-8 text of KEY=value lines ({reason}); mend it, let this user "
            "read it, or remove it"
        ) from error
    # Its own reader of files knows no comments behind values, and passes over lines that set nothing.
    read = decouple.Config(told)
    values = {}
    for field in dataclasses.fields(Settings):
        key = field.name.upper()
        text = _unquoted(read(key, default="").strip()) or field.metadata["default"]
        try:
            _require_text(text)
            values[field.name] = field.metadata["parse"](text)
        except ValueError as error:
            shown = "(hidden)" if field.metadata["secret"] else repr(text[:100])
            # An address may hold a password, wherever it does not belong.
            line = re.sub(r"(?<=//)[^/\s]+@", "(hidden)@", f"{key}={shown} {error}")
            raise SettingsError(line) from error
    return Settings(**values)


def log_format(file: Path = Path(".env")) -> str:
    """LOG_FORMAT, or `text` where that cannot be told: for who must log that the settings are wrong."""
    text = os.environ.get("LOG_FORMAT") or env_file.value(file, "LOG_FORMAT")
    return "json" if _unquoted(text.strip()).lower() == "json" else "text"


def _unquoted(text: str) -> str:
    """Without one pair of quotes around it, which `docker run --env-file` passes on."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'" else text


def env_example() -> str:
    """The contents of `.env.example`: every setting with its meaning, commented out, with its default or an example.

    Commented out, so that a copy changes nothing: HOST, say, is another in the container image.
    """
    blocks = []
    for field in dataclasses.fields(Settings):
        doc = "".join(f"# {line}\n" for line in field.metadata["doc"].splitlines())
        shown = field.metadata["default"] or field.metadata["example"]
        blocks.append(f'{doc}# {field.name.upper()}="{shown}"\n')
    return "\n".join(blocks)
