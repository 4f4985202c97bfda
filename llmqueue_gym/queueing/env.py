"""LLMQueue-v0: serve a queue of queries with LLMs when unsatisfied users retry.

The scalar and the vector environment are thin shells over one `QueueDynamics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.queueing.dynamics import SlotOutcome
from llmqueue_gym.queueing.lanes import MAX_SLOTS, QueueDynamics
from llmqueue_gym.queueing.task import Task
from llmqueue_gym.registration import QUEUE_EPISODE_STEPS
from llmqueue_gym.vector import Ints, LaneVectorEnv, Observation, SuiteEnv, check_reset
from llmqueue_gym.workloads.pool import OfflineData


class LLMQueueEnv(SuiteEnv):
    """Route and schedule queries to LLMs when unsatisfied users retry.

    ## Description

    Queries wait in one queue. In every slot the policy picks one waiting query and the LLMs that
    answer it. The user keeps one of the answers and leaves, or is not satisfied and joins the tail
    of the queue again: a bad choice lengthens the queue. There are no ratings; a retrial is all the
    feedback there is. This is the contextual queueing bandit with multinomial logit feedback
    (CQB-MNL) of Bae, Son and Lee (arXiv 2602.02061).

    One slot: (1) the chosen query is served by the chosen LLMs; (2) the user keeps LLM j with
    probability exp(u_j(x)) / (1 + sum_S exp(u(x))) or retries with 1 / (1 + sum_S exp(u(x)));
    (3) a query that retries joins the tail; (4) a query arrives with probability lambda; (5) the
    queue length is read. Arrivals, contexts and outcomes come from streams that depend on the seed
    and the slot only, so policies run on one seed are coupled.

    ## Action Space

    ``MultiDiscrete([W] + [N] * K)``:

    | Num | Action | Min | Max |
    |-----|--------|-----|-----|
    | 0 | window slot of the query to serve, 0 is the head of the queue | 0 | W - 1 |
    | 1..K | LLMs that answer, read as a set (a repeat shows fewer LLMs) | 0 | N - 1 |

    An empty slot serves nobody. ``action_masks()`` (bool) and ``info["action_mask"]`` (int8) are
    flat, of length W + N K, and rule out empty slots; with an empty queue slot 0 stays legal.
    ``action_space.sample(mask=tuple(np.split(info["action_mask"],
    np.cumsum(action_space.nvec)[:-1])))`` draws a legal action.

    ## Observation Space

    ``Dict``; rows are window slots in service order, empty slots are zero:

    | Key | Shape | Type | Meaning | Min | Max |
    |-----|-------|------|---------|-----|-----|
    | contexts | (W, d) | float32 | context of the query | -3.4e38 | 3.4e38 |
    | waiting | (W,) | int8 | 1 where a query waits | 0 | 1 |
    | retrials | (W,) | float32 | times the user has retried | 0 | 2^24 |
    | age | (W,) | float32 | slots since arrival | 0 | 2^24 |
    | wait | (W,) | float32 | slots since joining the tail | 0 | 2^24 |
    | queue_length | (1,) | float32 | waiting queries, with those beyond the window | 0 | 2^24 |
    | feedback | () | int64 | 0: nothing served, 1: retried, 2 + j: LLM j kept | 0 | N + 1 |

    Queries beyond the window wait in an unbounded FIFO backlog and move up as slots free.

    ## Rewards

    ``reward="queue_length"`` (default): minus the queries that wait after the slot.
    ``reward="departures"``: 1 when a query leaves, else 0.

    ## Starting State

    An empty queue. Without ``instance_seed`` every reset draws a new instance (contexts and hidden
    utilities); with it the instance is fixed and a seed only changes arrivals and outcomes. One
    that cannot be played as asked (``slack`` out of reach of its LLMs, a ``load`` that takes more
    than one arrival in a slot) is drawn again.

    ## Episode End

    Never terminates; truncated after ``max_episode_steps`` (5000 by default).

    ## Information

    Only what a provider sees: ``arrived``, ``served``, ``departed``, ``retried`` (bool),
    ``kept_llm`` (index or -1), ``queue_length`` (int), ``action_mask``; NumPy scalars and arrays.
    After a reset the same keys: nothing was done.

    ## Arguments

    All JSON-plain; a bad one raises ``ValueError`` with the fix.

    | Name | Default | Meaning |
    |------|---------|---------|
    | workload | "synthetic" | source of queries and LLMs: a name, or a dict with a "source" and options |
    | num_llms | None | N; the workload's own (synthetic: 5) |
    | assortment_size | 2 | LLMs shown at a time, K |
    | context_dim | None | d; the workload's own (synthetic: 5) |
    | arrival_rate | 0.7 | probability of an arrival per slot, lambda; may overload the queue |
    | load | None | rho = lambda E[1 / p*] < 1 instead of a rate |
    | slack | None | redraw queries until max_S p(x, S) >= arrival_rate + slack (0.1 if neither a rate nor a load is given) |
    | window | 32 | visible slots, W |
    | reward | "queue_length" | or "departures" |
    | instance_seed | None | fixes the instance |
    | flat_observation | False | observe one float32 vector: the keys in alphabetical order, row by row, ``feedback`` as N + 2 numbers (`llmqueue_gym.flat.FlatLayout`) |
    | arrivals | "bernoulli" | or "markov-modulated", "daily", or a dict with a "process" and options; see below |
    | feedback | None | noise in what is told: a dict of "missed", "false", "silent" (shares) and "delay" (slots); see below |

    ``arrivals`` shapes when queries arrive, never how many: ``arrival_rate`` or ``load`` stays the
    mean. ``{"process": "markov-modulated", "rates": [0.5, 1.5], "sojourns": [500, 500]}`` switches
    between states with these relative rates and mean lengths in slots. ``{"process": "trace",
    "path": "requests.csv"}`` replays the times of a file (Azure LLM, BurstGPT and Mooncake traces,
    own logs) from a slot that the seed draws; at most one query arrives in a slot, further ones
    spill into the next slots. See `llmqueue_gym.workloads.arrivals`.

    ``feedback`` makes ``feedback`` and ``departed``, ``retried``, ``kept_llm`` of ``info`` wrong or
    late (and the reward ``"departures"``), and ``arrived`` where a retrial is missed; the queue is
    the same, and so is the queue length shown.
    A draw u a slot, from a stream of its own, decides. ``missed``: a retrial with u < missed is
    seen by nobody; the first LLM shown counts as kept, and the query comes back as one that has
    just arrived. ``false``: a kept answer with u < false is taken for refused. ``silent``: of an
    answer with u >= 1 - silent nothing is heard. ``delay``: what is told at the end of slot t + delay
    is of slot t; who waits is seen at once. An agent is told ``feedback_delay``
    (`QueueProblem`), not the shares.

    ```python
    >>> import gymnasium as gym
    >>> env = gym.make("llmqueue_gym:LLMQueue-v0", num_llms=3, load=0.8)
    >>> observation, info = env.reset(seed=0)
    >>> observation["contexts"].shape, int(info["queue_length"])
    ((32, 5), 0)
    >>> observation, reward, terminated, truncated, info = env.step([0, 1, 2])
    >>> bool(info["served"]), bool(reward == -info["queue_length"])
    (False, True)

    ```

    ## Version History

    * v0: initial version
    """  # noqa: E501 - tables

    def __init__(
        self,
        workload: str | Mapping[str, Any] = "synthetic",
        num_llms: int | None = None,
        assortment_size: int = 2,
        context_dim: int | None = None,
        arrival_rate: float | None = None,
        load: float | None = None,
        slack: float | None = None,
        window: int = 32,
        reward: str = "queue_length",
        instance_seed: int | None = None,
        render_mode: str | None = None,
        arrivals: str | Mapping[str, Any] = "bernoulli",
        flat_observation: bool = False,
        feedback: Mapping[str, Any] | None = None,
    ) -> None:
        self._task = task = Task(
            workload,
            num_llms,
            assortment_size,
            context_dim,
            arrival_rate,
            load,
            slack,
            window,
            reward,
            instance_seed,
            arrivals,
            feedback,
        )
        self._set_render_mode(render_mode)
        self._set_observation_space(task.observation_space(), flat_observation)
        self.action_space = task.action_space()
        self._action_shape = self.action_space.shape
        self._llm_indices = frozenset(range(task.num_llms))
        self.dynamics: QueueDynamics = task.dynamics(1)
        self._cost: NDArray[np.float64] | None = None
        self._masks = task.mask_table()
        self._info_masks = self._masks.astype(np.int8)

    @property
    def llms(self) -> tuple[str, ...]:
        """Names of the LLMs, in the order of the action space."""
        return self._task.workload.llms

    @property
    def problem(self) -> dict[str, Any]:
        """Public parameters, JSON-plain; ``QueueProblem(**env.unwrapped.problem, horizon=T)``.

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset, which draws the instance and with it the arrival rate.
        """
        return self._task.problem(self.dynamics)

    @property
    def offline(self) -> OfflineData | None:
        """Queries that never arrive with their utilities, for training; None if there are none."""
        return getattr(self._task.workload, "offline", None)

    @property
    def cost(self) -> NDArray[np.float64] | None:
        """USD of every LLM's answer to each query of the instance, (P, N); None if not known.

        Part of the truth, as ``dynamics``: for reports, not for policies.
        """
        return self._cost

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Empty the queue and start the streams of the episode."""
        super().reset(seed=seed)
        population, rate, streams = self._task.start(self.np_random)
        self.dynamics.reset([0], [population], [rate], [streams])
        self._cost = population.cost
        self._start_rendering()
        return self._shown(), self._info(SlotOutcome.nothing(1))

    def step(self, action: NDArray[np.int64]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Serve one query and run the slot to its end.

        Raises
        ------
        ValueError
            If the action is not in the action space.
        """
        task, dynamics = self._task, self.dynamics
        if not dynamics.ready:
            raise gym.error.ResetNeeded("call reset() before step()")
        values = checks.array(action)
        if values.shape != self._action_shape or values.dtype.kind not in "iu":
            raise task.invalid_action(action)
        slot, *llms = values.tolist()
        if not 0 <= slot < task.window or not self._llm_indices.issuperset(llms):
            raise task.invalid_action(action)
        info = self._info(dynamics.step(values[None]))
        if self._renderer is not None:
            self._renderer.record(slot, llms, info)
        by_length = task.reward == "queue_length"
        reward = -float(info["queue_length"]) if by_length else float(info["departed"])
        return self._shown(), reward, False, False, info

    def _info(self, outcome: SlotOutcome) -> dict[str, Any]:
        """Return ``info``: NumPy scalars, because clients ask its entries for a dtype."""
        length = self.dynamics.queue_length[0]
        return {
            "arrived": outcome.arrived[0],
            "served": outcome.served[0],
            "departed": outcome.departed[0],
            "retried": outcome.retried[0],
            "kept_llm": outcome.kept_llm[0],
            "queue_length": length,
            "action_mask": self._info_masks[min(length, self._task.window)].copy(),
        }

    def _observe(self) -> Observation:
        return self.dynamics.observe(0)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal actions now, flat bool of length W + N K (MaskablePPO's method).

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        """
        check_reset(self.dynamics.ready, "action_masks")
        visible = min(int(self.dynamics.queue_length[0]), self._task.window)
        return np.array(self._masks[visible])

    def _make_renderer(self) -> Any:
        from llmqueue_gym.queueing.picture import QueueRenderer

        return QueueRenderer(self.dynamics, self.llms)


class LLMQueueVectorEnv(LaneVectorEnv, VectorEnv[Any, NDArray[np.int64], NDArray[Any]]):
    """B copies of LLMQueue-v0 stepped at once; lane i seeded s equals the scalar env seeded s + i.

    A step costs O(B (W d + K^2 + N K)), whatever the backlog and the time: about 21 us of Python
    whatever B, and 0.16 us a lane at W = 32, d = 5, mostly moving the window and writing the
    observation (docs/speed.md varies B, W, N and d). With ``instance_seed`` all lanes share one
    table of queries; without it each lane holds its own (P (d + 2 N) floats), whose cache misses
    cost another third of a step at B = 1024.

    Parameters
    ----------
    num_envs : int
        Lanes, B.
    max_episode_steps : int, optional
        Slots after which a lane is truncated; None: 5000, as registered, -1: never.
    autoreset_mode : AutoresetMode or str
        ``NEXT_STEP``, ``SAME_STEP`` or ``DISABLED``; see `LaneVectorEnv`.
    **kwargs
        Arguments of `LLMQueueEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **kwargs: Any,
    ) -> None:
        single = LLMQueueEnv(**kwargs)
        steps = QUEUE_EPISODE_STEPS, MAX_SLOTS + 1
        super().__init__(single, num_envs, max_episode_steps, autoreset_mode, *steps)
        self._task = task = single._task
        self.dynamics = task.dynamics(num_envs)
        self._masks = task.mask_table()
        self._mask_rows = self._masks.astype(np.int8)

    def _problem(self, lane: int) -> dict[str, Any]:
        return self._task.problem(self.dynamics, lane)

    def _start_lanes(self, lanes: NDArray[np.int64], generators: list[np.random.Generator]) -> None:
        starts = [self._task.start(generator) for generator in generators]
        populations, rates, streams = zip(*starts, strict=True)
        self.dynamics.reset(lanes.tolist(), populations, rates, streams)

    def _play(self, actions: Ints) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
        outcome: dict[str, NDArray[Any]] = self.dynamics.step(actions)._asdict()
        if self._task.reward == "queue_length":
            return outcome, np.negative(self.dynamics.queue_length, dtype=np.float64)
        return outcome, outcome["departed"].astype(np.float64)

    def _record(self, action: Ints, info: dict[str, Any]) -> None:
        slot, *llms = action.tolist()
        self._renderer.record(slot, llms, info)

    def _steps_done(self) -> Ints:
        return self.dynamics.slot

    def _invalid_action(self, actions: Any) -> UsageError:
        return self._task.invalid_action(actions, f"{self.num_envs} rows of ")

    def _no_outcome(self) -> dict[str, NDArray[Any]]:
        return SlotOutcome.nothing(self.num_envs)._asdict()

    def _state_info(self) -> dict[str, NDArray[Any]]:
        length = self.dynamics.queue_length
        return {
            "queue_length": length.copy(),
            "action_mask": self._mask_rows.take(np.minimum(length, self._task.window), axis=0),
        }

    def _observe(self) -> Observation:
        return self.dynamics.observe()

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal actions of every lane, bool of shape (B, W + N K).

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        """
        check_reset(self._started, "action_masks")
        visible = np.minimum(self.dynamics.queue_length, self._task.window)
        return self._masks.take(visible, axis=0)
