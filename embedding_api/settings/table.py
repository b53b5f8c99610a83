"""The table of settings: name, default, parsing rule and meaning of each. `.env.example` is generated from it.

Imports the parsing rules and nothing else of this package.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedding_api.settings import model_spec, parsing


def setting(default: str | None, parse: Callable[[str], Any], *, example: str = "", secret: bool = False) -> Any:
    """Return a field of `Settings`. Its value comes from the variable with the field's name in capitals.

    The docstring below the field has its meaning and unit, and the effect of too low and too high a value.

    Args:
        default: Text that replaces an unset or empty variable; None if the value is None then.
        parse: Converts text to the value; raises ValueError with the rule.
        example: Value that `.env.example` shows if `default` is empty.
        secret: True if messages must not show the value.
    """
    metadata = {"default": default, "parse": parse, "example": example, "secret": secret}
    return dataclasses.field(metadata=metadata, repr=not secret)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The values of all settings, an attribute each. `load_settings` makes it."""

    supported_models: tuple[model_spec.ModelSpec, ...] = setting(
        "sentence-transformers/all-MiniLM-L6-v2", model_spec.parse
    )
    """The models to serve, comma-separated. Each is a Hugging Face name, name@revision or a local folder,
    optionally as alias=source. Requests choose a model by its name or alias. All are loaded at start-up."""

    log_level: str = setting("INFO", parsing.choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))
    """The lowest level that this service and Gunicorn log: DEBUG, INFO, WARNING, ERROR or CRITICAL.
    Texts and keys are not logged at any level."""

    log_format: str = setting("text", parsing.choice("text", "json"))
    """The format of log lines: text, or json for one object a line."""

    hf_token: str = setting("", parsing.secret_text, example=parsing.TOKEN_PLACEHOLDER, secret=True)
    """The Hugging Face token that downloads private and gated models."""

    device: str = setting("cpu", parsing.choice("cpu", "cuda", "mps"))
    """The device that computes: cpu, cuda or mps. With cuda or mps, one worker owns the device and the others
    send their batches to it."""

    backend: str = setting("auto", parsing.choice("auto", "torch", "openvino"))
    """The library that computes. openvino: each model is converted once, in seconds, and is two to four times
    faster on a CPU. torch: sentence-transformers' own modules. auto: openvino on a CPU, but torch, with a
    warning that says why, for a model that cannot be converted or whose vectors would differ."""

    precision: str = setting("float32", parsing.choice("float32", "bfloat16", "float16", "int8"))
    """The number type in which models compute. float32 gives sentence-transformers' own vectors. bfloat16 is
    about 1.7 times faster on a CPU that supports it, with a cosine of at least 0.9995 to those vectors. float16,
    with DEVICE=cuda only, has a cosine of at least 0.9999; a model whose numbers are too large for it is refused.
    int8, with OpenVINO only, is about 2.5 times faster, with a cosine of at least 0.98. Index and queries may use
    different types: one bfloat16, the other float32."""

    cache_dir: Path = setting("", parsing.cache_folder, example="/var/cache/memementor-embeddings")
    """The folder for converted models; they take about as much space as the weights. You may delete it: the next
    start converts again. Nothing removes the files of a model or version that is no longer used.
    Unset: memementor-embeddings in the user's cache folder, $XDG_CACHE_HOME or ~/.cache."""

    calibration_texts: Path | None = setting(None, parsing.file_path, example="texts.txt")
    """A file of texts like those to be embedded, one a line, in UTF-8. PRECISION=int8 sets its scales by them; a
    few hundred are enough. Other precisions do not read it. Unset: built-in texts in several languages."""

    api_key_secret: tuple[str, ...] = setting("", parsing.keys, example=parsing.KEY_PLACEHOLDER, secret=True)
    """The keys that clients may send as `Authorization: Bearer <key>`. Separate several by commas, to rotate them."""

    require_auth: bool = setting(None, parsing.boolean, example="false")
    """true if clients must send a key, else false. Unset: true if API_KEY_SECRET is set."""

    host: str = setting("127.0.0.1", parsing.host)
    """The address to listen on. 0.0.0.0 listens on every interface; set API_KEY_SECRET then."""

    port: int = setting("8000", parsing.integer(1, 65535))
    """The port to listen on."""

    workers: int = setting(None, parsing.integer(1, 1024), example="3")
    """Number of worker processes. Unset: one more than there are usable cores (control group quota and affinity),
    which computes on all cores a text that waits alone; one on one core; with cuda or mps at most four, one of which
    computes. With as many as cores, one text takes one core; with fewer, a batch takes several threads, which is
    slower than as many workers. With more, only as many compute as there are cores."""

    threads: int = setting("64", parsing.integer(1, 4096))
    """Requests with bodies over 1 KiB, or of many texts, that a worker handles at once, including those whose texts
    wait for a core. Further ones wait for a thread; MAX_QUEUED_TOKENS counts an estimate of their tokens. Shorter ones
    with texts need none. Too many cost memory: a thread and a parsed body each. Too few keep texts out of the queue
    that could be computed together."""

    max_inputs: int = setting("2048", parsing.integer(1, 1_000_000))
    """Most texts in one request. OpenAI's own limit is 2048."""

    max_body_bytes: int = setting("33554432", parsing.integer(1024, 2**32))
    """Most bytes of one request body. All workers together hold at most two such bodies, or 32 bytes for each
    token of MAX_QUEUED_TOKENS if that is more. Further requests get 429. While it is parsed, a body of texts
    takes up to 6 times its size, and one of nested arrays up to 50 times: lower this if you do not trust clients."""

    max_queued_tokens: int = setting(None, parsing.integer(1, 10**12), example="400000")
    """Most tokens of texts that may wait, in all workers together. While so many wait, new requests get 429 with the
    time to try again. While fewer wait, a request is accepted as a whole, however large it is. Too low a value
    refuses requests that could be served in time; too high a value serves requests whose clients have given up.
    Unset: what 30 seconds can compute, measured at start-up; 900000 with cuda or mps, which are not measured.
    A start on a busy machine measures less, and keeps that until the next start: set this to avoid it."""

    request_timeout_s: int = setting("60", parsing.integer(1, 3600))
    """Seconds from a request's arrival until it gets 504 and its waiting texts are dropped. A client may shorten
    it with the headers that OpenAI's SDKs send: x-stainless-read-timeout (Python), or x-stainless-timeout
    (JavaScript, if the call sets a timeout)."""

    client_timeout_s: int = setting("30", parsing.integer(1, 3600))
    """Seconds that a client has to send a complete request, from its first byte on, before it gets 408; and that
    it has to read the response. Too low a value cuts off slow links."""

    drain_s: int = setting(None, parsing.integer(0, 3600), example="5")
    """Seconds after SIGTERM in which the service still accepts connections but answers readiness and new work
    with 503, so that load balancers notice. Part of GRACEFUL_TIMEOUT_S; 0 stops listening at once.
    Unset: 5, or half of GRACEFUL_TIMEOUT_S if that is less."""

    graceful_timeout_s: int = setting("30", parsing.integer(1, 3600))
    """Seconds that running requests have to finish when the service stops. After them, connections are closed."""

    inference_timeout_s: int = setting("30", parsing.integer(1, 3600))
    """Seconds after which a batch counts as stuck: its worker passes its waiting work on and is replaced. After
    half of them, GET /health/ready answers 503. A batch takes 0.03 s with MiniLM, and seconds with the largest
    models: too low a value replaces workers that are merely busy."""

    truncate: bool = setting("true", parsing.boolean)
    """true truncates a text that is longer than the model's window, and the response says so; false refuses it
    with 400. A request may override it with its own `truncate`."""

    token_ids: str = setting("reject", parsing.choice("reject", "model"))
    """How to treat token ids in `input`. reject refuses them, because most come from another model's tokenizer
    and would give wrong vectors without an error. model accepts them as the model's own ids."""

    metrics_public: bool = setting("false", parsing.boolean)
    """true opens GET /metrics to everybody; false asks for a key there if embeddings need one."""

    trust_remote_code: tuple[str, ...] = setting("", parsing.words, example="your-organisation/your-model")
    """Names of the models, as in SUPPORTED_MODELS, whose own Python code may run, comma-separated. Read that code
    first. If it lies in another repository, name that as well, at the commit that you have read:
    your-organisation/your-model,organisation/code@<40 hexadecimal digits>."""

    allow_pickle: bool = setting("false", parsing.boolean)
    """true loads weights from pickle files (pytorch_model.bin) for models that have no safetensors.
    Such a file can run any code."""

    # Secret: an operator may have written a password into it. Such a value is refused, and no message may show it.
    otel_exporter_otlp_endpoint: str = setting("", parsing.collector, example="http://127.0.0.1:4318", secret=True)
    """The address of the collector that receives traces by OTLP over HTTP, without /v1/traces. It needs the
    packages opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http. They read OpenTelemetry's other
    variables from the environment alone. Unset: no traces."""

    @classmethod
    def secret_names(cls) -> set[str]:
        """Return the variables whose values no message may show."""
        return {field.name.upper() for field in dataclasses.fields(cls) if field.metadata["secret"]}

    @property
    def bind(self) -> str:
        """`HOST:PORT` in Gunicorn's notation, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def max_connections(self) -> int:
        """Most connections of a worker. Those that are idle, slow or waiting occupy no thread."""
        return self.threads + 1000

    @property
    def max_workers(self) -> int:
        """Most workers at one time that share memory; workers being replaced overlap with new ones."""
        return 4 * self.workers + 4
