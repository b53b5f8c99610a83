"""Find out what kind of model the files describe. This service serves models that give one dense vector a text."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedding_api.engine.findings import Finding, UnservableError, warning
from embedding_api.engine.models import files
from embedding_api.engine.models.files import Module

_SPARSE, _RERANKER, _COLBERT = "a sparse encoder", "a reranker or a classifier", "a multi-vector model, such as ColBERT"
_MEDIA = "a model that reads pictures or sound"

# The kind by a class: that of a module, or the one in config_sentence_transformers.json that saved the model. PyLate 3
# wrote ColBERT there.
_BY_CLASS = (
    (r"^sentence_transformers\.sparse_encoder\.|^SparseEncoder$", _SPARSE),
    (r"^sentence_transformers\.cross_encoder\.|^CrossEncoder$", _RERANKER),
    (r"^sentence_transformers\.multi_vector_encoder\.|^pylate\.|^(MultiVectorEncoder|ColBERT)$", _COLBERT),
    (r"^sentence_transformers\..*\bCLIPModel$", _MEDIA),
)
# The kind by the transformer_task in sentence_bert_config.json, where that is not to give vectors of tokens.
_BY_TASK = {"sequence-classification": _RERANKER, "fill-mask": _SPARSE, "retrieval": _COLBERT}
# The kind by the name of an architecture of transformers. It counts only where there is no modules.json:
# jina-embeddings-v2 is a ...ForMaskedLM, Qwen3-Embedding a ...ForCausalLM, and both are embedding models.
_BY_ARCHITECTURE = (
    ("(?i)ColBERT|ForRetrieval", _COLBERT),
    ("(?i)Splade", _SPARSE),
    ("ForSequenceClassification", _RERANKER),
    ("ForMaskedLM", "a masked language model, as SPLADE and untrained base models are"),
    ("ForCausalLM|LMHead", "a language model"),
    ("^CLIP|^Siglip|Vision", _MEDIA),
    # All other names with a task, but not those whose task is to embed.
    (r"For(?!\w*(Embed|Encod|FeatureExtraction))[A-Z]", "a model for another task"),
)

# Parts of config.json that only models of pictures and sound have.
_OF_MEDIA = ("audio_config", "vision_config")

# Names that sentence-transformers gives to the folders of modules.
_MODULE_FOLDER = re.compile(r"\d+_[A-Z]\w*")
_SAVE = (
    "if it is an embedding model after all, declare how it pools: save it with "
    "SentenceTransformer(modules=[Transformer(...), Pooling(...)]).save(...)"
)
# transformers writes a larger number than this for a tokenizer without a limit.
_NO_LIMIT = 10**9


def require_embedding_model(folder: Path, modules: Sequence[Module]) -> None:
    """Refuse a model that is of another kind, or whose files lack what sentence-transformers needs.

    Raises:
        UnservableError: The model is refused.
    """
    type_ = str(files.read(folder / "config_sentence_transformers.json").get("model_type", "SentenceTransformer"))
    if type_ != "SentenceTransformer":
        kind = _named(type_, _BY_CLASS) or "another kind of model"
        raise _other(f"config_sentence_transformers.json says that it is a {type_}", kind)
    for module in modules:
        if kind := _named(module.type, _BY_CLASS):
            raise _other(f"modules.json has a {module.name}", kind)
        if module.library_class == "Transformer":
            _require_reading_text(module)
        if module.library_class in ("Pooling", "Dense") and not module.config():
            raise files.damaged(f"its {module.folder.name} has no config.json")
    if not files.is_declared(folder):
        _require_base_model(folder)


def assumptions(folder: Path, modules: Sequence[Module], window: int | None) -> Iterator[Finding]:
    """Yield what sentence-transformers assumes where the files do not say it.

    Args:
        folder: The folder of the model.
        modules: The modules that its files describe.
        window: The window of the loaded model in tokens; None for no limit.

    Raises:
        UnservableError: A file can no longer be read.
    """
    limit = "no limit" if window is None else f"{window} tokens"
    if not files.is_declared(folder):
        yield warning(
            "it has no modules.json, which would declare pooling, normalization and window; this service assumes the "
            f"mean of the tokens' vectors, no normalization, and a window of {limit}; get all files of the model, or "
            "save it with SentenceTransformer.save"
        )
        return
    for module in modules:
        if module.library_class == "Pooling" and not _names_pooling(module):
            yield warning(
                f"its {module.folder.name}/config.json names no way of pooling; the mean of the tokens' vectors is "
                "assumed"
            )
        if module.library_class == "Dense" and "activation_function" not in module.config():
            yield warning(f"its {module.folder.name}/config.json names no activation function; Tanh is assumed")
        if module.library_class == "Transformer" and not _names_window(module):
            yield warning(
                "it declares no window, neither max_seq_length in sentence_bert_config.json nor model_max_length in "
                f"tokenizer_config.json; {limit} is assumed, from what it has positions for"
            )


def _require_reading_text(module: Module) -> None:
    if not files.is_there(module.folder / "config.json"):
        raise files.damaged("it has no config.json for its Transformer")
    settings = module.own_settings()
    if (kind := _BY_TASK.get(str(settings.get("transformer_task")))) is not None:
        raise _other(f"sentence_bert_config.json has the transformer_task {settings['transformer_task']}", kind)
    if (elsewhere := settings.get("tokenizer_name_or_path")) is not None:
        raise UnservableError(
            f"its tokenizer lies elsewhere (sentence_bert_config.json: tokenizer_name_or_path {elsewhere!r}); put it "
            "into the model's folder, and remove that line"
        )
    config = module.config()
    for key in _OF_MEDIA:
        if config.get(key) is not None:
            raise _other(f"config.json has a {key}", _MEDIA)


def _require_base_model(folder: Path) -> None:
    """Refuse a folder without modules.json, unless it is a base model. Of that the token vectors are averaged."""
    left = sorted(path.name for path in folder.iterdir() if _MODULE_FOLDER.fullmatch(path.name) and path.is_dir())
    if left:
        raise UnservableError(
            f"it has {', '.join(left)}, but no modules.json, which lists the modules in their order; get all files of "
            "the model"
        )
    architectures = files.read(folder / "config.json").get("architectures") or []
    for architecture in architectures if isinstance(architectures, list) else [architectures]:
        if kind := _named(str(architecture), _BY_ARCHITECTURE):
            raise _other(f"it has no modules.json, and config.json says that it is a {architecture}", kind, _SAVE)


def _named(name: str, table: Sequence[tuple[str, str]]) -> str:
    """Return the kind of the first pattern that the name has; empty if there is none."""
    return next((kind for pattern, kind in table if re.search(pattern, name)), "")


def _other(cause: str, kind: str, cure: str = "name an embedding model in SUPPORTED_MODELS") -> UnservableError:
    return UnservableError(f"it is no embedding model but {kind}: {cause}; {cure}")


def _names_pooling(module: Module) -> bool:
    # sentence-transformers accepts any value that is true in Python.
    return any(value for key, value in module.config().items() if key.startswith("pooling_mode"))


def _names_window(module: Module) -> bool:
    of_tokenizer = files.read(module.folder / "tokenizer_config.json").get("model_max_length")
    return bool(module.own_settings().get("max_seq_length")) or (
        isinstance(of_tokenizer, int | float) and of_tokenizer < _NO_LIMIT
    )
