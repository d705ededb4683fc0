"""Language models: what is told of them, what they write, and what is refused."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import umbrella as um
from tests.helpers import slow_but
from umbrella import losses, models, ngrams, pipelines
from umbrella.data import sequences, tokenizers
from umbrella.objective import Ctx, View, supervised
from umbrella.pipelines import _ngrams, _writing, language
from umbrella.settings import SettingsError
from umbrella.transforms import mask_tokens

KEY = jax.random.key(0)
WORDS = ["".join(chr(97 + (3 * i + k) % 26) for k in range(1 + i % 5)) for i in range(30)]
GPT = dict(name="gpt", width=16, layers=1, heads=2)
LSTM = dict(name="recurrent_lm", width=12)
BERT = dict(name="bert", width=16, layers=1, heads=2)
CLOZE = {**BERT, "name": "cloze"}


@pytest.fixture
def text(tmp_path: Any) -> str:
    rng = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text("\n".join(" ".join(rng.choice(WORDS, 8)) for _ in range(120)))
    return str(tmp_path / "text.txt")


def config(path: str, model: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "pipeline": "language",
        "data": {"name": "mine", "path": path, "validation": 0.1, "test": 0.1},
        "model": model,
        "length": 16,
        "evals": {"test": ()},
        "optimizer": {"name": "adam", "learning_rate": 1e-2},
        "batch_size": 4,
        "eval_batch_size": 4,
        "train_for": "4 steps",
        "sample": {"length": 20},
        "baselines": ("kneser_ney_2",),
        **more,
    }


def start(ex: Any) -> View:
    batch = ex.train_data.fetch(ex.train_data.resident, ex.train_data.slot(0, 0))
    return View(*jax.jit(ex.init)(batch, Ctx(KEY, jnp.int32(0))))


def test_a_recurrent_model_is_told_on_the_whole_text_as_one(text: str) -> None:
    """Its state goes on from batch to batch: the loss on test is that of one pass over what two tracks read."""
    ex = pipelines.build(config(text, LSTM))
    view = start(ex)
    size = ex.evals["test"].batches.batches.size
    told = um.evaluate(ex.evals["test"].objective, view, ex.evals["test"].batches, KEY)
    whole = np.concatenate([ex.dataset.test.before, ex.dataset.test.tokens])
    first, n = len(ex.dataset.test.before), len(ex.dataset.test.tokens)
    track = -(-n // size)
    net = models.RecurrentLM(words=int(ex.kept["tokenizer"]["parts"].__len__()) + 5, width=12, stateful=False)
    nats = []
    for row in range(size):
        begin, end = first + row * track, min(first + (row + 1) * track, first + n)
        x = whole[begin - 16 - 1 : end]  # after as many tokens as a row has
        logits = net.apply({"params": view.params["model"]}, x[None, :-1], train=False)
        nats.append(losses.cross_entropy(logits, jnp.asarray(x[None, 1:]))[0, 16:])
    assert sum(map(len, nats)) == n
    assert told["loss"] == pytest.approx(float(np.concatenate(nats).mean()), rel=1e-5)
    assert told["bits_per_character"] == pytest.approx(told["loss"] / np.log(2), rel=1e-6)


@pytest.mark.parametrize("model", slow_but(["gpt", "gpt, a loop", "lstm"], ("gpt", "gpt, a loop")))
def test_what_is_written_is_the_likeliest_next_token_each_time(model: str) -> None:
    """Without chance, from a cache or a state: by full passes over what came out. The GPT sees eight tokens: it writes
    five after a prompt of three, then four from the last four. The LSTM's state knows all of them."""
    net: Any = models.RecurrentLM(words=13, width=8) if model == "lstm" else models.GPT(13, 8, width=16, layers=1)
    if model == "gpt, a loop":
        net = net.clone(layers=2, scan=True)
    alone = net.clone(stateful=False) if model == "lstm" else net
    params = jax.tree.map(lambda p: 5 * p, alone.init(KEY, jnp.zeros((1, 8), jnp.int32), train=False)["params"])
    asked = _writing.Writing("abc", 9, 0.0, 0, 1.0)
    got = _writing.continued(net, params, np.array([5, 6, 7]), asked, KEY)
    assert got.shape == (12,) and got[:3].tolist() == [5, 6, 7]

    def likeliest(tokens: np.ndarray) -> np.ndarray:
        return np.asarray(alone.apply({"params": params}, jnp.asarray(tokens)[None], train=False)[0].argmax(-1))

    np.testing.assert_array_equal(
        _writing.continued(net, params, np.array([5, 6, 7]), asked._replace(beam=1), KEY), got
    )
    if model == "lstm":
        np.testing.assert_array_equal(likeliest(got)[2:-1], got[3:])
    else:
        np.testing.assert_array_equal(likeliest(got[:8])[2:7], got[3:8])
        np.testing.assert_array_equal(likeliest(got[4:])[3:7], got[8:])


@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_texts_in_a_row_do_not_see_each_other(positions: str) -> None:
    """What a model says of each is what it says of it alone, wherever in the row it lies; long rows are attended to in
    blocks."""
    net = models.GPT(20, 192, width=16, layers=2, heads=2, positions=positions, apart=3)
    rng = np.random.default_rng(0)
    texts = [np.r_[3, rng.integers(5, 20, n)].astype(np.int32) for n in (1, 90, 30, 61)]
    row = np.concatenate([rng.integers(5, 20, 6).astype(np.int32), *texts])  # the end of a text comes first
    assert len(row) == 192
    params = net.init(KEY, row[None], train=False)
    params = jax.tree.map(lambda p: 3 * p, params)
    got = net.apply(params, row[None], train=False)[0]
    start = 6
    for text in texts:
        alone = net.apply(params, text[None], train=False)[0]
        np.testing.assert_allclose(got[start : start + len(text)], alone, atol=1e-4)
        start += len(text)
    together = net.clone(apart=-1).apply(params, row[None], train=False)[0]
    assert float(jnp.abs(together - got)[8:].max()) > 1e-2


def test_packed_lines(tmp_path: Any) -> None:
    """END, then every line and END again; END counts as the end of a line in bits per character; what is written is
    a text a line."""
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 3)) for _ in range(300)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    path = str(tmp_path / "text.txt")
    r = um.run(config(path, {**GPT, "positions": "rotary"}, packed=True), workdir=tmp_path / "run", quiet=True)
    test = r.experiment.dataset.test
    kept = tokenizers.from_json(r.experiment.kept["tokenizer"])
    told = "".join("\n" if t == tokenizers.END else kept.decode(np.array([t])) for t in test.tokens)
    whole = (tmp_path / "text.txt").read_text()
    tail = whole[len(whole) - round(len(whole) / 10) :]
    assert [line for line in told.split("\n") if line] == [line for line in tail.split("\n") if line]
    metrics = r.summary["metrics"]["test"]
    assert metrics["bits_per_character"] == pytest.approx(metrics["loss"] / np.log(2), rel=1e-6)
    written = (tmp_path / "run" / "artifacts" / "text.txt").read_text()
    assert "<end>" not in written
    for model in (LSTM, BERT):
        more = {"task": "masked"} if model is BERT else {}
        with pytest.raises(SettingsError, match="config.packed: keeps the texts of a row apart for the model 'gpt'"):
            pipelines.build(config(path, model, packed=True, **more))


def test_packed_texts_are_written_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model ends a text after three tokens: of eight, with the ends between them, there are two texts and the
    prompt's rest."""
    asked_of: list[list[int]] = []

    def continued(net: Any, params: Any, begin: np.ndarray, asked: Any, key: Any) -> np.ndarray:
        asked_of.append(begin.tolist())
        return np.concatenate([begin, np.array([7, 8, 9, tokenizers.END, 7, 7, 7, 7], np.int32)[: asked.length]])

    monkeypatch.setattr(_writing, "continued", continued)
    asked = _writing.Writing("ab", 10, 0.0, 0, 1.0)
    made = _writing.several(None, None, np.array([5, 6]), asked, KEY)
    assert asked_of == [[tokenizers.END, 5, 6], [tokenizers.END]]
    assert [t.tolist() for t in made] == [[5, 6, 7, 8, 9], [7, 8, 9]]


def test_mask_tokens() -> None:
    """Of 40,000 tokens 15 % are told: 80 % of these hidden, 10 % another token, 10 % as they are; four standard
    deviations of the counts. Padding and what is masked already never are."""
    x = jnp.full((200, 200), 7).at[:, 150:].set(0)
    batch = {"x": x, "mask": jnp.ones(x.shape).at[:10].set(0)}
    seen = {}

    def criterion(out: Any, y: Any) -> Any:
        return jnp.zeros(y.shape)

    class Model(models.MLP):
        def __call__(self, x: Any, *, train: bool) -> Any:  # type: ignore[override]
            seen["x"] = x
            return x

    base = supervised(Model(1), criterion)
    _, aux = mask_tokens(4, (5, 25), rate=0.15)(base).apply({"model": {}}, {}, batch, Ctx(KEY, jnp.int32(0)).eval())
    told = int(aux.count)
    n = 190 * 150
    assert abs(told - 0.15 * n) < 4 * (0.15 * 0.85 * n) ** 0.5
    hidden, other = int((seen["x"] == 4).sum()), int(((seen["x"] > 4) & (seen["x"] != 7)).sum())
    assert abs(hidden - 0.8 * told) < 4 * (0.8 * 0.2 * told) ** 0.5
    assert abs(other - 0.095 * told) < 4 * (0.095 * told) ** 0.5  # a twentieth of the others are 7 again
    assert (seen["x"][:, 150:] == 0).all() and (seen["x"][:10, :150] == 7).all()


def test_one_hidden_token_of_a_model_at_a_time() -> None:
    """A model that says the token after the one to the left, with a logit of 10 among 31: always right, at
    log(1 + 30 exp(-10)) nats, as long as one token is hidden and the rest is there; the text counts on."""
    tokens = np.arange(5, 31).repeat(1)[np.arange(200) % 26].astype(np.int32)
    test = sequences.Tokens(tokens[100:], 16, tokens[:100])

    def logits_of(views: Any, x: Any) -> Any:
        assert ((x == tokenizers.MASK).sum(1) == 1).all()
        after = np.where(np.roll(x, 1, 1) == 30, 5, np.roll(x, 1, 1) + 1)
        return 10 * np.eye(31, dtype=np.float32)[after][None]

    got = _writing.one_hidden(logits_of, None, test, 31)
    assert got == pytest.approx({"one_hidden_loss": np.log1p(30 * np.exp(-10)), "one_hidden_accuracy": 1}, rel=1e-3)


def test_hidden_tokens_are_those_of_the_split(text: str) -> None:
    """In evaluation a masked model may be asked for any token of test, and for none before it: once each."""
    ex = pipelines.build(config(text, BERT, task="masked"))
    asked = [b["x"][b["mask"] > 0] for b in ex.evals["test"].batches]
    np.testing.assert_array_equal(np.concatenate(asked), ex.dataset.test.tokens)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_cloze_never_sees_what_it_tells(positions: str) -> None:
    """Another token at one place changes what is said of every other place, not a bit of what is said there."""
    net = models.Cloze(words=20, length=9, width=8, layers=2, heads=2, positions=positions)
    x = jax.random.randint(KEY, (1, 9), 1, 19)
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(KEY, a.shape), net.init(KEY, x, train=False))
    say = jax.jit(lambda x: net.apply(params, x, train=False)[0])
    before = say(x)
    for place in range(9):
        moved = jnp.abs(say(x.at[0, place].add(1)) - before).max(-1)
        assert moved[place] == 0 and float(moved.at[place].set(1).min()) > 1e-4, place


def test_every_token_of_test_is_a_hidden_one_for_cloze(text: str) -> None:
    """Its loss on test is that of one hidden token at a time, at every place, by the windows of evaluation."""
    ex = pipelines.build(config(text, CLOZE, task="masked", hidden=0.0))
    view = start(ex)
    told = um.evaluate(ex.evals["test"].objective, view, ex.evals["test"].batches, KEY)
    words = tokenizers.from_json(ex.kept["tokenizer"]).size
    nats, net = [], models.Cloze(words=words, length=16, width=16, layers=1, heads=2)
    for batch in ex.evals["test"].batches:
        for t in range(batch["x"].shape[1]):
            hidden = jnp.asarray(batch["x"]).at[:, t].set(tokenizers.MASK)
            out = net.apply({"params": view.params["model"]}, hidden, train=False)[:, t]
            nats.append(np.asarray(um.losses.cross_entropy(out, batch["y"][:, t]))[batch["mask"][:, t] > 0])
    assert sum(map(len, nats)) == len(ex.dataset.test.tokens)
    assert told["loss"] == pytest.approx(np.concatenate(nats).mean(), rel=1e-5)


def test_one_hidden_token_of_bigrams_by_hand() -> None:
    """P(t | l, r) is P(t | l) P(r | t) over its sum."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, 300)
    model = ngrams.train(tokens[:200], order=2, size=4)
    got = _ngrams._hidden(model, tokens[199:200], tokens[200:])
    nats, hits = [], []
    for i in _ngrams.places(100, 4):
        left, true, right = (int(t) for t in tokens[199 + i : 202 + i])
        each = np.arange(4)
        p = model.probability(np.full((4, 1), left), each) * model.probability(each[:, None], np.full(4, right))
        nats.append(-np.log(p[true] / p.sum()))
        hits.append(p.argmax() == true)
    assert got == pytest.approx({"one_hidden_loss": np.mean(nats), "one_hidden_accuracy": np.mean(hits)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "more"),
    [
        (GPT, {}),
        (LSTM, {"seeds": 2}),
        (BERT, {"task": "masked"}),
        (CLOZE, {"task": "masked", "hidden": 0.0}),
    ],
)
def test_from_a_config_to_a_report(text: str, tmp_path: Any, model: Any, more: Any) -> None:
    result = um.run(config(text, model, **more), workdir=str(tmp_path / "run"), quiet=True)
    assert result.summary["status"] == "finished" and result.summary["baselines"]["kneser_ney_2"]
    made = {p.stem for p in (tmp_path / "run" / "artifacts").iterdir()} - {"index"}
    assert made == ({"guesses"} if "task" in more else {"text", "context"})
    kept = um.checkpoint.read_meta(tmp_path / "run" / "checkpoints")["kept"]["tokenizer"]
    assert tokenizers.from_json(kept).decode(tokenizers.from_json(kept).encode("the mat")) == "the mat"
    with pytest.raises(SettingsError, match="another tokenizer"):
        (tmp_path / "text.txt").write_text((tmp_path / "text.txt").read_text().upper())
        um.run(config(text, model, **more), workdir=str(tmp_path / "run"), quiet=True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dict(model=dict(name="gpt", heads=3, width=16)), "3 heads do not divide a width of 16"),
        (dict(model=dict(name="gpt", heads=2, width=6, positions="rotary")), "odd one"),
        (dict(model=BERT), "'bert' is not for the task 'next'"),
        (dict(model=CLOZE), "'cloze' is not for the task 'next'"),
        (dict(model=CLOZE, task="masked"), "config.hidden: 0.15: the model 'cloze' needs no token hidden"),
        (dict(model=BERT, task="masked", hidden=0.0), "config.hidden: 0: the model 'bert' learns from hidden tokens"),
        (dict(model=dict(name="gtp")), "did you mean 'gpt'"),
        (dict(tokens="bpe"), "config.vocabulary: byte pairs need"),
        (dict(length=5000), "config.length"),
        (dict(stride=17), "config.stride: 17"),
        (dict(model=LSTM, batch_size=1000), "config.batch_size"),
        (dict(baselines=("kneser_ney_9",)), "no rival 'kneser_ney_9'"),
        (dict(techniques=("mixup",), mixup={}), "'mixup' is not for this pipeline's inputs"),
        (dict(resample=True), "config.resample"),
        (dict(tokens="whitespace", sample={"prompt": " "}), "config.sample.prompt: ' ' has no token"),
        (dict(tokenizer="nowhere"), "config.tokenizer: nowhere: no checkpoint there"),
        (dict(sample={"top_p": 0.0}), "config.sample.top_p"),
    ],
)
def test_refusals(text: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        pipelines.build({**config(text, GPT), **more})


def test_byte_pairs_count_characters(text: str) -> None:
    """Bits per character are nats per token by ln 2 and the characters of a token, to the split's last character."""
    ex = pipelines.build(config(text, GPT, tokens="bpe", vocabulary=300))
    told = um.evaluate(ex.evals["test"].objective, start(ex), ex.evals["test"].batches, KEY)
    tokens = len(ex.dataset.test.tokens)
    characters = len(pathlib.Path(text).read_text()) // 10
    assert told["bits_per_character"] == pytest.approx(told["loss"] * tokens / characters / np.log(2), rel=0.01)
    assert language.GIVEN.keys() == {"gpt", "recurrent_lm", "bert", "cloze"}


def test_a_classifier_has_the_network_of_the_masked_model() -> None:
    """All but the head: the same names and shapes, so that the one starts from the other."""
    tokens, how = jnp.zeros((1, 8), jnp.int32), dict(words=20, length=8, width=8, layers=1, heads=2)
    shapes = []
    for net in (models.BERT(**how), models.TextBERT(out=3, **how)):
        params = jax.eval_shape(lambda net=net: net.init(KEY, tokens, train=False))["params"]
        shapes.append({k: jax.tree.map(lambda a: a.shape, v) for k, v in params.items() if k != "head"})
    assert shapes[0] == shapes[1] and shapes[0].keys() == {"embedding", "transformer"}


@pytest.mark.slow
def test_a_classifier_goes_on_from_a_masked_model(text: str, tmp_path: Any) -> None:
    """Its tokenizer, its network, another head; after no step to speak of it is still that network."""
    um.run(config(text, BERT, task="masked"), workdir=str(tmp_path / "bert"), quiet=True)
    lines = pathlib.Path(text).read_text().split("\n")
    (tmp_path / "mine.tsv").write_text("".join(f"{'ab'[i % 2]}\t{line}\n" for i, line in enumerate(lines)))
    fine = {
        "pipeline": "text",
        "data": {"name": "mine", "path": str(tmp_path / "mine.tsv")},
        "model": {**BERT, "name": "text_bert"},
        "tokenizer": str(tmp_path / "bert"),
        "length": 16,
        "fresh": ("model/head",),
        "evals": {"test": ()},
        "optimizer": {"name": "sgd", "learning_rate": 1e-9},
        "batch_size": 8,
        "train_for": "1 steps",
        "baselines": False,
    }
    got = um.run(fine, workdir=str(tmp_path / "fine"), init_from=str(tmp_path / "bert"), quiet=True)
    found, _ = um.checkpoint.restore_params(
        tmp_path / "bert" / "checkpoints", View(got.ts.params, {}), fresh=("params/model/head",)
    )
    for name in ("embedding", "transformer"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            got.ts.params["model"][name],
            found.params["model"][name],
        )
    with pytest.raises(SettingsError, match="no checkpoint there"):
        pipelines.build({**fine, "tokenizer": str(tmp_path)})
