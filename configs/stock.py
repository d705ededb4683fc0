"""Daily prices, walking forward: what can be foreseen of them, volatility, and what cannot, direction.

    python launch.py --config=configs/stock.py           the volatility of GENERATED prices, which need no file
    python launch.py --config=configs/stock.py --config.data.path=FOLDER     of yours: a .csv file for each ticker, with
                                                         the columns date, open, high, low, close and volume
    python launch.py --config=configs/stock.py:return    the return of the next day
    python launch.py --config=configs/stock.py:level     the same as a price, whose R2 means nothing

    other cells             --config.model.cell=gru
    other forecasters       --config.model='{"name": "series_tcn", "width": 16}', series_transformer, series_linear
    three trainings a fold  --config.seeds=12 (a seed is a fold's: 4 folds)
    a check                 --config.data.shuffled=True: the days in another order, so that nothing can be foreseen
    what was forecast       --mode=predict; the table "next" of the report says what comes after the last day

The last 20 % of the days are tested in 4 blocks, each by a model of the days before it. Generated prices have a
volatility that can be foreseen (GJR-GARCH) and a direction that is a fair coin.

Measured on two cores of an AMD EPYC, beside other work, on ten tickers of 2006 to 2017: 6,034 test rows from August
2015 on. (An empty field on 2017-07-31 drops that day in six of them; on 40 days an opening price outside of the range
widens it.) Volatility: the mean absolute error of the log variance over that of persistence, R2, QLIKE, and p of
Diebold and Mariano's test by days against EWMA .94, HAR, and a regression on all that the network sees. Mean +- sd of 3
trainings of each fold, or one. Of LSTM and GRU the second was the better on validation, too.

    LSTM, 3 trainings          2.0 minutes    0.805 +- .001    R2 .330    QLIKE .341    p = 4e-5, 2e-3, .83
    GRU, 3 trainings           3.1 minutes    0.795 +- .002    R2 .342    QLIKE .339    p = 2e-6, 4e-6, .01
    Transformer (width 16)     4.5 minutes    0.797            R2 .336    QLIKE .343    p = 1e-6, 1e-6, .03
    TCN (width 16)             2.7 minutes    0.799            R2 .335    QLIKE .340    p = 2e-6, 6e-6, .11
    regression on all that the network sees   0.803            R2 .325    QLIKE .348
    HAR                                       0.821            R2 .287    QLIKE .400
    EWMA .94                                  0.857            R2 .220    QLIKE .472

Return, LSTM, 3 trainings of each fold, 2.9 minutes: no better than persistence. MASE 0.7155 against 0.7189, a ratio
of 0.9953 +- 0.0006, Diebold-Mariano p = 0.33; direction 53.8 % (binomial 95 % interval 52.5 to 55.1 %), while 52.5 % of
the days went up; after costs of .05 % a trade 10.3 % a year, holding all series 13.5 %. With the days shuffled the
direction is 50.3 % (49.1 to 51.6 %), the ratio 1.0013. Level: R2 0.9865, and that of persistence 0.9864; p = 0.14.
of 0.9953 +- 0.0006, Diebold-Mariano p = 0.33; direction 53.8 % (binomial 95 % interval 52.5 to 55.1 %), while 52.5 %
of the days went up; after costs of .05 % a trade 10.3 % a year, holding all series 13.5 %. With the days shuffled
(width 16, once) the direction is 50.3 % (49.1 to 51.6 %), the ratio 1.0013. Level (width 16, once): R2 0.9865, and
that of persistence 0.9864; p = 0.14.
MASE is far below 1 for persistence, too, since 2015 to 2017 was calmer than the training part: compare with its own.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "volatility") -> ConfigDict:
    if variant not in ("volatility", "return", "level"):
        raise ValueError(f"configs/stock.py:{variant}: no such variant (one of: level, return, volatility)")
    c = ConfigDict()
    c.pipeline = "series"
    c.data = dict(name="stocks", target=variant, window=22, horizon=1, folds=4)
    c.seed = 0
    c.seeds = 4  # one for each fold; 8 for two trainings of each
    c.techniques = ()
    c.evals = dict(test=())
    c.model = dict(name="series_rnn", cell="lstm", width=32)
    c.optimizer = dict(name="adam", learning_rate=2e-3, schedule="cosine")
    c.batch_size = 256
    c.train_for = "4 epochs"
    c.eval_batch_size = 1000
    c.log_every, c.eval_every, c.checkpoint_every = "50 steps", "1 epoch", "50%"
    return c
