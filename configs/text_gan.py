"""A text GAN beside its maximum-likelihood start (d'Autume et al. 2019, ScratchGAN; Yu et al. 2017, SeqGAN).

    python launch.py --config=configs/text_gan.py
    python launch.py --config=configs/text_gan.py --config.pretrain=100%    the rival that had as many steps, no game
    python launch.py --config=configs/text_gan.py:shakespeare --config.data.path=FILE    not measured

Characters, in rows of 32. Quality is what a Kneser-Ney model of held-out text says of samples, coverage what one of the
samples says of test text, both in nats per token and better when lower; self-BLEU says how much alike samples are. A
lower temperature buys quality for coverage, so the game and its start are compared at equal self-BLEU.

Measured on two cores of an AMD EPYC beside much other work: one seed, 4,000 rows at temperature 1, on test.

                                                   quality  coverage  self-BLEU  nats of test  minutes
    the game: 2,100 steps of likelihood, then 900    1.956     1.710       .898         1.464       10
    its start, after the 2,100                       1.921     1.656       .900         1.422
    3,000 steps of likelihood (pretrain=100%)        1.890     1.640       .906         1.416        7
    an n-gram model of the training text, of 5       1.962     1.606       .899
    rows of the training text                        1.816     1.534       .929

The game does not beat its maximum-likelihood start. At equal self-BLEU it loses .022 nats of quality (95 % interval
over rows .000 to .045) and .053 of coverage (.046 to .061); more likelihood would have been better in both. Its
discriminator hardly tells samples from text: its loss ends at 1.37, where 2 log 2 = 1.386 is guessing.
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
