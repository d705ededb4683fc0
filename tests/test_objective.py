"""The objective and its lifts: losses by hand, named streams, features, state, carry, order."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import C, D, Net, bits, classifier, context, gap, rows
from umbrella import losses, metrics
from umbrella.metrics import Mean
from umbrella.objective import (
    Batch,
    Ctx,
    Objective,
    Params,
    State,
    add_term,
    chain,
    map_batch,
    map_params,
    measure,
    supervised,
)

Array = jax.Array
tmap = jax.tree.map


def absolute(outputs: Array, y: Array) -> Array:
    """A criterion for derivations: |output - y|, in the shape of both."""
    return jnp.abs(outputs - y)


class Scale(nn.Module):
    """x -> w x, with w = 2 at the start."""

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        return self.param("w", nn.initializers.constant(2.0), ()) * x


def scale() -> Objective:
    return supervised(Scale(), absolute)


def filled(o: Objective, batch: Batch) -> tuple[Params, State]:
    """Parameters and state in the shapes of init, drawn by NumPy: nothing is compiled. State is positive."""
    r = np.random.default_rng(7)
    draw = lambda s: jnp.asarray(0.5 * r.normal(size=s.shape), s.dtype)  # noqa: E731
    params, state = jax.eval_shape(lambda: o.init(batch, context()))
    return tmap(draw, params), tmap(lambda s: jnp.abs(draw(s)), state)


def apply(o: Objective, batch: Batch, ctx: Ctx | None = None) -> tuple[Array, Any]:
    ctx = context() if ctx is None else ctx
    return o.apply(*o.init(batch, ctx), batch, ctx)


# ---- supervised
def test_the_loss_by_hand_for_rows() -> None:
    """w = 2: outputs 2, 4, 6, 8 against 0: l = 2, 4, 6, 8. Mask 1 1 1 0, weight 1 2 .5 9.

    Total 1 * 2 + 2 * 4 + .5 * 6 = 13, count 3: the weight is not in the denominator. The loss metric is the same mean.
    """
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    batch = {"x": x, "y": 0 * x, "mask": jnp.asarray([1.0, 1.0, 1.0, 0.0]), "weight": jnp.asarray([1.0, 2.0, 0.5, 9.0])}
    loss, aux = apply(scale(), batch)
    assert float(loss) == pytest.approx(13 / 3)
    assert float(aux.count) == 3
    assert aux.metrics["loss"].compute() == pytest.approx(13 / 3)
    np.testing.assert_allclose(aux.per_example, [2.0, 4.0, 6.0, 0.0])
    np.testing.assert_allclose(aux.outputs, [2.0, 4.0, 6.0, 8.0])
    plain, aux = apply(scale(), {"x": x, "y": 0 * x})
    assert float(plain) == 5.0  # (2 + 4 + 6 + 8) / 4
    assert float(aux.count) == 4


def tokens() -> dict[str, Array]:
    x = jnp.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    return {"x": x, "y": 0 * x, "mask": jnp.asarray([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])}


def test_the_loss_by_hand_for_tokens() -> None:
    """l = 2 x: kept 2, 4 | 8. Without weight: 14 / 3. Weights 1, .5 of the rows: (2 + 4 + .5 * 8) / 3 = 10 / 3."""
    loss, aux = apply(scale(), tokens())
    assert float(loss) == pytest.approx(14 / 3)
    np.testing.assert_allclose(aux.per_example, [3.0, 8.0])  # (2 + 4) / 2, 8 / 1
    loss, aux = apply(scale(), tokens() | {"weight": jnp.asarray([1.0, 0.5])})
    assert float(loss) == pytest.approx(10 / 3)
    assert float(aux.count) == 3


def test_per_example_losses_are_unweighted_for_rows_and_for_tokens() -> None:
    """They are what a row costs, whatever it is worth."""
    weight = {"weight": jnp.asarray([1.0, 0.5])}
    by_row = {"x": jnp.asarray([1.0, 2.0]), "y": jnp.zeros(2)}
    assert bits(apply(scale(), by_row | weight)[1].per_example, apply(scale(), by_row)[1].per_example)
    assert bits(apply(scale(), tokens() | weight)[1].per_example, apply(scale(), tokens())[1].per_example)


def test_a_padded_row_may_hold_nan() -> None:
    """0 * nan is nan, so a padded row is replaced, not multiplied."""
    batch = {"x": jnp.asarray([1.0, jnp.nan]), "y": jnp.zeros(2), "mask": jnp.asarray([1.0, 0.0])}
    loss, aux = apply(scale(), batch)
    assert float(loss) == 2.0
    assert float(aux.per_example[1]) == 0.0


@pytest.mark.parametrize("where", ["x", "y", "weight"])
def test_padding_of_nan_reaches_no_gradient(where: str) -> None:
    """w = 2, l = (w x - y)^2 at x = 1, y = 0: its slope 2 (w x - y) x is 4; of three rows one counts, and weighs 1.
    In the backward pass the zeros of the mask alone would meet NaN. A row that counts is not cleaned."""
    o = supervised(Scale(), losses.squared_error)
    batch = {"x": jnp.ones(3), "y": jnp.zeros(3), "weight": jnp.ones(3), "mask": jnp.asarray([1.0, 0.0, 0.0])}
    params, state = o.init(batch, context())
    run = jax.jit(jax.value_and_grad(lambda p, b: o.apply(p, state, b, context())[0]))
    loss, g = run(params, batch | {where: batch[where].at[1].set(jnp.nan).at[2].set(jnp.inf)})
    assert (float(loss), float(g["model"]["w"])) == (4.0, 4.0)
    loss, _ = run(params, batch | {where: batch[where].at[0].set(jnp.nan)})
    assert np.isnan(float(loss))


def test_a_padded_token_of_nan_reaches_no_gradient() -> None:
    """The slope of |w x| is x: 1 + 2 + 4 over the three tokens that count is 7 / 3. A target may be NaN wherever it is
    masked; an input only in a row that is masked altogether, since the model may look at it from elsewhere."""
    o, batch = scale(), tokens()
    params, state = o.init(batch, context())
    hole = {"y": jnp.where(batch["mask"] > 0, batch["y"], jnp.nan)}
    run = jax.jit(jax.grad(lambda p, b: o.apply(p, state, b, context())[0]))
    assert float(run(params, batch | hole)["model"]["w"]) == pytest.approx(7 / 3)
    batch = batch | {"x": batch["x"].at[1].set(jnp.nan), "mask": batch["mask"].at[1].set(0.0)}
    assert float(run(params, batch)["model"]["w"]) == pytest.approx(3 / 2)  # (1 + 2) / 2


def test_a_label_out_of_range_in_padding_costs_nothing() -> None:
    batch, base = rows(), classifier(drop=0.0)
    params, state = filled(base, batch)
    run = jax.jit(jax.value_and_grad(lambda p, b: base.apply(p, state, b, context())[0]))
    padded = run(params, batch | {"y": batch["y"].at[15].set(-1)})
    assert gap(padded, run(params, batch)) == 0
    loss, _ = run(params, batch | {"y": batch["y"].at[0].set(C)})
    assert np.isnan(float(loss))


def test_rows_without_a_label_keep_their_outputs() -> None:
    """A row with mask 0 may be one that a consistency term looks at: only what is not finite is replaced."""
    batch = {"x": jnp.asarray([1.0, 2.0]), "y": jnp.zeros(2), "mask": jnp.asarray([1.0, 0.0])}
    np.testing.assert_array_equal(apply(scale(), batch)[1].outputs, [2.0, 4.0])


def test_losses_of_half_precision_are_counted_in_full() -> None:
    """1,000 rows of loss 1: bf16 would count them as 256 at a time at best, and mean something else."""
    o = supervised(Scale(), lambda out, y: jnp.abs(out - y).astype(jnp.bfloat16))
    batch = {"x": jnp.full(1000, 0.5), "y": jnp.zeros(1000)}
    for b in (batch, batch | {"mask": jnp.ones(1000)}):
        loss, aux = apply(o, b)
        assert (float(loss), float(aux.count), loss.dtype, aux.per_example.dtype) == (1.0, 1000.0, *[jnp.float32] * 2)


@pytest.mark.parametrize("mask", [(2, 1), (2, 3), (4,)])
def test_a_mask_of_another_shape_is_an_error(mask: tuple[int, ...]) -> None:
    batch = {"x": jnp.ones(2), "y": jnp.ones(2), "mask": jnp.ones(mask)}
    with pytest.raises(ValueError, match=r"the criterion gives \(2,\), the mask is"):
        apply(scale(), batch)


def test_all_masked_is_zero() -> None:
    loss, aux = apply(scale(), {"x": jnp.ones(2), "y": jnp.zeros(2), "mask": jnp.zeros(2)})
    assert (float(loss), float(aux.count)) == (0.0, 0.0)
    assert np.isnan(aux.metrics["loss"].compute())


# ---- context
def test_streams_go_by_name() -> None:
    """Every name and every index has a key of its own; a fork's streams differ from its parent's."""
    ctx = context()
    keys = [
        ctx.rng("a"),
        ctx.rng("b"),
        ctx.rng("a", 0),
        ctx.rng("a", 1),
        ctx.fork("a").rng("a"),
        ctx.fork("a", 1).rng("a"),
    ]
    data = {jax.random.key_data(k).tobytes() for k in keys}
    assert len(data) == len(keys)
    assert bits(ctx.rng("a", 1), jax.jit(lambda c, i: c.rng("a", i))(ctx, jnp.int32(1)))
    assert bits(ctx.eval().rng("a"), ctx.rng("a"))


def test_a_technique_that_draws_noise_leaves_the_dropout_of_the_model_untouched() -> None:
    """It draws from its own name, before the model; the same bits come out."""

    def draw(batch: Batch, key: Array) -> Batch:
        return {**batch, "noise": jax.random.normal(key, (3,))}

    base = classifier(drop=0.5)
    noisy = map_batch(draw, name="noise")(base)
    batch, ctx = rows(), context()
    params, state = filled(base, batch)
    run = jax.jit(lambda c, o: o.apply(params, state, batch, c)[0], static_argnums=1)
    assert bits(run(ctx, noisy), run(ctx, base))
    assert not bits(run(ctx, base), run(ctx.eval(), base))  # so dropout did act


def test_asking_for_features() -> None:
    """What a submodule returned, at "scope/module/path"; the outputs stay as they were."""
    base = classifier(drop=0.0)
    params, state = filled(base, rows())
    loss, aux = base.apply(params, state, rows(), context())
    assert aux.features == {}
    asked, got = base.apply(params, state, rows(), context().asking("model/hidden", "model/norm"))
    assert bits(asked, loss)
    assert got.features.keys() == {"model/hidden", "model/norm"}
    hidden = np.asarray(rows()["x"]) @ np.asarray(params["model"]["hidden"]["kernel"])
    np.testing.assert_allclose(got.features["model/hidden"], hidden, rtol=1e-4, atol=1e-6)
    centred = hidden - hidden.mean(1, keepdims=True)
    norm = {k: np.asarray(v) for k, v in params["model"]["norm"].items()}
    wanted = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(got.features["model/norm"], wanted, rtol=1e-4, atol=1e-5)


def test_asking_passes_through_transforms_and_past_other_scopes() -> None:
    base = classifier(drop=0.0)
    full = chain(map_batch(lambda b, k: {**b, "x": 2 * b["x"]}, name="twice"), add_term(norm_of, weight=1.0, name="t"))(
        base
    )
    params, state = filled(full, rows())
    params["other"] = {"w": jnp.zeros(1)}
    _, aux = full.apply(params, state, rows(), context().asking("model/hidden", "other/hidden"))
    wanted = 2 * np.asarray(rows()["x"]) @ np.asarray(params["model"]["hidden"]["kernel"])
    np.testing.assert_allclose(aux.features["model/hidden"], wanted, rtol=1e-4, atol=1e-6)
    assert aux.features.keys() == {"model/hidden"}


def test_asking_for_a_module_that_is_not_there() -> None:
    base = classifier()
    with pytest.raises(ValueError, match="no feature 'model/hiden': the model has no submodule 'hiden' there"):
        base.apply(*filled(base, rows()), rows(), context().asking("model/hiden"))
    with pytest.raises(ValueError, match=r"no feature 'modle/hidden': the parameters have the scopes \['model'\]"):
        base.apply(*filled(base, rows()), rows(), context().asking("modle/hidden"))


def test_asking_for_a_module_that_is_called_twice() -> None:
    """It has two outputs, and one of them alone would be half of an answer."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: Array, *, train: bool) -> Array:
            same = nn.Dense(D, name="same")
            return same(same(x))

    o = supervised(Twice(), losses.squared_error)
    batch = {"x": rows()["x"], "y": rows()["x"]}
    with pytest.raises(ValueError, match="no feature 'model/same': that submodule is called 2 times, not once"):
        o.apply(*filled(o, batch), batch, context().asking("model/same"))


# ---- state
def test_batch_norm_state_is_returned_in_training_only() -> None:
    """running mean = .9 running + .1 batch; in evaluation nothing comes back."""
    base = classifier("batch", drop=0.0)
    batch = rows(mask=False)
    params, state = filled(base, batch)
    _, aux = base.apply(params, state, batch, context())
    assert aux.state.keys() == {"model"}
    hidden = np.asarray(batch["x"]) @ np.asarray(params["model"]["hidden"]["kernel"])
    before, after = (np.asarray(t["model"]["batch_stats"]["norm"]["mean"]) for t in (state, aux.state))
    np.testing.assert_allclose(after, 0.9 * before + 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    _, aux = base.apply(params, state, batch, context().eval())
    assert aux.state == {}


class Recall(nn.Module):
    """A small gated unit that goes on where it ended: h <- z h + (1 - z) tanh(u x_t), z = sigmoid(v x_t)."""

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        u, v = (self.param(n, nn.initializers.constant(c), ()) for n, c in (("u", 0.7), ("v", -0.4)))
        h = self.variable("carry", "h", lambda: jnp.zeros(x.shape[0]))
        out = []
        for t in range(x.shape[1]):
            z = nn.sigmoid(v * x[:, t])
            h.value = z * h.value + (1 - z) * jnp.tanh(u * x[:, t])
            out.append(h.value)
        return jnp.stack(out, 1)


def test_carry_is_threaded_from_window_to_window() -> None:
    """Three windows of two steps give the outputs of one pass over six; by NumPy, in training and in evaluation."""
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    o = supervised(Recall(), absolute, scope="rnn")
    batch = lambda a, b: {"x": jnp.asarray(x[:, a:b]), "y": jnp.zeros((4, b - a))}  # noqa: E731
    params, state = o.init(batch(0, 2), context())
    assert state.keys() == {"carry"}
    assert state["carry"]["rnn"]["h"].shape == (4,)
    h, wanted = np.zeros(4), []
    for t in range(6):
        z = 1 / (1 + np.exp(0.4 * x[:, t]))
        h = z * h + (1 - z) * np.tanh(0.7 * x[:, t])
        wanted.append(h)
    for ctx in (context(), context().eval()):
        start = {"carry": {"rnn": {"h": jnp.zeros(4)}, "other": jnp.ones(4)}}
        for i in range(0, 6, 2):
            _, aux = o.apply(params, start, batch(i, i + 2), ctx)
            np.testing.assert_allclose(aux.outputs, np.stack(wanted[i : i + 2], 1), rtol=1e-5, atol=1e-6)
            assert aux.state.keys() == {"carry"}
            start = {**start, **aux.state}
        assert bits(start["carry"]["other"], jnp.ones(4))  # other owners' carry stays


# ---- lifts
def times(factor: float, name: str, **kw: Any) -> Any:
    return map_batch(lambda b, k: {**b, "x": factor * b["x"]}, name=name, **kw)


def plus(term: float, name: str) -> Any:
    return map_batch(lambda b, k: {**b, "x": term + b["x"]}, name=name)


def test_the_leftmost_of_a_chain_touches_the_batch_first() -> None:
    """x = 1: (1 + 3) * 10 = 40 and (1 * 10) + 3 = 13; the model doubles both. The empty chain is the identity."""
    batch = {"x": jnp.ones(1), "y": jnp.zeros(1)}
    assert float(apply(chain(plus(3.0, "a"), times(10.0, "b"))(scale()), batch)[0]) == 80
    assert float(apply(chain(times(10.0, "b"), plus(3.0, "a"))(scale()), batch)[0]) == 26
    base = scale()
    assert chain()(base) is base


def test_map_batch_acts_in_training_and_when_told_in_evaluation() -> None:
    batch = {"x": jnp.ones(1), "y": jnp.zeros(1)}
    for always, wanted in ((False, 2.0), (True, 20.0)):
        o = times(10.0, "b", eval=always)(scale())
        params, state = o.init(batch, context())
        assert float(o.apply(params, state, batch, context())[0]) == 20
        assert float(o.apply(params, state, batch, context().eval())[0]) == wanted


def test_map_batch_may_make_what_init_needs() -> None:
    o = map_batch(lambda b, k: {"x": b["raw"], "y": 0 * b["raw"]}, name="make", eval=True)(scale())
    assert float(apply(o, {"raw": jnp.ones(2)})[0]) == 2


def test_measure_is_innermost_and_sees_what_the_loss_sees() -> None:
    """Inside a batch rewrite that hides half of the rows, a metric counts the rows that are left."""
    hide = map_batch(lambda b, k: {**b, "mask": jnp.asarray([1.0, 0.0, 1.0, 0.0])}, name="hide")
    count = measure(seen=lambda outputs, b: Mean(jnp.sum(b["mask"] * outputs), jnp.sum(b["mask"])))
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    batch = {"x": x, "y": 0 * x, "mask": jnp.ones(4)}
    _, aux = apply(hide(count(scale())), batch)
    assert aux.metrics["seen"].compute() == 4.0  # (2 + 6) / 2
    _, aux = apply(count(hide(scale())), batch)
    assert aux.metrics["seen"].compute() == 5.0  # outside, it would have counted all four: (2 + 4 + 6 + 8) / 4
    assert aux.metrics.keys() == {"loss", "seen"}


def test_metrics_pass_no_gradient() -> None:
    o = measure(out=lambda outputs, b: Mean.of(outputs))(scale())
    batch = {"x": jnp.ones(2), "y": jnp.zeros(2)}
    params, state = o.init(batch, context())
    g = jax.grad(
        lambda p: (lambda a: a.metrics["out"].total + a.metrics["loss"].total)(o.apply(p, state, batch, context())[1])
    )
    assert float(g(params)["model"]["w"]) == 0


def norm_of(o: Objective, params: Params, state: State, batch: Batch, ctx: Ctx, aux: Any) -> Array:
    return sum((jnp.sum(jnp.square(w)) for w in jax.tree.leaves(params["model"])), start=jnp.zeros(()))


def test_add_term_adds_in_training_and_is_inert_in_evaluation() -> None:
    """w = 2, x = 1: 2 + .25 * w^2 = 3, and its gradient 1 + .25 * 2 w = 2; in evaluation the loss alone."""
    o = add_term(norm_of, weight=0.25, name="square")(scale())
    batch = {"x": jnp.ones(3), "y": jnp.zeros(3)}
    params, state = o.init(batch, context())
    loss = lambda p, ctx: o.apply(p, state, batch, ctx)  # noqa: E731
    (value, aux), g = jax.value_and_grad(loss, has_aux=True)(params, context())
    assert float(value) == 3.0
    assert float(g["model"]["w"]) == 2.0
    assert aux.metrics["square"].compute() == 4.0  # as it is, before its weight
    assert aux.metrics["loss"].compute() == 2.0
    value, aux = loss(params, context().eval())
    assert float(value) == 2.0
    assert aux.metrics.keys() == {"loss"}


def test_two_terms_of_one_name_are_refused() -> None:
    twice = chain(*[add_term(norm_of, weight=w, name="square") for w in (0.25, 0.5)])(scale())
    with pytest.raises(ValueError, match="two terms or metrics are called 'square': one would hide the other"):
        apply(twice, {"x": jnp.ones(3), "y": jnp.zeros(3)})


def test_map_params_composes_with_resolve() -> None:
    """w = 2. Doubled, then one more: the model sees 2 * 2 + 1 = 5, and so does resolve; swapped, (2 + 1) * 2 = 6."""
    double = map_params(lambda p, s: tmap(lambda w: 2 * w, p), name="double")
    more = map_params(lambda p, s: tmap(lambda w: w + s.get("by", 1.0), p), name="more")
    batch = {"x": jnp.ones(1), "y": jnp.zeros(1)}
    for o, wanted in ((chain(double, more)(scale()), 5.0), (chain(more, double)(scale()), 6.0)):
        params, state = o.init(batch, context())
        assert float(params["model"]["w"]) == 2.0
        assert float(o.apply(params, state, batch, context())[0]) == wanted
        assert float(o.resolve(params, state)["model"]["w"]) == wanted
    o = more(scale())
    assert float(o.resolve(params, {"by": jnp.float32(5.0)})["model"]["w"]) == 7.0
    assert scale().resolve(params, {}) is params


def test_other_lifts_keep_resolve() -> None:
    double = map_params(lambda p, s: tmap(lambda w: 2 * w, p), name="double")
    around = [times(2.0, "t"), add_term(norm_of, weight=1.0, name="n"), measure(m=lambda o, b: Mean.of(o))]
    batch = {"x": jnp.ones(1), "y": jnp.zeros(1)}
    o = chain(*around, double)(scale())
    assert float(o.resolve(*o.init(batch, context()))["model"]["w"]) == 4.0


def test_scopes_of_two_models_do_not_disturb_each_other() -> None:
    """Parameters are drawn from the scope's name, so the same model under another scope starts elsewhere."""
    a, b = (supervised(Net(), losses.cross_entropy, scope=s) for s in ("a", "b"))
    pa, pb = a.init(rows(), context())[0], b.init(rows(), context())[0]
    assert (pa.keys(), pb.keys()) == ({"a"}, {"b"})
    assert gap(pa["a"], pb["b"]) > 1e-2
    assert bits(pa, a.init(rows(), context().eval())[0])


def test_dict_inputs_reach_the_model_as_they_are() -> None:
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x: dict[str, Array], *, train: bool) -> Array:
            return nn.Dense(C)(x["image"]) + nn.Dense(C)(x["text"])

    o = measure(accuracy=metrics.accuracy)(supervised(Two(), losses.cross_entropy))
    batch = {"x": {"image": rows()["x"], "text": jnp.ones((16, D))}, "y": rows()["y"], "mask": rows()["mask"]}
    loss, aux = o.apply(*filled(o, batch), batch, context())
    assert np.isfinite(float(loss))
    assert float(aux.metrics["accuracy"].count) == 14
