"""Rows that are not like the normal ones, found by a model that has seen normal rows alone. Floor 5."""

import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from umbrella import data, scores
from umbrella.artifacts import Curves, Images, Table
from umbrella.data import Data, Dataset
from umbrella.data.sources import take
from umbrella.data.streams import stacked
from umbrella.experiment import Experiment, Review, RunSettings
from umbrella.objective import Array, Aux, Batch, Ctx, Objective, Params, State, Transform, View, chain
from umbrella.pipelines import _codes, _detectors
from umbrella.pipelines._standard import Problem, Resolve, assemble
from umbrella.pipelines.autoencoder import check_sparse
from umbrella.settings import Count, Fraction, Natural, Range, SettingsError, near

Classes = Literal["each"] | int | str | tuple[int, ...] | tuple[str, ...]
Rate = Annotated[float, Range(lambda v: 0 < v < 1, "must be in (0, 1)")]
SCOPE = "protocol"  # of the state: which of the problems a lane is
KINDS = ("error", "relative", "distance", "both")
MOST = 10_000  # normal training rows whose codes the distance is fitted to
SHOWN = 10
BINS = 60


def build(config: Mapping[str, Any]) -> Experiment:
    """config -> Experiment.

    Raises:
      SettingsError: whatever in the config does not fit.
    """
    made = assemble(config, problem, rows_of)
    check_sparse(made.settings)
    normal, run = made.dataset.info["normal"], made.run
    if len(normal) == 1:
        return made
    at = "normal" if made.settings["data"]["normal"] == "each" else "anomalies"
    if run.seeds != len(normal):
        raise SettingsError(
            f"config.seeds: {run.seeds}, but data.{at} = 'each' is a problem for each of {len(normal)} classes, one a "
            f"seed; set seeds to {len(normal)}"
        )
    if run.order != "own" or run.resample:
        raise SettingsError(
            f"config.{'order' if run.order != 'own' else 'resample'}: with data.{at} = 'each' every seed has rows of "
            "its own already; leave it out"
        )
    if not isinstance(made.dataset.train, data.Arrays):
        raise SettingsError(f"config.data.in_memory: data.{at} = 'each' wants the set in memory; set it to True")
    return made._replace(train_data=in_turn(made.train_data, made.dataset, run))


# -------------------------------------------------------------------------------------------------------- the protocol
def rows_of(
    *,
    name: str,
    path: str | None = None,
    normal: Classes | None = None,
    anomalies: Classes | None = None,
    validation: Fraction = 0.1,
    split_seed: Natural = 0,
    in_memory: bool | None = None,
    cache: bool = True,
    target: str | None = None,
    size: Count | None = None,
) -> Dataset:
    """A set with classes of which some are normal: train and validation hold normal rows alone, test all of them.

    "One class is normal" is normal=(3,); "held-out class" is anomalies=(3,). With "each" the set stays whole, and every
    class in turn is the only normal one, or the only anomalous one: a problem for each seed, see `in_turn`.
    info["normal"] is bool[P, C], which classes are normal in each of the P problems.

    Args:
      normal, anomalies: one of the two: names of classes, (3,) and "3" being the class "3" and "3,5" two of them; where
        classes have no names they are numbered from 0.
      name, path, validation, split_seed, in_memory, cache, target, size: as for `umbrella.data.load`.

    Raises:
      SettingsError: no classes, hidden ones, one alone, or one that does not exist; none is normal or all are; a
        problem without normal rows in train or validation, or without rows of both kinds in test.
    """
    how: dict[str, Any] = {"target": target, "size": size, "in_memory": in_memory, "cache": cache}
    found = data.load(name=name, path=path, validation=validation, split_seed=split_seed, **how)
    classes, hidden = found.info["classes"], found.info["hidden"]
    if not classes:
        raise SettingsError(f"config.data.name: {found.name!r} has no classes, so none of them can be the normal one")
    if hidden:
        raise SettingsError(f"config.data.name: the labels of {found.name!r} are withheld in {', '.join(hidden)}")
    names = tuple(found.info["class_names"] or map(str, range(classes)))
    if classes == 1:
        raise SettingsError(f"config.data.name: every row of {found.name!r} is of class {names[0]!r}: nothing to find")
    if (normal is None) == (anomalies is None):
        raise SettingsError("config.data: which classes are normal? Give one of data.normal and data.anomalies")
    table = _normal(normal, anomalies, names)
    y = {split: np.asarray(getattr(found, split).column("y")) for split in ("train", "validation", "test")}
    for these in table:
        _check(found.name, these, names, y)
    found = found._replace(info={**found.info, "normal": table, "class_names": names})
    if len(table) > 1:
        return found
    train, held = (np.flatnonzero(table[0][y[split]]) for split in ("train", "validation"))
    return found._replace(train=take(found.train, train), validation=take(found.validation, held))


def _normal(normal: Classes | None, anomalies: Classes | None, names: tuple[str, ...]) -> np.ndarray:
    """bool[P, C]"""
    at, given = ("normal", normal) if normal is not None else ("anomalies", anomalies)
    if given == "each":
        one = np.eye(len(names), dtype=bool)
        return one if at == "normal" else ~one
    wanted = tuple(given.split(",")) if isinstance(given, str) else given if isinstance(given, tuple) else (given,)
    chosen = np.zeros(len(names), bool)
    for which in (str(w).strip() for w in wanted):
        if which not in names:
            raise SettingsError(f"config.data.{at}: no class {which!r}{near(which, names)}")
        chosen[names.index(which)] = True
    if chosen.all() or not chosen.any():
        raise SettingsError(
            f"config.data.{at}: {'all' if chosen.any() else 'none'} of the classes {', '.join(names)}; there must be "
            "normal ones and others"
        )
    return chosen[None] if at == "normal" else ~chosen[None]


def _check(name: str, normal: np.ndarray, names: tuple[str, ...], y: Mapping[str, np.ndarray]) -> None:
    who = ", ".join(n for n, is_normal in zip(names, normal, strict=True) if is_normal)
    for split, least, why in (
        ("train", 2, "there is nothing to train on"),
        ("validation", 2, "scores are made comparable, and the threshold is chosen, by these; raise data.validation"),
    ):
        if (n := int(normal[y[split]].sum())) < least:
            raise SettingsError(f"config.data: {name!r} has {n} {split} rows of the normal class {who}: {why}")
    told = normal[y["test"]]
    if told.all() or not told.any():
        raise SettingsError(
            f"config.data: {name!r} has no {'anomalous' if told.all() else 'normal'} row in test where {who} is normal"
        )


def in_turn(whole: Data, dataset: Dataset, run: RunSettings) -> Data:
    """Training data of which seed run.seed + k reads the rows that are normal in problem k, and no others.

    A slot says which problem its rows are of: "lane" i32[B]. Epochs and steps are counted by the whole set, so a lane
    goes through its own rows that much more often.
    """
    y = np.asarray(dataset.train.column("y"))
    groups = [np.flatnonzero(these[y]) for these in dataset.info["normal"]]

    def slot(seed: int, step: int) -> dict[str, np.ndarray]:
        lane = int(seed) - run.seed
        position = int(step) * run.batch_size + np.arange(run.batch_size)
        rows = groups[lane][data.order(int(seed), len(groups[lane]), position)]
        return {"idx": rows.astype(np.int32), "lane": np.full(run.batch_size, lane, np.int32)}

    def stream(seeds: tuple[int, ...], start: int, stop: int) -> Generator[dict[str, np.ndarray], None, None]:
        return (stacked(slot, seeds, step) for step in range(start, stop))

    return whole._replace(slot=slot, stream=stream)


def only_normal(normal: np.ndarray) -> Transform:
    """Masks the anomalous rows of an evaluation, so that its loss is that of normal rows. Outermost: it reads labels.

    Which problem a lane is comes from its first batch's "lane", and is kept in state["protocol"]; problem 0 without.

    Args:
      normal: bool[P, C].
    """

    def wrap(o: Objective) -> Objective:
        def init(batch: Batch, ctx: Ctx) -> tuple[Params, State]:
            params, state = o.init(batch, ctx)
            lane = batch["lane"][0] if "lane" in batch else jnp.int32(0)
            return params, {**state, SCOPE: {"lane": lane}}

        def apply(params: Params, state: State, batch: Batch, ctx: Ctx) -> tuple[Array, Aux]:
            if not ctx.train:
                kept = jnp.asarray(normal, jnp.float32)[state[SCOPE]["lane"]][batch["y"]]
                mask = batch["mask"] if "mask" in batch else jnp.ones_like(kept)
                batch = {**batch, "mask": mask * kept}
            return o.apply(params, state, batch, ctx)

        return o._replace(init=init, apply=apply)

    return wrap


# --------------------------------------------------------------------------------------------------------- the problem
def problem(
    dataset: Dataset,
    log: dict[str, Any],
    *,
    model: dict,
    score: Literal["error", "relative", "distance", "both"] = "error",
    false_positives: Rate = 0.05,
    baselines: bool | tuple[str, ...] = True,
) -> Problem:
    """The mean squared error of an autoencoder of normal rows, as for the pipeline `autoencoder`.

    Of every test row: its error; that error relative to the mean square of the row, since a row with little in it can
    have no large error; the Mahalanobis distance of its code from the codes of normal training rows; and "both", the
    sum of error and distance, each standardised by normal validation rows. Measures auroc, average_precision (anomalies
    are the positive class), fpr_at_95_tpr, and what a threshold gives that is chosen by normal validation rows.

    Args:
      score: the one that these are of; the area under the ROC curve is given for all.
      false_positives: the rate that the threshold is chosen for.
      baselines: names of `_detectors.DETECTORS`; True for all.
    """
    names = _detectors.chosen(baselines)
    made = _codes.units(dataset)
    net, base = _codes.autoencoder(dataset, made, model, log)
    normal: np.ndarray = dataset.info["normal"]
    y = {s: np.asarray(getattr(dataset, s).column("y")) for s in ("train", "validation", "test")}

    def flat(x: np.ndarray) -> np.ndarray:
        return made.of_stored(x).reshape(len(x), -1)

    def tested() -> Iterator[np.ndarray]:
        for start in range(0, len(dataset.test), _codes.ROWS):
            rows = np.arange(start, min(start + _codes.ROWS, len(dataset.test)))
            yield flat(dataset.test.__getitems__(rows)["x"])

    @functools.cache
    def rivals() -> tuple[tuple[_detectors.Judged, ...], ...]:
        """Of every problem, of every detector."""
        out = []
        for these in normal:
            rows = np.flatnonzero(these[y["train"]])
            few = flat(_codes.some(data.Rows(dataset.train, rows), 60_000))
            out.append(tuple(_detectors.judge(name, few, tested(), len(rows)) for name in names))
        return tuple(out)

    def beside() -> dict[str, dict[str, float]]:
        told: dict[str, list[dict[str, float]]] = {}
        for these, judged in zip(normal, rivals(), strict=True):
            for j in judged:
                seconds = {"seconds": j.seconds}
                told.setdefault(j.words, []).append({**worth(j.score, ~these[y["test"]]), **seconds})
        return {
            words: {m: float((np.sum if m == "seconds" else np.mean)([t[m] for t in each])) for m in each[0]}
            for words, each in told.items()
        }

    def review(resolve: Resolve) -> Callable[[View, Array], Review]:
        run = jax.jit(_codes.coder(net, resolve, made))

        def of(views: View, key: Array) -> Review:
            lanes = len(jax.tree.leaves(views)[0])
            each = []
            for k in range(lanes):
                these = normal[k if len(normal) > 1 else 0]
                rows = {s: np.flatnonzero(these[y[s]]) for s in ("train", "validation")}
                rows["train"] = rows["train"][data.sample(len(rows["train"]), MOST)]
                view = views.lane(k)
                train, held = (
                    _codes.told(run, view, data.Rows(getattr(dataset, s), rows[s]), key)
                    for s in ("train", "validation")
                )
                each.append(found(train, held, _codes.told(run, view, dataset.test, key), ~these[y["test"]]))
            numbers = [_numbers(f, score, false_positives) for f in each]
            merged = {m: [n[m] for n in numbers] for m in numbers[0]}
            metrics = {"test": merged if lanes > 1 else {m: v[0] for m, v in merged.items()}}
            kept = {kind: np.stack([f.test[kind] for f in each]).astype(np.float32) for kind in KINDS}
            rows_kept = {**kept, "anomalous": np.stack([f.anomalous for f in each]), "y": y["test"]}
            return Review(metrics, _figures(each, views, key), rows_kept)

        def _figures(each: list["Found"], views: View, key: Array) -> Iterator[tuple[str, Any]]:
            beside = rivals() if names else ((),) * len(normal)
            if len(normal) > 1:
                yield "problems", _by_problem(each, beside, dataset, normal)
            else:
                yield "classes", _by_class(each, beside, dataset, normal[0], y["test"], score)
            aurocs = [auroc(f.test[score], f.anomalous) for f in each]
            k = int(np.argmin(aurocs)) if len(normal) > 1 else 0
            which = _which(dataset, normal[k if len(normal) > 1 else 0])
            yield "scores", _densities(each[k], score, false_positives, which)
            yield "roc", _rocs(each, beside, dataset, normal, score)
            yield from _extremes(dataset, made, each[k], score, which, run, views.lane(k), key)

        return of

    return Problem(
        columns=("x", "y"),
        outer=chain(only_normal(normal), made.outer),
        base=base,
        context={"bounds": made.bounds, "on": "x", "where": None, "code": _codes.code_of},
        review=review,
        predict=lambda resolve: _codes.coder(net, resolve, made),
        baselines=beside,
        notes=(_protocol(dataset, normal),),
        fitting=_codes.FITTING,
    )


class Found(NamedTuple):
    """The scores of one model on one problem."""

    held: dict[str, np.ndarray]  # kind -> f64[n], of normal validation rows
    test: dict[str, np.ndarray]  # kind -> f64[N]
    anomalous: np.ndarray  # bool[N]


def found(train: _codes.Told, held: _codes.Told, test: _codes.Told, anomalous: np.ndarray) -> Found:
    """The scores of test rows, from what a model says of normal training and validation rows and of test."""
    fitted = _detectors.gaussian(train.code)
    of_held, of_test = (
        {"error": t.error, "relative": t.error / t.size, "distance": fitted.distance(t.code)} for t in (held, test)
    )
    both = [
        sum(_detectors.standardised(of[kind], of_held[kind]) for kind in ("error", "distance"))
        for of in (of_held, of_test)
    ]
    return Found({**of_held, "both": np.asarray(both[0])}, {**of_test, "both": np.asarray(both[1])}, anomalous)


def auroc(score: np.ndarray, anomalous: np.ndarray) -> float:
    """The probability that an anomalous row has a higher score than a normal one."""
    return scores.auc(scores.roc(score, anomalous.astype(int)))


def worth(score: np.ndarray, anomalous: np.ndarray) -> dict[str, float]:
    """What a score f[N] is worth, whatever the threshold."""
    y = anomalous.astype(int)
    return {
        "auroc": auroc(score, anomalous),
        "average_precision": scores.average_precision(score, y),
        "fpr_at_95_tpr": _detectors.fpr_at(score, y, 0.95),
    }


def _numbers(f: Found, kind: str, rate: float) -> dict[str, float]:
    cut = _detectors.threshold(f.held[kind], rate)
    called = f.test[kind] > cut
    return {
        **worth(f.test[kind], f.anomalous),
        "fpr_at_threshold": float(called[~f.anomalous].mean()),
        "tpr_at_threshold": float(called[f.anomalous].mean()),
        **{f"{k}_auroc": auroc(f.test[k], f.anomalous) for k in KINDS},
    }


# ------------------------------------------------------------------------------------------------------------- figures
def _which(dataset: Dataset, normal: np.ndarray) -> str:
    """The smaller side of a problem, in words."""
    named = [
        n
        for n, is_normal in zip(dataset.info["class_names"], normal, strict=True)
        if is_normal == (2 * normal.sum() <= len(normal))
    ]
    return f"{', '.join(named)} {'normal' if 2 * normal.sum() <= len(normal) else 'anomalous'}"


def _protocol(dataset: Dataset, normal: np.ndarray) -> str:
    n = len(dataset.test)
    if len(normal) == 1:
        return (
            f"Class {_which(dataset, normal[0])}: trained on {len(dataset.train):,} normal rows, tested on all {n:,}."
        )
    side = "normal" if normal[0].sum() == 1 else "anomalous"
    return f"{len(normal)} problems, one a seed: in each another class is the {side} one. Tested on all {n:,} rows."


def _by_problem(
    each: list[Found], beside: tuple[tuple[_detectors.Judged, ...], ...], dataset: Dataset, normal: np.ndarray
) -> Table:
    side = "normal" if normal[0].sum() == 1 else "anomalous"
    names = dataset.info["class_names"]
    grid = [
        [auroc(f.test[k], f.anomalous) for k in KINDS] + [auroc(j.score, f.anomalous) for j in judged]
        for f, judged in zip(each, beside, strict=True)
    ]
    rows = [(names[i], *(f"{v:.4f}" for v in line)) for i, line in enumerate(grid)]
    rows.append(("mean", *(f"{v:.4f}" for v in np.mean(grid, 0))))
    caption = f"Area under the ROC curve on test where one class is {side}: the model's scores, then the others'."
    return Table((f"{side} class", *KINDS, *(j.words for j in beside[0])), tuple(rows), caption)


def _by_class(
    each: list[Found],
    beside: tuple[tuple[_detectors.Judged, ...], ...],
    dataset: Dataset,
    normal: np.ndarray,
    y: np.ndarray,
    kind: str,
) -> Table:
    rows = []
    for c in np.flatnonzero(~normal):
        kept = normal[y] | (y == c)
        if not (y == c).any():
            continue
        own = [np.mean([auroc(f.test[k][kept], f.anomalous[kept]) for f in each]) for k in KINDS]
        theirs = [auroc(j.score[kept], ~normal[y[kept]]) for j in beside[0]]
        rows.append((dataset.info["class_names"][c], int((y == c).sum()), *(f"{v:.4f}" for v in (*own, *theirs))))
    of = "" if len(each) == 1 else f", mean over {len(each)} seeds"
    caption = f"Area under the ROC curve of each anomalous class against the normal rows of test{of}."
    return Table(("anomalies", "rows", *KINDS, *(j.words for j in beside[0])), tuple(rows), caption)


def _densities(f: Found, kind: str, rate: float, which: str) -> Curves:
    """Histograms as lines, over the range of the middle 99 %."""
    parts = {
        "normal, validation": f.held[kind],
        "normal, test": f.test[kind][~f.anomalous],
        "anomalous, test": f.test[kind][f.anomalous],
    }
    low = min(float(v.min()) for v in parts.values())
    high = max(float(np.quantile(v, 0.99)) for v in parts.values())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    series = {name: (middle, np.histogram(v, edges)[0] / (len(v) * width)) for name, v in parts.items()}
    top = max(float(v.max()) for _, v in series.values())
    cut = _detectors.threshold(f.held[kind], rate)
    dashed: tuple[str, ...] = ()
    if low <= cut <= high:
        series[f"threshold for {100 * rate:g} %"] = (np.asarray([cut, cut]), np.asarray([0.0, top]))
        dashed = (f"threshold for {100 * rate:g} %",)
    words = {
        "error": "mean squared error",
        "relative": "mean squared error relative to the mean square of the row",
        "distance": "Mahalanobis distance of the code",
        "both": "error and distance, standardised and added",
    }
    realised = float((f.test[kind][~f.anomalous] > cut).mean())
    caption = (
        f"How the scores are distributed, {which}. The threshold is chosen by normal validation rows for a false "
        f"positive rate of {100 * rate:g} %; on test it is {100 * realised:.1f} %, and it finds "
        f"{100 * (f.test[kind][f.anomalous] > cut).mean():.1f} % of the anomalies."
    )
    return Curves(series, words[kind], "density", caption, {}, dashed)


def _rocs(
    each: list[Found],
    beside: tuple[tuple[_detectors.Judged, ...], ...],
    dataset: Dataset,
    normal: np.ndarray,
    kind: str,
) -> Curves:
    series: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    dashed: list[str] = []

    def add(name: str, score: np.ndarray, anomalous: np.ndarray, other: bool = False) -> None:
        curve = scores.roc(score, anomalous.astype(int))
        grid = np.linspace(0, 1, 201)
        last = np.append(np.diff(curve.x) > 0, True)
        label = f"{name} (area {scores.auc(curve):.4f})"
        series[label] = (grid, np.interp(grid, curve.x[last], curve.y[last]))
        dashed.extend([label] * other)

    if len(normal) > 1:
        for i, f in enumerate(each):
            add(str(dataset.info["class_names"][i]), f.test[kind], f.anomalous)
        side = "normal" if normal[0].sum() == 1 else "anomalous"
        return Curves(series, "false positive rate", "true positive rate", f"ROC curves on test, by the {side} class.")
    for k in KINDS:
        add(k, each[0].test[k], each[0].anomalous)
    for j in beside[0]:
        add(j.words, j.score, each[0].anomalous, True)
    of = "" if len(each) == 1 else " Of the first seed."
    caption = f"ROC curves on test: the model's scores, and dashed the others'.{of}"
    return Curves(series, "false positive rate", "true positive rate", caption, {}, tuple(dashed))


def _extremes(
    dataset: Dataset, made: _codes.Units, f: Found, kind: str, which: str, run: Any, view: View, key: Array
) -> Iterator[tuple[str, Any]]:
    order = np.argsort(-f.test[kind], kind="stable")
    high = order[~f.anomalous[order]][:SHOWN]
    low = order[f.anomalous[order]][::-1][:SHOWN]
    for name, rows, words in (
        ("normal_but_odd", high, "The normal test rows with the highest scores"),
        ("anomalous_but_plain", low, "The anomalous test rows with the lowest scores"),
    ):
        those = dataset.test.__getitems__(rows)
        out = np.asarray(run(view, {"x": those["x"]}, key)["reconstruction"])
        x, classes = made.of_stored(those["x"]), [dataset.info["class_names"][c] for c in those["y"]]
        if made.image and x.ndim == 4 and x.shape[-1] in (1, 3):
            caption = f"{words} ({which}), and what the model makes of them. Classes: {', '.join(classes)}."
            yield name, Images(np.concatenate([x, out]), len(x), caption, ("test", "model"))
            continue
        flat = np.square(out - x).reshape(len(x), -1)
        features = dataset.info["features"] or tuple(map(str, range(flat.shape[1])))
        told = [
            (int(r), c, float(f.test[kind][r]), ", ".join(features[i] for i in np.argsort(-e)[:3]))
            for r, c, e in zip(rows, classes, flat, strict=True)
        ]
        columns = ("row of test", "class", "score", "largest errors")
        yield name, Table(columns, tuple(told), f"{words} ({which}), and the features that are furthest off.")
