"""Decoding, against brute force and by hand, on small models whose next token depends on all that was read."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umbrella import decoding
from umbrella.decoding import Beams, beam, draw, greedy, keep_top_k, keep_top_p, sample

V, T, END, STATES = 3, 4, 1, 61
TABLE = np.random.default_rng(0).normal(0, 1.5, (2, STATES, V)).astype(np.float32)  # of two rows, each its own model


def next_state(state: int, token: int) -> int:
    return (7 * state + 3 * token + 1) % STATES


def step(cache: dict[str, jax.Array], tokens: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The state is a hash of the whole history; each row has a table of its own, which a beam must not mix up."""
    state = (7 * cache["state"] + 3 * tokens + 1) % STATES
    logits = cache["table"][jnp.arange(tokens.shape[0]), state]
    return logits, {"state": state, "table": cache["table"]}


def fresh(rows: int = 2) -> dict[str, jax.Array]:
    return {"state": jnp.zeros(rows, jnp.int32), "table": jnp.asarray(TABLE[:rows])}


START = jnp.array([2, 2], jnp.int32)


def all_ended(row: int, length: int, alpha: float) -> list[tuple[float, list[int]]]:
    """Every sequence of at most `length` tokens whose last and only END is its last, by score; in NumPy, one by one."""
    found = []
    for n in range(1, length + 1):
        for body in itertools.product([v for v in range(V) if v != END], repeat=n - 1):
            tokens, state, last, log_p = [*body, END], 0, 2, 0.0
            for token in tokens:
                state = next_state(state, last)
                logits = TABLE[row, state].astype(np.float64)
                log_p += float(logits[token] - np.log(np.exp(logits).sum()))
                last = token
            found.append((log_p / ((5 + n) / 6) ** alpha, tokens))
    return sorted(found, reverse=True)


@functools.partial(jax.jit, static_argnames=("width", "alpha", "length"))
def searched(width: int, alpha: float, length: int = T) -> Beams:
    return beam(step, fresh(), START, width=width, length=length, end=END, alpha=alpha)


# -------------------------------------------------------------------------------------------------------------- beams
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_that_is_wide_enough_finds_the_best_of_all(alpha: float) -> None:
    found = searched(V**T, alpha)
    for row in range(2):
        wanted = all_ended(row, T, alpha)
        assert len(wanted) == 1 + 2 + 4 + 8 == int(found.ended[row].sum())  # two tokens that are no END, and END
        for k, (score, tokens) in enumerate(wanted):
            assert found.tokens[row, k].tolist() == tokens + [0] * (T - len(tokens))
            assert float(found.score[row, k]) == pytest.approx(score, abs=1e-5)
    assert found.score.dtype == jnp.float32 and found.tokens.dtype == jnp.int32


def test_the_length_penalty_changes_what_is_best() -> None:
    """Otherwise the test above would say little of it. (5 + 7) / 6 = 2, so at alpha 3 it is 8."""
    assert float(decoding.length_penalty(7, 3.0)) == pytest.approx(8)
    short, long = (int((searched(V**T, a).tokens[0, 0] == END).argmax()) for a in (0.0, 6.0))
    assert short < long


def test_a_beam_of_one_is_greedy() -> None:
    found, wanted = searched(1, 0.0, 8), greedy(step, fresh(), START[:, None], length=8, end=END)
    assert found.tokens[:, 0].tolist() == wanted.tolist()


def test_what_has_no_room_to_end_comes_last() -> None:
    never = jnp.zeros((1, STATES, V)).at[..., END].set(-50.0)
    cache = {"state": jnp.zeros(1, jnp.int32), "table": never}
    found = beam(step, cache, START[:1], width=3, length=2, end=END, alpha=0.0)
    # Ended: [END] at -50 - log 2 (the end's own share is nothing) and the likelier of two of length two, at
    # -50 - 2 log 2. Cut off: -2 log 2, and behind them though far likelier.
    assert found.ended.tolist() == [[True, True, True]]
    assert found.tokens[0, 0].tolist() == [END, 0]
    np.testing.assert_allclose(found.score[0], [-50 - math.log(2), *2 * [-50 - 2 * math.log(2)]], rtol=1e-5)
    one = beam(step, cache, START[:1], width=1, length=2, end=END, alpha=0.0)
    assert one.ended.tolist() == [[False]] and float(one.score[0, 0]) == pytest.approx(-2 * math.log(2), abs=1e-5)


def test_a_beam_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="leading axis 2"):
        beam(step, {**fresh(), "at": jnp.int32(0)}, START, width=2, length=3, end=END)
    with pytest.raises(ValueError, match="width=0"):
        beam(step, fresh(), START, width=0, length=3, end=END)


# ------------------------------------------------------------------------------------------------------------- sampling
def test_top_k_keeps_the_k_largest() -> None:
    logits = jnp.array([[1.0, 3.0, 2.0, 3.0]])
    assert jnp.isfinite(keep_top_k(logits, 1)).tolist() == [[False, True, False, False]]  # of equal ones the first
    assert jnp.isfinite(keep_top_k(logits, 3)).tolist() == [[False, True, True, True]]
    assert keep_top_k(logits, 0) is logits and keep_top_k(logits, 9) is logits


def test_top_p_keeps_the_fewest_that_suffice() -> None:
    p = jnp.array([[0.15, 0.5, 0.05, 0.3]])
    kept = {q: jnp.isfinite(keep_top_p(jnp.log(p), q)).tolist()[0] for q in (1e-9, 0.4, 0.6, 0.79, 0.9, 1.0)}
    one, two, three = [False, True, False, False], [False, True, False, True], [True, True, False, True]
    assert kept == {1e-9: one, 0.4: one, 0.6: two, 0.79: two, 0.9: three, 1.0: [True] * 4}  # .5, .8, .95


def test_tokens_are_drawn_as_often_as_they_should_be() -> None:
    """Within four standard deviations of a binomial, of every token; 1e-4 would be outside by chance."""
    n, logits = 20_000, jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    rows = jnp.broadcast_to(logits, (n, 4))
    cases = {
        (1.0, 0, 1.0): [0.1, 0.2, 0.3, 0.4],
        (0.5, 0, 1.0): [1 / 30, 4 / 30, 9 / 30, 16 / 30],  # squares
        (1.0, 2, 1.0): [0, 0, 3 / 7, 4 / 7],
        (1.0, 0, 0.8): [0, 2 / 9, 3 / 9, 4 / 9],  # .4 and .3 are less than .8
    }
    for (temperature, k, p), wanted in cases.items():
        token = draw(rows, jax.random.key(1), temperature=temperature, top_k=k, top_p=p)
        found, share = np.bincount(np.asarray(token), minlength=4) / n, np.array(wanted)
        assert (np.abs(found - share) <= 4 * np.sqrt(share * (1 - share) / n)).all(), (temperature, k, p)


def test_a_cold_sample_is_greedy_and_a_longer_one_begins_with_the_shorter() -> None:
    key = jax.random.key(0)
    run = jax.jit(
        lambda length, t: sample(step, fresh(), START[:, None], key, length=length, temperature=t),
        static_argnums=(0, 1),
    )
    assert run(9, 1e-4).tolist() == run(9, 0.0).tolist()
    assert run(9, 1.0)[:, :5].tolist() == run(5, 1.0).tolist() != run(5, 0.0).tolist()


def test_greedy_by_hand() -> None:
    wanted, state, last = [], 0, 2
    for _ in range(9):
        state = next_state(state, last)
        last = int(TABLE[0, state].argmax())
        wanted.append(last)
    assert greedy(step, fresh(), START[:, None], length=9)[0].tolist() == wanted


def test_a_row_is_padded_after_its_end_and_a_prompt_is_read() -> None:
    run = sample(step, fresh(), START[:, None], jax.random.key(3), length=12, end=END, pad=7)
    for row in run.tolist():
        assert END in row
        at = row.index(END)
        assert set(row[at + 1 :]) <= {7} and 7 not in row[:at]
    first = greedy(step, fresh(), START[:, None], length=6)
    prompt = jnp.concatenate([START[:, None], first[:, :2]], 1)
    assert greedy(step, fresh(), prompt, length=4).tolist() == first[:, 2:].tolist()


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        draw(jnp.zeros((1, 3)), jax.random.key(0), **wrong)  # type: ignore[arg-type]
