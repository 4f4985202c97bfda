"""ACQB-CL: ACQB on contexts that a contrastively trained projection brings nearer to utilities.

Bae, Son, Lee, "Learning to Route and Schedule LLMs from User Retrials via Contextual Queueing
Bandits", arXiv 2602.02061.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from baselines.interface import Observation, QueueProblem
from baselines.queueing.acqb import ACQB, SOURCE, check_acqb_settings
from baselines.queueing.base import LinearPolicy, Pairing, QueueAgent, Remembered, Served
from baselines.queueing.offline import OFFLINE_SPLIT, offline_data
from baselines.registry import agent
from llmqueue_gym import checks
from llmqueue_gym.errors import needing
from llmqueue_gym.workloads.pool import OfflineData

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Weights = Mapping[str, NDArray[np.float32]]

TEMPERATURE = 0.07
POSITIVE_ABOVE, NEGATIVE_BELOW = 0.7, 0.0
"""Cosines of profiles: tau_pos and tau_neg."""

NEGATIVES = 64
LEARNING_RATE, WEIGHT_DECAY, CLIP = 3e-4, 1e-4, 1.0
LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Projection:
    """The projection B: linear d -> 2h, ReLU, linear to h, LayerNorm, scaled to norm 1; frozen.

    With ``intercept`` a constant is appended and the vector scaled to norm 1 again, as the text
    contexts of `llmqueue_gym.workloads.embeddings` have it: a linear model then has an intercept.

    Attributes
    ----------
    weights : Mapping of ndarray
        Parameters by their names in the network.
    intercept : bool
        Whether to append the constant.
    """

    weights: Weights
    intercept: bool = True

    @property
    def dim(self) -> int:
        """Length of a projected context."""
        return len(self.weights["2.bias"]) + self.intercept

    def __call__(self, contexts: NDArray[Any]) -> NDArray[np.float32]:
        """Project contexts (n, d) to (n, ``dim``)."""
        w = self.weights
        hidden = np.maximum(contexts @ w["0.weight"].T + w["0.bias"], 0.0)
        z = hidden @ w["2.weight"].T + w["2.bias"]
        z -= z.mean(axis=1, keepdims=True)
        z /= np.sqrt(z.var(axis=1, keepdims=True) + LAYER_NORM_EPSILON)
        z = z * w["3.weight"] + w["3.bias"]
        z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
        if self.intercept:
            z = np.hstack([z, np.ones((len(z), 1))]) / np.sqrt(2.0)
        projected: NDArray[np.float32] = z.astype(np.float32)
        return projected


def profiles(utilities: Floats) -> Floats:
    """Success rates of the LLMs, mean-centred and scaled to norm 1 per row; 0 where all are equal.

    Rates are affine in quality minus weighted cost, so the table's scale does not matter.
    """
    rates = expit(utilities)
    rates -= rates.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rates, axis=1, keepdims=True)
    return np.where(norms > 1e-9, rates / np.maximum(norms, 1e-9), 0.0)


def training_rows(
    utilities: Floats, share: float, min_per_llm: int, rng: np.random.Generator
) -> Ints:
    """Random rows: a share of all, and more of an LLM's until it wins ``min_per_llm`` (if it can).

    The winner of a row is the LLM with the largest utility, drawn among equals.
    """
    order = rng.permutation(len(utilities))
    largest = utilities == utilities.max(axis=1, keepdims=True)
    winner = np.argmax(largest * rng.random(utilities.shape), axis=1)
    chosen = np.zeros(len(utilities), dtype=np.bool_)
    chosen[order[: round(share * len(order))]] = True
    for llm in range(utilities.shape[1]):
        wins = order[winner[order] == llm]
        lacking = min_per_llm - int(chosen[wins].sum())
        chosen[wins[~chosen[wins]][: max(0, lacking)]] = True
    return np.flatnonzero(chosen)


def train_projection(
    data: OfflineData,
    *,
    hidden: int = 128,
    share: float = 0.4,
    min_per_llm: int = 20,
    epochs: int = 300,
    batch_size: int = 256,
    held_out: float = 0.2,
    intercept: bool = True,
    seed: int = 0,
) -> Projection:
    """Train the projection by a supervised contrastive loss on utility profiles.

    In a mini-batch, rows whose profiles have a cosine above 0.7 are positives, of which the closest
    is used ((R) among equally close ones the one whose context is nearest); rows below 0 are
    negatives, of which the 64 least alike are used; a row without either is skipped. With cosines
    s of the projected contexts and temperature tau the loss of a row is
    -log(e^{s_pos/tau} / (e^{s_pos/tau} + sum_neg e^{s_neg/tau})).

    Parameters
    ----------
    data : OfflineData
        The offline split.
    hidden : int
        Length h of a projected context.
    share, min_per_llm
        Part of the split that is used, see `training_rows`. 0.4 of it is a tenth of a table of
        texts, a quarter of which is kept back.
    epochs, batch_size : int
        (R) Most passes over these rows, and rows a step.
    held_out : float
        (R) Part of these rows that does not train but judges: the weights of the epoch with the
        smallest loss on it are kept, those before the first one included. 0 keeps the last ones.
    intercept : bool
        See `Projection`.
    seed : int
        Seed of the rows, the initial weights and the batches.

    Raises
    ------
    ImportError
        If torch is not installed.
    ValueError
        If a setting is out of range.
    """
    for name, value, least in (
        ("hidden", hidden, 2),
        ("min_per_llm", min_per_llm, 0),
        ("epochs", epochs, 0),
        ("batch_size", batch_size, 1),
    ):
        checks.count(name, value, least)
    checks.number("share", share, "(0, 1]")
    checks.number("held_out", held_out, "[0, 1)")
    with needing('agent "ACQB-CL"', "torch", "rl"):
        import torch
    rng = np.random.default_rng(seed)
    rows = training_rows(data.utilities, share, min_per_llm, rng)
    targets = profiles(data.utilities[rows]).astype(np.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a small network: and the bits do not depend on the machine
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            judge = rng.permutation(len(rows)) < round(held_out * len(rows))
            weights = _fit(data.contexts[rows], targets, judge, hidden, epochs, batch_size, rng)
    finally:
        torch.set_num_threads(threads)
    return Projection(weights, intercept)


def _fit(
    inputs: NDArray[np.float32],
    profile: NDArray[np.float32],
    judge: NDArray[np.bool_],
    hidden: int,
    epochs: int,
    batch_size: int,
    rng: np.random.Generator,
) -> Weights:
    """Run the optimiser and return the network's parameters."""
    import torch

    contexts, targets = torch.from_numpy(inputs), torch.from_numpy(profile)
    network = torch.nn.Sequential(
        torch.nn.Linear(contexts.shape[1], 2 * hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(2 * hidden, hidden),
        torch.nn.LayerNorm(hidden, eps=LAYER_NORM_EPSILON),
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def judged() -> float:
        with torch.no_grad():
            held = contexts[judge]
            loss = contrastive_loss(network(held), held, targets[judge]) if len(held) else None
        return -np.inf if loss is None else float(loss)

    def copied() -> Weights:
        return {name: value.numpy().copy() for name, value in network.state_dict().items()}

    best, kept = judged(), copied()
    training = np.flatnonzero(~judge)
    for _ in range(epochs):
        order = rng.permutation(training)
        for start in range(0, len(order), batch_size):
            batch = torch.from_numpy(order[start : start + batch_size])
            loss = contrastive_loss(network(contexts[batch]), contexts[batch], targets[batch])
            if loss is None:
                continue
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimiser.step()
        if (now := judged()) <= best:  # without rows to judge by, the last epoch is kept
            best, kept = now, copied()
    return kept


def contrastive_loss(projected: Any, contexts: Any, targets: Any) -> Any:
    """Mean loss of a mini-batch (tensors of n rows), or None if every row is skipped."""
    import torch

    alike = targets @ targets.T
    alike.fill_diagonal_(-2.0)  # not a pair
    near = torch.nn.functional.normalize(contexts, dim=1)
    # Profiles of graded answers repeat exactly; the nearest context decides between those.
    closest = torch.where(alike > POSITIVE_ABOVE, alike + 1e-3 * (near @ near.T), -torch.inf)
    best, positive = closest.max(dim=1)
    unlike = torch.where((alike < NEGATIVE_BELOW) & (alike > -1.5), -alike, -torch.inf)
    least, negative = unlike.topk(min(NEGATIVES, len(unlike)), dim=1)
    kept = torch.isfinite(best) & torch.isfinite(least[:, 0])
    if not kept.any():
        return None
    z = torch.nn.functional.normalize(projected, dim=1)
    scores = z @ z.T / TEMPERATURE
    against = torch.where(torch.isfinite(least), scores.gather(1, negative), -torch.inf)
    own = scores.gather(1, positive[:, None])
    losses = torch.logsumexp(torch.cat([own, against], dim=1), dim=1) - own[:, 0]
    return losses[kept].mean()


@agent("ACQB-CL", source=SOURCE)
class ACQBCL(ACQB):
    """ACQB-CL: train the projection on the offline split, freeze it, run ACQB on its output.

    Parameters
    ----------
    problem : QueueProblem
        Public parameters of the task, with its offline split.
    seed : int
        Seed of the agent's own randomness and of the training.
    hidden, share, min_per_llm, epochs, held_out, intercept
        Settings of the training, see `train_projection`.
    estimator, alpha_coef, anytime, exploration_rate, c1, ridge
        Settings of ACQB.

    Raises
    ------
    ImportError
        If torch is not installed.
    ValueError
        If the task has no offline split, or a setting is out of range.
    """

    protocol: ClassVar[str] = "pretrained"
    trained_on: ClassVar[str] = OFFLINE_SPLIT

    def __init__(
        self,
        problem: QueueProblem,
        seed: int,
        hidden: int = 128,
        share: float = 0.4,
        min_per_llm: int = 20,
        epochs: int = 300,
        held_out: float = 0.2,
        intercept: bool = True,
        estimator: str = "mle",
        alpha_coef: float = 0.03,
        anytime: bool = True,
        exploration_rate: float = 0.01,
        c1: float | None = None,
        ridge: float = 1.0,
    ) -> None:
        check_acqb_settings(estimator, alpha_coef, exploration_rate, c1, ridge)
        projection = train_projection(
            offline_data(problem, "ACQB-CL"),
            hidden=hidden,
            share=share,
            min_per_llm=min_per_llm,
            epochs=epochs,
            held_out=held_out,
            intercept=intercept,
            seed=seed,
        )
        # The ellipsoids know a query again by its bits, and rounding depends on the batch.
        self.projection = Remembered(projection)
        super().__init__(
            replace(problem, context_dim=projection.dim),
            seed,
            estimator,
            alpha_coef,
            anytime,
            exploration_rate,
            c1,
            ridge,
        )
        self.problem = problem

    def policy(self) -> LinearPolicy:
        """Refuse: utilities are linear in the projected context only."""
        return QueueAgent.policy(self)

    def choose(self, observation: Observation, waiting: int) -> Pairing:
        """Choose as ACQB on projected contexts."""
        projected = self.projection(observation["contexts"][:waiting])
        return super().choose({**observation, "contexts": projected}, waiting)

    def learn(self, served: Served) -> None:
        """Learn as ACQB from the projected context."""
        super().learn(served._replace(context=self.projection(served.context[None])[0]))
