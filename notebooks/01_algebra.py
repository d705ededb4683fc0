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
# # The algebra: a technique is a function from objective to objective
#
# **The problem.** Label smoothing changes the labels. Adversarial training changes the inputs, and needs gradients of the
# loss to do so. Sharpness-aware minimisation (SAM) changes the parameters at which the loss is taken. Each is a few lines
# of mathematics. In most codebases each is also a training loop of its own, and a pair of them is a third one.
#
# **The idea.** All three can be written as a function that takes a loss and returns a loss. If the loss is a value that can
# be passed around, then techniques compose as functions compose, and one training step serves them all.
#
# **Why at this level.** One level below, at the optimiser, there are only gradients: the loss that an attack must climb is
# gone. One level above, at a training step that is wrapped, the loss is hidden inside. In between, everything that a
# technique needs is there: the parameters, the batch, the loss, and what the model returned.
#
# This notebook takes one objective, three techniques and one step, and prints every value on the way. It uses the
# handwritten digits that come with scikit-learn, so it needs no download.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import umbrella as um
from umbrella.workdir import over_seeds

STEPS = int(os.environ.get("UMBRELLA_NOTEBOOK_STEPS", 400))
plt.rcParams.update({"figure.dpi": 90, "figure.constrained_layout.use": True, "font.size": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})


def bits(a, b):
    """Whether two trees of arrays are equal to the bit."""
    same = jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    return all(jax.tree.leaves(same))


# %% [markdown]
# ## 1. A batch is a dict of arrays, and a pure function of (seed, step)
#
# `load` reads a data set as numpy. `in_memory` says what goes to the device once (`resident`), what goes there for each
# step (`slot`), and how the two make a batch (`fetch`). There is no iterator to save or to seek: a slot depends on the seed
# and on the number of the step and on nothing else.

# %%
digits = um.data.load(name="digits")
data = um.data.in_memory(digits.train, 64)
resident = jax.device_put(data.resident)

print("examples  ", {k: len(getattr(digits, k)) for k in ("train", "validation", "test")})
print("info      ", {k: digits.info[k] for k in ("kind", "shape", "scale", "classes")})
slot = data.slot(0, 7)
print("slot(0, 7)", {k: (v.dtype.name, v.shape) for k, v in slot.items()}, "first rows", slot["idx"][:6])
print("once more ", "first rows", data.slot(0, 7)["idx"][:6])
batch = data.fetch(resident, slot)
print("batch     ", {k: (v.dtype.name, v.shape) for k, v in batch.items()})

# %% [markdown]
# ## 2. An objective is three functions
#
# ```python
# class Objective(NamedTuple):
#     init:    (batch, ctx) -> (params, state)
#     apply:   (params, state, batch, ctx) -> (loss, aux)
#     resolve: (params, state) -> params
# ```
#
# `supervised` makes one from a Linen module and a loss per example. `measure` attaches a metric. `pixels` is the first
# technique: it turns u8 images into floats in [0, 1], in training and in evaluation. It stands outside of everything else,
# so that an attack works in units of [0, 1].
#
# `ctx` is what a pass may *read*: the random key, the step, frozen teachers, the averaged parameters, and whether it is
# training. `aux` is what a pass *returns* beside its loss. Nothing is stored anywhere else.

# %%
model = um.models.MLP(out=10, hidden=(128,), activation="tanh", dropout=0.2)
base = um.measure(accuracy=um.metrics.accuracy)(um.supervised(model, um.losses.cross_entropy))
task = um.pixels(16.0)
plain = task(base)

ctx = um.Ctx(key=jax.random.key(0), step=jnp.int32(0))
params, state = jax.jit(plain.init)(batch, ctx)
loss, aux = jax.jit(plain.apply)(params, state, batch, ctx)

print("params     ", jax.tree.map(jnp.shape, params))
print("parameters ", um.parameter_count(params))
print("loss       ", loss)
print("outputs    ", aux.outputs.shape)
print("per_example", aux.per_example.shape, aux.per_example[:4])
print("count      ", aux.count)
print("metrics    ", {k: m.compute() for k, m in aux.metrics.items()})
print("log 10     ", np.log(10))

# %% [markdown]
# The loss of an untrained classifier is near log 10, as it should be.
#
# ## 3. Three techniques
#
# `chain` composes; the leftmost touches the batch first. The attack stands before label smoothing, so it climbs the loss of
# the true labels; the smoothed labels and SAM act on the adversarial batch.

# %%
pgd = um.pgd(eps=0.1, steps=5, bounds=(0.0, 1.0))
objectives = {
    "plain": plain,
    "label smoothing": um.chain(task, um.label_smoothing(10, eps=0.1))(base),
    "adversarial (PGD-5)": um.chain(task, um.adversarial(pgd))(base),
    "SAM": um.chain(task, um.sam(rho=0.05))(base),
    "all three": um.chain(task, um.adversarial(pgd), um.label_smoothing(10, eps=0.1), um.sam(rho=0.05))(base),
    "all three, SAM first": um.chain(task, um.sam(rho=0.05), um.adversarial(pgd), um.label_smoothing(10, eps=0.1))(base),
}


def gradient(objective):
    """(loss, norm of the gradient, FLOPs) of one gradient of an objective on our batch."""
    fn = jax.jit(lambda p: um.grad_of(objective)(p, {}, state, batch, ctx)[:2])
    g, loss = fn(params)
    return float(loss), float(optax.tree.norm(g)), fn.lower(params).cost_analysis()["flops"]


told = {name: gradient(o) for name, o in objectives.items()}
unit = told["plain"][2]
print(f"{'':22} {'loss':>8} {'|gradient|':>11} {'cost':>7}")
for name, (loss, norm, flops) in told.items():
    print(f"{name:22} {loss:8.4f} {norm:11.4f} {flops / unit:6.1f}x")

# %% [markdown]
# Every row is the same `grad_of` and the same model; only the objective differs. The cost is that of the mathematics:
# SAM takes two gradients, PGD-5 takes five more. (A gradient with respect to the parameters and one with respect to the
# input do not cost the same.)
#
# **Order is meaning.** In the last row SAM stands outside: the attack is then made at the current parameters, and made anew
# at the perturbed ones, which costs twice. In the row above it stands inside, and there is one attack. Both are sensible;
# neither needs a line of new code. What an attack climbs is what stands to its right:

# %%
x = np.asarray(batch["x"], np.float32) / 16
scaled = {**batch, "x": jnp.asarray(x)}
worse = jax.jit(lambda p: pgd(base, p, state, scaled, ctx.eval(), "x"))(params)
print("largest change of a pixel", float(jnp.abs(worse - x).max()))
print("range of the result      ", float(worse.min()), float(worse.max()))

fig, axes = plt.subplots(3, 8, figsize=(6, 2.5))
for i in range(8):
    shown = [(x[i], "gray", 0, 1), (worse[i], "gray", 0, 1), (worse[i] - x[i], "coolwarm", -0.1, 0.1)]
    for ax, (image, cmap, lo, hi) in zip(axes[:, i], shown, strict=True):
        ax.imshow(np.asarray(image)[..., 0], cmap=cmap, vmin=lo, vmax=hi)
        ax.set(xticks=[], yticks=[])
for ax, label in zip(axes[:, 0], ("input", "attacked", "difference"), strict=True):
    ax.set_ylabel(label, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# ## 4. Random numbers are named
#
# Every technique draws from `ctx.rng("its name")`, never from a key that is split in turn. So adding one leaves the noise of
# the others untouched, and an ablation changes one thing. We can look: `ctx.asking` asks the model for the output of a
# submodule, here the dropout layer. With tanh, a unit is exactly zero if and only if it was dropped.


# %%
def dropped(objective):
    asked = ctx.asking("model/Dropout_0")
    _, aux = jax.jit(objective.apply)(params, state, batch, asked)
    return np.asarray(aux.features["model/Dropout_0"] == 0)


with_mixup = um.chain(task, um.mixup(10, alpha=0.4), um.label_smoothing(10))(base)
one, two = dropped(plain), dropped(with_mixup)
print("dropped, plain     ", one[0, :20].astype(int), f"rate {one.mean():.4f}")
print("dropped, with mixup", two[0, :20].astype(int), f"rate {two.mean():.4f}")
print("the same units     ", bool((one == two).all()))

keys = {n: jax.random.key_data(ctx.rng(n)).tolist() for n in ("model/dropout", "mixup", "pgd")}
print("streams            ", keys)

# %% [markdown]
# ## 5. One step
#
# From an objective to a compiled training step there are four arrows, each a small algebra of its own:
#
#     batch --map_batch--> objective --grad_of--> gradient --update--> Step --then, guard--> Step --train_step--> compiled
#
# `update` owns the optimiser's state, `ema` the averages; both have an `init` that adds what they need to the state, so
# nothing has to be declared twice. `guard` undoes an update that is not finite.


# %%
def step_of(objective):
    return um.guard(um.then(um.update(um.grad_of(objective), optax.adam(2e-3)), um.ema(0.98)))


def start(objective, seed=0):
    step = step_of(objective)
    make = jax.jit(lambda key: um.create(objective.init, step, key, batch))
    return make(jax.random.key(seed)), um.train_step(step, fetch=data.fetch)


ts, run = start(objectives["all three"])
print("step     ", ts.step, "  key", jax.random.key_data(ts.key))
print("params   ", list(ts.params), "  opt_state", list(ts.opt_state), "  ema", list(ts.ema.params))
ts, told = run(ts, {}, resident, data.slot(0, 0))  # (state, frozen, resident, slot); the old state is donated
print("step     ", ts.step, "  key", jax.random.key_data(ts.key))
print("metrics  ", {k: round(m.compute(), 4) for k, m in told.items()})

# %% [markdown]
# The step has advanced and the key has not: the key of step t is `fold_in(key, t)`, so a resumed run draws what the
# uninterrupted one would have drawn. `loss` is the loss of the model on what it saw (here: adversarial images, smoothed
# labels, perturbed parameters), `objective` is what was differentiated; the two differ when a technique adds a term.
#
# ## 6. Training
#
# The loop is yours. Metrics are states (a sum and a count), which are only read when `compute` is called.


# %%
def train(objective, seed=0):
    ts, run = start(objective, seed)
    history = []
    for t in range(STEPS):
        ts, told = run(ts, {}, resident, data.slot(seed, t))
        if t % 10 == 0:
            history.append((t, told))
    return ts, [(t, {k: m.compute() for k, m in told.items()}) for t, told in history]


trained = {name: train(objectives[name]) for name in ("plain", "all three")}
fig, axes = plt.subplots(1, 2, figsize=(7.5, 2.6))
for ax, metric in zip(axes, ("objective", "accuracy"), strict=True):
    for name, (_, history) in trained.items():
        ax.plot([t for t, _ in history], [m[metric] for _, m in history], label=name)
    ax.set(xlabel="step", title=f"{metric} on what the model sees")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## 7. A robust metric is a transformed objective
#
# There is one evaluation pass. `evaluate(plain, ...)` gives the accuracy; `evaluate(adversarial(attack)(base), ...)` gives
# the accuracy under that attack. The attack in evaluation need not be the one in training: here it takes 20 steps.

# %%
test = um.data.batches(digits.test, 120)  # three batches; the last has one padded row, whose mask is 0
EPS = (0.0, 0.05, 0.1, 0.15, 0.2)


def under(eps):
    attack = um.adversarial(um.pgd(eps=eps, steps=20, bounds=(0.0, 1.0)))
    return plain if eps == 0 else um.chain(task, attack)(base)


attacked = {eps: under(eps) for eps in EPS}
noisy = um.chain(task, um.adversarial(um.random_noise(eps=0.1, bounds=(0.0, 1.0))))(base)
key = jax.random.key(1)
curves = {
    name: [um.evaluate(attacked[eps], ts.eval_view(), test, key)["accuracy"] for eps in EPS]
    for name, (ts, _) in trained.items()
}
print(f"{'eps':12}", *(f"{eps:8.2f}" for eps in EPS), "   noise of 0.1")
for name, values in curves.items():
    control = um.evaluate(noisy, trained[name][0].eval_view(), test, key)["accuracy"]
    print(f"{name:12}", *(f"{v:8.4f}" for v in values), f"{control:15.4f}")

fig, ax = plt.subplots(figsize=(4.2, 2.6))
for name, values in curves.items():
    ax.plot(EPS, values, "o-", label=f"trained: {name}")
ax.axvline(0.1, color="0.8", zorder=0)
ax.set(xlabel="eps of PGD-20 on the test split", ylabel="accuracy", ylim=(0, 1.02))
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The grey line marks the radius that was trained on. The last column is the control: uniform noise of the same size, which
# an attack has to beat.
#
# ## 8. The averaged view
#
# `ema` keeps an exponential moving average of the parameters, debiased at every step. `ts.view()` are the raw parameters,
# `ts.eval_view()` the averages laid over them. An evaluation does not know which it was given.

# %%
ts = trained["all three"][0]
for name, view in (("raw", ts.view()), ("averaged", ts.eval_view())):
    clean, robust = (um.evaluate(attacked[eps], view, test, key) for eps in (0.0, 0.1))
    print(f"{name:9} accuracy {clean['accuracy']:.4f}  under PGD-20 {robust['accuracy']:.4f}  loss {clean['loss']:.4f}")

# %% [markdown]
# ## 9. The guard
#
# A batch with one NaN makes the loss, the gradient and with them every parameter NaN. `guard` leaves the state as it was, to
# the bit, on the device, without asking the host. Only the counter moves on: the batch was consumed.

# %%
streamed = um.train_step(step_of(plain))  # without `fetch` the slot is the batch itself
ts, _ = start(plain)
before = jax.tree.map(jnp.copy, ts)  # the step donates its state, so we keep a copy
bad = {**batch, "x": batch["x"].astype(jnp.float32).at[0, 0, 0].set(jnp.nan)}
ts, told = streamed(ts, {}, {}, bad)
kept = {k: bits(getattr(ts, k), getattr(before, k)) for k in ("params", "opt_state", "ema")}
print("step", before.step, "->", ts.step, "  skipped", told["skipped"].compute(), "  equal to the bit", kept)
ts, told = streamed(ts, {}, {}, dict(batch))
print("step    1 ->", ts.step, "  skipped", told["skipped"].compute(), "  loss", round(told["loss"].compute(), 4))

# %% [markdown]
# ## 10. Seeds are lanes
#
# K runs are one program: `vmap(create)` over K keys makes a state whose every leaf has a leading axis, and `train_step` with
# `lanes="own"` steps them all, each on its own shuffled data. Lane k is the run with seed k, up to rounding. So an error bar
# costs one argument.

# %%
SEEDS = (0, 1, 2, 3, 4)
step = step_of(plain)
keys = jax.vmap(jax.random.key)(jnp.asarray(SEEDS, jnp.uint32))
lanes = jax.jit(jax.vmap(lambda k: um.create(plain.init, step, k, batch)))(keys)
run = um.train_step(step, fetch=data.fetch, lanes="own")
for slot in data.stream(SEEDS, 0, STEPS):
    lanes, told = run(lanes, {}, resident, slot)

print("slot      ", {k: v.shape for k, v in slot.items()})
print("first leaf", jax.tree.leaves(lanes.params)[0].shape)
accuracy = um.evaluate(plain, lanes.eval_view(), test, key, lanes=len(SEEDS))["accuracy"]
ci = over_seeds(accuracy)
print("accuracy  ", [round(a, 4) for a in accuracy])
print(f"mean       {ci['mean']:.4f}, 95 % confidence interval [{ci['ci95'][0]:.4f}, {ci['ci95'][1]:.4f}], n = {ci['n']}")

solo = trained["plain"][0]
gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), lanes.eval_view().lane(0).params, solo.eval_view().params)
print("largest difference of a parameter between lane 0 and the run with seed 0:", max(jax.tree.leaves(gaps)))

# %% [markdown]
# ## 11. Resolve: the parameters that are trained are not always those that the model is applied with
#
# Low-rank adaptation (LoRA) trains $W + \frac{\alpha}{r} A B$ with $W$ fixed. As a technique it adds a scope `"lora"` to
# the parameters and rewrites them before the model is applied. A model that is applied with the raw parameters would be
# silently wrong; `resolve` gives the ones that the objective used. Artifacts, predictions and exports go through it.
#
# We take the trained classifier to a new task: the same digits, faded, on grey ground. The task is a technique of one line.

# %%
fade = um.map_batch(lambda b, key: {**b, "x": 0.6 + 0.4 * b["x"]}, name="fade", eval=True)
faded = um.chain(task, fade)(base)
adapted = um.chain(task, fade, um.lora(rank=4, alpha=4.0))(base)

step = um.guard(um.update(um.grad_of(adapted), optax.adam(3e-3), wrt=("lora",)))
ts = jax.jit(lambda k: um.create(adapted.init, step, k, batch))(jax.random.key(3))
ts = ts.replace(params={**ts.params, "model": jax.tree.map(jnp.copy, solo.params["model"])})
run = um.train_step(step, fetch=data.fetch)
print("scopes", {k: um.parameter_count(v) for k, v in ts.params.items()}, "  opt_state", list(ts.opt_state))
before = um.evaluate(adapted, ts.view(), test, key)["accuracy"]
for t in range(STEPS):
    ts, told = run(ts, {}, resident, data.slot(0, t))

effective = um.View(adapted.resolve(ts.params, ts.state), ts.state)
print("metrics", sorted(told))
print(f"before                               {before:.4f}")
print(f"after, through the objective         {um.evaluate(adapted, ts.view(), test, key)['accuracy']:.4f}")
print(f"after, the plain one, resolved       {um.evaluate(faded, effective, test, key)['accuracy']:.4f}")
print(f"after, the plain one, raw parameters {um.evaluate(faded, ts.view(), test, key)['accuracy']:.4f}")
print("the base is what it was, to the bit:", bits(ts.params["model"], solo.params["model"]))

# %% [markdown]
# ## Where to go on
#
# - `02_vae` builds a variational autoencoder in the same way, with a tighter bound as a technique.
# - `docs/howto/add_a_technique.md`: write your own; the laws in `tests/test_contract.py` hold for every one.
# - `python launch.py --config=configs/mlp.py --config.techniques='("adversarial", "label_smoothing")'` trains what this
#   notebook trained, with checkpoints and a report.
