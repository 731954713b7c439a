"""One generation in flight: what it still has to feed, what it has drawn, and what it hands out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from edgellm.protocols import Adapters, Backend, Feed, FloatArray, Sampled
from edgellm.report import Missing
from edgellm.runtime.constraints import TokenConstraint
from edgellm.runtime.request import FinishReason, Piece, Request, TokenLogprob, Usage
from edgellm.runtime.speculation import MAX_DRAFT, Drafter, Pace
from edgellm.runtime.text import TextAssembler
from edgellm.runtime.ticket import Ticket


class Generation:
    """A request with its tokens, from the queue to its last piece.

    Args:
        ids: the prompt, as it will be fed.
        started_s: when it was asked for (perf_counter).
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
    ) -> None:
        self.request, self.ids, self.ticket = request, ids, ticket
        self.adapters: Adapters = tuple(sorted(request.adapters.items()))
        self.constraint = constraint
        self.drafter: Drafter | None = None
        self.pace: Pace | None = None
        self.sequence = -1
        self.n_dropped = n_dropped
        self._backend = backend
        self._text = TextAssembler(request.stop)
        self._to_feed: Sequence[int] = ids
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
            draft=self._draft(),
            constraint=self.constraint,
            adapters=self.adapters,
        )

    def _draft(self) -> list[int]:
        if self.drafter is None or self.pace is None or not self._n_drawn:
            return []
        if self.constraint is not None:
            forced = self.constraint.forced_tokens()[: min(MAX_DRAFT, self.budget - self._n_drawn - 1)]
            if forced:
                return forced
        n_tokens = min(self.pace.length(), self.budget - self._n_drawn - 1)
        return self.drafter.guess(n_tokens) if n_tokens > 0 else []

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
        if feed.draft and self.pace:
            self._n_drafted += len(feed.draft)
            self._n_right += len(sampled.tokens) - 1
            self.pace.note(len(feed.draft), len(sampled.tokens) - 1)
        return self._hand_out(sampled)

    def _hand_out(self, sampled: Sampled) -> bool:
        shown, ids = "", []
        reason: FinishReason | None = None
        for token in sampled.tokens:
            ids.append(token)
            self._n_drawn += 1
            if self._backend.is_end(token):
                reason = "stop"
            else:
                shown += self._text.push(self._backend.token_bytes(token))
                if self._text.stopped:
                    reason = "stop"
                elif self._n_drawn >= self.budget:
                    reason = "length"
                elif len(ids) == len(sampled.tokens) and self.constraint and self.constraint.is_complete:
                    reason = "stop"
            if reason:
                break
        self._to_feed = sampled.tokens[-1:]
        if self.drafter:
            self.drafter.extend(ids)
        logprobs = self._logprobs(sampled.logits, ids)
        if reason is None:
            self.ticket.put(Piece(text=shown, token_ids=ids, logprobs=logprobs))
            return False
        self.ticket.put(
            Piece(
                text=shown + self._text.finish(),
                token_ids=ids,
                finish_reason=reason,
                usage=self._usage(),
                logprobs=logprobs,
            )
        )
        return True

    def _logprobs(self, rows: FloatArray | None, ids: list[int]) -> list[TokenLogprob] | None:
        n_top = self.request.top_logprobs
        if n_top is None or rows is None:
            return None
        found = []
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
            queue_s=self._admitted_s - self._started_s,
        )
