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

from llmqueue_gym.workloads.pool import check_count

Observation = dict[str, Any]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
INSTANCE_TAG = 0x1A57
"""Seeds the generator of a fixed instance beside ``instance_seed``; no agent draws from it."""
VectorStep = tuple[Observation, NDArray[np.float64], Bools, Bools, dict[str, Any]]


def check_float(name: str, value: Any, low: float, high: float, hint: str = "") -> float:
    """Return the value as a float in [low, high], or raise a ValueError naming it."""
    number = isinstance(value, (int, float, np.integer, np.floating))
    if isinstance(value, bool) or not number or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a number in [{low:g}, {high:g}]{hint}")
    return float(value)


class RenderedEnv(gym.Env[Observation, Any]):
    """An environment with a renderer that is only made, and only fed, in a render mode."""

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 10,
    }
    _renderer: Any = None

    def _set_render_mode(self, render_mode: str | None) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            modes = ", ".join([*self.metadata["render_modes"], "None"])
            raise ValueError(f"render_mode={render_mode!r} is not supported; choose one of {modes}")
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

    def render(self) -> str | NDArray[np.uint8] | None:
        """Draw the state: text for ``ansi``, an (H, W, 3) picture for ``rgb_array``."""
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

    def close(self) -> None:
        """Free the renderer."""
        self._renderer = None


class LaneVectorEnv(VectorEnv[Observation, Ints, NDArray[Any]]):
    """B lanes over one batched dynamics; lane i seeded s equals the scalar env seeded s + i.

    Parameters
    ----------
    single : gymnasium.Env
        A scalar environment with the same arguments; it gives the spaces.
    num_envs : int
        Lanes, B.
    autoreset_mode : AutoresetMode or str
        ``NEXT_STEP`` (the step after a truncation resets; its action must be in the action space
        but is ignored), ``SAME_STEP`` (the truncating step returns the reset observation;
        ``info["final_obs"]`` and ``info["final_info"]`` hold the last ones) or ``DISABLED``
        (reset by ``reset(options={"reset_mask": mask})``).
    """

    def __init__(
        self, single: gym.Env[Any, Any], num_envs: int, autoreset_mode: AutoresetMode | str
    ) -> None:
        if single.render_mode is not None:
            raise ValueError(
                f"render_mode={single.render_mode!r}: the vector environment does not render; "
                "watch one copy with gym.make(..., render_mode=...)"
            )
        self.num_envs = check_count("num_envs", num_envs)
        self._autoreset = _read_autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self._autoreset}
        self.render_mode = None
        action_space = single.action_space
        assert isinstance(action_space, spaces.MultiDiscrete)
        self.single_observation_space = single.observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(single.observation_space, num_envs)
        # Not batch_space: its Box samples five times slower and takes no mask.
        self.action_space = spaces.MultiDiscrete(np.tile(action_space.nvec, (num_envs, 1)))
        self._upper = np.tile(action_space.nvec.astype(np.uint64), (num_envs, 1))
        self._generators: list[np.random.Generator] = []
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    @abstractmethod
    def _start_lanes(self, lanes: Ints, generators: list[np.random.Generator]) -> None:
        """Reset some lanes of the dynamics, each with its own generator."""

    @abstractmethod
    def _observe(self) -> Observation:
        """Return the observation of all lanes, freshly allocated."""

    @abstractmethod
    def _state_info(self, mask: Bools) -> dict[str, Any]:
        """Return what ``info`` says after resets too, with ``mask`` as Gymnasium's key masks."""

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

    def _seed_lanes(self, seed: int | Sequence[int | None] | None, mask: Bools) -> None:
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

    def _reset_lanes(self, lanes: Ints) -> None:
        self._start_lanes(lanes, [self._generators[lane] for lane in lanes])
        self._ended[lanes] = False

    def _checked_actions(self, actions: Any) -> Ints | None:
        """Return the actions as an array, or None if they are not in the action space.

        Raises
        ------
        gymnasium.error.ResetNeeded
            Before the first reset.
        ValueError
            If lanes have ended and wait for the caller's reset.
        """
        if not self._generators:
            raise gym.error.ResetNeeded("call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != self._upper.shape or actions.dtype.kind not in "iu":
            return None
        # As unsigned numbers, negative ones are too large as well.
        wide = actions.view(np.uint64) if actions.itemsize == 8 else actions.astype(np.uint64)
        if np.count_nonzero(wide >= self._upper):  # half the time of any(), like those below
            return None
        if self._autoreset is AutoresetMode.DISABLED and self._ended.any():
            raise ValueError(
                "lanes have ended and autoreset_mode is DISABLED; "
                "reset them with reset(options={'reset_mask': mask})"
            )
        checked: Ints = actions.astype(np.int64, copy=False)
        return checked

    def _end_step(
        self, rewards: NDArray[np.float64], truncated: Bools, info: dict[str, Any]
    ) -> VectorStep:
        """Return what a step returns, resetting lanes that ended as the autoreset mode says."""
        observation = self._observe()
        if np.count_nonzero(truncated):
            if self._autoreset is AutoresetMode.SAME_STEP:
                observation, info = self._same_step_reset(observation, truncated, info)
            else:
                self._ended = truncated.copy()
        return observation, rewards, np.zeros(self.num_envs, dtype=np.bool_), truncated, info

    def _same_step_reset(
        self, last: Observation, truncated: Bools, info: dict[str, Any]
    ) -> tuple[Observation, dict[str, Any]]:
        final = np.full(self.num_envs, None, dtype=object)
        lanes = np.flatnonzero(truncated)
        for lane in lanes:
            final[lane] = {key: value[lane] for key, value in last.items()}
        final_info = {
            key: truncated.copy() if key.startswith("_") else value for key, value in info.items()
        }
        self._reset_lanes(lanes)
        running = ~truncated
        after: dict[str, Any] = {}
        for key, value in info.items():
            if not key.startswith("_"):
                after[key], after[f"_{key}"] = value.copy(), running
        after |= self._state_info(np.ones(self.num_envs, dtype=np.bool_))
        for key in ("final_obs", "final_info"):
            after[f"_{key}"] = truncated.copy()
        after["final_obs"], after["final_info"] = final, final_info
        return self._observe(), after


def _read_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    for known in AutoresetMode:
        if mode in (known.name, known.value):
            return known
    names = ", ".join(known.name for known in AutoresetMode)
    raise ValueError(f"autoreset_mode={mode!r} is not known; choose one of {names}")
