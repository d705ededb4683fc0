"""Language models of characters, or of byte pairs: the next one from those before it.

    python launch.py --config=configs/char_lm.py          a small GPT on docstrings, which need no download
    python launch.py --config=configs/char_lm.py:lstm     recurrent, its state kept from batch to batch; :gru, :rnn
    python launch.py --config=configs/char_lm.py:lstm --config.data.path=FILE.txt      on your text

Byte pairs: --config.tokens=bpe --config.vocabulary=1000. More is in docs/howto/language_models.md.

Measured on two cores of an AMD EPYC, beside much other work, on tiny shakespeare (Karpathy 2015), whose last 111,540
characters are test, every one scored with what stands before it; nats per character with the last parameters, 1 seed.

    lstm, 955,206 parameters, 12 epochs    41 minutes    1.570    n-grams by Kneser-Ney of 5: 1.632, of 6: 1.593
    gpt, 1,248,710 parameters, 5 epochs   7 minutes    1.537    with nothing beside it

Other trainings of the GPT were no better: 10 epochs (1.539), 9 epochs with dropout (1.556), smaller batches
(1.577), AdamW (1.634).
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
    c.sample = dict(prompt="", length=500, temperature=0.8, top_k=0, top_p=1.0)
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "10%", "20%"
    if variant == "gpt":
        c.length, c.stride = 128, 0
        c.model = dict(name="gpt", width=160, layers=4, heads=5, positions="rotary", dropout=0.0)
        c.optimizer = dict(name="muon", learning_rate=3e-3, schedule="cosine", warmup="5%", weight_decay=0.1, clip=1.0)
        c.batch_size = 32
        c.train_for = "5 epochs"
    else:
        c.length, c.stride = 64, 0
        c.model = dict(name="recurrent_lm", cell=variant, width=448, embedding=64, layers=1, dropout=0.15)
        c.optimizer = dict(name="adam", learning_rate=4e-3, schedule="cosine", warmup="2%", clip=1.0)
        c.batch_size = 64
        c.train_for = "12 epochs"
    c.ema = 0.0
    c.eval_batch_size = 32
    return c
