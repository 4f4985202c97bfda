"""A learning router in LiteLLM: it narrows what a model group may choose from to one LLM.

LiteLLM runs `LearningRouter.async_filter_deployments` on the deployments that are up, and its own
strategy picks among those that are left; whatever goes wrong here leaves all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError, needing
from llmqueue_gym.live.budget import Budget, OverBudgetError
from llmqueue_gym.live.choice import Choice
from llmqueue_gym.live.router import LiveRouter
from llmqueue_gym.live.shared_agent import Context, LiveAgent
from llmqueue_gym.live.turns import BRIEFLY, Turns
from llmqueue_gym.state import OURS, read_state
from llmqueue_gym.workloads.encoder import TextEncoder
from llmqueue_gym.workloads.sources.failures import excuse
from llmqueue_gym.workloads.sources.litellm import NOTE, question_in

with needing("llmqueue_gym.live.litellm", "LiteLLM", "litellm"):
    import litellm
    from litellm.integrations.custom_logger import CustomLogger

__all__ = ["Budget", "LearningRouter"]

KEPT = "llmqueue_gym_kept"
"""Key of a request's metadata: whether the user kept the session's last answer."""

PROVEN = 32
"""Choices in a row that took less than `BRIEFLY`, after which the event loop makes them itself."""

SHORT = 4000
"""Characters of a question at most for which it does."""

Found = tuple[str, Choice | None, int | None]
"""What happened, the choice, and the LLM to leave (None: all of them)."""


class LearningRouter(CustomLogger):  # type: ignore[misc]  # LiteLLM is not type-checked
    """A callback of LiteLLM that lets an agent choose the LLM of every question to a model group.

    The agent chooses among the group's LLMs that are up and within the budget; where several
    deployments serve the same LLM (``litellm_params.model``), LiteLLM's own strategy picks one.
    Each choice is written into the request's ``spend_logs_metadata``, the only metadata of a
    request that LiteLLM's spend log keeps: its propensity, the candidates and the version of the
    policy. How choices are made and judged, and why their propensities are exact: see
    `llmqueue_gym.live.router.LiveRouter`.

    LiteLLM is left to choose, and the cause counted in `counts`, where the agent raises, takes
    longer than ``timeout_ms`` or has too many requests waiting (``error``, ``timeout``, ``busy``),
    where a request has no text, and for all calls that are not awaited (``router.completion``):
    LiteLLM runs filters for awaited ones only.

    Choices are made in a thread, which the event loop waits for 2 ms at most before it goes on with
    other requests. To hand them over takes a third of the time. So where the last 32 were quick,
    the event loop makes the next one itself: only if agent and encoder are of this package, which
    compute and wait for nothing, the question is short, and no file is to be read or written first.

    Parameters
    ----------
    agent : LiveAgent, str or Path
        A queueing agent that shows one LLM, or the file of a saved one.
    llms : sequence of str
        ``litellm_params.model`` of the agent's LLMs, in its order. Deployments of others are left
        out of a choice.
    model_name : str
        The model group, as callers name it.
    contexts : callable, optional
        Text to context, such as a `llmqueue_gym.workloads.encoder.TextEncoder`; by default the one
        saved with the agent. It is given the first and last 16,000 characters of a longer question.
    explore : float
        Share of choices made at random among the candidates.
    patience : float
        Seconds of rest after which an answer counts as kept.
    budget : Budget, optional
        ``Budget(usd, "hour" or "day", {llm: USD an answer})``. Prices count until an LLM's own
        answers tell its mean cost. A request that no LLM can answer within it is refused with
        LiteLLM's ``BudgetExceededError``. It is overdrawn at most by what answers under way cost
        more than expected, and by those under way at other workers.
    timeout_ms : float
        Milliseconds that a choice may take.
    shadow : bool
        LiteLLM chooses; what the agent would have chosen is written, and it learns from the
        answers.
    state : str or Path, optional
        File in which the learned agent lives on, shared by all workers of the machine that name it;
        see `llmqueue_gym.live.shared_agent.SharedAgent`.
    log : str or Path, optional
        File to which every judged answer is added as a row of docs/logs.md, with its context in
        place of the text.
    seed : int, optional
        Of the exploration; by default another one for each process.

    Attributes
    ----------
    counts : Counter
        ``chosen``, ``shadow``, ``continued`` and why LiteLLM chose: ``error``, ``timeout``,
        ``busy``, ``no question``, ``none known``; ``left out`` for requests that deployments of
        other LLMs could have answered; ``unsaved`` for what could not be learned.

    Raises
    ------
    UsageError
        If an argument is out of range, the agent is of another shape, or a file cannot be read.
    """

    def __init__(
        self,
        agent: LiveAgent | str | Path,
        llms: Sequence[str],
        model_name: str,
        contexts: Callable[[str], Context] | None = None,
        *,
        explore: float = 0.05,
        patience: float = 1800.0,
        budget: Budget | None = None,
        timeout_ms: float = 50.0,
        shadow: bool = False,
        state: str | Path | None = None,
        log: str | Path | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        found = read_state(agent, "agent")[0] if isinstance(agent, str | Path) else agent
        if not isinstance(model_name, str) or not model_name:
            raise UsageError(f"model_name={model_name!r} must be the name of a model group")
        self.model_name = model_name
        self.shadow = bool(shadow)
        self.counts: Counter[str] = Counter()
        self._timeout = checks.number("timeout_ms", timeout_ms, "(0, inf)") / 1000.0
        settings: dict[str, Any] = {
            "explore": explore,
            "patience": patience,
            "budget": budget,
            "state": state,
            "log": log,
            "seed": seed,
        }
        self.router = LiveRouter(found, llms, contexts, **settings)
        self._places = {name: place for place, name in enumerate(self.router.llms)}
        self._turns = Turns(self._learn)
        ours = type(found).__module__.partition(".")[0] in OURS
        self._computes = ours and isinstance(self.router.contexts, TextEncoder)  # and no more
        self._quick = 0  # choices in a row that took less than `BRIEFLY`

    # --- choosing ---------------------------------------------------------------------------------

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: list[Any] | None,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[Any]:
        """Leave the deployments of one LLM; LiteLLM calls it for every request."""
        request = {} if request_kwargs is None else request_kwargs
        if model != self.model_name or not healthy_deployments:
            return healthy_deployments
        places = [self._places.get(d["litellm_params"]["model"]) for d in healthy_deployments]
        candidates = sorted({place for place in places if place is not None})
        if not candidates:
            words = "LiteLLM chooses, as llms names none of the models"
            self._unlike("none known", words, model, healthy_deployments)
            return healthy_deployments
        budgeted = self.router.account.budget is not None and not self.shadow
        try:
            if budgeted:
                candidates = self.router.account.affordable(candidates)
        except OverBudgetError as error:
            assert self.router.account.budget is not None
            most = self.router.account.budget.usd
            raise litellm.BudgetExceededError(most, most, str(error)) from error
        number = self.router.reserve(candidates)
        cause, choice, llm = await self._chosen(number, candidates, messages, request)
        self.counts[cause] += 1
        _metadata(request, NOTE, self._note(number, cause, choice, llm))
        if llm is None and not budgeted:
            return healthy_deployments
        if None in places:
            words = "models that are not in llms get no requests"
            self._unlike("left out", words, model, healthy_deployments)
        left = candidates if llm is None else [llm]
        return [d for d, place in zip(healthy_deployments, places, strict=True) if place in left]

    def _unlike(self, cause: str, words: str, model: str, deployments: list[Any]) -> None:
        """Count that deployments and ``llms`` differ; warn the first time."""
        if not self.counts[cause]:
            models = sorted({d["litellm_params"]["model"] for d in deployments})
            litellm.verbose_logger.warning(
                f"llmqueue_gym: {words}: llms=%r, the models of %r are %r",
                *(list(self.router.llms), model, models),
            )
        self.counts[cause] += 1

    async def _chosen(
        self,
        number: int,
        candidates: list[int],
        messages: list[Any] | None,
        request: Mapping[str, Any],
    ) -> Found:
        try:
            text, goes_on = question_in({**request, "messages": messages} if messages else request)
            if text is None:
                return "no question", None, None
            asked = goes_on, number, text, _session(request), candidates, _said(request)
            found: Found | None = None
            if self._computes and self._quick >= PROVEN and len(text) <= SHORT:
                found = self._turns.at_once(self._choose, self.router.choose_at_once, *asked)
            if found is not None:
                return found
            future = self._turns.submit(self._choose, self.router.choose, *asked)
            if future is None:
                return "busy", None, None
            return cast(Found, await self._turns.result(future, self._timeout))
        except TimeoutError:
            return "timeout", None, None
        except Exception as error:
            if not self.counts["error"]:  # the others are counted
                litellm.verbose_logger.warning("llmqueue_gym: LiteLLM chooses, after %r", error)
            return "error", None, None

    def _choose(
        self,
        choose: Callable[..., Choice | None],
        goes_on: bool,
        number: int,
        text: str,
        session: str | None,
        candidates: list[int],
        kept: bool | None,
    ) -> Found | None:
        if goes_on and (llm := self.router.same_again(session, text)) in candidates:
            return "continued", None, llm
        start, quick, self._quick = time.perf_counter(), self._quick, 0
        choice = choose(number, text, session, candidates, kept, self.shadow)
        if time.perf_counter() - start < BRIEFLY:
            self._quick = quick + 1
        if choice is None:
            return None
        return ("shadow", choice, None) if self.shadow else ("chosen", choice, choice.llm)

    def _note(
        self, number: int, cause: str, choice: Choice | None, llm: int | None
    ) -> dict[str, Any]:
        """Return what the spend log is to say of a choice."""
        note: dict[str, Any] = {"request": number, "by": cause}
        if llm is not None:
            note["llm"] = self.router.llms[llm]
        if choice is not None:
            note["policy"] = choice.policy
            note["candidates"] = [self.router.llms[each] for each in choice.candidates]
            if choice.propensity is not None:
                note["propensity"] = choice.propensity
            elif choice.llm is not None:
                note["would"] = self.router.llms[choice.llm]
        return note

    # --- what came of it --------------------------------------------------------------------------

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Take an answer; LiteLLM calls it when one is complete."""
        usd = None if kwargs.get("cache_hit") else float(kwargs.get("response_cost") or 0.0)
        self._answered(kwargs, usd, name=getattr(response_obj, "id", None))

    async def async_log_failure_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Take a failed attempt; it is held against the LLM unless there is an `excuse`."""
        error = kwargs.get("exception")
        excused = excuse(getattr(error, "status_code", None), type(error).__name__) is not None
        self._answered(kwargs, None, failed=True, excused=excused)

    def _answered(
        self,
        kwargs: Mapping[str, Any],
        usd: float | None,
        *,
        failed: bool = False,
        excused: bool = False,
        name: str | None = None,
    ) -> None:
        for metadata in _metadatas(kwargs.get("litellm_params") or {}):
            note = (metadata.get("spend_logs_metadata") or {}).get(NOTE)
            if isinstance(note, dict) and isinstance(note.get("request"), int):
                llm = self._places.get(str(metadata.get("deployment")))
                if excused:
                    llm = None
                followed = note.get("by") in ("chosen", "shadow")
                work = self._take, note["request"], llm, usd, failed, followed, name
                remembers = not failed and self.router.account.budget is None  # and touches no file
                if remembers and self._turns.at_once(*work):
                    return
                if self._turns.submit(*work) is None:
                    self.router.account.owe(note["request"], llm, usd)
                    self.counts["unsaved"] += 1
                return

    def _take(
        self,
        number: int,
        llm: int | None,
        usd: float | None,
        failed: bool,
        followed: bool,
        name: str | None,
    ) -> bool:
        try:
            self.router.answered(number, llm, usd, failed=failed, followed=followed, name=name)
        except Exception as error:
            self._unsaved(error)
        return True

    def _learn(self) -> None:
        try:
            self.router.learn()
        except Exception as error:
            self._unsaved(error)

    def _unsaved(self, error: Exception) -> None:
        if not self.counts["unsaved"]:  # the others are counted
            litellm.verbose_logger.warning("llmqueue_gym: an answer is not learned: %r", error)
        self.counts["unsaved"] += 1

    async def feedback(self, response_id: str, kept: bool) -> bool:
        """Take what a user said of an answer, by its ``id``; it is saved once this returns True.

        False means that this worker does not know the answer, or has judged it by the rule already.
        """
        future = self._turns.submit(self.router.feedback, response_id, kept)
        return future is not None and bool(await asyncio.wrap_future(future))

    def settle(self) -> None:
        """Wait until all that was heard so far is learned and in the file."""
        if (future := self._turns.submit(self.router.learn)) is not None:
            future.result()


def _metadatas(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the dicts in which LiteLLM keeps a request's metadata, by the API called."""
    found = (request.get(name) for name in ("litellm_metadata", "metadata"))
    return [each for each in found if isinstance(each, dict)]


def _metadata(request: dict[str, Any], key: str, value: Any) -> None:
    """Write an entry of the spend log's metadata; the caller's own dict of them stays as it is."""
    for metadata in _metadatas(request) or [request.setdefault("metadata", {})]:
        metadata["spend_logs_metadata"] = {
            **(metadata.get("spend_logs_metadata") or {}),
            key: value,
        }


def _session(request: Mapping[str, Any]) -> str | None:
    """Return who goes on talking: the session if the caller names it, else the user."""
    names = [request.get("litellm_session_id")]
    names += [metadata.get("session_id") for metadata in _metadatas(request)]
    names += [m.get("user_api_key_end_user_id") for m in _metadatas(request)]
    names.append(request.get("user"))
    return next((str(name) for name in names if name), None)


def _said(request: Mapping[str, Any]) -> bool | None:
    """Return what the caller says of the session's last answer."""
    for metadata in _metadatas(request):
        for each in (metadata, metadata.get("requester_metadata") or {}):
            if isinstance(each.get(KEPT), bool):
                return bool(each[KEPT])
    return None
