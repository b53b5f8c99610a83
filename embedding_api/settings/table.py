"""The settings: each with its meaning, unit and default. `.env.example` is made from this table.

Imports the parsing rules and nothing else of this package.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedding_api.settings import model_spec, parsing


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
        parsing.choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
        "From which level on this service and Gunicorn log: DEBUG, INFO, WARNING, ERROR or CRITICAL.\n"
        "Texts and keys are logged at no level.",
    )
    log_format: str = setting(
        "text", parsing.choice("text", "json"), "Log lines as text or as json, one object a line."
    )
    hf_token: str = setting(
        "",
        parsing.secret_text,
        "The Hugging Face token with which private and gated models are downloaded.",
        example=parsing.TOKEN_PLACEHOLDER,
        secret=True,
    )
    device: str = setting(
        "cpu",
        parsing.choice("cpu", "cuda", "mps"),
        "Where the models compute: cpu, cuda or mps. With cuda or mps one worker owns the device, and the\n"
        "others send to it.",
    )
    backend: str = setting(
        "auto",
        parsing.choice("auto", "torch", "openvino"),
        "What computes. openvino: the model is converted once, in seconds, and is two to four times faster on a CPU.\n"
        "torch: sentence-transformers' own modules. auto: openvino on a CPU, and torch, with a warning that says why,\n"
        "for a model that cannot be converted or whose vectors would differ.",
    )
    precision: str = setting(
        "float32",
        parsing.choice("float32", "bfloat16", "int8"),
        "What the models compute in. float32 gives sentence-transformers' own vectors. bfloat16 is about 1.7 times\n"
        "faster on a CPU that has it, its vectors at a cosine of 0.9995 or more to them; int8, with OpenVINO alone,\n"
        "about 2.5 times, at 0.98 or more. Index and queries need not share bfloat16: one of them may be in float32.",
    )
    cache_dir: Path = setting(
        "",
        parsing.cache_folder,
        "The folder for converted models, about as large as their weights. It may be deleted; the next start makes it\n"
        "again. What a changed model or another version leaves there is not removed by itself.\n"
        "Unset: memementor-embeddings in the user's own cache folder, $XDG_CACHE_HOME or ~/.cache.",
        example="/var/cache/memementor-embeddings",
    )
    calibration_texts: Path | None = setting(
        "",
        parsing.optional(parsing.file_path),
        "A file of texts like those to be embedded, one a line, by which PRECISION=int8 sets its scales; a few\n"
        "hundred do. Unset: texts of this service's own, in several languages. Other precisions do not read it.",
        example="texts.txt",
    )
    api_key_secret: tuple[str, ...] = setting(
        "",
        parsing.keys,
        "The keys that clients may send as `Authorization: Bearer <key>`; comma-separated, so that they can rotate.",
        example=parsing.KEY_PLACEHOLDER,
        secret=True,
    )
    require_auth: bool = setting(
        "",
        parsing.optional(parsing.boolean),
        "Whether a key is needed: true or false. Unset: true if API_KEY_SECRET is set.",
        example="false",
    )
    host: str = setting(
        "127.0.0.1", parsing.host, "The address to listen on. 0.0.0.0 is every interface; think of API_KEY_SECRET then."
    )
    port: int = setting("8000", parsing.integer(1, 65535), "The port to listen on.")
    workers: int = setting(
        "",
        parsing.optional(parsing.integer(1, 1024)),
        "Worker processes. Unset: one per usable core (control group quota and affinity); with cuda or mps at most\n"
        "four, one of which computes. With fewer than cores, cores stay idle, or with torch inference takes several\n"
        "threads each, which is slower; of more, only as many compute as there are cores.",
        example="2",
    )
    threads: int = setting(
        "64",
        parsing.integer(1, 4096),
        "Requests that a worker works on at once, those included whose texts wait. More wait in line for a thread,\n"
        "and count in MAX_QUEUED_TOKENS by a guess. Too many cost memory, a thread and a parsed body each; too few\n"
        "leave texts out of the queue that could be computed together.",
    )
    max_inputs: int = setting(
        "2048", parsing.integer(1, 1_000_000), "Texts that one request may hold. OpenAI's own limit is 2048."
    )
    max_body_bytes: int = setting(
        "33554432",
        parsing.integer(1024, 2**32),
        "Bytes that one request body may have. All workers together hold two such bodies, or 32 bytes for each token\n"
        "of MAX_QUEUED_TOKENS if that is more; beyond it, 429.",
    )
    max_queued_tokens: int = setting(
        "",
        parsing.optional(parsing.integer(1, 10**12)),
        "Tokens of texts that may wait, in all workers together. What comes while more wait is refused with 429, and\n"
        "told when to come again. A request that comes while fewer wait is taken whole, however large it is. Too few\n"
        "refuse what could be answered in time; too many are answered after their clients have given up.\n"
        "Unset: what 30 seconds can compute, measured at the start; with cuda or mps, which it cannot measure, 900000.",
        example="400000",
    )
    request_timeout_s: int = setting(
        "60",
        parsing.integer(1, 3600),
        "Seconds after which a request that is not answered gets 504, and its texts are dropped. A client that says\n"
        "how long it waits may shorten it, as OpenAI's SDKs do: in x-stainless-read-timeout (Python) or\n"
        "x-stainless-timeout (JavaScript, if the call names a timeout).",
    )
    client_timeout_s: int = setting(
        "30",
        parsing.integer(1, 3600),
        "Seconds in which a request must have arrived whole, from its first byte on, or it gets 408; and in which its\n"
        "client must have read the answer. Too little cuts off slow links.",
    )
    drain_s: int = setting(
        "",
        parsing.optional(parsing.integer(0, 3600)),
        "Seconds for which the service, told to stop, still accepts connections and answers readiness and new work\n"
        "with 503, so that load balancers notice. Part of GRACEFUL_TIMEOUT_S; 0 stops listening at once.\n"
        "Unset: 5, or half of GRACEFUL_TIMEOUT_S if that is less.",
        example="5",
    )
    graceful_timeout_s: int = setting(
        "30",
        parsing.integer(1, 3600),
        "Seconds that running requests have to finish when the service stops. What is not done by then is cut off.",
    )
    inference_timeout_s: int = setting(
        "30",
        parsing.integer(1, 3600),
        "Seconds after which a batch counts as stuck: its worker hands its other work on and is replaced. After half\n"
        "of them GET /health/ready answers 503. A batch takes 0.03 s with MiniLM and seconds with the largest models:\n"
        "too little replaces workers that are busy.",
    )
    truncate: bool = setting(
        "true",
        parsing.boolean,
        "Whether a text over the model's window is cut to it (and the answer says so), or refused with 400.\n"
        "A request may say otherwise with its own `truncate`.",
    )
    token_ids: str = setting(
        "reject",
        parsing.choice("reject", "model"),
        "What to do with token ids in `input`: reject, since most come from another model's tokenizer and would give\n"
        "wrong vectors without an error; or model: take them as the model's own ids.",
    )
    metrics_public: bool = setting(
        "false",
        parsing.boolean,
        "Whether GET /metrics is open to all, or needs a key as embeddings do, if those need one.",
    )
    trust_remote_code: tuple[str, ...] = setting(
        "",
        parsing.words,
        "Names of the models, as in SUPPORTED_MODELS, whose own Python code may run. Comma-separated; read it first.\n"
        "Where that code lies in another repository, name that too, at the commit that you have read:\n"
        "your-organisation/your-model,organisation/code@<40 hexadecimal digits>.",
        example="your-organisation/your-model",
    )
    allow_pickle: bool = setting(
        "false",
        parsing.boolean,
        "Whether weights in pickle files (pytorch_model.bin) may be loaded, for models that have no safetensors.",
    )

    otel_exporter_otlp_endpoint: str = setting(
        "",
        parsing.collector,
        "Where traces are sent: the address of a collector that speaks OTLP over HTTP, without /v1/traces. Needs\n"
        "opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http, which read more from OpenTelemetry's other\n"
        "variables, in the environment alone. Unset: nothing is traced.",
        example="http://127.0.0.1:4318",
        # Somebody may write a password into it; it is refused, and must not be shown for it.
        secret=True,
    )

    @classmethod
    def secret_names(cls) -> set[str]:
        """The variables whose values must never be shown."""
        return {field.name.upper() for field in dataclasses.fields(cls) if field.metadata["secret"]}

    @property
    def bind(self) -> str:
        """`HOST:PORT` as Gunicorn writes it, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def max_workers(self) -> int:
        """The most at one time that have a place among the others; those that are replaced overlap with the new."""
        return 4 * self.workers + 4
