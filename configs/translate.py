"""A sequence to a sequence: translation with attention, and beam search at the end.

python launch.py --config=configs/translate.py
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
    c.beam = dict(width=4, alpha=0.6)
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "10%", "50%"
    if variant in ("numbers", "transformer"):
        c.data = dict(name="numbers", rows=6000)
        c.tokens, c.vocabulary = "bpe", 330
        c.train_for = "15 epochs"
    else:
        c.data = dict(name="pairs", path="PAIRS.tsv", held_out=1000)
        c.tokens, c.vocabulary = "bpe", 1000
        c.train_for = "40 epochs"
    if variant == "transformer":
        c.model = dict(name="transformer_seq2seq", width=128, layers=2, heads=4, dropout=0.1)
        c.optimizer = dict(name="adamw", learning_rate=2e-3, schedule="cosine", warmup="10%", clip=1.0)
    else:
        c.model = dict(name="seq2seq", width=128, hidden=192, attention="additive", dropout=0.3)
        c.optimizer = dict(name="adam", learning_rate=3e-3, schedule="cosine", warmup="5%", clip=1.0)
    c.batch_size = 64
    c.eval_batch_size = 128
    return c
