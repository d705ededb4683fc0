"""Classifying texts. Floor 5."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import losses, metrics, models
from umbrella.artifacts import Table
from umbrella.baselines import chosen
from umbrella.data import Arrays, Dataset
from umbrella.data.pieces import Pieces
from umbrella.data.words import UNKNOWN, Tokens, Vocabulary
from umbrella.experiment import Experiment, Reader, Review
from umbrella.objective import Array, Batch, Ctx, Objective, Params, State, Transform, View, measure, supervised
from umbrella.pipelines import _classes, _texts
from umbrella.pipelines._learnt import learnt
from umbrella.pipelines._standard import Problem, Resolve, assemble
from umbrella.settings import Count, Fraction, Natural, SettingsError, near
from umbrella.text_baselines import TEXT_CLASSIFIERS, text_classification
from umbrella.transforms import at_embedding

CLASSIFIERS = ("bag", "text_bert", "text_cnn", "text_rnn", "text_transformer")
FITTING = ("adversarial", "awp", "l1", "l2", "label_smoothing", "lora", "noise", "sam", "trades", "vat")
SHOWN = 20
ASKED = 512  # texts that are looked at together


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment."""
    return assemble(config, problem)


def problem(
    dataset: Dataset,
    log: dict[str, Any],
    *,
    model: dict,
    tokenizer: str | None = None,
    tokens: Literal["words", "characters"] = "words",
    runs: tuple[Count, Count] = (1, 1),
    vocabulary: Count = 20_000,
    least: Count = 1,
    length: Natural = 0,
    flag: str | None = None,
    allowed: Fraction = 0.003,
    compared: dict = {},  # noqa: B006
    baselines: bool | tuple[str, ...] = True,
) -> Problem:
    """Cross-entropy of a classifier of texts, from the first so many words; measures accuracy.

    Attacks act on the vectors of words: an eps is the length of a perturbation of a whole text's.

    Args:
      tokenizer: the workdir of a language model, whose tokenizer cuts the texts; then `tokens`, `runs`, `vocabulary`
        and `least` say nothing. With --init_from the model goes on from there, too.
      tokens: what a text is cut into.
      runs: the shortest and the longest run of tokens that is one; (1, 2) has words and pairs of words. Of runs the
        order is lost, so they are for a bag.
      vocabulary: how many tokens are told apart, the commonest of the training texts; the other words are all one.
      least: how often a token must occur in them.
      length: tokens of a text that are read; 0 for as many as 99 in 100 of the training texts have.
      flag: a class of two that is flagged, such as "spam", at a threshold that is chosen on validation.
      allowed: the share of the other class's validation texts that may be flagged.
      compared: other models, name -> settings of config.model, for --mode=table.
      baselines: names of umbrella.text_baselines.TEXT_CLASSIFIERS; True for all.
    """
    rivals = chosen(baselines, TEXT_CLASSIFIERS, tuple(TEXT_CLASSIFIERS))
    if dataset.info["kind"] != "text" or not dataset.info["classes"]:
        raise SettingsError(f"config.data.name: {dataset.name!r} holds no labelled texts, which this pipeline needs")
    _classes.check_labels(dataset)
    if vocabulary <= UNKNOWN + 1:
        raise SettingsError(f"config.vocabulary: {vocabulary}: padding and unknown words take two of them; say more")
    if runs[0] > runs[1]:
        raise SettingsError(f"config.runs: {runs}: the shortest run is longer than the longest; turn them around")
    if runs != (1, 1) and model.get("name") != "bag":
        raise SettingsError(f"config.runs: {runs} has no order, which config.model.name={model.get('name')!r} reads")
    raw = {s: strings(getattr(dataset, s)) for s in ("train", "validation", "test")}
    words: Vocabulary | Pieces = Vocabulary.of(raw["train"], vocabulary, least, Tokens(tokens, runs))
    if tokenizer is not None:
        words = Pieces.of(learnt(tokenizer), raw["train"])
    if len(words.words) <= UNKNOWN + 1:
        raise SettingsError(f"config.least: no word of the training texts occurs {least:,} times; say less")
    length = length or words.longest(raw["train"])
    told = {
        s: Arrays({"x": words.encode(texts, length), "y": getattr(dataset, s).column("y")}) for s, texts in raw.items()
    }
    classes, names = dataset.info["classes"], tuple(dataset.info["class_names"] or ())
    names = names or tuple(map(str, range(classes)))
    more = {"length": length} if model.get("name") == "text_bert" else {}
    net = models.build(model, only=CLASSIFIERS, log=log, out=classes, words=len(words.words), **more)
    base = measure(accuracy=metrics.accuracy)(supervised(net, losses.cross_entropy))
    flagged = None if flag is None else _flagged(flag, names)
    seen = len(told["validation"]) > 0 and "validation" not in dataset.info["hidden"]
    what = _Texts(net, words, length, names, raw, told, flagged, allowed, seen)
    columns = {s: (raw[s], told[s].column("y")) for s in ("train", "test")}
    notes = () if seen else ("No validation split: probabilities are not calibrated, and nothing chooses a threshold.",)
    return Problem(
        columns=("x", "y"),
        outer=at_embedding(net.width),
        base=counted(words)(base),
        context={"classes": classes, "bounds": None, "on": "x/delta", "where": "x/tokens"},
        review=what.review if "test" not in dataset.info["hidden"] else lambda resolve: lambda *_: Review({}, ()),
        predict=_classes.predictor(what.logits),
        baselines=lambda: text_classification(columns["train"], columns["test"], rivals, flag=flagged),
        better="accuracy",
        dataset=dataset._replace(train=told["train"], validation=told["validation"], test=told["test"]),
        notes=notes,
        fitting=FITTING,
        kept={"tokenizer": words.tokenizer.to_json()}
        if isinstance(words, Pieces)
        else {"vocabulary": list(words.words)},  # a number that meant another word would say nothing
        reader=what.reader,
    )


def strings(source: Any) -> list[str]:
    """The texts of a split."""
    return [bytes(v).decode("utf-8", "replace") for v in source.column("x")]


def counted(words: Vocabulary | Pieces) -> Transform:
    """Puts the shares of the words and their inverse document frequencies where the model has them. Innermost by
    rule."""
    known = {"share": words.counts / max(1, words.counts.sum()), "idf": words.idf}

    def wrap(o: Objective) -> Objective:
        def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
            params, state = o.init(batch, ctx)
            own = dict(state.get("model", {}))
            if "vocabulary" not in own:
                return params, state
            own["vocabulary"] = jax.tree_util.tree_map_with_path(
                lambda path, old: jnp.asarray(known[path[-1].key].reshape(old.shape), jnp.float32), own["vocabulary"]
            )
            return params, {**state, "model": own}

        return o._replace(init=init)

    return wrap


class _Texts(NamedTuple):
    """A classifier and the texts around it."""

    net: Any
    words: Vocabulary | Pieces
    length: int
    names: tuple[str, ...]
    raw: Mapping[str, list[str]]
    told: Mapping[str, Arrays]  # the same, encoded
    flag: int | None
    allowed: float
    seen: bool  # whether there is a validation split with labels

    def logits(self, resolve: Resolve, view: View, x: Array) -> Array:
        params = resolve(view.params, view.state)["model"]
        out: Array = self.net.apply({"params": params, **view.state.get("model", {})}, x, train=False)
        return out

    def attention(self, resolve: Resolve, view: View, x: Array) -> Array:
        """f32[B, T], the weights that the model pools the words with."""
        params = resolve(view.params, view.state)["model"]
        variables = {"params": params, **view.state.get("model", {})}
        how: dict[str, Any] = {"capture_intermediates": lambda m, _: m.path == ("pool",), "mutable": ["intermediates"]}
        found = self.net.apply(variables, x, train=False, **how)[1]["intermediates"]
        return found["pool"]["__call__"][0][1]

    @property
    def looks(self) -> bool:
        """Whether it has a pooling over words of their own that can be looked at."""
        return isinstance(self.net, models.ATTENTIVE) and self.words.tokens == Tokens()

    def review(self, resolve: Resolve) -> Callable[[View, Array], Review]:
        run = _classes.in_turn(self.logits, resolve)
        look = _classes.in_turn(self.attention, resolve)

        def of(views: View, key: Array) -> Review:
            test = _classes.told(run, views, self.told["test"])
            held = _classes.told(run, views, self.told["validation"]) if self.seen else None
            attention = _classes.told(look, views, self.told["test"]).logits if self.looks else None
            made = _classes.review(test, held, self.names)
            found = [self._lane(run, views, k, test, held, attention) for k in range(len(test.logits))]
            numbers = {name: np.asarray([f.numbers[name] for f in found]) for name in found[0].numbers}
            plain = numbers if len(found) > 1 else {k: float(v[0]) for k, v in numbers.items()}
            metrics = {**made.metrics, "test": {**made.metrics.get("test", {}), **plain}}
            drawn = self._drawn(run, views, test, found[0], attention)
            return made._replace(metrics=metrics, artifacts=(*made.artifacts, *drawn))

        return of

    def _decision(self, held: np.ndarray | None) -> _texts.Decision:
        """From logits f[N, C] of the validation texts."""
        if held is None or not np.isfinite(held).all():
            return _texts.Decision(flag=self.flag)
        return _texts.Decision.of(held, self.told["validation"].column("y"), self.flag, self.allowed)

    def _lane(self, run: Any, views: View, k: int, test: Any, held: Any, attention: np.ndarray | None) -> "_Lane":
        """What is said of seed k."""
        decision = self._decision(None if held is None else held.logits[k])
        numbers: dict[str, float] = {}
        deleted = None
        if np.isfinite(test.logits[k]).all():
            _texts.decided(numbers, test.logits[k], test.y, decision)
        if attention is not None:
            one = jax.tree.map(lambda v: v[k : k + 1], views)
            x = self.told["test"].column("x")
            deleted = _texts.deletions(lambda z: in_parts(lambda part: run(one, part)[0], z), attention[k], x, test.y)
            if deleted is not None:
                _texts.attended(numbers, deleted)
        return _Lane(decision, numbers, deleted)

    def _drawn(
        self, run: Any, views: View, test: Any, first: "_Lane", attention: np.ndarray | None
    ) -> Iterator[tuple[str, Table]]:
        """Tables; of what rests on one run, the first seed's."""
        yield "mistakes", mistakes(test, self.raw["test"], self.names)
        if not np.isfinite(test.logits[0]).all():
            return
        if self.flag is not None:
            yield "flagged", _texts.flags(test.logits[0], test.y, first.decision, self.names)
        view = jax.tree.map(lambda v: v[:1], views)
        few = np.sort(np.random.default_rng(0).permutation(len(self.raw["test"]))[:SHOWN])
        ask = self._asker(lambda x: run(view, x)[0])
        yield "decided", _texts.told(ask, [self.raw["test"][i] for i in few], first.decision, self.names)
        if attention is not None and first.deleted is not None:
            x = self.told["test"].column("x")
            yield from _texts.attention_tables(first.deleted, attention[0], x, self.raw["test"], self.words.words)

    def _asker(self, run: Callable[[Any], Any]) -> _texts.Ask:
        return lambda texts: in_parts(run, self.words.encode(texts, self.length))

    def reader(self, resolve: Resolve) -> Reader:
        """New texts, a line each; calibrated anew on the validation split, which gives what training's end gave."""
        run = jax.jit(lambda view, x: self.logits(resolve, view, x))

        def read(view: View, lines: Sequence[str]) -> Table:
            held = in_parts(lambda x: run(view, x), self.told["validation"].column("x")) if self.seen else None
            return _texts.told(self._asker(lambda x: run(view, x)), lines, self._decision(held), self.names)

        return read


class _Lane(NamedTuple):
    decision: _texts.Decision
    numbers: dict[str, float]
    deleted: _texts.Deleted | None


def in_parts(run: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """run of all rows of x, so many at a time that it is compiled once."""
    parts = [x[i : i + ASKED] for i in range(0, len(x), ASKED)]
    return np.concatenate([np.asarray(run(np.pad(p, ((0, ASKED - len(p)), (0, 0)))))[: len(p)] for p in parts])


def _flagged(flag: str, names: tuple[str, ...]) -> int:
    if flag not in names:
        raise SettingsError(f"config.flag: no class {flag!r}{near(flag, names)}")
    if len(names) != 2:
        raise SettingsError(f"config.flag: a flag is one of two classes; there are {len(names)}")
    return names.index(flag)


def mistakes(test: _classes.Told, texts: list[str], names: tuple[str, ...]) -> Table:
    """The texts that the seeds together are most sure of and wrong about."""
    p = np.nan_to_num(test.probabilities).mean(0)
    label, sure = p.argmax(-1), p.max(-1)
    wrong = np.flatnonzero(label != test.y)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:SHOWN]
    rows = tuple((names[test.y[i]], names[label[i]], f"{sure[i]:.3f}", texts[i][:300]) for i in worst)
    caption = "The test texts that are classified wrongly with the greatest certainty."
    return Table(("true", "predicted", "probability", "text"), rows or (("", "", "", "none"),), caption)
