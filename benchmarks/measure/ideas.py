"""What else is in the data: priors over the LLMs, fitted on some queries and held against others.

Of a table of real queries, answers of random LLMs to random queries of a part are fitted by the
posterior mode of a logistic model with theta ~ N(0, A (x) I): A over LLMs is the idea. The rest of
the queries tells which keep rate the LLM of the largest utility has, and the log-loss. Scales of an
idea are chosen by the log-loss on the other tables.
"""
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np
from scipy.optimize import minimize

DATA = os.environ["LLMQUEUE_GYM_DATA"]
LL = {"source":"table","path":DATA + "/llmrouter/queries.jsonl","text":"query","quality":"scores"}
TABLES = {
 "llmrouter": dict(LL, context_dim=128, pool_size=100000),
 "llmrouter-code": dict(LL, only={"task":["mbpp","human_eval"]}, pool_size=100000),
 "llmrouter-maths": dict(LL, only={"task":["math","gsm8k","agentverse-mgsm"]}, pool_size=100000),
 "llmrouter-questions": dict(LL, only={"task":["natural_qa","trivia_qa","mmlu","commonsense_qa","arc_challenge","openbook_qa"]}, pool_size=100000),
 "paretobandit": {"source":"paretobandit","pool_size":100000},
}
def instance(name):
    import gymnasium as gym
    env = gym.make("llmqueue_gym:LLMQueue-v0", load=.8, assortment_size=1, window=64, workload=TABLES[name])
    w = env.unwrapped._task.workload
    return w.draw(np.random.default_rng(0)), w.llms, w

PRICES = json.load(open(DATA + "/llmrouter/prices.json"))
MAKER = {"codegemma-7b":"google","gemma-2-9b-it":"google","llama-3.1-8b-instruct":"meta","llama-3.1-nemotron-51b-instruct":"nvidia","llama-3.3-nemotron-super-49b-v1":"nvidia","llama3-chatqa-1.5-70b":"nvidia","llama3-chatqa-1.5-8b":"nvidia"}

def fit(x, llm, y, L, Lc):
    """Mode of theta (N, d): L for what varies, Lc for the constant (the last entry)."""
    n, d = x.shape; N = len(L)
    rows = [np.flatnonzero(llm == j) for j in range(N)]
    parts = [(x[r], 2.0 * y[r] - 1.0) for r in rows]
    def theta_of(z):
        z = z.reshape(N, d); t = L @ z; t[:, -1] = Lc @ z[:, -1]; return t
    def f(z):
        t = theta_of(z); value = .5 * z @ z; g = np.zeros((N, d))
        for j, (a, s) in enumerate(parts):
            if len(s):
                m = s * (a @ t[j]); value += np.logaddexp(0, -m).sum()
                g[j] = (-s / (1 + np.exp(m))) @ a
        gz = L.T @ g; gz[:, -1] = Lc.T @ g[:, -1]
        return value, gz.ravel() + z
    return theta_of(minimize(f, np.zeros(N * d), jac=True, method="L-BFGS-B", options={"maxiter": 60}).x)

def chol(A): return np.linalg.cholesky(A + 1e-9 * np.eye(len(A)))

def ideas(llms, cost):
    N = len(llms); I, J = np.eye(N), np.ones((N, N))
    F = np.array([[float(MAKER.get(a, a) == MAKER.get(b, b)) for b in llms] for a in llms])
    price = np.log([PRICES[a]["input_usd_per_mtok"] if a in PRICES else cost.mean(0)[j] for j, a in enumerate(llms)])
    p = (price - price.mean()) / price.std(); P = np.outer(p, p)
    for s in (.5, 1., 2., 4.):
        L = s * I
        yield ("independent", s), L, L, 0
        for c in (4., 16.): yield ("second constant", s, c), L, c * I, 0
        for t in (.5, 1., 2.):
            yield ("pooled", s, t), chol(s*s*I + t*t*J), chol(s*s*I + t*t*J), 0
            yield ("families", s, t), chol(s*s*I + t*t*F), chol(s*s*I + t*t*F), 0
            yield ("price of the constant", s, t), L, chol(s*s*I + t*t*(J + P)), 0
            yield ("price of all", s, t), chol(s*s*I + t*t*P), chol(s*s*I + t*t*P), 0
        for t in (.5, 1.): yield ("rank 2", s, t), L, L, (2, t)
        yield ("covariance learned", s), L, L, (99, s / 2)

def empirical(x, llm, y, L, rank, rest):
    N = len(L); own = L
    for _ in range(2):
        t = fit(x, llm, y, own, own)
        # moment estimate: modes shrink, so scale to the prior's mean variance is left to `rest`
        w, v = np.linalg.eigh(t @ t.T / t.shape[1])
        keep = np.argsort(-w)[:min(rank, N)]
        scale = (L[0, 0] ** 2) / max(w.mean(), 1e-12)
        own = chol(scale * (v[:, keep] * w[keep]) @ v[:, keep].T + rest ** 2 * np.eye(N))
    return fit(x, llm, y, own, own)

def main(seeds):
    out = open(f"ideas-{seeds[0]}.jsonl", "w")
    for name in TABLES:
        inst, llms, _ = instance(name)
        x, u = inst.contexts.astype(float), inst.utilities
        p = 1 / (1 + np.exp(-u))
        for seed in seeds:
            rng = np.random.default_rng([seed, 77])
            order = rng.permutation(len(x)); cut = int(.6 * len(x)); train, test = order[:cut], order[cut:]
            rows, llm, draw = rng.choice(train, 2500), rng.integers(len(llms), size=2500), rng.random(2500)
            y = (draw < p[rows, llm]).astype(float)
            fixed, best = p[test].mean(0).max(), p[test].max(1).mean()
            for n in (100, 500, 2500):
                for key, L, Lc, more in ideas(llms, inst.cost):
                    a = x[rows[:n]], llm[:n], y[:n]
                    t = empirical(*a, L, *more) if more else fit(*a, L, Lc)
                    z = x[test] @ t.T; q = p[test]
                    loss = float((q * np.logaddexp(0, -z) + (1 - q) * np.logaddexp(0, z)).mean())
                    value = float(q[np.arange(len(q)), z.argmax(1)].mean())
                    out.write(json.dumps([name, seed, n, key, loss, (value - fixed) / (best - fixed)]) + "\n")
            out.flush()
            print(name, seed, time.strftime("%X"), flush=True)
main([int(a) for a in sys.argv[1:]])
