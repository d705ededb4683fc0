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
# # A variational autoencoder in pure functions
#
# **The problem.** We want a model of images: one that says how probable an image is, and that can draw new ones. A latent
# variable $z$ makes a rich one out of simple parts. Draw $z \sim p(z) = \mathcal N(0, I)$, then draw the pixels from
# $p_\theta(x \mid z)$, a Bernoulli for each pixel whose logit is a neural network's function of $z$. What we would like to
# maximise is
#
# $$\log p_\theta(x) = \log \int p_\theta(x \mid z)\, p(z)\, dz,$$
#
# and the integral is out of reach for all but the smallest latent spaces.
#
# **The idea** (Kingma and Welling 2014). Take any density $q_\phi(z \mid x)$, multiply and divide by it, and use Jensen's
# inequality:
#
# $$\log p_\theta(x) = \log \mathbb E_{q_\phi(z \mid x)} \left[ \frac{p_\theta(x \mid z)\, p(z)}{q_\phi(z \mid x)} \right]
# \;\ge\; \mathbb E_{q_\phi(z \mid x)} \left[ \log \frac{p_\theta(x \mid z)\, p(z)}{q_\phi(z \mid x)} \right]
# = \underbrace{\mathbb E_{q_\phi} \left[ \log p_\theta(x \mid z) \right]}_{-\text{reconstruction}}
# - \underbrace{\mathrm{KL}\left( q_\phi(z \mid x) \,\|\, p(z) \right)}_{\text{kl}}
# = \mathrm{ELBO}(x).$$
#
# What is lost by the inequality is known exactly: $\log p_\theta(x) - \mathrm{ELBO}(x) = \mathrm{KL}(q_\phi(z \mid x) \,\|\,
# p_\theta(z \mid x))$. So raising the bound in $\phi$ makes $q$ a better posterior, and raising it in $\theta$ makes a
# better model.
#
# With $q_\phi(z \mid x) = \mathcal N(\mu, \sigma^2 I)$, where $\mu$ and $\log \sigma^2$ are a second network's functions of
# $x$, the KL term has a closed form, $\tfrac12 \sum_i (\mu_i^2 + \sigma_i^2 - 1 - \log \sigma_i^2)$. The other term is
# estimated by one draw $z = \mu + \sigma \epsilon$, $\epsilon \sim \mathcal N(0, I)$, through which the gradient flows.
#
# Here the latent space has two dimensions: small enough to look at, and small enough that the integral *can* be done
# numerically. So every bound below is checked against the truth.

# %%
import os
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import umbrella as um

STEPS = int(os.environ.get("UMBRELLA_NOTEBOOK_STEPS", 2000))
plt.rcParams.update({"figure.dpi": 90, "figure.constrained_layout.use": True, "font.size": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})


def show(images, columns, *, size=0.5, titles=()):
    """Images f32[N, H, W, 1] in a grid."""
    rows = -(-len(images) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(size * columns, size * rows), squeeze=False)
    for ax, image in zip(axes.flat, images, strict=False):
        ax.imshow(np.asarray(image)[..., 0], cmap="gray", vmin=0, vmax=1)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[:, 0], titles, strict=False):
        ax.set_ylabel(title, rotation=0, ha="right", va="center")
    plt.show()


# %% [markdown]
# ## 1. Data
#
# Scikit-learn's digits have grey values from 0 to 16, and a Bernoulli is a likelihood of zeros and ones. `binarise` draws
# every pixel anew from its grey value whenever an image is seen: a technique like any other, which acts in evaluation as
# well because it makes the task.

# %%
digits = um.data.load(name="digits")
data = um.data.in_memory(digits.train, 64)
resident = jax.device_put(data.resident)
task = um.chain(um.pixels(16.0), um.binarise())
print({k: len(getattr(digits, k)) for k in ("train", "validation", "test")}, digits.info["shape"])

grey = digits.test.arrays["x"][:10] / 16
drawn = [np.random.default_rng(i).random(grey.shape) < grey for i in range(2)]
show(np.concatenate([grey, *drawn]), 10, titles=("grey", "drawn", "drawn again"))

# %% [markdown]
# ## 2. The model, the loss, the objective
#
# The model is a Linen module that returns what it computed: `logits`, `mean`, `log_var` and the `z` it drew. It knows no
# loss. The loss is a pure function of those outputs, one number per image. `supervised` joins the two. `measure` says what
# else to report; `umbrella.losses` has the parts.

# %%
model = um.models.VAE(shape=(8, 8, 1), latent=2, hidden=(128, 128), activation="tanh")


def mean_of(fn):
    return lambda out, batch: um.metrics.Mean.of(v := fn(out, batch["y"]), um.metrics.mask_of(batch, v))


base = um.measure(
    reconstruction=mean_of(um.losses.reconstruction),
    kl=mean_of(lambda out, y: um.losses.gaussian_kl(out["mean"], out["log_var"])),
)(um.supervised(model, um.losses.negative_elbo))
elbo = task(base)

batch = data.fetch(resident, data.slot(0, 0))
ctx = um.Ctx(key=jax.random.key(0), step=jnp.int32(0))
params, state = jax.jit(elbo.init)(batch, ctx)
loss, aux = jax.jit(elbo.apply)(params, state, batch, ctx)
print("parameters  ", um.parameter_count(params))
print("outputs     ", {k: v.shape for k, v in aux.outputs.items()})
print("negative ELBO", float(loss), "nats; 64 fair coins would be", round(64 * np.log(2), 2))
print("its parts   ", {k: round(m.compute(), 4) for k, m in aux.metrics.items()})

# %% [markdown]
# Is the closed form of the KL right? By definition it is $\mathbb E_q[\log q(z \mid x) - \log p(z)]$, which we can average
# over draws.

# %%
mean, log_var = jnp.array([[0.7, -1.2]]), jnp.array([[-1.0, 0.5]])
z = mean + jnp.exp(log_var / 2) * jax.random.normal(jax.random.key(0), (200_000, 2))
log_q = jax.scipy.stats.norm.logpdf(z, mean, jnp.exp(log_var / 2)).sum(-1)
log_p = jax.scipy.stats.norm.logpdf(z).sum(-1)
error = float((log_q - log_p).std() / np.sqrt(len(z)))
print(f"closed form {um.losses.gaussian_kl(mean, log_var)[0]:.4f}, by draws {(log_q - log_p).mean():.4f} +- {error:.4f}")

# %% [markdown]
# ## 3. Training
#
# One gradient, one optax update, an exponential moving average of the parameters, and a guard against what is not finite.
# Every two hundred steps the bound is evaluated on the validation split, with the averaged parameters.


# %%
def train(objective, seed=0):
    """(state, [(step, train metrics, validation metrics)])"""
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))
    step = um.guard(um.then(um.update(um.grad_of(objective), tx), um.ema(0.99)))
    ts = jax.jit(lambda key: um.create(objective.init, step, key, batch))(jax.random.key(seed))
    run = um.train_step(step, fetch=data.fetch)
    history = []
    for t in range(STEPS):
        ts, told = run(ts, {}, resident, data.slot(seed, t))
        if t < 1 or (t + 1) % max(1, STEPS // 20) == 0:
            held_out = um.evaluate(elbo, ts.eval_view(), validation, jax.random.key(1))
            history.append((t + 1, {k: m.compute() for k, m in told.items()}, held_out))
    return ts, history


validation = um.data.batches(digits.validation, 144)
ts, history = train(elbo)
print("steps", ts.step, "  after the last:", {k: round(v, 3) for k, v in history[-1][2].items()}, "on validation")

fig, axes = plt.subplots(1, 3, figsize=(8.5, 2.4))
for ax, metric in zip(axes, ("loss", "reconstruction", "kl"), strict=True):
    for i, name in ((1, "training batch"), (2, "validation, averaged")):
        ax.plot([h[0] for h in history], [h[i][metric] for h in history], label=name)
    ax.set(xlabel="step", title={"loss": "negative ELBO (nats)"}.get(metric, metric))
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# Most of the first fall is learning how probable ink is in each pixel. Afterwards the latent variables carry more and more:
# kl rises, and reconstruction falls by more than that.
#
# ## 4. What it has learnt
#
# Pictures are made with the averaged parameters, through `resolve` (which changes nothing here, but would under low-rank
# updates or pruning).

# %%
view = ts.eval_view()
net = {"params": elbo.resolve(view.params, view.state)["model"]}
encode = jax.jit(lambda x: model.apply(net, x, method="encode"))
decode = jax.jit(lambda z: jax.nn.sigmoid(model.apply(net, z, method="decode")))

x = jnp.asarray(digits.test.arrays["x"] / 16, jnp.float32)
labels = digits.test.arrays["y"]
mean, log_var = encode(x)
show(np.concatenate([x[:12], decode(mean[:12])]), 12, titles=("test image", "decoded mean"))
show(decode(jax.random.normal(jax.random.key(7), (24, 2))), 12, titles=("samples",))

# %% [markdown]
# The latent plane. Left, where the test images lie; colours are the classes, which the model was never told. Right, the
# plane itself, decoded at the quantiles of the prior, so that every cell is equally probable.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.2, 4))
dots = axes[0].scatter(*np.asarray(mean).T, c=labels, cmap="tab10", s=9)
axes[0].set(xlabel="z0", ylabel="z1", title="test images by their latent mean")
axes[0].legend(*dots.legend_elements(), frameon=False, ncols=2, fontsize=7, loc="best")
n = 15
quantiles = jax.scipy.stats.norm.ppf(jnp.linspace(0.02, 0.98, n))
grid = jnp.stack(jnp.meshgrid(quantiles, quantiles[::-1]), -1).reshape(-1, 2)
tiles = np.asarray(decode(grid)).reshape(n, n, 8, 8).transpose(0, 2, 1, 3).reshape(8 * n, 8 * n)
axes[1].imshow(tiles, cmap="gray")
axes[1].set(xticks=[], yticks=[], title="the plane, decoded")
plt.show()

# %% [markdown]
# ## 5. A tighter bound is a technique
#
# Burda, Grosse and Salakhutdinov (2016) average $k$ importance weights *inside* the logarithm:
#
# $$L_k(x) = \mathbb E_{z_1, \dots, z_k \sim q} \left[ \log \frac1k \sum_{i=1}^k \frac{p_\theta(x \mid z_i)\, p(z_i)}{q_\phi(z_i
# \mid x)} \right], \qquad \mathrm{ELBO} = L_1 \le L_5 \le L_{50} \le \dots \le \log p_\theta(x).$$
#
# As a transform it runs the wrapped objective once per sample, each with its own noise, and takes the logarithm of the mean
# weight. Stepped on, it is the importance-weighted autoencoder; evaluated with many samples, it is the usual estimate of the
# likelihood. `evaluate` does not know the difference.
#
# With two latent dimensions the truth can be had, too: $\log p_\theta(x)$ by a sum over a fine grid of the plane. To compare
# on equal terms we binarise the test images once.

# %%
ink = (np.random.default_rng(0).random(digits.test.arrays["x"].shape) < digits.test.arrays["x"] / 16).astype(np.float32)
test = um.data.batches(um.data.Arrays({"x": ink}), 120)
same = um.reconstruct()  # y = x: the images are binary already
bound = same(base)


def weighted(samples, task=same):
    return um.chain(task, um.importance_weighted(um.losses.log_importance_weight, samples=samples))(base)


@jax.jit
def log_likelihood(params, ink):
    """log p(x) f32[N] by quadrature: a sum over a grid of 300 x 300 points of [-6, 6] squared."""
    axis = jnp.linspace(-6, 6, 300)
    z = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    logits = model.apply({"params": params["model"]}, z, method="decode").reshape(len(z), -1)
    flat = ink.reshape(len(ink), -1)
    log_joint = flat @ logits.T - jnp.sum(jax.nn.softplus(logits), -1)  # log p(x | z)
    log_joint = log_joint + jax.scipy.stats.norm.logpdf(z).sum(-1)
    return jax.nn.logsumexp(log_joint, axis=1) + 2 * jnp.log(axis[1] - axis[0])


SAMPLES = (1, 5, 50, 500)
ladder = {f"L{k}": weighted(k) for k in SAMPLES}  # made once: a new objective is a new program to compile


def bounds(view):
    key = jax.random.key(2)
    out = {"ELBO, analytic KL": -um.evaluate(bound, view, test, key)["loss"]}
    out |= {name: -um.evaluate(objective, view, test, key)["nll"] for name, objective in ladder.items()}
    return out | {"log p(x), quadrature": float(log_likelihood(bound.resolve(*view), ink).mean())}


told = bounds(view)
for name, value in told.items():
    print(f"{name:22} {value:9.4f} nats")
values = [told[name] for name in (*ladder, "log p(x), quadrature")]
print("ascending", all(a < b for a, b in zip(values, values[1:], strict=False)))

fig, ax = plt.subplots(figsize=(4.2, 2.4))
ax.semilogx(SAMPLES, values[:-1], "o-", label="$L_k$")
ax.axhline(values[-1], color="0.4", ls="--", label="log p(x), quadrature")
ax.set(xlabel="k", ylabel="nats per image, test")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The bounds climb towards the likelihood and do not pass it. (The first two lines estimate the same number, each by one draw
# per image: once with the KL in closed form, once with all of it sampled.)
#
# Training on $L_5$ instead of the ELBO is a change of one word. Its posterior is worse as a posterior, since the weights make
# up for it; whether the *model* is better, the quadrature says.

# %%
ts_iw, _ = train(weighted(5, task))
trained = {"ELBO": told, "L5": bounds(ts_iw.eval_view())}
print(f"{'trained on':12} {'ELBO':>9} {'L50':>9} {'log p(x)':>9}   nats per test image")
for name, t in trained.items():
    print(f"{name:12} {t['ELBO, analytic KL']:9.3f} {t['L50']:9.3f} {t['log p(x), quadrature']:9.3f}")

# %% [markdown]
# One run each says little about which is better; five seeds would (`config.seeds = 5` below, or `lanes=` as in
# `01_algebra`).
#
# ## 6. The same by a config
#
# `um.run` does what this notebook did by hand, with checkpoints, logs, baselines and a report; `launch.py` calls it. A config
# is a dict; `configs/vae.py` holds the ones that come with the project.

# %%
config = {
    "pipeline": "generative",
    "data": {"name": "digits"},
    "model": {"name": "vae", "latent": 2, "hidden": (128, 128), "activation": "tanh"},
    "optimizer": {"name": "adam", "learning_rate": 3e-3, "schedule": "cosine"},
    "batch_size": 64,
    "train_for": f"{STEPS} steps",
    "eval_every": "20%",
    "checkpoint_every": "50%",
    "ema": 0.99,
    "evals": {"test": ("importance_weighted",)},
    "importance_weighted": {"samples": 50},
}
with tempfile.TemporaryDirectory() as folder:
    result = um.run(config, workdir=f"{folder}/vae", name="vae", quiet=True)
    left = sorted(p.relative_to(result.workdir) for p in result.workdir.rglob("*") if "checkpoints" not in p.parts)
    report = result.workdir / "report.html"
    print("report   ", report.relative_to(folder), f"{report.stat().st_size / 1000:.0f} kB")
    print("beside it", *[p for p in left if (result.workdir / p).is_file() and not p.name.startswith("events")], sep="\n  ")

print("status   ", result.summary["status"], "at step", result.summary["step"])
print("test     ", {k: round(v, 3) for k, v in result.summary["metrics"]["test"].items()})
print("baselines", {k: round(v["nll"], 3) for k, v in result.summary["baselines"].items() if "nll" in v}, "(nll)")

# %% [markdown]
# With two latent variables the model does not reach the mixture of fifty Bernoullis; `configs/vae.py` takes eight, and does.
# A rival of this kind is printed beside every result, whether it flatters the result or not.
#
# The report is one self-contained HTML page with the curves, a reading of them, samples, reconstructions, a latent map,
# and how the run compares with models without a neural network. `result.ts` is the trained state and
# `result.experiment` all that the run was made of, as values, so you can go on from here:
#
#     python launch.py --config=configs/vae.py --workdir=runs/vae
