"""Brings a model from the Hugging Face hub into its cache. Run as a program, in a process of its own.

A download starts threads, which a master that forks must not have. Imports nothing of this package.
"""

import errno
import json
import sys
from typing import Any

from huggingface_hub import errors, snapshot_download

# Files that neither torch nor a tokenizer reads.
_IGNORED = [
    "*.onnx",
    "onnx/*",
    "openvino/*",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.tflite",
    "coreml/*",
    "*.mlmodel",
]
_PICKLES = ["*.bin", "*.pt", "*.pth", "*.pkl"]

# Which files of a repository are downloaded, by what is asked for.
_PATTERNS: dict[str, dict[str, Any]] = {
    "all": {"ignore_patterns": _IGNORED},
    "safe": {"ignore_patterns": _IGNORED + _PICKLES},
    "code": {"allow_patterns": ["*.py"]},
}

# What a folder that cannot be written to, or is full, says.
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)


def main(name: str, revision: str, files: str) -> dict[str, str]:
    """Downloads what is missing; without a connection takes what the cache has.

    Args:
        name: The repository's.
        revision: Which; its main branch's newest if empty.
        files: Which of its files: `all`, `safe` for those without pickles, or `code` for Python's alone.

    Returns:
        `path` of the folder, or `problem`: what went wrong and what to do.
    """
    try:
        return {"path": snapshot_download(name, revision=revision or None, **_PATTERNS[files])}
    except errors.RevisionNotFoundError:
        return {"problem": f"the hub has no revision {revision!r} of it; check what stands behind @"}
    except errors.GatedRepoError:
        return {"problem": "it is gated; ask for access on its page, then set HF_TOKEN to a token of that account"}
    except errors.RepositoryNotFoundError:
        return {"problem": "the hub has no such model, or it is private; check the name, or set HF_TOKEN"}
    except errors.LocalEntryNotFoundError:
        return {
            "problem": "the hub cannot be reached and the cache does not hold it; connect once, or name a local folder"
        }
    except Exception as error:  # noqa: BLE001 - a program's last resort: whatever it is goes to the operator in a line
        line = next(iter(str(error).splitlines()), "")
        cure = "try again"
        if getattr(error, "errno", None) in _UNWRITABLE:
            cure = "set HF_HOME to a folder that this user can write to and that has room"
        return {"problem": f"the download failed ({type(error).__name__}: {line}); {cure}, or name a local folder"}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))  # noqa: T201 - its answer to whoever ran it
