"""One generation in flight: what it still has to feed, what it has drawn, and what it hands out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from edgellm.protocols import Adapters, Backend, Feed, FloatArray, Sampled
from edgellm.report import Missing
from edgellm.runtime.constraints import TokenConstraint
from edgellm.runtime.draft_model import Wish
from edgellm.runtime.request import FinishReason, Piece, Request, TokenLogprob, Usage
from edgellm.runtime.speculation import MAX_DRAFT, Draft, Drafter
from edgellm.runtime.text import TextAssembler
from edgellm.runtime.ticket import Ticket
from edgellm.runtime.tool_use import CallReader


class Generation:
    """A request with its tokens, from the queue to its last piece.

    Args:
        ids: the prompt, as it will be fed.
        started_s: when it was asked for (perf_counter).
        calls: finds calls of functions in the answer; None where all is text.
    """

    def __init__(
        self,
        request: Request,
        ids: list[int],
        *,
        backend: Backend,
        ticket: Ticket,
        started_s: float,
        n_dropped: int = 0,
        constraint: TokenConstraint | None = None,
        calls: CallReader | None = None,
    ) -> None:
        self.request, self.ids, self.ticket = request, ids, ticket
        self.adapters: Adapters = tuple(sorted(request.adapters.items()))
        self.constraint = constraint
        self.drafter: Drafter | None = None
        self.draft_failure: str | None = None
        self.sequence = -1
        self.n_dropped = n_dropped
        self.n_intact: int | None = None  # tokens before the place of a shift
        self._backend = backend
        self._text = TextAssembler(request.stop, calls.parser if calls else None)
        self._marks = calls.marks if calls else {}
        self._to_feed: Sequence[int] = ids
        self._draft = Draft()
        self._n_cached = 0
        self._n_drawn = self._n_drafted = self._n_right = 0
        self._started_s = started_s
        self._admitted_s = self._first_s = self._last_s = started_s
        self.deadline_s = None if request.deadline_s is None else started_s + request.deadline_s
        self.budget = 0

    def admit(self, sequence: int, n_cached: int, budget: int) -> None:
        """It has a sequence that holds n_cached tokens of its prompt, and may draw `budget` tokens."""
        self.sequence, self._n_cached, self.budget = sequence, n_cached, budget
        self._to_feed = self.ids[n_cached:]
        self._admitted_s = time.perf_counter()

    @property
    def is_decoding(self) -> bool:
        """Whether its prompt is in the cache, so that each step gives a token."""
        return self._n_drawn > 0

    @property
    def n_to_feed(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self._to_feed)

    def next_feed(self, n_tokens: int) -> Feed:
        """At most n_tokens of what is to be fed; with the last of them a token is drawn."""
        tokens = self._to_feed[:n_tokens]
        if len(tokens) < len(self._to_feed):
            return Feed(sequence=self.sequence, tokens=tokens, adapters=self.adapters)
        return Feed(
            sequence=self.sequence,
            tokens=tokens,
            sampling=self.request.sampling,
            want="none" if self.request.top_logprobs is None else "last",
            draft=self._draft.tokens,
            constraint=self.constraint,
            adapters=self.adapters,
        )

    def propose(self, n_sequences: int) -> int:
        """Choose guesses for the next step, in which so many answers grow; how many the draft model should make."""
        n_most = min(MAX_DRAFT, self.budget - self._n_drawn - 1)
        if self.drafter is None or n_most < 1:
            return 0
        if self.constraint is not None:
            forced = self.constraint.forced_tokens()[:n_most]
            if forced:
                self._draft = Draft(forced)
                return 0
        self._draft, n_asked = self.drafter.propose(n_most, n_sequences)
        return n_asked

    def wish(self, held: Sequence[int], n_tokens: int) -> Wish:
        """Ask for n_tokens guesses, where the cache holds these tokens."""
        return Wish(self.sequence, [*held, *self._to_feed], n_tokens, self._n_drawn)

    def guessed(self, tokens: Sequence[int]) -> None:
        """What the draft model guesses; nothing leaves what was chosen."""
        if tokens and self.drafter:
            self._draft = Draft(tokens, self.drafter.model_pace)

    def refeed(self, tokens: Sequence[int]) -> None:
        """Its cache was emptied: these tokens have to be fed again before the next is drawn."""
        self._to_feed = [*tokens, *self._to_feed]

    def take(self, feed: Feed, sampled: Sampled) -> bool:
        """Take what a step gave; True when the generation is over.

        Raises:
            EdgeLLMError: its constraint cannot go on.
        """
        if not sampled.tokens:
            self._to_feed = self._to_feed[len(feed.tokens) :]
            return False
        if self.constraint is not None and self.constraint.failure is not None:
            raise self.constraint.failure
        self._last_s = time.perf_counter()
        if not self._n_drawn:
            self._first_s = self._last_s
            if self.drafter:
                self.drafter.extend(self.ids)
        if feed.draft:
            self._n_drafted += len(feed.draft)
            self._n_right += len(sampled.tokens) - 1
            if self._draft.pace:
                self._draft.pace.note(len(feed.draft), len(sampled.tokens) - 1)
        self._draft = Draft()
        n_beyond = self.constraint.n_beyond if self.constraint else 0
        return self._hand_out(sampled.tokens[: len(sampled.tokens) - n_beyond], sampled.logits)

    def _hand_out(self, tokens: Sequence[int], rows: FloatArray | None) -> bool:
        shown, ids = "", []
        reason: FinishReason | None = None
        for token in tokens:
            ids.append(token)
            self._n_drawn += 1
            if self._backend.is_end(token):
                reason = "stop"
            else:
                shown += self._text.push(self._marks.get(token) or self._backend.token_bytes(token))
                reason = self._end(is_last=len(ids) == len(tokens))
            if reason:
                break
        self._to_feed = tokens[-1:]
        if self.drafter:
            self.drafter.extend(ids)
        logprobs = self._logprobs(rows, ids)
        if reason is None:
            calls = self._text.take_calls()
            self.ticket.put(Piece(text=shown, token_ids=ids, logprobs=logprobs, tool_calls=calls))
            return False
        if reason == "stop" and self._text.n_calls:
            reason = "tool_calls"
        self.ticket.put(
            Piece(
                text=shown + self._text.finish(),
                token_ids=ids,
                finish_reason=reason,
                usage=self._usage(),
                logprobs=logprobs,
                tool_calls=self._text.take_calls(),
            )
        )
        return True

    def _end(self, *, is_last: bool) -> FinishReason | None:
        """Why the answer ends with the token that was just taken; the constraint has seen all up to the last."""
        if self._text.is_over or (is_last and self.constraint and self.constraint.is_complete):
            return "stop"
        return "length" if self._n_drawn >= self.budget else None

    def _logprobs(self, rows: FloatArray | None, ids: list[int]) -> list[TokenLogprob] | None:
        n_top = self.request.top_logprobs
        if n_top is None or rows is None:
            return None
        found = []
        n_top = min(n_top, rows.shape[1])
        for row, token in zip(rows, ids, strict=False):
            wide = row.astype(np.float64)
            wide -= wide.max()
            wide -= np.log(np.exp(wide).sum())
            best = np.argpartition(wide, -n_top)[-n_top:] if n_top else np.empty(0, dtype=np.int64)
            best = best[np.argsort(-wide[best], kind="stable")]
            top = [(int(i), float(wide[i])) for i in best]
            found.append(TokenLogprob(token_id=token, logprob=float(wide[token]), top=top))
        return found

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.ids),
            cached_tokens=self._n_cached,
            completion_tokens=self._n_drawn,
            ttft_s=self._first_s - self._started_s,
            decode_s=self._last_s - self._first_s,
            energy=Missing(quantity="energy_j", reason="energy per request is not measured by this version"),
            dropped_tokens=self.n_dropped,
            drafted_tokens=self._n_drafted,
            accepted_tokens=self._n_right,
            draft_failure=self.draft_failure,
            queue_s=self._admitted_s - self._started_s,
        )
