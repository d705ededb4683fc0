"""Language models of characters, or of byte pairs: the next one from those before it.

python launch.py --config=configs/char_lm.py          a small GPT
"""

from ml_collections import ConfigDict


def get_config(variant: str = "gpt") -> ConfigDict:
    if variant not in ("rnn", "lstm", "gru", "gpt"):
        raise ValueError(f"configs/char_lm.py:{variant}: no such variant (one of: gpt, gru, lstm, rnn)")
    c = ConfigDict()
    c.pipeline = "language"
    c.data = dict(name="docstrings", validation=0.02, test=0.1)
    c.tokens, c.vocabulary = "char", 0
    c.seed = 0
    c.seeds = 1
    c.techniques = ()
    c.evals = dict(test=())
    c.sample = dict(prompt="\n", length=500, temperature=0.8, top_k=0, top_p=1.0)
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "25%", "25%"
    if variant == "gpt":
        c.length, c.stride = 128, 64
        c.model = dict(name="gpt", width=192, layers=4, heads=6, positions="rotary", dropout=0.0)
        c.optimizer = dict(name="adamw", learning_rate=2e-3, schedule="cosine", warmup="5%", weight_decay=0.1, clip=1.0)
        c.batch_size = 32
        c.train_for = "5 epochs"
    else:
        c.length, c.stride = 64, 0
        c.model = dict(name="recurrent_lm", cell=variant, width=512, embedding=64, layers=1)
        c.optimizer = dict(name="adam", learning_rate=3e-3, schedule="cosine", warmup="2%", clip=1.0)
        c.batch_size = 64
        c.train_for = "10 epochs"
    c.ema = 0.0
    c.eval_batch_size = 32
    return c
