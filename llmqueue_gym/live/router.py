"""Choices for live requests: exploration with exact propensities, judging by retrials, a budget.

Nothing here knows a gateway; `llmqueue_gym.live.litellm` is one.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.live.budget import UNDER_WAY, Account, Budget, checked_budget
from llmqueue_gym.live.choice import Choice
from llmqueue_gym.live.shared_agent import Context, LiveAgent, SharedAgent, answer_entry
from llmqueue_gym.workloads.sources.retrials import (
    WHOLE,
    asks_again,
    may_be_templated,
    without_template,
)

REMEMBERED = 10_000
"""Sessions, and requests under way, that are kept in memory."""

RECENT = 64
"""Questions by which an application's template is told."""

FRESH = 1.0
"""Seconds after which a choice looks for what other workers have learned; `learn` always does."""

JUDGED = 32
"""Answers at most that wait to be learned, while requests leave no time for it."""

READ = 32_000
"""Characters of a question that its context is made of; of a longer one the first and last half of
so many."""

PROBE = "The quick brown fox jumps over the lazy dog; 1 + 1 = 2?"
"""The text by which encoders are told apart."""

SWEPT = 16
"""Sessions at most that one request ends: a burst of them shall not hold it up."""


class LiveRouter:
    """Chooses LLMs for live requests with an agent, and teaches it what users did.

    A choice is the agent's with probability 1 - ``explore`` and one of the n candidates at random
    otherwise, so a has the propensity (1 - ``explore``) [a is the agent's] + ``explore`` / n.
    For agents that draw it is P(a | x, U), U being the history and the agent's own draws: the
    outcome of a does not depend on U and P(a | x, U) > 0, so the mean of pi(a | x) r / P(a | x, U)
    over a is sum_a pi(a | x) E[r | x, a] whatever U is, and IPS stays unbiased, if wider than with
    P(a | x). What an LLM that was no candidate would have earned, a request does not tell.

    An answer was kept if its session goes on with another question, or rests for ``patience``
    seconds; it was not if the next question is nearly the same one (the rule of
    `llmqueue_gym.workloads.sources.retrials`), or if the call failed. Whoever has no session
    teaches by failures and by `feedback` only. A context is made of the first and last 16,000
    characters of a question (`READ`), of all of it where it has no more. Texts stay in memory until
    their session's next question and are never written.

    Workers of one state tell each other of sessions that they begin to see. An answer whose session
    went on at another worker is judged by neither: nobody has both questions.

    An answer that was not kept is learned before its user's next one is chosen. What else was
    judged waits for `learn`, so that no request does.

    One thread calls it; `reserve` is for any thread.

    Parameters
    ----------
    agent : LiveAgent
        A queueing agent that shows one LLM (``assortment_size`` 1).
    llms : sequence of str
        Names of its LLMs, in its order.
    contexts : callable, optional
        Text to context, such as a `TextEncoder`; by default the agent's ``encoder``.
    explore, patience, budget, state, log, seed
        See `llmqueue_gym.live.litellm.LearningRouter`.
    clock : callable
        Seconds since 1970, for the budget and the log.
    timer : callable
        Seconds of a clock that nobody sets, for all that lasts: one for all processes.

    Attributes
    ----------
    account : Account
        What may be spent.

    Raises
    ------
    UsageError
        If an argument is out of range, or the agent is of another shape.
    """

    def __init__(
        self,
        agent: LiveAgent,
        llms: Sequence[str],
        contexts: Callable[[str], Context] | None = None,
        *,
        explore: float = 0.05,
        patience: float = 1800.0,
        budget: Budget | None = None,
        state: str | Path | None = None,
        log: str | Path | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.llms = _checked_llms(llms, agent)
        self.explore = checks.number("explore", explore, "[0, 1]")
        self.patience = checks.number("patience", patience, "(0, inf)")
        budget = None if budget is None else checked_budget(budget, self.llms)
        encoder = contexts or getattr(agent, "encoder", None)
        if encoder is None:
            raise UsageError("contexts=None: the agent was saved without an encoder; give one")
        self.contexts: Callable[[str], Context] = encoder
        probe = np.asarray(self.contexts(PROBE), np.float32)
        if (dim := probe.shape[-1]) != agent.problem.context_dim:
            raise UsageError(
                f"contexts gives {dim} numbers, the agent was made for {agent.problem.context_dim}"
            )
        self.shared = SharedAgent(state, agent, self.llms, probe)
        self.account = Account(budget, self.shared, clock, timer)
        self._shares = state is not None
        self._try(probe)
        self._log = None if log is None else _checked_log(log)
        self._rng = np.random.default_rng(seed)
        self._clock, self._timer = clock, timer
        self._numbers = itertools.count(1)
        self._under_way: OrderedDict[int, Choice] = OrderedDict()
        self._open: OrderedDict[str, Choice] = OrderedDict()  # last answer of every session
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._named: OrderedDict[str, Choice] = OrderedDict()  # by the answer's id, for feedback
        self._judged: list[tuple[Choice, bool]] = []  # and not learned yet
        self._caught_up = -np.inf  # with other workers
        self._begun: dict[str, float] = {}  # sessions of which nothing was open, and not told yet

    def _try(self, context: Context) -> None:
        """Let a copy learn, choose and learn: code is loaded now, and not by a request."""
        encoder = getattr(self.shared.learned.agent, "encoder", None)
        learned = copy.deepcopy(self.shared.learned, {id(encoder): encoder})  # all but this
        answer = answer_entry(context, 0, kept=True)
        learned.apply(answer)
        if learned.refused > self.shared.learned.refused:
            raise UsageError(
                f"agent: a {type(learned.agent).__name__} learns only from the request that it "
                "chose for last, and live answers come late; take LinUCB, LinTS or ACQB-OMD"
            )
        learned.agent.act(learned.observation(context, 0))
        learned.apply(answer)  # some keep what was chosen for current: more code

    # --- choosing ---------------------------------------------------------------------------------

    def reserve(self, available: Sequence[int]) -> int:
        """Return the number of a new request; the budget holds back its LLMs' highest price."""
        number = next(self._numbers)
        self.account.hold(number, available)
        return number

    def choose(
        self,
        number: int,
        text: str,
        session: str | None,
        candidates: Sequence[int],
        kept: bool | None = None,
        shadow: bool = False,
    ) -> Choice:
        """Choose for a question, after judging what its session was answered before.

        Parameters
        ----------
        number : int
            From `reserve`.
        text : str
        session : str, optional
        candidates : sequence of int
            LLMs that can answer, at least one.
        kept : bool, optional
            What the user said of the session's last answer, in place of the rule.
        shadow : bool
            The gateway chooses; the LLM returned is what the agent would have taken.
        """
        if self._timer() - self._caught_up > FRESH:
            self._catch_up()
        key = self._key(session)
        again = self._asked_again(key, text)
        return self._choose(number, text, key, candidates, kept, shadow, again)

    def choose_at_once(
        self,
        number: int,
        text: str,
        session: str | None,
        candidates: Sequence[int],
        kept: bool | None = None,
        shadow: bool = False,
    ) -> Choice | None:
        """Choose as `choose` does; do nothing and return None where that would take the files."""
        if self._timer() - self._caught_up > FRESH or len(self._judged) + SWEPT + 1 >= JUDGED:
            return None
        key = self._key(session)
        again = self._asked_again(key, text)
        if again if kept is None else not kept:  # to be learned first
            return None
        return self._choose(number, text, key, candidates, kept, shadow, again)

    def _choose(
        self,
        number: int,
        text: str,
        session: str | None,
        candidates: Sequence[int],
        kept: bool | None,
        shadow: bool,
        again: bool,
    ) -> Choice:
        now = self._timer()
        self._sweep(now)
        retrials = self._judge_before(session, again, kept)
        context = np.asarray(self.contexts(_read_of(text)), np.float32)
        learned = self.shared.learned
        favourite = self._favourite(context, retrials, candidates)
        llm, propensity = favourite, None
        if not shadow:
            if self._rng.random() < self.explore:
                llm = int(self._rng.choice(candidates))
            propensity = self.explore / len(candidates) + (1.0 - self.explore) * (llm == favourite)
        policy = f"{type(learned.agent).__name__}-{learned.answers}"
        short = text[:WHOLE]
        among = tuple(candidates)
        choice = Choice(
            number, llm, propensity, among, policy, session, short, context, retrials, now
        )  # fmt: skip
        self._recent.append(short)
        if not shadow:
            self.account.hold(number, [llm])
        _put(self._under_way, number, choice)
        return choice

    def same_again(self, session: str | None, text: str) -> int | None:
        """Return the LLM that answered this very question of the session, for a tool's result."""
        session = self._key(session)
        before = None if session is None else self._open.get(session)
        if session is None or before is None or before.text != text[:WHOLE]:
            return None
        before.since = self._timer()
        self._open.move_to_end(session)
        return before.llm

    def _favourite(self, context: Context, retrials: int, candidates: Sequence[int]) -> int:
        """Return the agent's LLM; if it is no candidate the best of these by its estimates."""
        learned = self.shared.learned
        llm = int(learned.agent.act(learned.observation(context, retrials))[1])
        if llm in candidates:
            return llm
        try:
            utilities = learned.agent.utilities(context[None])[0]  # type: ignore[attr-defined]
        except (AttributeError, NotImplementedError):  # it estimates none: a draw, as others are
            return int(self._rng.choice(candidates))
        return max(candidates, key=lambda each: float(utilities[each]))

    # --- judging ----------------------------------------------------------------------------------

    def answered(
        self,
        number: int,
        llm: int | None,
        usd: float | None,
        *,
        failed: bool = False,
        followed: bool = True,
        name: str | None = None,
    ) -> None:
        """Take what came of a request.

        Parameters
        ----------
        number : int
        llm : int, optional
            Who answered; None if it is none of ours.
        usd : float, optional
            What it cost; None where that says nothing, as from a cache. 0 is booked as the budget's
            price of the LLM: whoever sends it knows none.
        failed : bool
            Whether the call failed, and this is held against the LLM.
        followed : bool
            Whether the choice was followed; if not, the gateway made its own.
        name : str, optional
            The answer's id, for `feedback`.
        """
        choice = self._under_way.pop(number, None)
        try:
            self.account.book(number, llm, usd)
        finally:
            if choice is not None and llm is not None:
                self._remember(choice, llm, usd, failed, followed, name)

    def _remember(
        self,
        choice: Choice,
        llm: int,
        usd: float | None,
        failed: bool,
        followed: bool,
        name: str | None,
    ) -> None:
        """Keep an answer until it is judged; a failed one is judged at once."""
        if not followed:
            choice.propensity = None
        elif choice.propensity is not None and choice.llm != llm:
            return  # the gateway turned to another LLM for reasons that nobody knows
        choice.llm, choice.usd, choice.name = llm, usd or 0.0, name
        choice.since, choice.time = self._timer(), self._clock()
        if failed:
            self._judge(choice, kept=False)
            return
        if name:
            _put(self._named, name, choice)
        if choice.session is not None:
            _put(self._open, choice.session, choice)

    def feedback(self, name: str, kept: bool) -> bool:
        """Take what a user said of an answer; False if it is not known, or judged already."""
        choice = self._named.pop(name, None)
        if choice is None:
            return False
        if choice.session is not None and self._open.get(choice.session) is choice:
            del self._open[choice.session]
        self._judge(choice, kept)
        self.learn()
        return True

    def _judge_before(self, session: str | None, again: bool, kept: bool | None) -> int:
        """Judge the session's last answer; return how often the question was asked before."""
        before = None if session is None else self._open.pop(session, None)
        if before is None:
            if session is not None and self._shares:
                self._begun[session] = self._timer()
            return 0
        kept = not again if kept is None else kept
        self._settle(before, kept)
        if not kept:
            self.learn()
        return before.retrials + 1 if again else 0

    def _asked_again(self, session: str | None, now: str) -> bool:
        """Tell as the importer of spend logs does: less an application's template."""
        before = None if session is None else self._open.get(session)
        if before is None:
            return False
        previous, now = before.text, now[:WHOLE]
        texts = [*self._recent, previous, now]
        if any(may_be_templated(text, texts) for text in texts[-2:]):
            texts = without_template(texts)
        return asks_again(*texts[-2:]) or (previous == now and asks_again(previous, now))

    def _sweep(self, now: float) -> None:
        """End sessions that have rested, and give up requests that nothing was heard of."""
        for _ in range(SWEPT):
            session, choice = next(iter(self._open.items()), (None, None))
            if session is None or choice is None or now - choice.since <= self.patience:
                break
            del self._open[session]
            self._settle(choice, kept=True)
        while self._under_way:
            number, choice = next(iter(self._under_way.items()))
            if now - choice.since <= UNDER_WAY and len(self._under_way) < REMEMBERED:
                break
            del self._under_way[number]
        self.account.give_up()

    def _settle(self, choice: Choice, kept: bool) -> None:
        """Judge by the rule, unless the user's word was taken."""
        if choice.name:
            self._named.pop(choice.name, None)
        self._judge(choice, kept)

    def _judge(self, choice: Choice, kept: bool) -> None:
        self._judged.append((choice, kept))
        if len(self._judged) >= JUDGED:
            self.learn()

    def learn(self) -> None:
        """Learn what was judged, here and elsewhere; it is in the files when this returns."""
        self.account.write_owed()
        judged, self._judged = self._judged, []
        begun, self._begun = self._begun, {}
        entries: list[dict[str, Any]] = [{"seen": begun}] if begun else []
        rows = []
        for choice, kept in judged:
            assert choice.llm is not None
            entries.append(answer_entry(choice.context, choice.llm, kept, choice.retrials))
            if choice.propensity is not None:
                rows.append(json.dumps(self._row(choice, choice.llm, kept)) + "\n")
        if entries:
            self.shared.add(*entries)
        self._catch_up()
        if rows and self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write("".join(rows))

    def _catch_up(self) -> None:
        self.shared.catch_up()
        self._caught_up = self._timer()
        for session, time_seen in self.shared.seen.items():
            choice = self._open.get(session)
            if choice is not None and choice.since < time_seen:
                del self._open[session]
        self.shared.seen.clear()

    def _key(self, session: str | None) -> str | None:
        """Return what a session goes by: its name is kept nowhere."""
        if session is None:
            return None
        salt = bytes.fromhex(self.shared.learned.salt)
        return hashlib.blake2b(session.encode(), key=salt, digest_size=12).hexdigest()

    def _row(self, choice: Choice, llm: int, kept: bool) -> dict[str, Any]:
        """Return a judged answer as a row of docs/logs.md."""
        return {
            "embedding": [float(f"{x:.7g}") for x in choice.context.tolist()],
            "llm": self.llms[llm],
            "kept": int(kept),
            "cost": choice.usd,
            "timestamp": choice.time,
            "propensity": choice.propensity,
        }


def _put(where: OrderedDict[Any, Choice], key: Any, choice: Choice) -> None:
    """Remember a choice as the newest; the oldest is forgotten, unjudged, where they are many."""
    where.pop(key, None)
    where[key] = choice
    if len(where) > REMEMBERED:
        where.popitem(last=False)


def _read_of(text: str) -> str:
    """Return what is read of a question: prompts of megabytes take as long as the longest read."""
    return text if len(text) <= READ else text[: READ // 2] + text[-READ // 2 :]


def _checked_log(log: str | Path) -> Path:
    file = Path(log)
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UsageError(f"log={str(log)!r} cannot be written; name a file in a folder of yours")
    return file


def _checked_llms(llms: Sequence[str], agent: LiveAgent) -> tuple[str, ...]:
    names = tuple(llms)
    if isinstance(llms, str) or len(set(names)) != len(names) or len(names) < 2:
        raise UsageError(f"llms={llms!r} must be two names or more, each once")
    problem = agent.problem
    found = getattr(problem, "assortment_size", None), problem.num_llms
    if getattr(problem, "kind", "queueing") != "queueing" or found != (1, len(names)):
        raise UsageError(
            f"agent: it must be a queueing agent with assortment_size=1 and num_llms={len(names)}, "
            f"as llms has names; its problem is {problem}"
        )
    return names
