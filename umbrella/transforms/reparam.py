"""Reparametrisations: the model is applied with a function of what is trained. Floor 2."""

import jax
import jax.numpy as jnp

from umbrella.objective import Array, Batch, Ctx, Objective, Params, PyTree, State, Transform, map_params
from umbrella.settings import Count, NonNegative


def lora(*, rank: Count, alpha: NonNegative = 1.0, scope: str = "model") -> Transform:
    """W + alpha / rank * A B for every matrix of a scope, A [in, rank] normal / sqrt(in), B [rank, out] zero.

    Starts as the identity. The deltas are a scope of their own: `update(..., wrt=("lora",))` trains them alone and
    leaves the base as it is; training both is allowed, too.

    Source: Hu et al. 2022, section 4.1. Deviation: A has variance 1 / in, not He's, so that alpha means the same at
    every width.
    """

    def wrap(o: Objective) -> Objective:
        def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
            params, state = o.init(batch, ctx)
            if "lora" in params:
                raise ValueError("lora is there already: one of them is enough")
            deltas = {}
            for name, w in _matrices(params[scope]).items():
                a = jax.random.normal(ctx.rng(f"lora/{name}"), (w.shape[0], rank), w.dtype) / jnp.sqrt(
                    jnp.asarray(w.shape[0], w.dtype)
                )
                deltas[name] = {"a": a, "b": jnp.zeros((rank, w.shape[1]), w.dtype)}
            return {**params, "lora": deltas}, state

        def merged(params: Params, state: State) -> Params:
            def one(path: tuple, w: Array) -> Array:
                d = params["lora"].get(_name(path))
                return w if d is None else w + (alpha / rank) * (d["a"] @ d["b"])

            return {**params, scope: jax.tree_util.tree_map_with_path(one, params[scope])}

        return map_params(merged, name="lora")(o)._replace(init=init)

    return wrap


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _matrices(tree: PyTree) -> dict[str, Array]:
    return {_name(path): w for path, w in jax.tree_util.tree_leaves_with_path(tree) if w.ndim == 2}
