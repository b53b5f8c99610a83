"""The program. Its arguments are those of `download`; the last line of its output is the result, as JSON."""

import json
import logging
import sys

from embedding_api.engine.models.hub.addresses import one_line
from embedding_api.engine.models.hub.download import download


class _OneLine(logging.Formatter):
    """Formats each message as one line, as the reader of this program's output expects it."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(record.getMessage())


if __name__ == "__main__":
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(handlers=[handler])
    # The library's own handler would write each message a second time.
    logging.getLogger("huggingface_hub").handlers.clear()
    logging.captureWarnings(capture=True)
    print(json.dumps(download(*sys.argv[1:])))  # noqa: T201 - the output of the program
