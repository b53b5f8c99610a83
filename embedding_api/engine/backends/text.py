"""Turn texts into token ids: prompt, tokenizer, window. Imports tokenizers, not torch."""

import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from tokenizers import Tokenizer

from embedding_api.engine.work import Ids
from embedding_api.errors import EmptyTextError, TokenIdsNotAcceptedError, UnsupportedTokenError

# A string, or the model's own token ids.
Text = str | Sequence[int]


# The tokenizer takes up to 600 bytes of memory for each token: 33 MB of full stops took 19 GB. The numbers below limit
# what it reads.

# Texts that it reads at once.
_AT_ONCE = 8
# Characters for each token of the window; of a longer text it reads only so much. English has about 5.
_FAR = 16
# Tokens by which that beginning must exceed the window, so that the cut at its end has no effect. A word of up to 100
# characters can be that many tokens; BERT reads a longer one as a single unknown token.
_MARGIN = 128
# Characters that it reads where the beginning has too few tokens, as with white space or an enormous word in it. It
# reads such texts one at a time.
MOST_CHARACTERS = 250_000


class Prompt(NamedTuple):
    """The words before each text of a request.

    Attributes:
        text: The words; empty for none.
        n_tokens: Leading tokens of a text with this prompt that pooling leaves out; 0 for most models.
    """

    text: str = ""
    n_tokens: int = 0


NO_PROMPT = Prompt()


class Tokens(NamedTuple):
    """The tokens of one text.

    Attributes:
        ids: int64, (n_tokens,), with special tokens and prompt, cut to the window.
        n_source_tokens: Tokens before the cut. Of a very long text at least so many, as it is not read to its end.
    """

    ids: Ids
    n_source_tokens: int

    @property
    def truncated(self) -> bool:
        """True if the text was cut to the window."""
        return self.n_source_tokens > len(self.ids)


class Reading(NamedTuple):
    """The tokens of all texts of one request.

    Attributes:
        tokens: One item for each text, in the order of the texts.
        n_prompt_tokens: Leading tokens of each text that pooling leaves out.
    """

    tokens: list[Tokens]
    n_prompt_tokens: int


@dataclass(eq=False)
class Reader:
    """Reads texts for one model. Safe for several threads: the tokenizer's state never changes after the start.

    Args:
        tokenizer: A tokenizer, which is copied: sentence-transformers changes the padding and truncation of its own.
        window: The most tokens of a text, with special tokens; None for no limit.
        n_rows: Rows of the model's embedding matrix. Ids from this number on are refused. None allows all ids.
        add_special_tokens: True if the tokenizer puts special tokens around a text.
        truncation_side: The end that a text over the window loses, `right` or `left`.

    Attributes:
        n_vocabulary: Tokens of the tokenizer.
        rowless: The tokens without a row in the embedding matrix, by id. Most tokenizers have none.
    """

    tokenizer: InitVar[Tokenizer]
    _: KW_ONLY
    window: int | None
    n_rows: int | None = None
    add_special_tokens: bool = True
    truncation_side: str = "right"

    def __post_init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._near = sys.maxsize
        if self.window is not None:
            self._tokenizer.enable_truncation(self.window, direction=self.truncation_side)
            if self.truncation_side == "right":
                self._near = _FAR * (self.window + _MARGIN)
        self._n_special = self._tokenizer.num_special_tokens_to_add(is_pair=False) if self.add_special_tokens else 0
        self._one_at_a_time = threading.Lock()
        self.n_vocabulary = self._tokenizer.get_vocab_size()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.rowless = {
            id_: token for token, id_ in vocabulary.items() if self.n_rows is not None and id_ >= self.n_rows
        }

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the reader that `save` wrote into a folder."""
        parameters = json.loads((folder / "reader.json").read_bytes())
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), **parameters)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and reader.json, from which `load` makes the same reader."""
        self._tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "reader.json").write_text(json.dumps(asdict(self)))

    def read(self, texts: Sequence[Text], prompt: Prompt = NO_PROMPT) -> Reading:
        """Return the tokens of texts.

        Args:
            texts: Strings only, or sequences of token ids only. Ids get neither a prompt nor special tokens.
            prompt: The words before each text.

        Raises:
            EmptyTextError: A text has no tokens.
            TokenIdsNotAcceptedError: An id is not in the vocabulary.
            UnsupportedTokenError: A text holds a token without a row in the embedding matrix.
        """
        if isinstance(texts[0], str):
            reading = Reading(self._read_strings(texts, prompt), prompt.n_tokens)
        else:
            reading = Reading(self._read_ids(texts), 0)
        for index, tokens in enumerate(reading.tokens):
            if not len(tokens.ids):
                param = f"input[{index}]"
                raise EmptyTextError(f"{param} has no tokens in this model's vocabulary; leave it out", param=param)
            if self.rowless:
                self._require_rows(tokens.ids, f"input[{index}]")
        return reading

    def _require_rows(self, ids: Ids, param: str) -> None:
        """Refuse a token without a row. PyTorch would raise an error, and OpenVINO would read zeros."""
        if self.n_rows is None or (highest := int(ids.max())) < self.n_rows:
            return
        # An added token is a name of the model's own. Another token can be a part of a client's text, and stays secret.
        added = self._tokenizer.get_added_tokens_decoder().get(highest)
        name = "" if added is None else f" ({added.content})"
        raise UnsupportedTokenError(
            f"{param} holds the token {highest}{name}, which the model's tokenizer knows and the model does not: its "
            f"tokens go from 0 to {self.n_rows - 1}; remove the words of that token",
            param=param,
        )

    def _read_strings(self, texts: Sequence[Text], prompt: Prompt) -> list[Tokens]:
        prompted = [prompt.text + text for text in texts if isinstance(text, str)]
        tokens: list[Tokens] = []
        for start in range(0, len(prompted), _AT_ONCE):
            tokens += self._encode([text[: self._near] for text in prompted[start : start + _AT_ONCE]])
        for index, text in enumerate(prompted):
            if len(text) > self._near:
                tokens[index] = self._read_far(text, tokens[index])
        return tokens

    def _read_far(self, text: str, beginning: Tokens) -> Tokens:
        """Return the tokens of a text far over the window; `beginning` has those of its first characters."""
        n_sure_tokens = beginning.n_source_tokens - _MARGIN
        if self.window is None or n_sure_tokens > self.window:
            return Tokens(beginning.ids, n_sure_tokens)
        with self._one_at_a_time:
            (tokens,) = self._encode([text[:MOST_CHARACTERS]])
        if len(text) <= MOST_CHARACTERS:
            return tokens
        return Tokens(tokens.ids, max(tokens.n_source_tokens, len(tokens.ids) + 1))

    def _encode(self, texts: list[str]) -> list[Tokens]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=self.add_special_tokens)
        return [
            Tokens(
                np.array(encoding.ids, dtype=np.int64),
                len(encoding) + sum(len(rest) - self._n_special for rest in encoding.overflowing),
            )
            for encoding in encodings
        ]

    def _read_ids(self, texts: Sequence[Text]) -> list[Tokens]:
        tokens = []
        for index, ids in enumerate(texts):
            for id_ in ids:
                if not isinstance(id_, int) or not 0 <= id_ < self.n_vocabulary:
                    raise TokenIdsNotAcceptedError(
                        f"input[{index}] holds the token id {str(id_)[:40]}; this model's go from 0 to "
                        f"{self.n_vocabulary - 1}",
                        param=f"input[{index}]",
                    )
            window = self.window or len(ids)
            kept = ids[-window:] if self.truncation_side == "left" else ids[:window]
            tokens.append(Tokens(np.array(kept, dtype=np.int64), len(ids)))
        return tokens
