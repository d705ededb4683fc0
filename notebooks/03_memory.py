# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Memory: why gradients vanish, and what gates do about it
#
# A recurrent network reads step by step, $s_t = f(s_{t-1}, x_t)$. What the last state has to do with the one $k$ steps before
# is a product of $k$ Jacobians,
#
# $$\frac{\partial s_T}{\partial s_{T-k}} = \frac{\partial s_T}{\partial s_{T-1}} \cdots \frac{\partial s_{T-k+1}}{\partial s_{T-k}},$$
#
# and a product of $k$ factors below one vanishes exponentially: the network gets no signal about what was long ago beside
# what was just now (Hochreiter 1991; Bengio et al. 1994). This notebook measures that product for four kinds of network,
# before and after training on a task that needs memory, and looks into the gates of an LSTM that has learnt it.

# %%
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.special import expit

import umbrella as um
from umbrella.memory import single_steps, state_gains
from umbrella.models.recurrent import Recurrent, last

STEPS = int(os.environ.get("UMBRELLA_NOTEBOOK_STEPS", 400))
CELLS = ("rnn", "lstm", "gru", "linear")
SEEDS, WIDTH, LENGTH, BATCH = 3, 32, 40, 64
plt.rcParams.update({"figure.dpi": 90, "figure.constrained_layout.use": True, "font.size": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. A task that needs memory
#
# A sequence of 40 letters. One of the first five is a capital, A to D; all others are small letters, a to d, drawn at random.
# Which capital was it? Whoever forgets guesses one in four, a loss of log 4 = 1.386. Sequences are drawn anew for every step:
# in this algebra that is a technique that rewrites the batch, in evaluation, too.


# %%
def draw(batch, key):
    rows = batch["y"].shape[0]
    which, place, letters = jax.random.split(key, 3)
    y = jax.random.randint(which, (rows,), 0, 4)
    at = jax.random.randint(place, (rows,), 0, 5)
    x = jax.random.randint(letters, (rows, LENGTH), 4, 8).at[jnp.arange(rows), at].set(y)
    return {**batch, "x": jax.nn.one_hot(x, 8), "y": y}


class Reader(nn.Module):
    cell: str

    @nn.compact
    def __call__(self, x, *, train):
        h = Recurrent(WIDTH, self.cell, name="recurrent")(x, train=train)
        return nn.Dense(4, name="head")(last(h))


def objective_of(cell):
    base = um.measure(accuracy=um.metrics.accuracy)(um.supervised(Reader(cell), um.losses.cross_entropy))
    return um.map_batch(draw, name="letters", eval=True)(base)


empty = {"x": np.zeros((BATCH, LENGTH, 8), np.float32), "y": np.zeros(BATCH, np.int32)}
example = draw(empty, jax.random.key(1))
spelled = ["".join("ABCDabcd"[i] for i in row) for row in np.asarray(example["x"].argmax(-1))]
print(*spelled[:4], sep="\n")

# %% [markdown]
# ## 2. Training
#
# The same width, optimiser and batches for all. Three seeds of a cell are lanes of one program.


# %%
def train(cell):
    objective = objective_of(cell)
    step = um.update(um.grad_of(objective), optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3)))
    keys = jax.random.split(jax.random.key(0), SEEDS)
    ts = jax.jit(jax.vmap(lambda k: um.create(objective.init, step, k, empty)))(keys)
    start = jax.tree.map(np.asarray, ts.params["model"]["recurrent"])  # copied: the step donates its state
    run = um.train_step(step, lanes="shared")
    history = []
    for t in range(STEPS):
        ts, told = run(ts, {}, {}, empty)
        if t % 10 == 0 or t == STEPS - 1:
            history.append((t, told))
    losses = np.stack([np.asarray(m["loss"].total) / np.asarray(m["loss"].count) for _, m in history])
    return start, ts.params["model"]["recurrent"], [t for t, _ in history], losses


trained = {cell: train(cell) for cell in CELLS}
fig, ax = plt.subplots(figsize=(5.5, 2.6))
for cell, (_, _, steps, losses) in trained.items():
    line = ax.plot(steps, losses.mean(1), label=cell)[0]
    ax.fill_between(steps, losses.min(1), losses.max(1), alpha=0.2, color=line.get_color())
ax.axhline(np.log(4), color="grey", linewidth=0.8, linestyle=":")
ax.set(xlabel="step", title="loss; mean and range of three seeds; dotted: guessing")
ax.legend(frameon=False)
plt.show()
for cell, (_, _, _, losses) in trained.items():
    print(f"{cell:7s} loss at the end {losses[-1].round(3)}")

# %% [markdown]
# ## 3. The product of Jacobians
#
# `state_gains` draws directions $v$ and follows $v\, \partial s_T / \partial s_{T-k}$ back through the states that the network
# went through on real sequences. What it returns is the Frobenius norm of the Jacobian over the square root of the state's
# size: 1 for a network that keeps everything, $\rho^k$ for one whose factors shrink by $\rho$. The state is all that is
# carried over: of an LSTM the cell, too.


# %%
FAR = LENGTH - 5  # at least so far back is the capital letter


def gains(cell, params):
    model = Recurrent(WIDTH, cell, stateful=True)
    carry = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), example["x"])["carry"])

    def one(params):
        return state_gains(single_steps(model.apply, params), carry, example["x"], jax.random.key(2))

    return np.asarray(jax.jit(jax.vmap(one))(params))


fig, axes = plt.subplots(1, 2, figsize=(8.2, 2.8), sharey=True)
for cell, (start, end, _, _) in trained.items():
    for ax, params, when in zip(axes, (start, end), ("before", "after"), strict=True):
        g = gains(cell, params)
        mean = np.exp(np.log(np.maximum(g, 1e-30)).mean(0))
        line = ax.semilogy(mean, label=cell)[0]
        ax.fill_between(np.arange(len(mean)), g.min(0), g.max(0), alpha=0.2, color=line.get_color())
        print(f"{cell:7s} {when:6s} training: lag 10 {mean[10]:.1e}, lag {FAR} {mean[FAR]:.1e}")
for ax, when in zip(axes, ("before", "after"), strict=True):
    ax.set(xlabel="lag in steps", title=f"gain of the state, {when} training", ylim=(1e-12, 30))
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# Before training, the gates' factors are what their biases make them: the forget gate of the LSTM starts at
# $\sigma(1) = 0.73$ and so does the update gate of the GRU, so both forget exponentially. The matrix of the plain network
# starts orthogonal, which shrinks nothing, but the slope of the tanh does. So gates do not keep gradients alive by themselves.
# They make it easy to *learn* to: a forget gate that saturates at one is a factor of one that no later step disturbs. The linear
# recurrence has no nonlinearity between steps, and its factors start at 0.9 to 0.999.
#
# ## 4. What the gates of the LSTM learnt
#
# The gates of the best seed on one sequence, by the equations, from the weights.


# %%
def opened(p, x):
    """i, f, o and c of an LSTM over a sequence f32[T, D]: f32[T, W] each."""
    h, c, told = np.zeros(WIDTH), np.zeros(WIDTH), []
    for now in np.asarray(x):
        i, f, g, o = np.split(now @ p["input"] + p["bias"] + h @ p["state"], 4)
        c = expit(f) * c + expit(i) * np.tanh(g)
        h = expit(o) * np.tanh(c)
        told.append((expit(i), expit(f), expit(o), c))
    return [np.stack(v) for v in zip(*told, strict=True)]


best = int(trained["lstm"][3][-1].argmin())  # the seed that learnt it best
weights = jax.tree.map(lambda v: np.asarray(v[best], np.float64), trained["lstm"][1]["layer_0"])
by_letter = [opened(weights, x) for x in example["x"]]
capital = np.asarray([[letter < "a" for letter in row] for row in spelled])
i, f, o, c = (np.stack([told[k] for told in by_letter]) for k in range(4))
keepers = np.argsort(-f[~capital].mean(0))[:8]  # the units whose forget gate is nearest to one at small letters
print("input gate of the units that keep: at capitals ", i[capital][:, keepers].mean().round(3))
print("                                   at small ones", i[~capital][:, keepers].mean().round(3))
print("their forget gate at small letters             ", f[~capital][:, keepers].mean().round(3))
print("forget gate of all units at small letters      ", f[~capital].mean().round(3))

fig, axes = plt.subplots(3, 1, figsize=(8.2, 4.6), sharex=True)
row = 0
for ax, values, name in zip(axes, (i, f, c), ("input gate", "forget gate", "cell"), strict=True):
    top = np.abs(values[row][:, keepers]).max() if name == "cell" else 1
    shown = values[row][:, keepers].T
    low, colours = (-top, "RdBu") if name == "cell" else (0, "viridis")
    fig.colorbar(ax.imshow(shown, aspect="auto", vmin=low, vmax=top, cmap=colours), ax=ax, pad=0.01)
    ax.set(yticks=[], ylabel="unit", title=f"{name} of the eight units that keep the longest")
axes[-1].set_xticks(range(LENGTH), list(spelled[row]), fontsize=7)
plt.show()

# %% [markdown]
# The cell takes its value at the capital letter and carries it past all the small ones, because their input gates are nearly
# closed and their forget gates nearly open. That is what the constant error carousel of Hochreiter and Schmidhuber (1997) is.
#
# `configs/row_mnist.py` meets the same on images that are read pixel by pixel, 784 steps: its report has these curves as
# "memory".
