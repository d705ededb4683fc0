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

STEPS = int(os.environ.get("UMBRELLA_NOTEBOOK_STEPS", 300))
CELLS = ("rnn", "lstm", "gru", "linear")
SEEDS, WIDTH, LENGTH, BATCH = 3, 32, 30, 64
plt.rcParams.update({"figure.dpi": 90, "figure.constrained_layout.use": True, "font.size": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. A task that needs memory
#
# A sequence of 30 letters. The first and one in twelve of the others are capitals, A to D; the rest are small, a to d, all
# drawn at random. Which was the last capital? To tell, a network has to take a capital in, keep it past any number of small
# letters, and let it go when the next capital comes. Whoever forgets guesses one in four, a loss of log 4 = 1.386.
# Sequences are drawn anew for every step: in this algebra that is a technique that rewrites the batch, in evaluation, too.


# %%
def draw(batch, key, rate=1 / 12):
    shape = (batch["y"].shape[0], LENGTH)
    which, letters = jax.random.split(key)
    capital = jax.random.bernoulli(which, rate, shape).at[:, 0].set(True)
    letter = jax.random.randint(letters, shape, 0, 4)
    place = jnp.max(jnp.where(capital, jnp.arange(LENGTH)[None], 0), 1)
    y = letter[jnp.arange(shape[0]), place]
    return {**batch, "x": jax.nn.one_hot(jnp.where(capital, letter, letter + 4), 8), "y": y, "lag": LENGTH - 1 - place}


def spelled(x):
    return ["".join("ABCDabcd"[i] for i in row) for row in np.asarray(x.argmax(-1))]


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
for row, y in zip(spelled(example["x"])[:4], example["y"], strict=False):
    print(row, "->", "ABCD"[y])

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
    whole[cell] = ts.params["model"]
    return start, ts.params["model"]["recurrent"], [t for t, _ in history], losses


whole = {}
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
# How long ago was what they still know? The share of right answers on new sequences, by how far back the last capital is.


# %%
def heads(cell):
    """The share of right answers at every lag, of each seed."""
    many = draw({"x": None, "y": np.zeros(4096, np.int32)}, jax.random.key(3), rate=1 / 20)
    answer = jax.jit(jax.vmap(lambda p: Reader(cell).apply({"params": p}, many["x"], train=False).argmax(-1)))
    right = np.asarray(answer(whole[cell]) == many["y"])
    return np.stack([right[:, many["lag"] == k].mean(1) for k in range(LENGTH)], 1)


fig, ax = plt.subplots(figsize=(5.5, 2.6))
for cell in CELLS:
    share = heads(cell)
    line = ax.plot(share.mean(0), label=cell)[0]
    ax.fill_between(range(LENGTH), share.min(0), share.max(0), alpha=0.2, color=line.get_color())
    print(f"{cell:7s} right at lags up to 4: {share[:, :5].mean():.3f}, from 20 on: {share[:, 20:].mean():.3f}")
ax.set(xlabel="steps since the last capital", ylim=(0, 1.03), title="right answers; mean and range of three seeds")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 3. The product of Jacobians
#
# `state_gains` draws directions $v$ and follows $v\, \partial s_T / \partial s_{T-k}$ back through the states that the network
# went through on real sequences. What it returns is the Frobenius norm of the Jacobian over the square root of the state's
# size: 1 for a network that keeps everything, $\rho^k$ for one whose factors shrink by $\rho$. The state is all that is
# carried over: of an LSTM the cell, too.


# %%
FAR = LENGTH - 5
once = draw(empty, jax.random.key(4), rate=0.0)  # one capital, the first letter


def gains(cell, params):
    model = Recurrent(WIDTH, cell, stateful=True)
    carry = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), once["x"])["carry"])

    def one(params):
        return state_gains(single_steps(model.apply, params), carry, once["x"], jax.random.key(2))

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
    ax.set(xlabel="lag in steps", title=f"gain of the state, {when} training", ylim=(1e-5, 30))
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# Before training, the gates' factors are what their biases make them: the forget gate of the LSTM starts at
# $\sigma(1) = 0.73$, and so does the update gate of the GRU, so both forget exponentially. The matrix of the plain network
# starts orthogonal, which shrinks nothing, but the slope of the tanh does: at twice the lag its gain is about the square.
# So gates do not keep gradients alive by themselves. They make it easy to *learn* to, where it is needed: of the capital
# letter a few directions of the state are enough, and this gain is over all of them. The linear recurrence has no
# nonlinearity between steps, and its factors start at 0.9 to 0.999: its gradients last from the start.
#
# Lasting gradients are not all that there is to memory. The linear recurrence has the gradients and not the answers: what
# it lets go does not depend on what it reads, so an old capital stands in the way of the new one, and it has to forget
# both at one rate. The gates of LSTM and GRU are functions of the letter.
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
capital = np.asarray(example["x"][..., :4].sum(-1) > 0)
i, f, o, c = (np.stack([told[k] for told in by_letter]) for k in range(4))
answer = np.asarray(example["y"])
means = np.stack([c[answer == k, -1].mean(0) for k in range(4)])
spread = np.stack([c[answer == k, -1].std(0) for k in range(4)]).mean(0)
keepers = np.argsort(-means.std(0) / spread)[:8]  # whose cell at the end tells most of what the capital was
print("of the eight units that tell the capital letter best")
print("  input gate at capitals        ", i[capital][:, keepers].mean().round(3))
print("  forget gate at capitals       ", f[capital][:, keepers].mean().round(3))
print("  input gate at small letters   ", i[~capital][:, keepers].mean().round(3))
print("  forget gate at small letters  ", f[~capital][:, keepers].mean().round(3))

fig, axes = plt.subplots(3, 1, figsize=(8.2, 4.6), sharex=True)
row = int(capital.sum(1).argmax())
for ax, values, name in zip(axes, (i, f, c), ("input gate", "forget gate", "cell"), strict=True):
    top = np.abs(values[row][:, keepers]).max() if name == "cell" else 1
    shown = values[row][:, keepers].T
    low, colours = (-top, "RdBu") if name == "cell" else (0, "viridis")
    fig.colorbar(ax.imshow(shown, aspect="auto", vmin=low, vmax=top, cmap=colours), ax=ax, pad=0.01)
    ax.set(yticks=[], ylabel="unit", title=f"{name} of the eight units that tell the capital best")
axes[-1].set_xticks(range(LENGTH), list(spelled(example["x"])[row]), fontsize=7)
plt.show()

# %% [markdown]
# The forget gates close at every capital: the old one is let go, and the cells change colour. In between they are further
# open, but not at one, as the constant error carousel of Hochreiter and Schmidhuber (1997) would have it. The input gates
# do not close either: a cell decays and is filled up again with what the state, which sees the cell, feeds back. A loop
# that settles is a memory, too, as it is the only one that a plain network has.
#
# `configs/row_mnist.py` meets the same on images that are read pixel by pixel, 784 steps: its report has these curves as
# "memory".
