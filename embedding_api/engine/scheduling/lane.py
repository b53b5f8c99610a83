"""The texts of one lane that are not answered. Those that wait are ordered by when they are due."""

from embedding_api.engine.scheduling.cost import Cost, Sizing, choose_companions
from embedding_api.engine.scheduling.job import Text
from embedding_api.engine.work import Ids, Lane


class LaneQueue:
    """The texts of one lane.

    Args:
        lane: What they have in common.
        sizing: How many tokens their backend computes.
        cost: What a batch costs there.

    Attributes:
        n_waiting_texts: Texts that wait.
        n_waiting_tokens: Their tokens.
    """

    def __init__(self, lane: Lane, sizing: Sizing, cost: Cost) -> None:
        self.lane = lane
        self.n_waiting_texts = self.n_waiting_tokens = 0
        # Every text that is not answered, by its ids.
        self._texts: dict[bytes, Text] = {}
        # The text that is due next comes last. Texts that were dropped stay until their turn, or until they are many.
        self._waiting: list[Text] = []
        self._sizing = sizing
        self._cost = cost
        # Enough texts to choose from for a full batch, few enough to choose within a fraction of a millisecond.
        self._n_ahead = max(256, sizing.target_batch_tokens // 16)
        # A text joins one of another job if it is due at most so much later, in virtual time: by the cost of a quarter
        # of a full batch.
        self._max_due_difference_s = cost.start_s + cost.token_s * sizing.target_batch_tokens / 4

    def find_or_add(self, ids: Ids, due_s: float) -> tuple[Text, bool]:
        """Return the text with these ids, and True if it is new: then it must `wait`.

        A text that is here already may be due sooner now. Call `wait` therefore even with no text: it sorts them.
        """
        key = ids.tobytes()
        text = self._texts.get(key)
        if text is not None:
            text.due_s = min(text.due_s, due_s)
            return text, False
        text = self._texts[key] = Text(ids, self, due_s)
        return text, True

    def wait(self, texts: list[Text], *, again: bool = False) -> None:
        """Let texts wait, and sort all that wait.

        Args:
            texts: In the order in which they are due.
            again: True if they have waited before: then they come first of those that are due at the same time.
        """
        for text in texts:
            text.waits = True
            self.n_waiting_tokens += len(text.ids)
        self.n_waiting_texts += len(texts)
        # What is due next comes last, and sorting keeps the order of equal ones.
        place = len(self._waiting) if again else 0
        self._waiting[place:place] = reversed(texts)
        self._waiting.sort(key=lambda text: text.due_s, reverse=True)

    def leave(self, text: Text) -> None:
        """Drop a waiting text that no job wants any more."""
        self._stop_waiting(text)
        self.forget(text)
        if len(self._waiting) > 2 * self.n_waiting_texts:
            self._waiting = [text for text in self._waiting if text.waits]

    def next_due_s(self) -> float:
        """Return when the next text is due; infinity if none waits."""
        self._purge()
        return self._waiting[-1].due_s if self._waiting else float("inf")

    @property
    def least_tokens(self) -> float:
        """Tokens of a batch that takes as long to start as to compute. A smaller one is not worth a core of its own."""
        return self._cost.start_s / self._cost.token_s

    @property
    def is_one_batch(self) -> bool:
        """True if the texts that wait are too few to share them out to several cores."""
        return self.n_waiting_texts == 1 or self.n_waiting_tokens <= self.least_tokens

    def next_tokens(self) -> int:
        """Return the tokens of the text that is due next; a text must wait."""
        self._purge()
        return len(self._waiting[-1].ids)

    def pop_batch(self, max_tokens: float) -> list[Text]:
        """Return the text that is due next, and those that make a good batch with it; a text must wait.

        Args:
            max_tokens: The most computed tokens, unless the first text has more.
        """
        self._purge()
        seed = self._waiting.pop()
        batch = [seed]
        if not seed.is_alone:
            ahead = [text for text in reversed(self._waiting[-self._n_ahead :]) if self._goes_with(text, seed)]
            lengths = [len(text.ids) for text in ahead]
            limit = min(max_tokens, self._sizing.target_batch_tokens)
            chosen = choose_companions(len(seed.ids), lengths, self._sizing, self._cost, limit)
            batch += [ahead[index] for index in chosen]
        for text in batch:
            self._stop_waiting(text)
        self._waiting[-self._n_ahead :] = [text for text in self._waiting[-self._n_ahead :] if text.waits]
        return batch

    def forget(self, text: Text) -> None:
        """Drop a text that is answered: a job that wants it from now on has it computed anew."""
        del self._texts[text.ids.tobytes()]

    def _stop_waiting(self, text: Text) -> None:
        text.waits = False
        self.n_waiting_texts -= 1
        self.n_waiting_tokens -= len(text.ids)

    def _purge(self) -> None:
        """Remove the dropped texts whose turn it is."""
        while self._waiting and not self._waiting[-1].waits:
            self._waiting.pop()

    def _goes_with(self, text: Text, seed: Text) -> bool:
        # Of several jobs that want a text, the first counts.
        is_of_same_job = text.wanted_by[0][0] is seed.wanted_by[0][0]
        is_due_soon = text.due_s <= seed.due_s + self._max_due_difference_s
        return (is_of_same_job or is_due_soon) and text.waits and not text.is_alone
