"""What each technique does to numbers that can be followed by hand. The laws they share are in test_contract."""

from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from tests.helpers import bits, context, gap, tmap
from tests.test_objective import filled
from umbrella import losses, transforms
from umbrella.gradients import grad_of
from umbrella.metrics import Mean
from umbrella.models import MLP, VAE
from umbrella.objective import Aux, Batch, Ctx, Objective, Params, State, chain, map_params, supervised
from umbrella.settings import SettingsError
from umbrella.step import program, update
from umbrella.train_state import create
from umbrella.transforms import adversarial, fgsm, pgd, random_noise

Array = jax.Array


def f32(x: Any) -> Array:
    return jnp.asarray(x, jnp.float32)


def looking() -> Objective:
    """An objective that does nothing but show the batch that reached it."""
    aux = lambda b: Aux({}, dict(b), jnp.zeros(1), jnp.ones(()), {})  # noqa: E731
    return Objective(lambda b, c: ({}, {}), lambda p, s, b, c: (jnp.zeros(()), aux(b)))


def seen(transform: Any, batch: Batch, ctx: Ctx | None = None) -> Any:
    run = jax.jit(lambda b, c: transform(looking()).apply({}, {}, b, c)[1].outputs)
    return run(batch, context() if ctx is None else ctx)


# ---- batch
def test_label_smoothing_by_hand() -> None:
    """eps .2 over 4 classes: .8 + .05 for the label, .05 for the rest; soft labels the same way; i32 or f32."""
    wanted = [[0.05, 0.85, 0.05, 0.05], [0.45, 0.45, 0.05, 0.05]]
    smooth = transforms.label_smoothing(4, eps=0.2)
    np.testing.assert_allclose(seen(smooth, {"y": jnp.asarray([1], jnp.int32)})["y"], wanted[:1], rtol=1e-6)
    soft = f32([[0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    np.testing.assert_allclose(seen(smooth, {"y": soft})["y"], wanted, rtol=1e-6)


@cache
def mixed(n: int = 8, alpha: float = 0.7, draws: int = 300) -> tuple[dict[str, np.ndarray], dict[str, Array]]:
    """Many draws of mixup on rows that are unit vectors, so that what was mixed with what can be read off."""
    batch = {
        "x": jnp.eye(n),
        "y": jnp.arange(n, dtype=jnp.int32) % 3,
        "mask": f32(np.arange(n) < n - 2),
        "weight": jnp.arange(1.0, n + 1),
    }
    o = transforms.mixup(3, alpha=alpha)(looking())
    keys = jax.random.split(jax.random.key(0), draws)
    out = jax.jit(jax.vmap(lambda k: o.apply({}, {}, batch, context().replace(key=k))[1].outputs))(keys)
    return jax.device_get(out), batch


def test_mixup_mixes_pairs_by_one_share_of_a_half_or_more() -> None:
    out, batch = mixed()
    lam = np.diagonal(out["x"], axis1=1, axis2=2)
    assert (lam >= 0.5).all()
    alone = lam == 1  # a row that is its own partner
    assert 0 < alone.mean() < 0.5
    for draw, share in zip(out["x"], lam, strict=True):
        partner = (draw - np.diag(share)).argmax(1)
        kept = share[share < 1]
        assert np.ptp(kept) < 1e-6 if len(kept) else True  # one lam for the batch
        pair = np.where(share < 1, partner, np.arange(8))
        assert sorted(pair) == list(range(8))  # a permutation
    np.testing.assert_allclose(out["x"].sum(2), 1, rtol=1e-6)
    np.testing.assert_allclose(out["y"].sum(2), 1, rtol=1e-6)
    np.testing.assert_allclose(out["y"], out["x"] @ np.eye(3)[np.arange(8) % 3], atol=1e-6)  # labels as inputs
    np.testing.assert_array_equal(out["weight"], np.broadcast_to(batch["weight"], (300, 8)))


def test_mixup_with_a_padded_row_is_padding() -> None:
    out, _ = mixed()
    touches = (out["x"][:, :, 6:] > 0).any(2)
    np.testing.assert_array_equal(out["mask"], ~touches)


def test_mixups_share_is_the_larger_part_of_a_beta_draw() -> None:
    """P(max(b, 1 - b) <= t) = F(t) - F(1 - t) with F of Beta(a, a)."""
    out, _ = mixed()
    lam = np.diagonal(out["x"], axis1=1, axis2=2).min(1)
    law = stats.beta(0.7, 0.7)
    assert stats.kstest(lam[lam < 1], lambda t: law.cdf(t) - law.cdf(1 - t)).pvalue > 1e-3


def test_binarise_draws_every_pixel_and_makes_it_the_target() -> None:
    """The mean of 20,000 draws of Bernoulli(.3) is .3 +- .0032; 0 and 1 stay."""
    x = f32(np.stack([np.full(20_000, 0.3), np.zeros(20_000), np.ones(20_000)]))
    out = seen(transforms.binarise(), {"x": x, "y": jnp.zeros(3)})
    assert bits(out["x"], out["y"])
    assert set(np.unique(out["x"])) == {0.0, 1.0}
    means = np.asarray(out["x"]).mean(1)
    assert abs(means[0] - 0.3) < 5 * 0.0032
    assert (means[1], means[2]) == (0, 1)
    assert bits(out["x"], seen(transforms.binarise(), {"x": x}, context().eval())["x"])  # by the key, whatever the mode
    assert not bits(out["x"], seen(transforms.binarise(), {"x": x}, context(6))["x"])


def test_binarise_draws_neighbours_independently_and_any_number_of_pixels() -> None:
    """Two pixels share a 32-bit word: 20,000 pairs of fair draws correlate by 0 +- .0071. 2 x 7 pixels, too, and 1."""
    x = f32(np.full((1, 40_000), 0.5))
    drawn = np.asarray(seen(transforms.binarise(), {"x": x})["x"])[0]
    assert abs(np.corrcoef(drawn[::2], drawn[1::2])[0, 1]) < 5 * 0.0071
    assert abs(np.corrcoef(drawn[1:-1:2], drawn[2::2])[0, 1]) < 5 * 0.0071
    for shape in ((3, 7, 3, 1), (3, 1), (3, 2)):
        out = seen(transforms.binarise(), {"x": f32(np.ones(shape))})["x"]
        assert out.shape == shape
        assert (np.asarray(out) == 1).all()


def test_pixels_and_reconstruct() -> None:
    x = jnp.asarray([[0, 51, 255]], jnp.uint8)
    for ctx in (context(), context().eval()):
        out = seen(transforms.pixels(255.0), {"x": x}, ctx)["x"]
        np.testing.assert_allclose(out, [[0.0, 0.2, 1.0]], rtol=1e-6)
        assert out.dtype == jnp.float32
        assert bits(seen(transforms.reconstruct(), {"x": x}, ctx)["y"], x)


# ---- attacks
W = np.array([3.0, -4.0, 0.5])


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Array:
        x = x["image"] if isinstance(x, dict) else x
        return jnp.sum(x * self.param("w", lambda _: f32(W))[None], -1)


def margin(outputs: Array, y: Array) -> Array:
    """log(1 + exp(-y f)): its gradient in x is -y sigmoid(-y f) w, so it climbs against y w."""
    return jax.nn.softplus(-y * outputs)


def linear() -> tuple[Objective, Params]:
    o = supervised(Linear(), margin)
    return o, {"model": {"w": f32(W)}}


def attacked(attack: Any, batch: Batch, o: Objective | None = None, params: Any = None, on: str = "x") -> np.ndarray:
    base, w = linear()
    o, params = (base, w) if o is None else (o, params)
    run = jax.jit(lambda p, b, c: attack(o, p, {}, b, c, on))
    return np.asarray(run(params, batch, context().eval()))


def points(n: int = 6) -> dict[str, Array]:
    r = np.random.default_rng(0)
    return {"x": f32(0.2 + 0.6 * r.random((n, 3))), "y": f32(r.choice([-1.0, 1.0], n))}


def test_fgsm_on_a_linear_model_by_hand() -> None:
    """x + eps sign(gradient) = x - eps y sign(w), then clipped into the bounds; a padded row stays where it is."""
    batch = points() | {"mask": f32([1, 1, 1, 1, 1, 0])}
    x, y = (np.asarray(batch[k]) for k in ("x", "y"))
    wanted = x - 0.1 * y[:, None] * np.sign(W)
    wanted[5] = x[5]
    np.testing.assert_allclose(attacked(fgsm(eps=0.1), batch), wanted, rtol=1e-5)
    bounded = attacked(fgsm(eps=0.5, bounds=(0.25, 0.75)), points())
    np.testing.assert_allclose(bounded, np.clip(x - 0.5 * y[:, None] * np.sign(W), 0.25, 0.75), rtol=1e-5)


def test_an_l2_step_on_a_linear_model_by_hand() -> None:
    """Along the gradient's direction: x - eps y w / |w|; two steps of .1 in a ball of .15 end on its surface."""
    batch = points()
    way = -np.asarray(batch["y"])[:, None] * W / np.linalg.norm(W)
    one = partial(pgd, norm="l2", random_start=False, step_size=0.1)
    np.testing.assert_allclose(attacked(one(eps=0.15, steps=1), batch), batch["x"] + 0.1 * way, rtol=1e-5)
    np.testing.assert_allclose(attacked(one(eps=0.15, steps=2), batch), batch["x"] + 0.15 * way, rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_confident_prediction_is_attacked_as_far_as_any_other(norm: Any) -> None:
    """x = m w / |w|^2 has the margin m. At 40 the gradient is sigmoid(-40) |w| = 2e-17, but only its direction counts:
    both rows move by eps, the same way."""
    x = f32(np.array([[40.0], [1.0]]) * W / (W @ W))
    batch = {"x": x, "y": jnp.ones(2)}
    moved = attacked(pgd(eps=0.1, steps=2, norm=norm, random_start=False), batch) - np.asarray(x)
    wanted = -0.1 * (np.sign(W) if norm == "linf" else W / np.linalg.norm(W))
    np.testing.assert_allclose(moved, [wanted, wanted], atol=1e-5)


def test_the_step_size_can_cross_the_ball() -> None:
    """2.5 eps / steps when none is given: one step or five reach the corner; half of eps is half way."""
    batch = points()
    way = -np.asarray(batch["y"])[:, None] * np.sign(W)
    for kw, far in (({"steps": 1}, 0.1), ({"steps": 5}, 0.1), ({"steps": 1, "step_size": 0.05}, 0.05)):
        got = attacked(pgd(eps=0.1, random_start=False, **kw), batch)
        np.testing.assert_allclose(got, np.asarray(batch["x"]) + far * way, rtol=1e-5)


def small_net() -> tuple[Objective, Params, dict[str, Array]]:
    """A net with large weights, so that its loss is far from linear in x, and the labels that it gets right."""
    r = np.random.default_rng(4)
    net, x = MLP(out=3, hidden=(16,), activation="tanh"), f32(r.random((64, 4)))
    o = supervised(net, losses.cross_entropy)
    params = {
        "model": tmap(
            lambda s: f32(2 * r.normal(size=s.shape)),
            jax.eval_shape(lambda: net.init(jax.random.key(0), x, train=False))["params"],
        )
    }
    logits = jax.jit(partial(net.apply, train=False))({"params": params["model"]}, x)
    return o, params, {"x": x, "y": jnp.argmax(logits, -1).astype(jnp.int32)}


def loss_under(attacks: dict[str, Any], batch: Any, o: Objective, params: Params) -> dict[str, np.ndarray]:
    """Losses per example at what each attack makes of the batch."""

    def one(attack: Any, ctx: Ctx) -> Array:
        return adversarial(attack)(o).apply(params, {}, batch, ctx)[1].per_example

    return jax.device_get(jax.jit(lambda c: {k: one(a, c) for k, a in attacks.items()})(context().eval()))


def test_pgd_beats_fgsm_which_beats_noise_and_more_steps_beat_fewer() -> None:
    o, params, batch = small_net()
    steps = {n: pgd(eps=0.1, steps=n, step_size=0.02, random_start=False) for n in (1, 4, 20)}
    told = loss_under(
        {"clean": random_noise(eps=0.0), "noise": random_noise(eps=0.1), "fgsm": fgsm(eps=0.1)}
        | {f"pgd{n}": a for n, a in steps.items()},
        batch,
        o,
        params,
    )
    mean = {k: v.mean() for k, v in told.items()}
    assert mean["clean"] < mean["pgd1"] < mean["pgd4"] < mean["pgd20"]
    assert mean["clean"] < mean["fgsm"] <= mean["pgd20"]
    assert mean["noise"] < mean["fgsm"] / 2
    assert (told["pgd20"] >= told["fgsm"] - 1e-3).mean() > 0.9  # row by row as well


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_stays_in_the_ball_and_in_the_bounds(norm: Any, random_start: bool) -> None:
    """It reaches the ball's surface, too: the attack is not timid."""
    o, params, batch = small_net()
    attack = pgd(eps=0.3, steps=3, norm=norm, random_start=random_start, bounds=(0.0, 1.0))
    x = attacked(attack, batch, o, params)
    far = (
        np.abs(x - np.asarray(batch["x"])).max(1)
        if norm == "linf"
        else np.linalg.norm(x - np.asarray(batch["x"]), axis=1)
    )
    assert far.max() <= 0.3 * (1 + 1e-5)
    assert far.max() > 0.29
    assert (x >= 0).all() and (x <= 1).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball(norm: Any) -> None:
    """Without a step: linf uniform, a coordinate's mean |d| is eps / 2; l2 a uniform radius, its mean eps / 2."""
    batch = {"x": jnp.zeros((4000, 3)), "y": jnp.ones(4000)}
    d = attacked(pgd(eps=1.0, steps=1, step_size=0.0, norm=norm), batch)
    radius = np.abs(d).max(1) if norm == "linf" else np.linalg.norm(d, axis=1)
    assert radius.max() <= 1 + 1e-6
    mean = np.abs(d).mean() if norm == "linf" else radius.mean()
    assert abs(mean - 0.5) < 0.025  # five standard errors of .289 / sqrt(4000)
    assert np.abs(d.mean(0)).max() < 0.05


def test_an_attack_climbs_its_probe() -> None:
    """With the negative loss as probe it goes the other way, and the counted loss is the wrapped one's."""
    o, params = linear()
    against = o._replace(apply=lambda *a: (lambda out: (-out[0], out[1]))(o.apply(*a)))
    batch = points()
    helped = jax.jit(lambda p: adversarial(fgsm(eps=0.1), probe=against)(o).apply(p, {}, batch, context())[1])(params)
    f = (np.asarray(batch["x"]) + 0.1 * np.asarray(batch["y"])[:, None] * np.sign(W)) @ W
    np.testing.assert_allclose(helped.per_example, np.log1p(np.exp(-np.asarray(batch["y"]) * f)), rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_row_that_weighs_nothing_is_attacked_like_any_other(norm: Any) -> None:
    """Metrics count it. By hand for linf: x - eps y sign(w). The loss still knows the weights: 2 and 0 of two rows."""
    o, params = linear()
    batch = points(2) | {"weight": f32([2.0, 0.0])}
    robust = adversarial(pgd(eps=0.1, steps=1, norm=norm, random_start=False))(o)
    run = jax.jit(lambda b: robust.apply(params, {}, b, context()))
    loss, aux = run(batch)
    way = np.sign(W) if norm == "linf" else W / np.linalg.norm(W)
    moved = np.asarray(batch["x"]) - 0.1 * np.asarray(batch["y"])[:, None] * way
    np.testing.assert_allclose(aux.outputs, moved @ W, rtol=1e-4)
    assert float(loss) == pytest.approx(2 * np.log1p(np.exp(-float(batch["y"][0]) * (moved[0] @ W))) / 2, rel=1e-4)


def test_a_probe_sees_the_parameters_that_the_model_is_applied_with() -> None:
    """A reparametrisation turns w into -w. To the left of it, too, an attack by the plain loss goes against the net
    that is measured: x - eps y sign(-w). With the raw parameters it would help it."""
    o, params = linear()
    turned = map_params(lambda p, s: tmap(lambda w: -w, p), name="turn")
    batch, attack = points(), fgsm(eps=0.1)
    x, y = (np.asarray(batch[k]) for k in ("x", "y"))
    for full in (chain(adversarial(attack, probe=o), turned)(o), chain(turned, adversarial(attack, probe=o))(o)):
        _, aux = jax.jit(lambda p, f=full: f.apply(p, {}, batch, context()))(params)
        np.testing.assert_allclose(aux.outputs, (x + 0.1 * y[:, None] * np.sign(W)) @ -W, rtol=1e-4)


def test_attacks_that_make_no_sense() -> None:
    wrong: Any = "Linf"
    with pytest.raises(ValueError, match=r"pgd: norm: 'Linf' is not one of the choices \(did you mean 'linf'\?\)"):
        pgd(eps=0.1, norm=wrong)  # was an l2 attack
    for kw in ({}, {"step_size": 0.1}):
        with pytest.raises(ValueError, match="pgd: 0 steps are no attack"):
            pgd(eps=0.1, steps=0, **kw)


@pytest.mark.parametrize("train_mode", [False, True])
def test_probes_run_in_evaluation_mode_unless_told_and_change_no_state(train_mode: bool) -> None:
    o, params = linear()
    modes = []

    def apply(p: Params, s: State, b: Batch, c: Ctx) -> tuple[Array, Aux]:
        modes.append(c.train)
        loss, aux = o.apply(p, s, b, c)
        return loss, aux.replace(state={"n": s["n"] + 1})

    full = adversarial(pgd(eps=0.1, steps=2), train_mode=train_mode)(o._replace(apply=apply))
    _, aux = full.apply(params, {"n": jnp.int32(0)}, points(), context())
    assert set(modes[:-1]) == {train_mode}
    assert modes[-1] is True
    assert int(aux.state["n"]) == 1


def test_an_attack_on_one_entry_of_a_dict() -> None:
    batch = points()
    both = {"x": {"image": batch["x"], "text": jnp.ones((6, 2))}, "y": batch["y"]}
    alone = attacked(fgsm(eps=0.1), batch)
    np.testing.assert_array_equal(attacked(fgsm(eps=0.1), both, on="x/image"), alone)
    o, params = linear()
    _, aux = adversarial(fgsm(eps=0.1), on="x/image")(o).apply(params, {}, both, context())
    np.testing.assert_allclose(aux.outputs, alone @ W, rtol=1e-4)


@pytest.mark.parametrize("attack", [fgsm(eps=0.1), pgd(eps=0.1), random_noise(eps=0.1)])
def test_attacks_on_what_has_no_gradient(attack: Any) -> None:
    o, params = linear()
    whole = {"x": {"image": points()["x"]}, "y": points()["y"]}
    with pytest.raises(TypeError, match="an attack on 'x': that is a dict; name one entry, such as on='x/image'"):
        attack(o, params, {}, whole, context(), "x")
    ids = {"x": jnp.ones((6, 3), jnp.int32), "y": points()["y"]}
    with pytest.raises(TypeError, match="an attack on 'x': its dtype is int32, which has no gradient"):
        attack(o, params, {}, ids, context(), "x")


# ---- sam, l2, lora
def bowl() -> Objective:
    """(w1^2 + 4 w2^2) / 2, whatever the batch: gradient (w1, 4 w2)."""

    def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
        loss = 0.5 * jnp.sum(jnp.asarray([1.0, 4.0]) * jnp.square(params["model"]["w"]))
        return loss, Aux(
            {"passes": state["passes"] + 1}, None, loss[None], jnp.ones(()), {"loss": Mean(loss, jnp.ones(()))}
        )

    return Objective(lambda b, c: ({"model": {"w": f32([3.0, 1.0])}}, {"passes": jnp.int32(0)}), apply)


def test_sam_by_hand() -> None:
    """w = (3, 1): g = (3, 4), |g| = 5; rho = .5: w' = w + .5 g / 5 = (3.3, 1.4). The gradient is that of the loss at
    w', (3.3, 5.6), not through the perturbation; the loss (3.3^2 + 4 * 1.4^2) / 2 = 9.365; one pass counts."""
    o = transforms.sam(rho=0.5)(bowl())
    params, state = o.init({}, context())
    g, loss, aux = jax.jit(lambda p, s: grad_of(o)(p, {}, s, {}, context()))(params, state)
    np.testing.assert_allclose(g["model"]["w"], [3.3, 5.6], rtol=1e-6)
    assert float(loss) == pytest.approx(9.365)
    assert int(aux.state["passes"]) == 1
    loss, _ = o.apply(params, state, {}, context().eval())
    assert float(loss) == 6.5  # (9 + 4) / 2


def test_sam_on_some_scopes_by_hand() -> None:
    """(w1^2 + 4 w2^2) / 2 with w2 in a scope of its own: g = (3, 4). On w1 alone |g| = 3, so w' = (3 + .5, 1): the loss
    there is (3.5^2 + 4) / 2 = 8.125, its gradient (3.5, 4). On all scopes w1 would get .3 of the .5."""

    def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
        loss = 0.5 * (jnp.square(params["lora"]["w"]) + 4 * jnp.square(params["model"]["w"]))
        return loss, Aux({}, None, loss[None], jnp.ones(()), {})

    start = {"lora": {"w": f32(3.0)}, "model": {"w": f32(1.0)}}
    o = Objective(lambda b, c: (start, {}), apply)
    context_of = {"sam": {"rho": 0.5}}
    by_settings = transforms.build(("sam",), context_of, base=o, trainable=("lora",))[0](o)
    for some in (transforms.sam(rho=0.5, only=("lora",))(o), by_settings):
        g, loss, _ = jax.jit(lambda p, some=some: grad_of(some)(p, {}, {}, {}, context()))(start)
        assert float(loss) == pytest.approx(8.125)
        assert (float(g["lora"]["w"]), float(g["model"]["w"])) == pytest.approx((3.5, 4.0))
    with pytest.raises(
        ValueError, match=r"sam: only names \['lroa'\], the parameters have the scopes \['lora', 'model'\]"
    ):
        transforms.sam(only=("lroa",))(o).apply(start, {}, {}, context())


def test_sam_at_a_minimum_is_finite() -> None:
    o = transforms.sam(rho=0.5)(bowl())
    run = jax.jit(lambda p, s: grad_of(o)(p, {}, s, {}, context()))
    g, loss, _ = run({"model": {"w": jnp.zeros(2)}}, {"passes": jnp.int32(0)})
    np.testing.assert_array_equal(g["model"]["w"], [0, 0])
    assert float(loss) == 0


def classifying() -> tuple[Objective, Params, dict[str, Array]]:
    r = np.random.default_rng(0)
    batch = {"x": f32(r.normal(size=(8, 4))), "y": jnp.asarray(r.integers(0, 3, 8), jnp.int32)}
    o = supervised(MLP(out=3, hidden=(5,)), losses.cross_entropy)
    return o, filled(o, batch)[0], batch


def test_l2_by_hand() -> None:
    """weight / 2 * sum of the kernels' squares; the gradient grows by weight * W, that of a bias not at all."""
    o, params, batch = classifying()
    run = jax.jit(lambda p: [grad_of(x)(p, {}, {}, batch, context()) for x in (o, transforms.l2(weight=0.3)(o))])
    (g, loss, _), (g2, loss2, aux) = run(params)
    kernels = {k: np.asarray(v["kernel"]) for k, v in params["model"].items()}
    squares = 0.5 * sum((k**2).sum() for k in kernels.values())
    assert float(loss2 - loss) == pytest.approx(0.3 * squares, rel=1e-4)
    assert aux.metrics["l2"].compute() == pytest.approx(squares, rel=1e-5)
    for name, kernel in kernels.items():
        both = g2["model"][name], g["model"][name]
        np.testing.assert_allclose(both[0]["kernel"] - both[1]["kernel"], 0.3 * kernel, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(both[0]["bias"], both[1]["bias"], rtol=1e-5, atol=1e-7)


def test_l1_by_hand() -> None:
    """weight * sum of the kernels' absolute values; the gradient grows by weight * sign(W), for a bias not at all."""
    o, params, batch = classifying()
    run = jax.jit(lambda p: [grad_of(x)(p, {}, {}, batch, context()) for x in (o, transforms.l1(weight=0.3)(o))])
    (g, loss, _), (g1, loss1, aux) = run(params)
    kernels = {k: np.asarray(v["kernel"]) for k, v in params["model"].items()}
    size = sum(np.abs(k).sum() for k in kernels.values())
    assert float(loss1 - loss) == pytest.approx(0.3 * size, rel=1e-4)
    assert aux.metrics["l1"].compute() == pytest.approx(size, rel=1e-5)
    for name, kernel in kernels.items():
        both = g1["model"][name], g["model"][name]
        np.testing.assert_allclose(both[0]["kernel"] - both[1]["kernel"], 0.3 * np.sign(kernel), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(both[0]["bias"], both[1]["bias"], rtol=1e-5, atol=1e-7)


def test_penalties_of_two_scopes_are_told_apart() -> None:
    """A 1 x 2 matrix (3, 4) under "model": 12.5; (2, 0) under "other": 2. Weights .1 and 1: 1.25 + 2 on top."""
    params = {"model": {"w": f32([[3.0, 4.0]])}, "other": {"w": f32([[2.0, 0.0]])}}
    aux = Aux({}, None, jnp.zeros(1), jnp.ones(()), {})
    o = Objective(lambda b, c: (params, {}), lambda p, s, b, c: (jnp.zeros(()), aux))
    both = chain(transforms.l2(weight=0.1), transforms.l2(weight=1.0, scope="other"))(o)
    loss, told = both.apply(params, {}, {}, context())
    assert float(loss) == pytest.approx(3.25)
    assert {k: v.compute() for k, v in told.metrics.items()} == {"l2": 12.5, "l2_other": 2.0}
    with pytest.raises(ValueError, match="l2: no scope 'modle' .did you mean 'model'"):
        transforms.l2(weight=0.1, scope="modle")(o).apply(params, {}, {}, context())


def test_lora_starts_as_the_identity_and_trains_alone() -> None:
    """B = 0: the base's own loss to the bit. Three steps on the deltas move them and leave the base to the bit."""
    o, _, batch = classifying()
    low = transforms.lora(rank=2)(o)
    step = update(grad_of(low), optax.adam(1e-2), wrt=("lora",))
    ts = jax.jit(lambda key: create(low.init, step, key, batch))(jax.random.key(0))
    losses_of = jax.jit(lambda p: [x.apply(p, {}, batch, context())[0] for x in (o, low)])
    assert bits(*losses_of(ts.params))
    assert bits(low.resolve(ts.params, {})["model"], ts.params["model"])
    run, after = jax.jit(program(step)), ts
    for _ in range(3):
        after, _ = run(after, {}, {}, batch)
    assert bits(after.params["model"], ts.params["model"])
    assert all(gap(a, b) > 1e-3 for a, b in zip(*(jax.tree.leaves(t.params["lora"]) for t in (ts, after)), strict=True))
    plain, moved = losses_of(after.params)
    assert float(moved) < float(plain)


def test_lora_resolves_to_the_sum_by_hand() -> None:
    """W + alpha / rank A B for each matrix, biases as they are; rank (in + out) numbers for each."""
    o, _, batch = classifying()
    low = transforms.lora(rank=2, alpha=3.0)(o)
    params, _ = filled(low, batch)
    assert {k: (v["a"].shape, v["b"].shape) for k, v in params["lora"].items()} == {
        "hidden_0.kernel": ((4, 2), (2, 5)),
        "head.kernel": ((5, 2), (2, 3)),
    }
    model = low.resolve(params, {})["model"]
    for name in ("hidden_0", "head"):
        d = {k: np.asarray(v) for k, v in params["lora"][f"{name}.kernel"].items()}
        wanted = np.asarray(params["model"][name]["kernel"]) + 1.5 * d["a"] @ d["b"]
        np.testing.assert_allclose(model[name]["kernel"], wanted, rtol=1e-5, atol=1e-6)
        assert bits(model[name]["bias"], params["model"][name]["bias"])


def test_lora_draws_a_with_variance_one_over_the_inputs() -> None:
    """400 inputs, rank 10: 4,000 draws of standard deviation 1 / 20, known to 1.1 %."""
    o = supervised(MLP(out=2, hidden=()), losses.cross_entropy)
    params, _ = jax.jit(transforms.lora(rank=10)(o).init)({"x": jnp.zeros((1, 400))}, context())
    assert float(params["lora"]["head.kernel"]["a"].std()) == pytest.approx(0.05, rel=0.06)
    assert float(jnp.abs(params["lora"]["head.kernel"]["b"]).max()) == 0


# ---- importance weights
PIXELS = f32([1.0, 0.0, 1.0])
AUTO = VAE(shape=(3,), latent=2, hidden=(3,))


def latent(n: int = 800) -> tuple[Objective, Params, dict[str, Array]]:
    """A tiny VAE, and one image many times over: its rows are independent estimates of the same number."""
    x = jnp.broadcast_to(PIXELS, (n, 3))
    o = supervised(AUTO, losses.negative_elbo)
    params, _ = filled(o, {"x": x, "y": x})
    return o, params, {"x": x, "y": x}


@cache
def bound(samples: int, **kw: Any) -> np.ndarray:
    """-L_k of every row."""
    o, params, batch = latent()
    full = transforms.importance_weighted(losses.log_importance_weight, samples=samples, **kw)(o)
    return np.asarray(jax.jit(lambda p: full.apply(p, {}, batch, context())[1].per_example)(params), np.float64)


def test_one_sample_is_the_single_sample_bound() -> None:
    """log p(y, z) - log q(z | y) by SciPy, at the z of the pass that the first sample makes."""
    o, params, batch = latent(16)
    full = transforms.importance_weighted(losses.log_importance_weight, samples=1)(o)
    (_, plain), (loss, aux) = jax.device_get(
        jax.jit(lambda c: [x.apply(params, {}, batch, d) for x, d in ((o, c.fork("sample", 0)), (full, c))])(context())
    )
    out = plain.outputs
    log_p = stats.norm.logpdf(out["z"]).sum(1) + stats.bernoulli(special.expit(out["logits"])).logpmf(batch["y"]).sum(1)
    log_q = stats.norm(out["mean"], np.exp(0.5 * out["log_var"])).logpdf(out["z"]).sum(1)
    np.testing.assert_allclose(aux.per_example, log_q - log_p, rtol=1e-4)
    assert float(loss) == pytest.approx((log_q - log_p).mean(), rel=1e-4)


def test_the_bound_rises_with_the_samples_to_log_p() -> None:
    """L_1 <= L_5 <= L_50 <= log p(x), by 800 rows each; log p(x) is the sum over a grid of z, to six digits."""
    _, params, _ = latent()
    grid = np.linspace(-7, 7, 141)
    z = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    logits = jax.jit(partial(AUTO.apply, method="decode"))({"params": params["model"]}, f32(z))
    log_joint = stats.norm.logpdf(z).sum(1) + stats.bernoulli(special.expit(logits)).logpmf(np.asarray(PIXELS)).sum(1)
    log_p = special.logsumexp(log_joint) + 2 * np.log(grid[1] - grid[0])
    one, five, fifty = (bound(k) for k in (1, 5, 50))
    error = lambda v: v.std() / np.sqrt(len(v))  # noqa: E731
    assert one.mean() - five.mean() > 3 * error(one)
    assert five.mean() - fifty.mean() > 3 * error(five)
    assert fifty.mean() > -log_p - 3 * error(fifty)
    # All 40,000 samples as one estimate: the log of the mean of the rows' mean weights, to five standard errors.
    weights = np.exp(-fifty)
    assert abs(np.log(weights.mean()) - log_p) < 5 * weights.std() / weights.mean() / np.sqrt(len(weights))
    assert weights.std() / weights.mean() / np.sqrt(len(weights)) < 0.01


def test_the_doubly_reparameterised_gradient_has_the_same_mean_and_less_noise_in_q() -> None:
    """Of 800 rows, five samples each: the value and p's gradient are IWAE's to rounding. q's differ from row to row, so
    their means by at most five standard errors, and their spread is smaller (Tucker et al. 2019, section 4)."""
    o, params, batch = latent()
    iwae, dreg = (
        transforms.importance_weighted(losses.log_importance_weight, VAE.POSTERIOR, samples=5, gradient=gradient)(o)
        for gradient in ("standard", "dreg")
    )

    def of_row(objective: Objective) -> Any:
        def loss(p: Params, i: Any) -> Any:
            row = {k: v[:1] for k, v in batch.items()}
            return objective.apply(p, {}, row, context().fork("row", i))[0]

        return jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))(params, jnp.arange(len(batch["x"])))

    (value, plain), (other, doubly) = jax.device_get((of_row(iwae), of_row(dreg)))
    np.testing.assert_allclose(other, value, rtol=1e-4, atol=1e-5)
    assert gap(plain["model"]["decoder"], doubly["model"]["decoder"]) < 1e-4
    for name in ("encoder", "to_latent"):
        a, b = (
            np.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(g["model"][name])], 1)
            for g in (plain, doubly)
        )
        error = np.sqrt((a.var(0) + b.var(0)) / len(a))
        assert (np.abs(a.mean(0) - b.mean(0)) < 5 * error + 1e-6).all()
        assert b.var(0).sum() < 0.8 * a.var(0).sum()


def test_the_doubly_reparameterised_gradient_keeps_what_is_added_and_refuses_what_it_cannot_part() -> None:
    """l2 to its right: the gradient is that without, plus .3 times the kernels."""
    o, params, batch = latent(4)
    tight = transforms.importance_weighted(losses.log_importance_weight, VAE.POSTERIOR, samples=3, gradient="dreg")
    bare, held = (
        jax.jit(jax.grad(lambda p, f=f: f.apply(p, {}, batch, context())[0]))(params)
        for f in (tight(o), chain(tight, transforms.l2(weight=0.3))(o))
    )
    added = jax.tree.map(lambda g, w: g + (0.3 * w if w.ndim == 2 else 0), bare, params)
    assert gap(held, added) < 1e-5
    with pytest.raises(ValueError, match="cannot tell whose other is"):
        tight(o).apply({**params, "other": jnp.zeros(())}, {}, batch, context())
    for wrong in (dict(posterior=()), dict(chunk=1)):
        with pytest.raises(ValueError, match="of all samples at once, and of q's own parameters"):
            transforms.importance_weighted(
                losses.log_importance_weight, **{"posterior": ("encoder",), **wrong}, samples=3, gradient="dreg"
            )


def test_the_weight_of_the_kl_by_hand() -> None:
    """Rows of weights 2, 1 and 5 and masks 1, 1 and 0: the batch's mean of KL_j is (2 KL_0j + KL_1j) / 2. With beta 3
    over ten steps, at step 4 the weight is 1.5; variables below .1 nats count as .1. In evaluation nothing changes."""
    o, params, batch = latent(3)
    x = f32(np.random.default_rng(3).random((3, 3)))
    batch = {"x": x, "y": f32(np.round(x)), "weight": f32([2, 1, 5]), "mask": f32([1, 1, 0])}
    ctx = context().replace(step=jnp.int32(4))
    base, aux = o.apply(params, {}, batch, ctx)
    each = np.asarray(losses.kl_of_each(aux.outputs), np.float64)
    means = (2 * each[0] + each[1]) / 2
    free = float(means.mean())  # between the two variables
    made = transforms.kl(losses.kl_of_each, lambda text: 10, beta=3.0, ramp="10 steps", free_bits=free)(o)
    loss, told = made.apply(params, {}, batch, ctx)
    wanted = float(base) - means.sum() + 1.5 * np.maximum(means, free).sum()
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    assert float(made.apply(params, {}, batch, ctx.eval())[0]) == float(o.apply(params, {}, batch, ctx.eval())[0])


def test_the_bound_does_not_depend_on_the_chunk() -> None:
    np.testing.assert_allclose(bound(5, chunk=1), bound(5), rtol=1e-5)
    with pytest.raises(ValueError, match="chunk=4 does not divide samples=6"):
        bound(6, chunk=4)


def test_the_bound_under_mask_and_weight() -> None:
    """loss = sum(mask weight l) / sum(mask); the reported nll knows no weight; a padded row may hold nan."""
    o, params, batch = latent(4)
    full = transforms.importance_weighted(losses.log_importance_weight, samples=3)(o)
    hole = {"y": batch["y"].at[3].set(jnp.nan), "mask": f32([1, 1, 0, 0]), "weight": f32([2, 1, 7, 7])}
    run = jax.jit(lambda b: full.apply(params, {}, b, context()))
    plain = np.asarray(run(batch | {"mask": jnp.ones(4), "weight": jnp.ones(4)})[1].per_example)
    loss, aux = run(batch | hole)
    assert float(loss) == pytest.approx((2 * plain[0] + plain[1]) / 2, rel=1e-5)
    assert aux.metrics["nll"].compute() == pytest.approx((plain[0] + plain[1]) / 2, rel=1e-5)
    np.testing.assert_allclose(aux.per_example, [plain[0], plain[1], 0, 0], rtol=1e-5)


def test_padding_of_nan_reaches_no_gradient_of_the_bound() -> None:
    o, params, batch = latent(4)
    full = transforms.importance_weighted(losses.log_importance_weight, samples=3)(o)
    batch = batch | {"mask": f32([1, 1, 0, 0])}
    hole = {k: batch[k].at[3].set(jnp.nan) for k in ("x", "y")}
    run = jax.jit(jax.value_and_grad(lambda p, b: full.apply(p, {}, b, context())[0]))
    assert gap(run(params, batch | hole), run(params, batch)) < 1e-6


def test_what_is_added_inside_of_the_bound_stays() -> None:
    """l2 is no part of a row, so its place does not matter: the same loss and gradient to the left and to the right,
    .3 / 2 times the squares of the kernels above the bound's own. The rows' loss is gone, whatever it was."""
    o, params, batch = latent(4)
    batch = batch | {"mask": f32([1, 1, 1, 0]), "weight": f32([2, 1, 0.5, 7])}
    tight = transforms.importance_weighted(losses.log_importance_weight, samples=4, chunk=2)
    penalty = transforms.l2(weight=0.3)
    scaled = supervised(AUTO, lambda out, y: 9 * losses.negative_elbo(out, y))
    made = [tight(o), chain(penalty, tight)(o), chain(tight, penalty)(o), tight(scaled)]
    (bare, _), left, right, (other, _) = jax.jit(
        lambda p: [jax.value_and_grad(lambda q, f=f: f.apply(q, {}, batch, context())[0])(p) for f in made]
    )(params)
    squares = sum((np.asarray(w) ** 2).sum() for w in jax.tree.leaves(params) if w.ndim == 2)
    assert float(left[0]) == pytest.approx(float(bare) + 0.15 * squares, rel=1e-5)
    assert gap(left, right) < 1e-4
    assert float(other) == pytest.approx(float(bare), rel=1e-5)
    (_, aux), (_, inert) = (chain(tight, penalty)(o).apply(params, {}, batch, c) for c in (context(), context().eval()))
    assert {"l2", "nll"} <= aux.metrics.keys()
    assert "l2" not in inert.metrics


@pytest.mark.parametrize("name", ["pgd", "input", "ball", "beyond"])
def test_a_radius_that_grows(name: Any) -> None:
    """Over ten steps: .05 in the first, .25 in the fifth, the whole from the tenth on and in every evaluation. What
    starts beyond the ball may be three times as far away."""
    o, params = linear()
    attack = pgd(eps=0.5, steps=3) if name == "pgd" else fgsm(eps=0.5, start=name)
    batch, times = points(), 3 if name == "beyond" else 1
    made = adversarial(attack, probe=o, ramp=10)(looking())
    run = jax.jit(lambda c: made.apply(params, {}, batch, c)[1].outputs["x"])
    for step, share in ((0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0)):
        far = jnp.abs(run(context().replace(step=jnp.int32(step))) - batch["x"]).max()
        assert 0.1 * share < far <= times * 0.5 * share + 1e-6
    assert jnp.abs(run(context().eval()) - batch["x"]).max() > 0.3


def test_a_step_from_beyond_the_ball() -> None:
    """x + noise + eps sign(gradient), the gradient of a linear model being that at x: less that step, the noise is
    uniform in twice eps."""
    batch = points(2000)
    moved = attacked(fgsm(eps=0.1, start="beyond"), batch) - np.asarray(batch["x"])
    noise = moved + 0.1 * np.asarray(batch["y"])[:, None] * np.sign(W)
    assert stats.kstest(noise.ravel(), stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-3
    bounded = attacked(fgsm(eps=0.5, start="beyond", bounds=(0.1, 0.9)), points())
    assert bounded.min() >= 0.1 and bounded.max() <= 0.9
    with pytest.raises(ValueError, match="fgsm: start: 'ball ' is not one of"):
        fgsm(eps=0.1, start="ball ")


def test_a_step_from_within_the_ball_knows_no_bounds_before_its_end() -> None:
    """Black pixels, eps .4, a gradient that points up: from d uniform in (-.4, .4), outside of the bounds for a half,
    .5 further and back into the ball. It ends at .4 where d > -.1, which is 5 in 8, and uniform in (.1, .4) elsewhere;
    started within the bounds, every one would end at .4."""
    n = 4000
    batch = {"x": f32(np.zeros((n, 3))), "y": f32(-np.ones(n))}
    up = attacked(fgsm(eps=0.4, start="ball", bounds=(0.0, 1.0)), batch)[:, W > 0].ravel()
    edge = up > 0.4 - 1e-6
    assert abs(edge.mean() - 5 / 8) < 5 * np.sqrt(5 / 8 * 3 / 8 / up.size)
    assert stats.kstest(up[~edge], stats.uniform(0.1, 0.3).cdf).pvalue > 1e-3
    down = attacked(fgsm(eps=0.4, start="ball", bounds=(0.0, 1.0)), batch)[:, W < 0]
    assert (down == 0).mean() == 1


# ---- from settings
def steps_of(text: str) -> int:
    return 0 if text == "never" else int(text.split()[0])


def test_build_makes_what_the_sections_say_in_their_order() -> None:
    """fgsm then label smoothing, on the linear model: x moves by hand, the labels stay one-hot sums."""
    o, params = linear()
    log: dict[str, Any] = {}
    sections = {"small": {"technique": "fgsm", "eps": 0.1, "probe": "base"}, "l2": {"weight": 0}}
    made = transforms.build(
        ("small", "l2"), sections, log=log, base=o, bounds=None, on="x", where=None, classes=3, to_steps=steps_of
    )
    assert len(made) == 2
    batch = points()
    _, aux = made[0](o).apply(params, {}, batch, context())
    moved = np.asarray(batch["x"]) - 0.1 * np.asarray(batch["y"])[:, None] * np.sign(W)
    np.testing.assert_allclose(aux.outputs, moved @ W, rtol=1e-4)
    small = {"technique": "fgsm", "eps": 0.1, "probe": "base", "train_mode": False, "start": "input", "ramp": "never"}
    small["clean"] = 0.0
    assert log == {"small": small, "l2": {"weight": 0.0, "scope": "model"}}
    assert transforms.build((), sections) == ()


def test_pgd_from_settings_is_pgd() -> None:
    o, params = linear()
    settings = {"adversarial": {"eps": 0.2, "steps": 2, "norm": "l2", "random_start": False}}
    (made,) = transforms.build(
        ("adversarial",), settings, base=o, bounds=(0.0, 1.0), on="x", where=None, to_steps=steps_of
    )
    by_hand = adversarial(pgd(eps=0.2, steps=2, norm="l2", random_start=False, bounds=(0.0, 1.0)))
    run = jax.jit(lambda p: [t(o).apply(p, {}, points(), context())[1].outputs for t in (made, by_hand)])
    assert bits(*run(params))


@pytest.mark.parametrize(
    ("names", "sections", "says"),
    [
        (("sma",), {}, "config: no technique 'sma' (did you mean 'sam'?)"),
        (("a",), {"a": {"technique": "sma"}}, "config.a.technique: no technique 'sma' (did you mean 'sam'?)"),
        (("sam",), {"sam": {"roh": 0.1}}, "config.sam.roh: no such setting"),
        (("sam",), {"sam": 0.1}, "config.sam: 0.1 is no section of settings"),
        (("l2",), {}, "config.l2.weight: missing"),
        (("mixup",), {"mixup": {"alpha": -1}}, "config.mixup.alpha: -1.0 must be >= 0"),
        (("mixup",), {}, "config.mixup: needs 'classes', which this pipeline does not provide"),
    ],
)
def test_build_refuses(names: tuple[str, ...], sections: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as error:
        transforms.build(names, sections, base=None, bounds=None)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"mixpu": {"alpha": 0.1}}, "config.mixpu: no such setting (did you mean 'mixup'?)"),
        ({"bath_size": 3}, "config.bath_size: no such setting (did you mean 'batch_size'?)"),
        ({"sam": {"rho": "x"}}, "config.sam.rho: 'x' is text, wanted float"),
        ({"pgd40": {"technique": "adversarial", "eps": 0.1, "steps": 0}}, "config.pgd40.steps: 0 must be >= 1"),
        ({"pgd40": {"technique": "pgd"}}, "config.pgd40.technique: no technique 'pgd'"),
        ({"adversarial": {}}, "config.adversarial.eps: missing"),
    ],
)
def test_sections_are_checked_even_when_nothing_uses_them(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as error:
        transforms.check_sections(sections, ("batch_size",))
    assert str(error.value).startswith(says)


def test_sections_that_are_right() -> None:
    transforms.check_sections({"sam": {}, "pgd40": {"technique": "adversarial", "eps": 0.1, "steps": 40}}, ())
