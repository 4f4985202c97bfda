"""What the environments share: argument checks, rendering, and the contract of a vector env.

Lanes, seeds, masked resets and autoreset are the same for every problem.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from llmqueue_gym import checks
from llmqueue_gym.errors import UsageError
from llmqueue_gym.flat import FlatLayout

Observation = dict[str, Any]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
INSTANCE_TAG = 0x1A57
"""Seeds the generator of a fixed instance beside ``instance_seed``; no agent draws from it."""
NOBODY = ("kept_llm", "llm", "rated_llm", "answers")
"""Entries of ``info`` that name LLMs or queries, -1 where there is none."""
BY_LANE = ("problem", "np_random", "np_random_seed")
"""Attributes of a vector environment that have an entry for every lane."""
VectorStep = tuple[Any, NDArray[np.float64], Bools, Bools, dict[str, Any]]


def check_reset(is_done: bool, name: str) -> None:
    """Insist on a reset before a method is called.

    Raises
    ------
    gymnasium.error.ResetNeeded
        If there was none.
    """
    if not is_done:
        raise gym.error.ResetNeeded(f"call reset() before {name}()")


class Rendered:
    """A renderer that is only made, and only fed, in a render mode."""

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 10,
    }
    render_mode: str | None
    _renderer: Any = None

    def _set_render_mode(self, render_mode: str | None) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            modes = ", ".join([*self.metadata["render_modes"], "None"])
            raise UsageError(f"render_mode={render_mode!r} is not supported; choose one of {modes}")
        self.render_mode = render_mode

    @abstractmethod
    def _make_renderer(self) -> Any:
        """Return a renderer with ``start()``, ``text()`` and ``picture()``."""

    def _start_rendering(self) -> None:
        if self.render_mode is None:
            return
        if self._renderer is None:
            self._renderer = self._make_renderer()
        self._renderer.start()

    def _draw(self) -> str | NDArray[np.uint8] | None:
        if self._renderer is None:
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


class SuiteEnv(Rendered, gym.Env[Any, Any]):
    """What the scalar environments share: rendering, and a dict or a vector to observe.

    Attributes
    ----------
    dict_observation_space : gymnasium.spaces.Dict
        The observation space without ``flat_observation``.
    """

    dict_observation_space: spaces.Dict
    layout: FlatLayout | None
    dynamics: Any

    @property
    @abstractmethod
    def llms(self) -> tuple[str, ...]:
        """Names of the LLMs, in the order of the action space."""

    def _set_observation_space(self, space: spaces.Dict, flat_observation: bool) -> None:
        checks.flag("flat_observation", flat_observation)
        self.dict_observation_space = self.observation_space = space
        self.layout = FlatLayout(space) if flat_observation else None
        if self.layout is not None:
            self.observation_space = self.layout.space

    @abstractmethod
    def _observe(self) -> Observation:
        """Return the observation as a dict, freshly allocated."""

    def _shown(self) -> Any:
        """Return the observation as the observation space says."""
        observation = self._observe()
        return observation if self.layout is None else self.layout.flatten(observation)

    def render(self) -> str | NDArray[np.uint8] | None:
        """Draw the state: text for ``ansi``, an (H, W, 3) picture for ``rgb_array``."""
        return self._draw()

    def close(self) -> None:
        """Free the renderer."""
        self._renderer = None


class LaneVectorEnv(Rendered, VectorEnv[Any, Ints, NDArray[Any]]):
    """B lanes over one batched dynamics; lane i seeded s equals the scalar env seeded s + i.

    In a render mode ``render()`` draws lane 0 and returns one frame a lane, as Gymnasium's wrappers
    expect; the others are blank. What derives from this names `VectorEnv` as well: skrl knows an
    environment by its direct bases.

    Parameters
    ----------
    single : SuiteEnv
        A scalar environment with the same arguments; it gives the spaces.
    num_envs : int
        Lanes, B.
    max_episode_steps : int, optional
        Steps after which a lane is truncated; None: ``usual``, -1: ``most``.
    autoreset_mode : AutoresetMode or str
        ``NEXT_STEP`` (the step after a truncation resets; its action must be in the action space
        but is ignored), ``SAME_STEP`` (the truncating step returns the reset observation;
        ``info["final_obs"]`` and ``info["final_info"]`` hold the last ones) or ``DISABLED``
        (reset by ``reset(options={"reset_mask": mask})``).
    usual, most : int
        Steps of an episode.
    """

    def __init__(
        self,
        single: SuiteEnv,
        num_envs: int,
        max_episode_steps: int | None,
        autoreset_mode: AutoresetMode | str,
        usual: int,
        most: int,
    ) -> None:
        self.num_envs = checks.count("num_envs", num_envs)
        self._last = usual if max_episode_steps is None else most
        if max_episode_steps is not None and max_episode_steps != -1:
            self._last = min(most, checks.count("max_episode_steps", max_episode_steps))
        self.llms = single.llms  # names of the LLMs, in the order of the action space
        self.autoreset_mode = _read_autoreset_mode(autoreset_mode)
        self.metadata = {**single.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = single.render_mode
        action_space = single.action_space
        assert isinstance(action_space, spaces.MultiDiscrete)
        self.dict_observation_space = single.dict_observation_space
        self.layout = single.layout
        self._draws = type(single)._make_renderer  # what draws the scalar one draws lane 0
        self.single_observation_space = single.observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(single.observation_space, num_envs)
        # Not batch_space: its Box samples five times slower and takes no mask.
        self.action_space = spaces.MultiDiscrete(np.tile(action_space.nvec, (num_envs, 1)))
        self._upper = np.tile(action_space.nvec.astype(np.uint64), (num_envs, 1))
        self._generators: list[np.random.Generator] = []
        self._seeds: list[int] = []
        self._started = False
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._info_masks: tuple[str, ...] = ()

    def _make_renderer(self) -> Any:
        return self._draws(self)

    @abstractmethod
    def _play(self, actions: Ints) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
        """Step the dynamics; return what ``info`` says of it and the rewards of all lanes.

        Lanes that have ended and wait for a reset may be stepped or not.
        """

    @abstractmethod
    def _steps_done(self) -> Ints:
        """Return the steps of every lane since its reset, shape (B,)."""

    @abstractmethod
    def _invalid_action(self, actions: Any) -> UsageError:
        """Return the error for actions outside the space."""

    @abstractmethod
    def _start_lanes(self, lanes: Ints, generators: list[np.random.Generator]) -> None:
        """Reset some lanes of the dynamics, each with its own generator."""

    @abstractmethod
    def _observe(self) -> Observation:
        """Return the observation of all lanes as a dict, freshly allocated."""

    @abstractmethod
    def _state_info(self) -> dict[str, NDArray[Any]]:
        """Return what ``info`` says of the state of all lanes, freshly allocated."""

    @abstractmethod
    def _no_outcome(self) -> dict[str, NDArray[Any]]:
        """Return what ``info`` says of a step of all lanes in which nothing was done."""

    @abstractmethod
    def _problem(self, lane: int) -> dict[str, Any]:
        """Return the public parameters of a lane."""

    @property
    def problem(self) -> dict[str, Any]:
        """Public parameters as those of the scalar environment, where all lanes have the same.

        Raises
        ------
        ValueError
            If they differ: then ``get_attr("problem")`` has one a lane.
        """
        problem, *others = self.get_attr("problem")
        for other in others:
            if other != problem:
                names = ", ".join(key for key, value in problem.items() if other[key] != value)
                raise UsageError(
                    f"the lanes differ in {names}; get_attr('problem') has one problem a lane"
                )
        return dict(problem)

    # ------------------------------------------------ as in Gymnasium's SyncVectorEnv

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return what the scalar environment of each lane would: an attribute, or a call's result.

        Parameters
        ----------
        name : str
            Attribute, or method such as ``action_masks``.
        *args, **kwargs
            Arguments of the method.
        """
        if name == "problem":  # as an attribute it is an error where lanes differ
            return tuple(self._problem(lane) for lane in range(self.num_envs))
        if name in ("observation_space", "action_space"):
            name = f"single_{name}"
        value = getattr(self, name)
        if callable(value):
            value = value(*args, **kwargs)
        if name in ("action_masks", "np_random", "np_random_seed", "render") and value is not None:
            return tuple(value)
        return (value,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every lane."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of all lanes.

        Parameters
        ----------
        name : str
            Attribute.
        values : object
            Its value, or a list or tuple with the same value for each lane.

        Raises
        ------
        ValueError
            If the lanes are to differ: they are one object.
        """
        if isinstance(values, (list, tuple)):
            if len(values) != self.num_envs:
                raise UsageError(
                    f"values has {len(values)} entries for {self.num_envs} lanes; give one a lane"
                )
            if not all(np.array_equal(value, values[0]) for value in values):
                raise UsageError(
                    f"values={values!r} differ, but the lanes are one object; set {name!r} to one "
                    "value"
                )
            values = values[0]
        setattr(self, name, values)

    @property  # type: ignore[misc]  # Gymnasium's can be set; SyncVectorEnv's cannot either
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of every lane."""
        self._seed_generators()
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of every lane's generator."""
        self._seed_generators()
        return tuple(self._seeds)

    def _seed_generators(self) -> None:
        if not self._generators:
            pairs = [gym.utils.seeding.np_random() for _ in range(self.num_envs)]
            self._generators = [generator for generator, _ in pairs]
            self._seeds = [seed for _, seed in pairs]

    def render(self) -> tuple[Any, ...] | None:
        """Draw lane 0, as the scalar environment draws itself; the frames of others are blank."""
        frame = self._draw()
        if frame is None:
            return None
        blank: Any = "" if isinstance(frame, str) else np.zeros_like(frame)
        return (frame, *[blank] * (self.num_envs - 1))

    def close_extras(self) -> None:
        """Free the renderer."""
        self._renderer = None

    # ------------------------------------------------------------- reset and step

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all lanes, or those of ``options["reset_mask"]`` (bool, shape (B,)).

        Lane i takes ``seed + i``, or the i-th entry of a list of seeds.
        """
        mask = np.ones(self.num_envs, dtype=np.bool_)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
                raise UsageError(
                    f"options['reset_mask']={mask!r} must be a bool array of shape "
                    f"({self.num_envs},) with at least one True"
                )
        self._seed_lanes(seed, mask)
        self._reset_lanes(np.flatnonzero(mask))
        return self._shown(), self._masked(self._no_outcome() | self._state_info(), mask)

    def _shown(self) -> Any:
        """Return the observation of all lanes as the observation space says."""
        observation = self._observe()
        return observation if self.layout is None else self.layout.flatten_lanes(observation)

    def _masked(self, info: dict[str, NDArray[Any]], mask: Bools) -> dict[str, Any]:
        """Return the info with Gymnasium's key masks: the lanes that have each entry."""
        if not self._info_masks:
            self._info_masks = tuple(f"_{key}" for key in info)
        return info | dict.fromkeys(self._info_masks, mask)

    def _seed_lanes(self, seed: int | Sequence[int | None] | None, mask: Bools) -> None:
        if not self._started and not mask.all():
            raise UsageError("options['reset_mask']: the first reset must name every lane")
        if seed is None:
            seeds: list[int | None] = [None] * self.num_envs
        elif isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + lane for lane in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise UsageError(f"seed has {len(seeds)} entries for {self.num_envs} lanes")
        self._seed_generators()
        named = [lane for lane in np.flatnonzero(mask).tolist() if seeds[lane] is not None]
        # All before any is changed: one that is none is an error, and leaves every lane as it is.
        drawn = [gym.utils.seeding.np_random(seeds[lane]) for lane in named]
        for lane, (generator, number) in zip(named, drawn, strict=True):
            self._generators[lane], self._seeds[lane] = generator, number

    def _reset_lanes(self, lanes: Ints) -> None:
        self._start_lanes(lanes, [self._generators[lane] for lane in lanes])
        self._started = True
        self._ended[lanes] = False
        if self.render_mode is not None and 0 in lanes:
            self._start_rendering()

    def _checked_actions(self, actions: Any) -> Ints | None:
        """Return the actions as an array, or None if they are not in the action space.

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        ValueError
            If lanes have ended and wait for the caller's reset.
        """
        check_reset(self._started, "step")
        actions = checks.array(actions)
        if actions.shape != self._upper.shape or actions.dtype.kind not in "iu":
            return None
        # As unsigned numbers, negative ones are too large as well.
        wide = actions.view(np.uint64) if actions.itemsize == 8 else actions.astype(np.uint64)
        if np.count_nonzero(wide >= self._upper):  # half the time of any(), like those below
            return None
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise UsageError(
                "lanes have ended and autoreset_mode is DISABLED; "
                "reset them with reset(options={'reset_mask': mask})"
            )
        checked: Ints = actions.astype(np.int64, copy=False)
        return checked

    def _record(self, action: Ints, info: dict[str, Any]) -> None:
        """Tell the renderer what lane 0 did."""
        self._renderer.record(info)

    def step(self, actions: Ints) -> VectorStep:
        """Step every lane; an action a row.

        Raises
        ------
        ValueError
            If an action is not in the action space.
        """
        checked = self._checked_actions(actions)
        if checked is None:
            raise self._invalid_action(actions)
        waiting = self._ended.copy() if np.count_nonzero(self._ended) else None
        outcome, rewards = self._play(checked)
        if self._renderer is not None and not (waiting is not None and waiting[0]):
            shown = outcome | self._state_info()
            self._record(checked[0], {key: values[0] for key, values in shown.items()})
        if waiting is not None:
            self._reset_lanes(np.flatnonzero(waiting))
            rewards[waiting] = 0.0
            forget(outcome, waiting)
        truncated = self._steps_done() >= self._last
        observation, info = self._shown(), outcome | self._state_info()
        final: dict[str, Any] = {}
        if np.count_nonzero(truncated):
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                final = self._final(observation, info, truncated)
                self._reset_lanes(np.flatnonzero(truncated))
                outcome = {key: values.copy() for key, values in outcome.items()}
                forget(outcome, truncated)
                observation, info = self._shown(), outcome | self._state_info()
            else:
                self._ended = truncated.copy()
        info = self._masked(info, np.ones(self.num_envs, dtype=np.bool_)) | final
        return observation, rewards, np.zeros(self.num_envs, dtype=np.bool_), truncated, info

    def _final(
        self, observation: Any, info: dict[str, NDArray[Any]], truncated: Bools
    ) -> dict[str, Any]:
        """Return the entries of ``info`` that hold the last of lanes that end in SAME_STEP mode."""
        last = np.full(self.num_envs, None, dtype=object)
        for lane in np.flatnonzero(truncated):
            if isinstance(observation, dict):
                last[lane] = {key: value[lane] for key, value in observation.items()}
            else:
                last[lane] = observation[lane]
        return {
            "final_obs": last,
            "_final_obs": truncated.copy(),
            "final_info": self._masked(info, truncated.copy()),
            "_final_info": truncated.copy(),
        }


def forget(outcome: dict[str, NDArray[Any]], lanes: Bools | Ints) -> None:
    """Set some lanes of an outcome to what it is after a reset: nothing was done."""
    for key, values in outcome.items():
        values[lanes] = -1 if key in NOBODY else 0


def _read_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    for known in AutoresetMode:
        if mode in (known.name, known.value):
            return known
    names = ", ".join(known.name for known in AutoresetMode)
    raise UsageError(f"autoreset_mode={mode!r} is not known; choose one of {names}")
