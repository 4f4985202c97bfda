"""LLMServe-v0: busy replicas, returning users, deployment windows.

The scalar and the vector environment are thin shells over one `ServingDynamics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.registration import SERVE_EPISODE_STEPS
from llmqueue_gym.serving.dynamics import (
    ABANDONED,
    ARRIVALS,
    CLOCK,
    DISPATCHED,
    ILLEGAL,
    IN_SERVICE,
    KEPT,
    MAX_SLOTS,
    NOT_KEPT,
    QUEUED,
    Masks,
    SlotOutcome,
)
from llmqueue_gym.serving.lanes import ServingDynamics
from llmqueue_gym.serving.task import ServingTask
from llmqueue_gym.vector import Ints, LaneVectorEnv, Observation, SuiteEnv, check_reset

Settings = Mapping[str, Any]
BOUNDED = {"arrived": 1.0, "hosts": 1.0, "phase": 1.0, "until_update": 1.0, "waiting": 1.0}
"""Largest values of observed keys that are neither counts nor contexts."""


def make_dynamics(task: ServingTask, num_lanes: int) -> ServingDynamics:
    """Return the dynamics of a task."""
    day = getattr(task.arrivals, "day", 0)
    return ServingDynamics(num_lanes, task.public, day, shared=not task.drawn)


def start(
    task: ServingTask, dynamics: ServingDynamics, lanes: Sequence[int], generators: Sequence[Any]
) -> None:
    """Reset some lanes, each by a generator of its own."""
    instances, arrivals, keys = [], [], []
    for generator in generators:
        instance_rng, arrivals_rng, key_rng = generator.spawn(3)
        instance = task.draw(instance_rng)
        instances.append(instance)
        arrivals.append(task.arrivals.stream(instance.arrival_rate, arrivals_rng))
        keys.append(key_rng)
    dynamics.reset(lanes, instances, arrivals, keys)


def observation_space(dynamics: ServingDynamics) -> spaces.Dict:
    """Return the space of a lane's observation."""
    largest = float(np.finfo(np.float32).max)
    bounds = {"contexts": (-largest, largest), "serving": (-largest, largest), "day": (-1.0, 1.0)}
    return spaces.Dict(
        {
            key: spaces.Box(
                *bounds.get(key, (0.0, BOUNDED.get(key, float(MAX_SLOTS)))), shape, np.float32
            )
            for key, shape in dynamics.shapes().items()
        }
    )


def told(counts: NDArray[np.int64], answers: NDArray[np.int64]) -> dict[str, Any]:
    """Return what ``info`` says of a slot, of one lane or (lanes last in ``counts``) of all."""
    return {
        "arrived": counts[ARRIVALS] > 0,
        "dispatched": counts[DISPATCHED],
        "kept": counts[KEPT],
        "not_kept": counts[NOT_KEPT],
        "abandoned": counts[ABANDONED],
        "illegal": counts[ILLEGAL],
        "answers": answers,
    }


def state_told(counts: NDArray[np.int64], update_every: int, masks: Masks) -> dict[str, Any]:
    """Return what ``info`` says of the state, of one lane or of all."""
    return {
        "queue_length": counts[QUEUED],
        "in_service": counts[IN_SERVICE],
        "deploy_now": counts[CLOCK] % update_every == 0 if update_every else counts[CLOCK] < 0,
        "action_mask": masks,
    }


def problem_of(dynamics: ServingDynamics, lane: int = 0) -> dict[str, Any]:
    """Return the public parameters of a lane, JSON-plain."""
    if not dynamics.ready:
        raise gym.error.ResetNeeded("call reset() before problem is read")
    instance = dynamics.instances[lane]
    return {
        "num_llms": instance.num_llms,
        "num_replicas": instance.num_replicas,
        "context_dim": instance.contexts.shape[1],
        "window": instance.window,
        "dispatches": instance.dispatches,
        "places": instance.places.tolist(),
        "base_seconds": instance.base_seconds.tolist(),
        "each_seconds": instance.each_seconds.tolist(),
        "slot_seconds": instance.slot_seconds,
        "update_every": instance.update_every,
        "loading": instance.loading,
        "price": instance.price.tolist(),
        "rewards": instance.rewards._asdict(),
        "arrival_rate": instance.arrival_rate,
    }


def invalid_action(space: spaces.MultiDiscrete, action: Any) -> UsageError:
    """Return the error for an action that is not in the space."""
    return UsageError(
        f"action={action!r} is not in the action space: it takes integers [window slot, replica] "
        f"for every dispatch, then a target for every replica, each below {space.nvec.tolist()}"
    )


class LLMServeEnv(SuiteEnv):
    """Dispatch queries to busy replicas, and choose what these host, when users come back.

    ## Description

    Queries wait in one queue for R replicas. A replica hosts one LLM, serves several queries at
    once, and an answer takes time. Its user keeps it and leaves, or thinks and joins the tail
    again, or gives up; users who wait too long leave. At update points the policy may change what
    the replicas host, and loading takes time. So a replica can be reserved, kept idle or loaded
    ahead of need, and a rule that looks one step ahead is not optimal. It joins LLMQueue-v0
    (retrials) and LLMDeploy-v0 (windows); answers that take time are new.

    A query takes tokens, the same for every LLM. With n active queries a replica gives each of
    them v(n) = slot_seconds / (W + H n) tokens a slot (continuous batching; W and H of the GPU and
    the LLM), after one iteration per chunk of the prompt.

    One slot: (1) queries are dispatched in the order of the action, then, at an update point,
    targets are read; (2) every active query works; the user of one that is done keeps the answer of LLM m
    with probability p_m(x) = 1 / (1 + exp(-u_m(x))) and leaves, else gives up for good with
    probability delta, or thinks for a geometric time (rate nu; 1: at once) and joins the tail;
    (3) a waiting user whose patience is over leaves (geometric, rate theta); (4) a query arrives,
    at most one; (5) the state is read and the reward paid. Arrivals depend on the seed and the
    slot; tokens, outcome, patience and thinking on the seed, the query and the attempt only. So
    policies run on one seed meet the same users, and an LLM that is better for a query keeps its
    user whenever a worse one does.

    ## Action Space

    ``MultiDiscrete([W + 1, R] * A + [N + 1] * R)``:

    | Num | Action | Min | Max |
    |-----|--------|-----|-----|
    | 0, 2, ... 2A - 2 | window slot of the query to dispatch, 0 is the head; W holds back | 0 | W |
    | 1, 3, ... 2A - 1 | replica that serves it | 0 | R - 1 |
    | 2A .. 2A + R - 1 | LLM each replica is to host; N empties it | 0 | N |

    Window slots are those before the slot's first dispatch. A dispatch is legal if a query waits
    there and the replica is serving with a place free; an illegal one does nothing and is counted.
    Targets are read at update points only. A replica that is to change takes no new query, and
    loads when its last one has left.

    ``action_masks()`` (bool) and ``info["action_mask"]`` (int8) are flat, of length
    A (W + 1 + R) + R (N + 1). They rule out empty window slots and full, loading, draining and
    empty replicas; holding back stays legal, and away from update points each replica's own target.
    Two dispatches of one slot may still be for the same place: then the second is illegal.
    ``action_space.sample(mask=tuple(np.split(info["action_mask"],
    np.cumsum(action_space.nvec)[:-1])))`` draws a legal action.

    ## Observation Space

    ``Dict`` of float32 arrays; rows of the queue are window slots, empty ones are zero:

    | Key | Shape | Meaning | Min | Max |
    |-----|-------|---------|-----|-----|
    | active | (R,) | queries the replica serves | 0 | 2^24 |
    | age | (W,) | slots since arrival | 0 | 2^24 |
    | arrived | (N,) | 1 if the LLM can be deployed | 0 | 1 |
    | contexts | (W, d) | context of the query | -3.4e38 | 3.4e38 |
    | day | (2,) | sine and cosine of the hour; 0 without a day | -1 | 1 |
    | hosts | (R, N) | 1 at the LLM that the replica hosts or loads | 0 | 1 |
    | iterations | (R, C) | what each active query has been given, the longest served first | 0 | 2^24 |
    | kept | (N,) | answers kept in the last slot | 0 | 2^24 |
    | list_price | (N,) | published USD per million tokens; 0: none, or not arrived | 0 | 2^24 |
    | list_speed | (N,) | published tokens a second; 0: none, or not arrived | 0 | 2^24 |
    | loading_left | (R,) | slots left to load | 0 | 2^24 |
    | lost | (1,) | users who lost patience in the last slot | 0 | 2^24 |
    | not_kept | (N,) | answers not kept in the last slot | 0 | 2^24 |
    | phase | (R, 4) | 1 at empty, loading, serving or draining | 0 | 1 |
    | queue_length | (1,) | waiting queries, with those beyond the window | 0 | 2^24 |
    | retrials | (W,) | times the user has retried | 0 | 2^24 |
    | serving | (R, d) | mean context of the active queries | -3.4e38 | 3.4e38 |
    | until_update | (1,) | slots to the next update point, a share of the period; 1: fixed fleet | 0 | 1 |
    | wait | (W,) | slots since joining the tail | 0 | 2^24 |
    | waiting | (W,) | 1 where a query waits | 0 | 1 |

    Users who think are not seen. Queries beyond the window move up as slots free.

    ## Rewards

    The sum of kept x answers kept - holding x (waiting + in service) - lost x (users who left
    without one) - late x (first answers after ``sla`` slots) - price x (USD of the replicas that
    are not empty), with the weights of ``rewards``; weights left out are 0.

    ## Starting State

    Nobody is there; replicas host what the setting says. With queries from a workload every reset
    draws a new instance, unless ``instance_seed`` fixes it; one for which ``load`` takes more than
    one arrival in a slot is drawn again.

    ## Episode End

    Never terminates; truncated after ``max_episode_steps`` (5000 by default).

    ## Information

    Only what a provider sees: ``arrived``, ``deploy_now`` (bool), ``dispatched``, ``kept``,
    ``not_kept``, ``abandoned``, ``illegal``, ``queue_length``, ``in_service`` (int),
    ``action_mask``, and ``answers`` (R C, 3): slot in which the query arrived, which identifies it
    (now - age), the LLM, and 1 if kept; rows of -1 beyond the last. After a reset the same keys.

    ## Arguments

    All JSON-plain; a bad one raises ``ValueError`` with the fix. What is left out is the preset's:
    ``"tiny-pair"`` (one LLM fast and weak, one slow and strong), ``"slow-server"``,
    ``"impatient"``, ``"fleet"`` (3 LLMs, 4 replicas), ``"autoscale"`` (windows, a day, prices),
    ``"streaming"`` (88 real LLMs arrive), ``"from-log"`` (fitted on a log of your own service).

    | Name | Default | Meaning |
    |------|---------|---------|
    | preset | "fleet" | the other settings; None: those of `llmqueue_gym.serving.presets.DEFAULTS` |
    | queries | preset | a list of ``{"keep": [p of every LLM], "share", "tokens", "impatience"}``; ``{"source": "graded", "pool_size", "context_dim"}``; or a workload of LLMQueue-v0 |
    | llms | preset | names, mappings ``{"name", "size", "quality", "arrives", "list_price", "list_speed"}``, or "catalog" |
    | replicas | preset | mappings: ``"gpu"``, ``"finish"`` (probability a slot) or ``"base_seconds"`` and ``"each_seconds"`` (W, H); ``"hosts"``, ``"places"``, ``"price"`` (USD an hour), ``"chunk"`` (prompt tokens an iteration), ``"count"`` |
    | tokens | preset | ``{"law": "geometric", "mean"}``, ``{"law": "lognormal", "mean", "sigma", "input"}``, ``{"law": "trace", "path"}`` |
    | arrivals | preset | as for LLMQueue-v0; ``{"process": "daily", "day": 2000, "swing": 0.8}`` |
    | arrival_rate | preset | mean arrivals a slot; may overload the fleet |
    | load | preset | rho < 1 of `ServingInstance.load` in place of a rate |
    | return_rate | preset | nu |
    | give_up | preset | delta |
    | impatience | preset | theta |
    | slot_seconds | preset | seconds of a slot |
    | update_every | preset | slots from one update point to the next, the first at slot 0; 0: never |
    | loading | preset | slots that a replica loads |
    | dispatches | preset | dispatches a slot, A |
    | window | preset | visible slots, W |
    | rewards | preset | ``{"kept", "holding", "lost", "late", "price", "sla"}`` |
    | log | None | with ``preset="from-log"``: a file, or ``{"path", "columns", "min_rows", "context_dim"}`` |
    | instance_seed | None | fixes the instance |
    | disguise | None | number of a held-out variant: LLMs, replicas and kinds of query in another order, figures a little off |
    | flat_observation | False | observe one float32 vector: the keys in alphabetical order |

    ```python
    >>> import gymnasium as gym
    >>> env = gym.make("llmqueue_gym:LLMServe-v0", preset="tiny-pair", load=0.7)
    >>> observation, info = env.reset(seed=0)
    >>> observation["hosts"].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    >>> hold, anywhere, stay = 32, 0, [0, 1]
    >>> observation, reward, *_ = env.step([0, 1, hold, anywhere, *stay])
    >>> bool(reward == -info["queue_length"])
    True

    ```

    ## Version History

    * v0: initial version
    """  # noqa: E501 - tables

    def __init__(
        self,
        preset: str | None = "fleet",
        queries: Sequence[Settings] | Settings | str | None = None,
        llms: Sequence[Settings | str] | str | None = None,
        replicas: Sequence[Settings] | None = None,
        tokens: Settings | None = None,
        arrivals: Settings | str | None = None,
        arrival_rate: float | None = None,
        load: float | None = None,
        return_rate: float | None = None,
        give_up: float | None = None,
        impatience: float | None = None,
        slot_seconds: float | None = None,
        update_every: int | None = None,
        loading: int | None = None,
        dispatches: int | None = None,
        window: int | None = None,
        rewards: Settings | None = None,
        log: Settings | str | None = None,
        instance_seed: int | None = None,
        disguise: int | None = None,
        render_mode: str | None = None,
        flat_observation: bool = False,
    ) -> None:
        self.task = ServingTask(
            preset,
            instance_seed,
            log,
            disguise,
            queries=queries,
            llms=llms,
            replicas=replicas,
            tokens=tokens,
            arrivals=arrivals,
            arrival_rate=arrival_rate,
            load=load,
            return_rate=return_rate,
            give_up=give_up,
            impatience=impatience,
            slot_seconds=slot_seconds,
            update_every=update_every,
            loading=loading,
            dispatches=dispatches,
            window=window,
            rewards=rewards,
        )
        self._set_render_mode(render_mode)
        self.dynamics = make_dynamics(self.task, 1)
        self._set_observation_space(observation_space(self.dynamics), flat_observation)
        self.action_space = self._actions = spaces.MultiDiscrete(self.task.action_sizes())
        self._legal = np.ones((1, self._actions.nvec.sum()), dtype=np.int8)
        self._upper = self._actions.nvec.astype(np.uint64)

    @property
    def llms(self) -> tuple[str, ...]:
        """Names of the LLMs, in the order of the action space."""
        return self.task.public.llms

    @property
    def problem(self) -> dict[str, Any]:
        """Public parameters, JSON-plain.

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset, which draws the instance and with it the arrival rate.
        """
        return problem_of(self.dynamics)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Empty the system and start the draws of the episode."""
        super().reset(seed=seed)
        start(self.task, self.dynamics, [0], [self.np_random])
        self._start_rendering()
        return self._shown(), self._info(self.dynamics.nothing())

    def step(self, action: NDArray[np.int64]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Set targets, dispatch queries and run the slot to its end.

        Raises
        ------
        ValueError
            If the action is not in the action space.
        """
        if not self.dynamics.ready:
            raise gym.error.ResetNeeded("call reset() before step()")
        values = checks.array(action)
        if values.shape != self._upper.shape or values.dtype.kind not in "iu":
            raise invalid_action(self._actions, action)
        # As unsigned numbers, negative ones are too large as well.
        if np.count_nonzero(values.astype(np.uint64) >= self._upper):
            raise invalid_action(self._actions, action)
        outcome = self.dynamics.step(values[None])
        shown, info = self._shown(), self._info(outcome)
        if self._renderer is not None:
            self._renderer.record(info)
        return shown, float(outcome.reward[0]), False, False, info

    def _shown(self) -> Any:
        vectors, self._legal = self.dynamics.see()
        if self.layout is not None:
            return vectors[0]
        return self.dynamics.unpack(vectors[0])

    def _observe(self) -> Observation:
        return dict(self.dynamics.unpack(self.dynamics.see()[0][0]))

    def _info(self, outcome: SlotOutcome) -> dict[str, Any]:
        """Return ``info``: NumPy scalars and arrays; clients ask its entries for a dtype."""
        counts, every = self.dynamics.state.counts[0], self.task.public.update_every
        state = state_told(counts, every, self._legal[0].copy())
        return told(outcome.counts[0], outcome.answers[0]) | state

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal actions now, flat bool (MaskablePPO's method).

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        """
        check_reset(self.dynamics.ready, "action_masks")
        legal: NDArray[np.bool_] = self._legal[0].astype(np.bool_)
        return legal

    def _make_renderer(self) -> Any:
        from llmqueue_gym.serving.picture import ServingRenderer

        return ServingRenderer(self.dynamics)


class LLMServeVectorEnv(LaneVectorEnv, VectorEnv[Any, NDArray[np.int64], NDArray[Any]]):
    """B copies of LLMServe-v0 stepped at once; lane i seeded s equals the scalar env seeded s + i.

    Parameters
    ----------
    num_envs : int
        Lanes, B.
    max_episode_steps : int, optional
        Slots after which a lane is truncated; None: 5000, as registered, -1: never.
    autoreset_mode : AutoresetMode or str
        ``NEXT_STEP``, ``SAME_STEP`` or ``DISABLED``; see `LaneVectorEnv`.
    **kwargs
        Arguments of `LLMServeEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **kwargs: Any,
    ) -> None:
        single = LLMServeEnv(**kwargs)
        steps = SERVE_EPISODE_STEPS, MAX_SLOTS + 1
        super().__init__(single, num_envs, max_episode_steps, autoreset_mode, *steps)
        self.task = single.task
        self.dynamics = make_dynamics(self.task, num_envs)
        self._actions = spaces.MultiDiscrete(self.task.action_sizes())
        self._legal = np.ones((num_envs, self._actions.nvec.sum()), dtype=np.int8)

    def _problem(self, lane: int) -> dict[str, Any]:
        return problem_of(self.dynamics, lane)

    def _start_lanes(self, lanes: NDArray[np.int64], generators: list[np.random.Generator]) -> None:
        start(self.task, self.dynamics, lanes.tolist(), generators)

    def _play(self, actions: Ints) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
        outcome = self.dynamics.step(actions)
        return told(outcome.counts.T, outcome.answers), outcome.reward

    def _steps_done(self) -> Ints:
        return self.dynamics.slot

    def _invalid_action(self, actions: Any) -> UsageError:
        return invalid_action(self._actions, actions)

    def _no_outcome(self) -> dict[str, NDArray[Any]]:
        nothing = self.dynamics.nothing()
        return told(nothing.counts.T, nothing.answers)

    def _state_info(self) -> dict[str, NDArray[Any]]:
        counts, every = self.dynamics.state.counts.T.copy(), self.task.public.update_every
        return state_told(counts, every, self._legal.copy())

    def _shown(self) -> Any:
        vectors, self._legal = self.dynamics.see()
        return vectors if self.layout is not None else self.dynamics.unpack(vectors)

    def _observe(self) -> Observation:
        return dict(self.dynamics.unpack(self.dynamics.see()[0]))

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the legal actions of every lane, bool of shape (B, A (W + 1 + R) + R (N + 1)).

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        """
        check_reset(self._started, "action_masks")
        return self._legal.astype(np.bool_)
