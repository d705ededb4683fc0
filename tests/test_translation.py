"""Sequence to sequence: the equations in NumPy, what a model may know, and the pipeline from end to end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import umbrella as um
from tests.conftest import ROOT
from umbrella import cli, decoding, losses, pipelines, transforms
from umbrella.data import tokenizers
from umbrella.data.tokenizers import END, PAD, START
from umbrella.models import RecurrentSeq2Seq, TransformerSeq2Seq
from umbrella.models.seq2seq import AttentionCell, Seq2Seq, attention_of, begin, stepper
from umbrella.objective import Ctx, supervised
from umbrella.pipelines import _translated, _translating
from umbrella.settings import SettingsError

WORDS, S, T = 20, 6, 7
NETS: dict[str, Seq2Seq] = {
    "additive gru": RecurrentSeq2Seq(WORDS, 8, 10, dropout=0.0),
    "dot lstm": RecurrentSeq2Seq(WORDS, 8, 10, "lstm", 2, "dot", tied=False, dropout=0.0),
    "transformer": TransformerSeq2Seq(WORDS, T, 16, heads=2, dropout=0.0),
    "rotary, post, remat": TransformerSeq2Seq(
        WORDS, T, 16, 1, 2, norm="post", positions="rotary", remat=True, tied=False, dropout=0.0
    ),
}
draw = np.random.default_rng(0)
SOURCE = draw.integers(5, WORDS, (3, S)).astype(np.int32)
SOURCE[1, 4:] = PAD
TARGET = draw.integers(5, WORDS, (3, T)).astype(np.int32)
INPUT = {"source": SOURCE, "target_in": TARGET}


class Made(NamedTuple):
    """A net, its variables and its compiled pass."""

    net: Seq2Seq
    variables: Any
    logits: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (source, target) -> f32[B, T, V]


def make(net: Seq2Seq) -> Made:
    variables = jax.jit(lambda x: net.init(jax.random.key(0), x, train=False))(INPUT)
    run = jax.jit(lambda s, t: net.apply(variables, {"source": s, "target_in": t}, train=False))
    return Made(net, variables, lambda s, t: np.asarray(run(s, t)))


@pytest.fixture(scope="module", params=NETS)
def made(request: pytest.FixtureRequest) -> Made:
    return make(NETS[request.param])


# --------------------------------------------------------------------------------------------------- what a model knows
def test_a_model_sees_no_future_no_padding_and_no_other_row(made: Made) -> None:
    """By changes in three rows at once: a target from step 4 on; what a source's padding would be if it were longer;
    another row's source."""
    full = made.logits(SOURCE, TARGET)
    target, source = TARGET.copy(), SOURCE.copy()
    target[0, 4:] = (target[0, 4:] + 1) % WORDS
    source[2] = 5 + (source[2] + 3) % (WORDS - 5)
    other = made.logits(source, target)
    assert np.abs(other[0, :4] - full[0, :4]).max() < 1e-6 < 1e-4 < np.abs(other[0, 4:] - full[0, 4:]).max()
    assert np.abs(other[1] - full[1]).max() < 1e-6
    assert np.abs(other[2] - full[2]).max() > 1e-4  # and the source matters
    alone = made.logits(SOURCE[:, :4], TARGET)  # row 1 without its padding
    np.testing.assert_allclose(alone[1], full[1], atol=1e-5)


def test_decoding_step_by_step_is_the_full_pass(made: Made) -> None:
    step = jax.jit(stepper(made.net, made.variables))
    cache, out = jax.jit(lambda s: begin(made.net, made.variables, s))(SOURCE), []
    assert {x.shape[0] for x in jax.tree.leaves(cache)} == {len(SOURCE)}  # as beams need it
    for t in range(T):
        now, cache = step(cache, TARGET[:, t])
        out.append(np.asarray(now))
    np.testing.assert_allclose(np.stack(out, 1), made.logits(SOURCE, TARGET), atol=1e-5)
    assert step._cache_size() == 1  # a token costs no compilation


@pytest.mark.parametrize("name", ["additive gru", pytest.param("transformer", marks=pytest.mark.slow)])
def test_attention_and_beams_of_a_model(name: str) -> None:
    """Attention adds up to one and leaves padding out; a beam of one is greedy."""
    net, variables, _ = make(NETS[name])
    weights = np.asarray(jax.jit(lambda x: attention_of(net, variables, x))(INPUT))
    assert weights.shape == (3, T, S)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert weights[1, :, 4:].max() == 0 and weights.std() > 0

    def greedy(source: jax.Array) -> jax.Array:
        prompt = jnp.full((3, 1), START, jnp.int32)
        return decoding.greedy(stepper(net, variables), begin(net, variables, source), prompt, length=T, end=END)

    twice = jax.tree.map(lambda v: jnp.stack([v, v]), variables)  # two models that say the same
    best = jax.jit(_translating.translator(net, _translating.Search(1, 0.0), T))(twice, SOURCE)[0]
    assert best.tolist() == jax.jit(greedy)(SOURCE).tolist()


# ------------------------------------------------------------------------------------------------ the equations by hand
def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cell(attention: str, kind: str) -> tuple[AttentionCell, dict[str, Any], Any, np.ndarray]:
    rng = np.random.default_rng(1)
    net = AttentionCell(5, kind, attention, 6, 4)
    h, e = rng.normal(size=(2, 3, 6)).astype(np.float32), rng.normal(size=(2, 4, 4)).astype(np.float32)
    there = np.array([[1, 1, 1], [1, 1, 0]], np.float32)
    first = rng.normal(size=(2, 5)).astype(np.float32)
    states = (first,) if kind == "gru" else (first, first[::-1])
    memory = {"states": states, "fed": np.zeros((2, 6), np.float32), "keys": h, "h": h, "there": there}
    params = net.init(jax.random.key(3), memory | {"keys": np.zeros((2, 3, 5 if attention == "additive" else 6))}, e)
    if attention == "additive":
        kernel = rng.normal(size=(6, 5)).astype(np.float32)
        params = {"params": {**params["params"], "to_keys": {"kernel": kernel, "bias": np.ones(5, np.float32)}}}
        memory["keys"] = np.asarray(net.apply(params, h, method="keys"))
        np.testing.assert_allclose(memory["keys"], h @ kernel + 1, atol=1e-5)
    return net, jax.tree.map(np.asarray, params["params"]), memory, e


def test_additive_attention_in_a_gru_is_that_of_the_paper() -> None:
    """Bahdanau et al. 2015, appendix A.1.2 and A.2.2: e_ij = v tanh(W s_(i-1) + U h_j), c_i = sum_j a_ij h_j, and a GRU
    of [y_(i-1), c_i], whose reset gate acts after the product as in umbrella.models.recurrent."""
    net, p, memory, e = cell("additive", "gru")
    *_, out, context, weights = net.apply({"params": p}, memory, e)
    s = memory["states"][0]
    for t in range(4):
        scores = np.tanh(memory["keys"] + (s @ p["query"])[:, None]) @ p["score"]
        a = softmax(np.where(memory["there"] > 0, scores, -np.inf))
        c = np.einsum("bs,bsc->bc", a, memory["h"])
        z = e[:, t] @ p["from_input"]["kernel"] + p["from_input"]["bias"] + c @ p["context"]
        (zr, zu, zn), (rr, ru, rn) = np.split(z, 3, -1), np.split(s @ p["state"], 3, -1)
        u, n = sigmoid(zu + ru), np.tanh(zn + sigmoid(zr + rr) * (rn + p["candidate_bias"]))
        s = u * s + (1 - u) * n
        for mine, wanted in ((out[:, t], s), (context[:, t], c), (weights[:, t], a)):
            np.testing.assert_allclose(mine, wanted, atol=1e-5)


def test_dot_attention_after_an_lstm_is_that_of_the_paper() -> None:
    """Luong et al. 2015, eq. 8 "general" and section 3.3: the state first, then what it looks at, which is fed to the
    next step; scores by the root of the width, as everywhere here."""
    net, p, memory, e = cell("dot", "lstm")
    *_, out, context, weights = net.apply({"params": p}, memory, e)
    (s, m), c = memory["states"], memory["fed"]
    for t in range(4):
        z = e[:, t] @ p["from_input"]["kernel"] + p["from_input"]["bias"] + c @ p["context"] + s @ p["state"]
        i, f, g, o = np.split(z, 4, -1)
        m = sigmoid(f) * m + sigmoid(i) * np.tanh(g)
        s = sigmoid(o) * np.tanh(m)
        scores = np.einsum("bsc,bc->bs", memory["h"], s @ p["query"]) / np.sqrt(6)
        a = softmax(np.where(memory["there"] > 0, scores, -np.inf))
        c = np.einsum("bs,bsc->bc", a, memory["h"])
        for mine, wanted in ((out[:, t], s), (context[:, t], c), (weights[:, t], a)):
            np.testing.assert_allclose(mine, wanted, atol=1e-5)


class Fixed(nn.Module):
    """Logits that no compilation is needed for."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> jax.Array:
        table = self.param("table", nn.initializers.normal(1.0), (WORDS, WORDS))
        return table[x["target_in"]]


def test_labels_of_tokens_can_be_smoothed() -> None:
    """(1 - eps) nll + eps mean_c -log q_c of every real token; padding stays out."""
    y = np.where(np.arange(T)[None] < np.array([[7], [3], [5]]), TARGET, PAD)
    batch = {"x": INPUT, "y": y, "mask": (y != PAD).astype(np.float32)}
    base = supervised(Fixed(), losses.cross_entropy)
    ctx = Ctx(jax.random.key(0), jnp.int32(0))
    params, state = base.init(batch, ctx)
    loss, aux = transforms.label_smoothing(WORDS, eps=0.1)(base).apply(params, state, batch, ctx)
    log_q = np.log(softmax(np.asarray(aux.outputs)))
    each = -0.9 * np.take_along_axis(log_q, y[..., None], -1)[..., 0] - 0.1 * log_q.mean(-1)
    assert float(loss) == pytest.approx(each[y != PAD].mean(), abs=1e-5)


# ------------------------------------------------------------------------------------------------------------- scores
def test_scores_of_translations() -> None:
    """BLEU of "le chat dort ici ." against "le chat dort la .": 4, 2, 1 and 0 of 5, 4, 3, 2 n-grams; sacrebleu's
    smoothing counts the last as 1/2 of 2, so (.8 * .5 * 1/3 * 1/4)^(1/4) = .4273."""
    found, wanted = ["le chat dort ici ."], "le chat dort la ."
    told = _translated.scored(found, [[wanted]])
    assert told["bleu"] == told["bleu_one_reference"] == pytest.approx(100 * (0.8 * 0.5 / 3 / 4) ** 0.25, abs=1e-3)
    assert told["exact_accuracy"] == 0 and 0 < told["chrf"] < 100
    both = _translated.scored(found, [[wanted, found[0]]])
    assert both["bleu"] == pytest.approx(100) and both["chrf"] == pytest.approx(100) and both["exact_accuracy"] == 1
    assert both["bleu_one_reference"] == told["bleu"]


def test_the_nearest_source_is_found() -> None:
    train = {"I am tired.": ["Je suis fatigué."], "Go away!": ["Va-t'en !", "Partez !"], "You run.": ["Tu cours."]}
    assert _translated.nearest(train, ["I am so tired.", "go away"]) == ["Je suis fatigué.", "Va-t'en !"]


def test_what_the_decoder_has_read() -> None:
    y = np.array([[7, 8, END, PAD], [9, 9, 9, END]], np.int32)
    assert _translated.shifted(y).tolist() == [[START, 7, 8, PAD], [START, 9, 9, 9]]


# --------------------------------------------------------------------------------------------------------- the pipeline
LINES = [f"{a} {b}\t{b.upper()} {a.upper()}" for a in "abcdefgh" for b in ("un", "deux", "trois", "quatre", "cinq")]
SMALL = {"name": "seq2seq", "width": 8, "hidden": 8, "dropout": 0.0}


def config(path: Path, variant: str = "pairs", **more: Any) -> dict[str, Any]:
    (path / "p.tsv").write_text("\n".join(LINES))
    made = cli.load_config(f"{ROOT}/configs/translate.py:{variant}")
    data = dict(name="pairs", path=str(path / "p.tsv"), held_out=8)
    given: dict[str, Any] = dict(data=data, tokens="char", vocabulary=0, model=SMALL, batch_size=8, train_for="2 steps")
    every = dict(log_every="1 steps", eval_every="2 steps", checkpoint_every="2 steps")
    return {**made, **given, **every, "eval_batch_size": 8, **more}


@pytest.mark.slow
def test_a_run_leaves_translations_and_their_scores(tmp_path: Path) -> None:
    r = um.run(config(tmp_path, seeds=2), workdir=tmp_path / "run", quiet=True)
    told, rivals = r.summary["metrics"]["test"], r.summary["baselines"]
    assert {"bleu", "chrf", "bleu_one_reference", "exact_accuracy", "loss", "accuracy"} <= told.keys()
    assert len(r.summary["metrics"]["validation"]["bleu"]["values"]) == 2  # to choose by
    assert r.summary["metrics"]["ensemble"].keys() >= {"bleu", "chrf"}
    assert len(told["bleu"]["values"]) == 2 and rivals.keys() == set(_translated.RIVALS)
    assert r.summary["data"]["overlap"] == {"validation": 0, "test": 0}
    index = {e["name"]: e for e in json.loads((tmp_path / "run/artifacts/index.json").read_text())}
    assert {"translations", "attention_0"} <= index.keys()
    heat = json.loads((tmp_path / "run/artifacts" / index["attention_0"]["file"]).read_text())
    np.testing.assert_allclose(np.sum(heat["values"], 1), 1, atol=1e-4)
    assert len(heat["row_names"]) == len(heat["values"])
    # What is predicted is the text of its tokens.
    made, x = r.experiment, r.experiment.dataset.test.column("x")[:3]
    out = jax.device_get(jax.jit(made.predict)(r.ts.eval_view().lane(0), {"x": x}, jax.random.key(0)))
    tokenizer = tokenizers.from_json(made.kept["tokenizer"])
    assert [bytes(t).rstrip(b"\0").decode() for t in out["text"]] == [tokenizer.decode(t) for t in out["tokens"]]
    assert tokenizer.decode(x[0]) in {line.split("\t")[0] for line in LINES}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"tokens": "bpe"}, "config.vocabulary: byte pairs need to know"),
        ({"tokens": "bpe", "vocabulary": 9000}, "config.vocabulary: tokenizer 'bpe': size=9,000: the text has pairs"),
        ({"length": 2}, "config.length: 2: every training pair is longer"),
        ({"beam": {"widht": 3}}, "config.beam.widht: no such setting .did you mean 'width'"),
        ({"model": {"name": "mlp"}}, "config.model.name: no model 'mlp'"),
        ({"model": {"name": "transformer_seq2seq", "length": 9}}, "config.model.length: the data decides this"),
        ({"techniques": ("mixup",)}, "'mixup' is not for this pipeline's inputs"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        pipelines.build(config(tmp_path, **more))


def test_long_pairs_are_left_out_of_train_and_cut_elsewhere(tmp_path: Path) -> None:
    whole = pipelines.build(config(tmp_path))
    made = pipelines.build(config(tmp_path, length=7))  # "a cinq" and its end are seven
    assert len(made.dataset.train) < len(whole.dataset.train) and len(made.dataset.test) == len(whole.dataset.test)
    assert any("train are longer" in n for n in made.notes) and any("test are longer" in n for n in made.notes)
    y, mask = (np.asarray(made.dataset.test.column(c)) for c in ("y", "mask"))
    assert y.shape[1] == 7 and ((y == END).sum(1) == 1).all() and (mask == (y != PAD)).all()
