"""A text GAN beside its maximum-likelihood start (d'Autume et al. 2019, ScratchGAN; Yu et al. 2017, SeqGAN).

python launch.py --config=configs/text_gan.py
python launch.py --config=configs/text_gan.py:shakespeare --config.data.path=FILE
"""

from ml_collections import ConfigDict


def get_config(variant: str = "docstrings") -> ConfigDict:
    if variant not in ("docstrings", "shakespeare"):
        raise ValueError(f"configs/text_gan.py:{variant}: no such variant (one of: docstrings, shakespeare)")
    c = ConfigDict()
    c.pipeline = "text_gan"
    c.data = dict(name="docstrings" if variant == "docstrings" else "tiny_shakespeare", validation=0.05, test=0.1)
    c.tokens, c.vocabulary, c.length = "char", 0, 32
    c.seed = 0
    c.seeds = 1
    c.lanes = "unroll"  # several seeds one after the other: a phase that is not on then costs nothing
    c.evals = dict(test=())
    c.generator = dict(cell="gru", width=256, embedding=64, layers=1, dropout=0.0)
    c.discriminator = dict(cell="gru", width=128, embedding=32, layers=1, dropout=0.1)
    c.pretrain, c.ahead = "70%", "5%"
    c.discount = 0.9
    c.likelihood = 0.0
    c.optimizer = dict(name="adam", learning_rate=3e-3, schedule="cosine", clip=1.0)
    c.game_optimizer = dict(learning_rate=1e-4, schedule="constant")
    c.disc_optimizer = dict(learning_rate=1e-3, schedule="constant")
    c.batch_size = 64
    c.train_for = "3000 steps"
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "10%", "25%"
    c.sample = dict(rows=4000, temperatures=(0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2), order=5)
    return c
