"""What translations are worth, and what they are held against. Floor 5."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from umbrella.artifacts import Matrix, Table
from umbrella.data.tokenizers import END, PAD, START, Tokenizer

SHOWN = 30
PART = 256  # sources that are compared with all of train at once
RIVALS = ("nearest source", "source as it is")


def scored(found: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU and chrF of a corpus, from 0 to 100, by sacrebleu with its defaults ("13a" tokens, case as it is).

    Args:
      found: a translation of each source.
      references: all that are known of it, one at least.

    Returns:
      "bleu" (Papineni et al. 2002) and "chrf" (Popović 2015) against all references of a source; "bleu_one_reference",
      against the first alone, which is what other numbers often are; "exact_accuracy", the share of translations that
      are one of the references.
    """
    from sacrebleu.metrics import BLEU, CHRF

    most = max(map(len, references))
    streams: Any = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    return {
        "bleu": BLEU().corpus_score(list(found), streams).score,
        "chrf": CHRF().corpus_score(list(found), streams).score,
        "bleu_one_reference": BLEU().corpus_score(list(found), streams[:1]).score,
        "exact_accuracy": float(np.mean([f in r for f, r in zip(found, references, strict=True)])),
    }


def nearest(train: Mapping[str, Sequence[str]], sources: Sequence[str]) -> list[str]:
    """The first translation of the most similar source of train, for each source.

    Similar by the cosine of tf-idf vectors of words and of two to four characters, in lower case; of equal ones the
    first.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    words = TfidfVectorizer(token_pattern=r"\S+", sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    vectors, known = FeatureUnion([("words", words), ("characters", characters)]), list(train)
    of_train = vectors.fit_transform(known).T.tocsc()
    rows = vectors.transform(sources)
    parts = range(0, len(sources), PART)
    best = np.concatenate([np.argmax((rows[i : i + PART] @ of_train).toarray(), 1) for i in parts])
    return [train[known[i]][0] for i in best.tolist()]


def rivals(train: Mapping[str, Sequence[str]], test: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """What a translator must beat, on the sources of test."""
    sources, references = list(test), list(test.values())
    return {
        RIVALS[0]: scored(nearest(train, sources), references),
        RIVALS[1]: scored(sources, references),
    }


# -------------------------------------------------------------------------------------------------------------- figures
def examples(test: Mapping[str, Sequence[str]], found: Sequence[str], train: Mapping[str, Sequence[str]]) -> Table:
    """Sources of test at even distances, with their translation, a reference and what the nearest source would give."""
    sources = list(test)
    some = np.unique(np.linspace(0, len(sources) - 1, min(SHOWN, len(sources))).astype(int)).tolist()
    near = nearest(train, [sources[i] for i in some])
    rows = tuple(
        (sources[i], found[i], "yes" if found[i] in test[sources[i]] else "no", test[sources[i]][0], copied)
        for i, copied in zip(some, near, strict=True)
    )
    caption = f"{len(rows)} test sources at even distances, translated by the first seed."
    return Table(("source", "translation", "is a reference", "reference", "nearest source's"), rows, caption)


def heat(weights: np.ndarray, source: np.ndarray, target: np.ndarray, tokenizer: Tokenizer) -> Matrix:
    """What each token of a translation looked at. weights f32[T, S], source i32[S], target i32[T] with its end."""
    names = tokenizer.pieces
    s, t = (int(np.sum(v != PAD)) for v in (source, target))
    rows, columns = (tuple(names[i] for i in v) for v in (target[:t], source[:s]))
    caption = (
        f"What the decoder looked at (columns) when it wrote each token (rows) of {tokenizer.decode(target[:t])!r}, "
        f"for {tokenizer.decode(source[:s])!r}; rows add up to 1."
    )
    return Matrix(np.asarray(weights[:t, :s], np.float32), rows, columns, caption)


def shifted(target: np.ndarray) -> np.ndarray:
    """What a decoder has read when it gives target i32[N, T]: START, then all but the last."""
    return np.concatenate([np.full((len(target), 1), START, np.int32), np.where(target == END, PAD, target)[:, :-1]], 1)
