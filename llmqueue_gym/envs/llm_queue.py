"""LLMQueue-v0: serve a queue of queries with LLMs when unsatisfied users retry.

The scalar and the vector environment are thin shells over one QueueDynamics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from llmqueue_gym.core.queue import (
    FIRST_LLM,
    MAX_SLOTS,
    NUM_STREAMS,
    Population,
    QueueDynamics,
)
from llmqueue_gym.workloads import make_workload
from llmqueue_gym.workloads.pool import check_count

Observation = dict[str, Any]

REWARDS = ("queue_length", "departures")
MAX_COUNT = float(MAX_SLOTS)
_INSTANCE_TAG = 0x1A57
DEFAULT_ARRIVAL_RATE = 0.7
DEFAULT_SLACK = 0.1


def _check_float(name: str, value: Any, low: float, high: float, hint: str = "") -> float:
    number = isinstance(value, (int, float, np.integer, np.floating))
    if isinstance(value, bool) or not number or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a number in [{low:g}, {high:g}]{hint}")
    return float(value)


class _Task:
    """Validated arguments of LLMQueue-v0: the spaces, and how an instance is drawn."""

    def __init__(
        self,
        workload: str | Mapping[str, Any],
        num_llms: int | None,
        assortment_size: int,
        context_dim: int | None,
        arrival_rate: float | None,
        load: float | None,
        slack: float | None,
        window: int,
        reward: str,
        instance_seed: int | None,
    ) -> None:
        self.assortment_size = check_count("assortment_size", assortment_size)
        self.window = check_count("window", window)
        if instance_seed is not None:
            check_count("instance_seed", instance_seed, minimum=0)
        if reward not in REWARDS:
            raise ValueError(f"reward={reward!r} is not known; choose one of {', '.join(REWARDS)}")
        self.reward = reward
        self.arrival_rate, self.load, self.slack = self._check_rates(arrival_rate, load, slack)
        self.workload = make_workload(
            workload,
            num_llms=num_llms,
            context_dim=context_dim,
            assortment_size=self.assortment_size,
        )
        self.num_llms = len(self.workload.llms)
        self._fixed: tuple[Population, float] | None = None
        if instance_seed is not None:
            # The tag keeps the instance apart from everything else that is seeded with a number.
            self._fixed = self._draw(np.random.default_rng([instance_seed, _INSTANCE_TAG]))

    @staticmethod
    def _check_rates(
        arrival_rate: float | None, load: float | None, slack: float | None
    ) -> tuple[float | None, float | None, float | None]:
        if arrival_rate is not None and load is not None:
            raise ValueError(
                f"arrival_rate={arrival_rate!r} and load={load!r} both set the arrivals; "
                "give only one of them"
            )
        if load is not None:
            if slack is not None:
                raise ValueError(
                    f"slack={slack!r} is measured from arrival_rate; give arrival_rate, not load"
                )
            if _check_float("load", load, 0.0, np.inf) >= 1.0:
                raise ValueError(
                    f"load={load!r} must be below 1, else no policy is stable; to overload the "
                    "queue on purpose set arrival_rate instead, which is not limited by capacity"
                )
            return None, float(load), None
        if arrival_rate is None and slack is None:
            return DEFAULT_ARRIVAL_RATE, None, DEFAULT_SLACK
        rate = DEFAULT_ARRIVAL_RATE if arrival_rate is None else arrival_rate
        rate = _check_float("arrival_rate", rate, 0.0, 1.0, " (queries per slot)")
        if slack is not None:
            slack = _check_float("slack", slack, 0.0, 1.0)
            if rate + slack >= 1.0:
                raise ValueError(
                    f"slack={slack!r} with arrival_rate={rate!r} asks for departure rates of at "
                    f"least {rate + slack:g}; their sum must be below 1"
                )
        return rate, None, slack

    def _draw(self, rng: np.random.Generator) -> tuple[Population, float]:
        size = self.assortment_size
        if self.slack is not None:
            least = (self.arrival_rate or 0.0) + self.slack

            def accept(utilities: NDArray[np.float64]) -> NDArray[np.bool_]:
                # sum_S o >= p / (1 - p) is p(x, S) >= p for the K largest odds.
                top = np.partition(np.exp(utilities), -size, axis=1)[:, -size:].sum(axis=1)
                return np.asarray(top >= least / (1.0 - least))

            contexts, utilities = self.workload.draw(rng, accept)
        else:
            contexts, utilities = self.workload.draw(rng)
        population = Population(contexts, utilities, size)
        if self.load is not None:
            return population, self.load * population.capacity
        assert self.arrival_rate is not None
        return population, self.arrival_rate

    def start(
        self, np_random: np.random.Generator
    ) -> tuple[Population, float, list[np.random.Generator]]:
        """Draw what one episode needs: population, arrival rate and the streams."""
        instance, *streams = np_random.spawn(1 + NUM_STREAMS)
        population, rate = self._fixed or self._draw(instance)
        return population, rate, streams

    def observation_space(self) -> spaces.Dict:
        window, dim = self.window, self.workload.context_dim
        largest = float(np.finfo(np.float32).max)
        count = spaces.Box(0.0, MAX_COUNT, (window,), np.float32)
        return spaces.Dict(
            {
                "contexts": spaces.Box(-largest, largest, (window, dim), np.float32),
                "waiting": spaces.MultiBinary(window),
                "retrials": count,
                "age": count,
                "wait": count,
                "queue_length": spaces.Box(0.0, MAX_COUNT, (1,), np.float32),
                "feedback": spaces.Discrete(FIRST_LLM + self.num_llms),
            }
        )

    def action_space(self) -> spaces.MultiDiscrete:
        return spaces.MultiDiscrete([self.window] + [self.num_llms] * self.assortment_size)

    def dynamics(self, num_lanes: int) -> QueueDynamics:
        dim = self.workload.context_dim
        return QueueDynamics(num_lanes, self.window, self.assortment_size, dim)

    def mask_table(self) -> NDArray[np.bool_]:
        """Flat action masks by the number of visible queries, shape (W + 1, W + N K)."""
        llm_entries = self.num_llms * self.assortment_size
        table = np.ones((self.window + 1, self.window + llm_entries), dtype=np.bool_)
        table[:, : self.window] = np.tri(self.window + 1, self.window, -1, dtype=np.bool_)
        table[0, 0] = True  # an empty queue keeps one legal action: slot 0, which does nothing
        return table

    def invalid_action(self, action: Any) -> ValueError:
        return ValueError(
            f"action={action!r} is not in the action space: it takes integers [slot, "
            f"{self.assortment_size} LLMs] with slot in [0, {self.window}) and LLMs in "
            f"[0, {self.num_llms})"
        )


class LLMQueueEnv(gym.Env[Observation, NDArray[np.int64]]):
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
    utilities); with it the instance is fixed and a seed only changes arrivals and outcomes.

    ## Episode End

    Never terminates; truncated after ``max_episode_steps`` (5000 by default).

    ## Information

    Only what a provider sees: ``arrived``, ``served``, ``departed``, ``retried`` (bool),
    ``kept_llm`` (index or -1), ``queue_length`` (int), ``action_mask``. After a reset:
    ``queue_length`` and ``action_mask``.

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

    ```python
    >>> import gymnasium as gym
    >>> env = gym.make("llmqueue_gym:LLMQueue-v0", num_llms=3, load=0.8)
    >>> observation, info = env.reset(seed=0)
    >>> observation["contexts"].shape, int(info["queue_length"])
    ((32, 5), 0)
    >>> observation, reward, terminated, truncated, info = env.step([0, 1, 2])
    >>> info["served"], reward == -info["queue_length"]
    (False, True)

    ```

    ## Version History

    * v0: initial version
    """  # noqa: E501 - tables

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 10,
    }

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
    ) -> None:
        self._task = task = _Task(
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
        )
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"render_mode={render_mode!r} is not supported; "
                f"choose one of {', '.join(self.metadata['render_modes'])} or None"
            )
        self.render_mode = render_mode
        self.observation_space = task.observation_space()
        self.action_space = task.action_space()
        self._action_shape = self.action_space.shape
        self._llm_indices = frozenset(range(task.num_llms))
        self.dynamics = task.dynamics(1)
        self._masks = task.mask_table()
        self._info_masks = self._masks.astype(np.int8)
        self._renderer: Any = None

    @property
    def llms(self) -> tuple[str, ...]:
        """Names of the LLMs, in the order of the action space."""
        return self._task.workload.llms

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Empty the queue and start the streams of the episode."""
        super().reset(seed=seed)
        population, rate, streams = self._task.start(self.np_random)
        self.dynamics.reset([0], [population], [rate], [streams])
        if self.render_mode is not None:
            self._start_rendering()
        return self._observe(), {"queue_length": 0, "action_mask": self._info_masks[0].copy()}

    def step(
        self, action: NDArray[np.int64]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Serve one query and run the slot to its end.

        Raises
        ------
        ValueError
            If the action is not in the action space.
        """
        task, dynamics = self._task, self.dynamics
        if not dynamics.ready:
            raise gym.error.ResetNeeded("call reset() before step()")
        values = np.asarray(action)
        if values.shape != self._action_shape or values.dtype.kind not in "iu":
            raise task.invalid_action(action)
        slot, *llms = values.tolist()
        if not 0 <= slot < task.window or not self._llm_indices.issuperset(llms):
            raise task.invalid_action(action)
        arrived, served, kept_llm = dynamics.step_single(slot, llms)
        departed = kept_llm >= 0
        length = dynamics.queue_length.item(0)
        info = {
            "arrived": arrived,
            "served": served,
            "departed": departed,
            "retried": served and not departed,
            "kept_llm": kept_llm,
            "queue_length": length,
            "action_mask": self._info_masks[min(length, task.window)].copy(),
        }
        if self._renderer is not None:
            self._renderer.record(slot, llms, info)
        reward = -float(length) if task.reward == "queue_length" else float(departed)
        return self._observe(), reward, False, False, info

    def _observe(self) -> Observation:
        return self.dynamics.observe_single()

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal actions now, flat bool of length W + N K (MaskablePPO's method)."""
        visible = min(int(self.dynamics.queue_length[0]), self._task.window)
        return np.array(self._masks[visible])

    def _start_rendering(self) -> None:
        from llmqueue_gym.envs.rendering import QueueRenderer

        if self._renderer is None:
            self._renderer = QueueRenderer(self.dynamics, self.llms)
        self._renderer.start()

    def render(self) -> str | NDArray[np.uint8] | None:
        """Draw the queue: text for ``ansi``, an (H, W, 3) picture for ``rgb_array``."""
        if self.render_mode is None or self._renderer is None:
            gym.logger.warn(
                "render() draws nothing without a render mode and a reset; "
                'use gym.make(..., render_mode="rgb_array") and reset first'
            )
            return None
        if self.render_mode == "ansi":
            text: str = self._renderer.text()
            return text
        picture: NDArray[np.uint8] = self._renderer.picture()
        return picture

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class LLMQueueVectorEnv(VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]):
    """B copies of LLMQueue-v0 stepped at once; lane i seeded s equals the scalar env seeded s + i.

    A step costs O(B (W d + N K)): mostly writing the observation, whatever the backlog and the
    time. With ``instance_seed`` all lanes share one table of queries; without it each lane holds
    its own (P (d + N) numbers).

    Parameters
    ----------
    num_envs : int
        Lanes, B.
    max_episode_steps : int
        Slots after which a lane is truncated.
    autoreset_mode : AutoresetMode or str
        ``NEXT_STEP`` (the step after a truncation resets; its action must be in the action space
        but is ignored), ``SAME_STEP`` (the truncating step returns the reset observation;
        ``info["final_obs"]`` and ``info["final_info"]`` hold the last ones) or ``DISABLED``
        (reset by ``reset(options={"reset_mask": mask})``).
    **kwargs
        Arguments of :class:`LLMQueueEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int = 5000,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("render_mode") is not None:
            raise ValueError(
                f"render_mode={kwargs['render_mode']!r}: the vector environment does not render; "
                'watch one copy with gym.make("LLMQueue-v0", render_mode=...)'
            )
        self.num_envs = check_count("num_envs", num_envs)
        self._max_episode_steps = check_count("max_episode_steps", max_episode_steps)
        if max_episode_steps > MAX_SLOTS:
            raise ValueError(f"max_episode_steps={max_episode_steps} exceeds {MAX_SLOTS}; lower it")
        self._autoreset = _autoreset_mode(autoreset_mode)
        self._task = task = LLMQueueEnv(**kwargs)._task
        self.metadata = {"render_modes": [], "autoreset_mode": self._autoreset}
        self.render_mode = None
        self.single_observation_space = task.observation_space()
        self.single_action_space = task.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        # Not batch_space: its Box samples five times slower and takes no mask.
        self.action_space = spaces.MultiDiscrete(
            np.tile(self.single_action_space.nvec, (num_envs, 1))
        )
        self.dynamics = task.dynamics(num_envs)
        self._upper = np.tile(self.single_action_space.nvec.astype(np.uint64), (num_envs, 1))
        self._masks = task.mask_table()
        self._info_masks = self._masks.astype(np.int8)
        self._generators: list[np.random.Generator] = []
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    @property
    def llms(self) -> tuple[str, ...]:
        """Names of the LLMs, in the order of the action space."""
        return self._task.workload.llms

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Reset all lanes, or those of ``options["reset_mask"]`` (bool, shape (B,)).

        Lane i takes ``seed + i``, or the i-th entry of a list of seeds.
        """
        mask = np.ones(self.num_envs, dtype=np.bool_)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
                raise ValueError(
                    f"options['reset_mask']={mask!r} must be a bool array of shape "
                    f"({self.num_envs},) with at least one True"
                )
        self._seed_lanes(seed, mask)
        self._reset_lanes(np.flatnonzero(mask))
        return self._observe(), self._state_info(mask)

    def _seed_lanes(self, seed: int | Sequence[int | None] | None, mask: NDArray[np.bool_]) -> None:
        first = not self._generators
        if first and not mask.all():
            raise ValueError("options['reset_mask']: the first reset must name every lane")
        if seed is None:
            seeds: list[int | None] = [None] * self.num_envs
        elif isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + lane for lane in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries for {self.num_envs} lanes")
        if first:
            self._generators = [np.random.default_rng() for _ in seeds]
        for lane in np.flatnonzero(mask):
            if seeds[lane] is not None:
                self._generators[lane] = gym.utils.seeding.np_random(seeds[lane])[0]

    def _reset_lanes(self, lanes: NDArray[np.int64]) -> None:
        starts = [self._task.start(self._generators[lane]) for lane in lanes]
        populations, rates, streams = zip(*starts, strict=True)
        self.dynamics.reset(lanes.tolist(), populations, rates, streams)
        self._ended[lanes] = False

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[
        Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Run one slot in every lane; ``actions`` has shape (B, 1 + K).

        Raises
        ------
        ValueError
            If an action is not in the action space.
        """
        task, dynamics = self._task, self.dynamics
        if not dynamics.ready:
            raise gym.error.ResetNeeded("call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != self._upper.shape or actions.dtype.kind not in "iu":
            raise task.invalid_action(actions)
        # As unsigned numbers, negative ones are too large as well.
        if (actions.astype(np.uint64) >= self._upper).any():
            raise task.invalid_action(actions)
        resetting = None
        if self._ended.any():
            if self._autoreset is AutoresetMode.DISABLED:
                raise ValueError(
                    "lanes have ended and autoreset_mode is DISABLED; "
                    "reset them with reset(options={'reset_mask': mask})"
                )
            resetting = self._ended.copy()
        outcome = dynamics.step(actions[:, 0], actions[:, 1:])
        if resetting is not None:
            self._reset_lanes(np.flatnonzero(resetting))
        truncated = dynamics.slot >= self._max_episode_steps
        if task.reward == "queue_length":
            rewards = -dynamics.queue_length.astype(np.float64)
        else:
            rewards = outcome.departed.astype(np.float64)
        stepped = np.ones(self.num_envs, dtype=np.bool_)
        info: dict[str, Any] = vars(outcome).copy()
        if resetting is not None:
            rewards[resetting] = 0.0
            stepped &= ~resetting
            for key in ("arrived", "served", "departed", "retried"):
                info[key] &= stepped
            info["kept_llm"][resetting] = -1
        for key in tuple(info):
            info[f"_{key}"] = stepped
        info |= self._state_info(np.ones(self.num_envs, dtype=np.bool_))
        observation = self._observe()
        if not truncated.any():
            return observation, rewards, np.zeros_like(truncated), truncated, info
        if self._autoreset is AutoresetMode.SAME_STEP:
            observation, info = self._same_step_reset(observation, truncated, info)
        else:
            self._ended = truncated.copy()
        return observation, rewards, np.zeros_like(truncated), truncated, info

    def _same_step_reset(
        self, last: Observation, truncated: NDArray[np.bool_], info: dict[str, Any]
    ) -> tuple[Observation, dict[str, Any]]:
        final = np.full(self.num_envs, None, dtype=object)
        lanes = np.flatnonzero(truncated)
        for lane in lanes:
            final[lane] = {key: value[lane] for key, value in last.items()}
        final_info = {
            key: truncated.copy() if key.startswith("_") else value for key, value in info.items()
        }
        self._reset_lanes(lanes)
        kept = {key: value for key, value in info.items() if not key.startswith("_")}
        running = ~truncated
        after: dict[str, Any] = {}
        for key, value in kept.items():
            after[key], after[f"_{key}"] = value.copy(), running
        after |= self._state_info(np.ones(self.num_envs, dtype=np.bool_))
        for key in ("final_obs", "final_info"):
            after[f"_{key}"] = truncated.copy()
        after["final_obs"], after["final_info"] = final, final_info
        return self._observe(), after

    def _state_info(self, mask: NDArray[np.bool_]) -> dict[str, Any]:
        """Return the queue lengths and action masks of all lanes, with Gymnasium's key masks."""
        length = self.dynamics.queue_length
        return {
            "queue_length": length.copy(),
            "_queue_length": mask,
            "action_mask": self._info_masks.take(np.minimum(length, self._task.window), axis=0),
            "_action_mask": mask,
        }

    def _observe(self) -> Observation:
        return self.dynamics.observe()

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal actions of every lane, bool of shape (B, W + N K)."""
        visible = np.minimum(self.dynamics.queue_length, self._task.window)
        return self._masks.take(visible, axis=0)


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    for known in AutoresetMode:
        if mode in (known.name, known.value):
            return known
    names = ", ".join(known.name for known in AutoresetMode)
    raise ValueError(f"autoreset_mode={mode!r} is not known; choose one of {names}")
