"""N-gram models against the definition, written out with dictionaries."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from umbrella import ngrams


def reference(tokens: list[int], order: int, size: int, context: tuple[int, ...], token: int) -> float:
    """Chen and Goodman 1999, by recursion over dictionaries; where a count of counts is 0, as `_discounts` says."""

    def counts(n: int) -> Counter:
        if n == order:
            return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        longer = {tuple(tokens[i : i + n + 1]) for i in range(len(tokens) - n)}
        # The different tokens before each, and one before the first (see `train`).
        return Counter([g[1:] for g in longer] + [tuple(tokens[:n])])

    def discounts(of: Counter) -> list[float]:
        n = [sum(c == i for c in of.values()) for i in (1, 2, 3, 4)]
        y = n[0] / (n[0] + 2 * n[1]) if n[0] and n[1] else 0
        out = [0.0]
        for i in (1, 2, 3):
            d = i - (i + 1) * y * n[i] / n[i - 1] if y and n[i - 1] and n[i] else -1
            out.append(d if 0 < d < i else (out[-1] or 0.5))
        return out

    def p(context: tuple[int, ...], token: int) -> float:
        n = len(context) + 1
        lower = p(context[1:], token) if n > 1 else 1 / size
        of = counts(n)
        after = defaultdict(int, {g[-1]: c for g, c in of.items() if g[:-1] == context})
        total = sum(after.values())
        if not total:
            return lower
        d = discounts(of)
        left = sum(d[min(c, 3)] for c in after.values())
        return (max(after[token] - d[min(after[token], 3)], 0) + left * lower) / total

    return p(context, token)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """A Markov chain of six tokens."""
    rng = np.random.default_rng(0)
    chain = [0, 1]
    for _ in range(158):
        chain.append(int(rng.choice(6, p=np.roll([0.5, 0.2, 0.1, 0.1, 0.05, 0.05], chain[-1] + 2 * chain[-2]))))
    return np.array(chain)


def test_probabilities_are_the_definitions(tokens: np.ndarray) -> None:
    model = ngrams.train(tokens, order=3, size=6)
    rng = np.random.default_rng(1)
    contexts, targets = rng.integers(0, 6, (20, 2)), rng.integers(0, 6, 20)
    got = model.probability(contexts, targets)
    want = [
        reference(tokens.tolist(), 3, 6, tuple(map(int, c)), int(t)) for c, t in zip(contexts, targets, strict=True)
    ]
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_add_up_to_one(tokens: np.ndarray, order: int) -> None:
    model = ngrams.train(tokens, order=order, size=6)
    for context in ([0, 1, 2, 3], [5, 5, 5, 5], [1]):
        p = model.probability(np.tile(context, (6, 1)), np.arange(6))
        assert p.sum() == pytest.approx(1, abs=1e-12) and (p > 0).all()


def test_a_unigram_by_hand() -> None:
    """Counts 4, 3, 2, 1 of ten tokens, one never seen: n_1 = .. = n_4 = 1, Y = 1/3, so D = 1 - 2/3, 2 - 1, 3 - 4/3.
    P(most) = (4 - 5/3) / 10 + (5/3 + 5/3 + 1 + 1/3) / 10 / 5, P(never) = (14/3) / 50."""
    model = ngrams.train(np.repeat([0, 1, 2, 3], [4, 3, 2, 1]), order=1, size=5)
    p = model.probability(np.zeros((2, 0), int), np.array([0, 4]))
    np.testing.assert_allclose(p, [(4 - 5 / 3) / 10 + 14 / 150, 14 / 150])


def test_every_token_is_scored_with_what_is_before_it(tokens: np.ndarray) -> None:
    model = ngrams.train(tokens[:100], order=4, size=6)
    got = model.score(tokens[99:100], tokens[100:])
    assert got.shape == (60,)
    for i in (0, 1, 2, 3, 59):
        context = tokens[max(99, 100 + i - 3) : 100 + i]
        assert got[i] == pytest.approx(float(model.log_probability(context[None], tokens[100 + i :][:1])[0]))


@pytest.mark.parametrize(
    ("tokens", "order", "size", "words"),
    [([0, 1], 3, 2, "2 tokens do not make"), ([0, 7, 1], 2, 5, "from 0 to 7"), (range(9), 5, 10**6, "62 bits")],
)
def test_refusals(tokens: list[int], order: int, size: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ngrams.train(np.array(tokens), order=order, size=size)
