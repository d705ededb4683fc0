"""From a text to a text: an encoder and a decoder with attention, and beam search at the end.

    python launch.py --config=configs/translate.py                  numbers in English and French words, made by rule
    python launch.py --config=configs/translate.py:transformer      the same by a Transformer
    python launch.py --config=configs/translate.py:pairs --config.data.path=FILE
    python launch.py --config=configs/translate.py:multi30k --config.data.path=FOLDER

The file has lines source<TAB>target; a thousand distinct sources are held out for test, with all their translations.
The folder has three .tsv files of such lines, with train, val and test in their names. Luong's attention is
--config.model.attention=dot; several seeds are also scored as one (--config.seeds=3). Translations of test as arrays:
--mode=predict.

Measured on two cores of an AMD EPYC that had much else to do, with the last parameters; BLEU and chrF by sacrebleu, on
distinct sources of test and against all their translations. docs/results.md has commands and versions.

    numbers             6.6 minutes    BLEU 87.6, chrF 95.4, seed 0                nearest source of train 29.4, 68.6
    pairs, seeds=3       23 minutes    20.7 +- 0.5, 36.5 +- 0.4, n = 3 seeds       12.9, 30.6
                                       the three together 23.3, 38.8

Test of the pairs is 1,000 of the 2,597 distinct English sentences in the first 5,000 lines of Tatoeba's French pairs.
One model is at 1.6 times the floor, three together at 1.8 times.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "numbers") -> ConfigDict:
    if variant not in ("numbers", "pairs", "multi30k", "transformer"):
        raise ValueError(
            f"configs/translate.py:{variant}: no such variant (one of: multi30k, numbers, pairs, transformer)"
        )
    c = ConfigDict()
    c.pipeline = "translation"
    c.seed = 0
    c.seeds = 1
    c.techniques = ("label_smoothing",)
    c.label_smoothing = dict(eps=0.1)
    c.evals = dict(test=())
    c.tokens = "bpe"  # one set of byte pairs for both languages
    c.length, c.buckets = 0, 0
    c.beam = dict(width=4, alpha=0.6)
    c.model = dict(name="seq2seq", width=128, hidden=192, cell="gru", attention="additive", dropout=0.3)
    c.optimizer = dict(name="adam", learning_rate=3e-3, schedule="cosine", warmup="5%", clip=1.0)
    c.batch_size = 64
    c.ema = 0.0
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "20%", "50%"
    c.eval_batch_size = 128

    if variant in ("numbers", "transformer"):
        c.data = dict(name="numbers", rows=6000)
        c.vocabulary = 330
        c.train_for = "3 epochs"
    elif variant == "pairs":
        c.data = dict(name="pairs", path="data/fra.txt", held_out=1000)
        c.vocabulary = 1000
        c.model.dropout = 0.4  # there are few pairs
        c.train_for = "30 epochs"
    else:
        c.data = dict(name="pairs", path="data/multi30k")
        c.vocabulary = 6000
        c.buckets, c.steps_per_call = 8, 1  # captions are of many lengths: a third fewer tokens are padding
        c.train_for = "20 epochs"
    if variant in ("transformer", "multi30k"):
        size = dict(width=128, layers=2) if variant == "transformer" else dict(width=256, layers=3)
        c.model = dict(name="transformer_seq2seq", heads=4, norm="pre", positions="sinusoidal", **size)
        c.model.dropout = 0.1 if variant == "transformer" else 0.3
        c.optimizer = dict(name="adamw", learning_rate=1e-3, schedule="cosine", warmup="10%", clip=1.0)
    if variant == "transformer":
        c.train_for = "15 epochs"
    return c
