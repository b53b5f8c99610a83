"""Inspect a model before it is loaded: refuse one that cannot be served, and put its code beside it."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from embedding_api.engine.findings import Finding, UnservableError
from embedding_api.engine.models import code, files, kind, snapshots, tokenizer, weights
from embedding_api.engine.models.code import Fetch, Reference
from embedding_api.engine.models.files import Module
from embedding_api.errors import ModelLoadError, SettingsError
from embedding_api.settings import Settings
from embedding_api.settings.model_spec import ModelSpec


class Inspected(NamedTuple):
    """A model that may be loaded.

    Attributes:
        spec: The entry of SUPPORTED_MODELS.
        source: The folder of its files.
        folder: The folder to load: the same, or one with links to the files and with the model's code.
        modules: The modules that its files describe.
        code: The Python code that comes with it. All of it may run.
        findings: The facts that the operator should know.
    """

    spec: ModelSpec
    source: Path
    folder: Path
    modules: Sequence[Module]
    code: Sequence[Reference] = ()
    findings: Sequence[Finding] = ()


@contextlib.contextmanager
def inspected(spec: ModelSpec, source: Path, settings: Settings, fetch: Fetch) -> Iterator[Inspected]:
    """Inspect a model. Its folder exists until the context ends.

    Args:
        spec: The entry of SUPPORTED_MODELS.
        source: The folder of its files.
        settings: TRUST_REMOTE_CODE and ALLOW_PICKLE matter.
        fetch: Downloads code from another repository.

    Raises:
        ModelLoadError: The model cannot be served.
    """
    with contextlib.ExitStack() as stack:
        try:
            snapshots.require_all(source, [source])
            modules = files.modules(source)
            snapshots.require_all(source, [module.folder for module in modules])
            kind.require_embedding_model(source, modules)
            found = code.references(modules, source)
            is_trusted = code.is_trusted(spec, settings.trust_remote_code)
            may_run = [each for each in found if is_trusted or not each.is_taken_over]
            weights.require_weights(source, modules, allow_pickle=settings.allow_pickle)
            tokenizer.require_tokenizer(modules)
            assembled = code.assembled(spec, source, modules, may_run, settings.trust_remote_code, fetch)
            folder = stack.enter_context(assembled)
        except UnservableError as error:
            raise unservable(spec, source, error) from error
        except OSError as error:
            reason = f"{error.filename or source}: {error.strerror or error}; let this user read it"
            raise unservable(spec, source, UnservableError(reason)) from error
        findings = [_left_out(each) for each in found if each not in may_run]
        yield Inspected(spec, source, folder, modules, may_run, findings)


def unservable(spec: ModelSpec, source: Path, error: UnservableError) -> ModelLoadError:
    """Return the error that ends the start for a model that no backend can serve."""
    return ModelLoadError(f"model {spec.name} from {source} cannot be served: {error}")


def _left_out(reference: Reference) -> Finding:
    return Finding(
        logging.INFO, f"its own code, {reference.name}, is not used: transformers has taken over that architecture"
    )


def require_trust_used(models: Sequence[Inspected], settings: Settings) -> None:
    """Refuse an entry of TRUST_REMOTE_CODE that names nothing that is served. It may be misspelt.

    Raises:
        SettingsError: Such an entry exists.
    """
    names = {name for model in models for name in model.spec.names}
    repositories = {each.repository for model in models for each in model.code}
    for entry in settings.trust_remote_code:
        if entry not in names and entry.partition("@")[0] not in repositories:
            raise SettingsError(
                f"TRUST_REMOTE_CODE={entry!r} names neither a model of SUPPORTED_MODELS, which has "
                f"{', '.join(sorted(names))}, nor a repository that holds the code of one; leave it out"
            )
