"""What is remembered of the choice for a live request."""

from __future__ import annotations

from dataclasses import dataclass

from llmqueue_gym.live.shared_agent import Context


@dataclass(slots=True, eq=False)
class Choice:
    """An LLM for a request.

    Attributes
    ----------
    number : int
        Of the request, in this process.
    llm : int, optional
        None where the gateway itself chooses.
    propensity : float, optional
        Probability of the LLM given all that came before; None where it is not known.
    candidates : tuple of int
        What was chosen among.
    policy : str
        The agent's class and how many answers it had learned from.
    since : float
        When it was made, later when it was answered, by a clock that nobody sets.
    time : float
        When it was answered, seconds since 1970.
    """

    number: int
    llm: int | None
    propensity: float | None
    candidates: tuple[int, ...]
    policy: str
    session: str | None
    text: str
    context: Context
    retrials: int
    since: float
    time: float = 0.0
    usd: float = 0.0
    name: str | None = None  # of the answer, for `feedback`
