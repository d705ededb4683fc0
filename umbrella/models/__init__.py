"""Linen modules: no loss, no optimiser, no config. `TABLE` says which name in a config means which module."""

from collections.abc import Mapping
from typing import Any

from umbrella import settings
from umbrella.models.autoencoder import Autoencoder
from umbrella.models.cnn import CNN, LeNet
from umbrella.models.critic import TokenDiscriminator
from umbrella.models.fast import CifarFast
from umbrella.models.filter import Filter
from umbrella.models.gan import Discriminator, Generator
from umbrella.models.language import BERT, GPT, Cloze, RecurrentLM
from umbrella.models.layers import Flatten, Sequential
from umbrella.models.mlp import MLP
from umbrella.models.recurrent import Recurrent
from umbrella.models.resnet import ResNet
from umbrella.models.rows import Rows
from umbrella.models.seq2seq import RecurrentSeq2Seq, TransformerSeq2Seq
from umbrella.models.series import SeriesLinear, SeriesRNN, SeriesTCN, SeriesTransformer
from umbrella.models.text import Bag, TextCNN
from umbrella.models.text_bert import TextBERT
from umbrella.models.text_sequence import TextRNN, TextTransformer
from umbrella.models.vae import VAE, Likelihood
from umbrella.models.vit import ViT

__all__ = [
    "BERT",
    "CNN",
    "MLP",
    "ATTENTIVE",
    "TABLE",
    "VAE",
    "Autoencoder",
    "Bag",
    "CifarFast",
    "Cloze",
    "Discriminator",
    "Filter",
    "Flatten",
    "GPT",
    "Generator",
    "LeNet",
    "Likelihood",
    "Recurrent",
    "RecurrentLM",
    "RecurrentSeq2Seq",
    "ResNet",
    "Rows",
    "Sequential",
    "SeriesLinear",
    "SeriesRNN",
    "SeriesTCN",
    "SeriesTransformer",
    "TextBERT",
    "TextCNN",
    "TokenDiscriminator",
    "TransformerSeq2Seq",
    "TextRNN",
    "TextTransformer",
    "ViT",
    "build",
]

TABLE = {
    "autoencoder": Autoencoder,
    "bag": Bag,
    "bert": BERT,
    "cifar_fast": CifarFast,
    "cloze": Cloze,
    "cnn": CNN,
    "filter": Filter,
    "gpt": GPT,
    "lenet": LeNet,
    "mlp": MLP,
    "recurrent_lm": RecurrentLM,
    "resnet": ResNet,
    "rows": Rows,
    "series_linear": SeriesLinear,
    "series_rnn": SeriesRNN,
    "series_tcn": SeriesTCN,
    "series_transformer": SeriesTransformer,
    "seq2seq": RecurrentSeq2Seq,
    "text_bert": TextBERT,
    "text_cnn": TextCNN,
    "transformer_seq2seq": TransformerSeq2Seq,
    "text_rnn": TextRNN,
    "text_transformer": TextTransformer,
    "vae": VAE,
    "vit": ViT,
}


ATTENTIVE = (TextRNN, TextTransformer)  # their submodule "pool" gives the weights of the words as its second output


def build(
    config: Mapping[str, Any], *, only: tuple[str, ...] = (), log: dict[str, Any] | None = None, **given: Any
) -> Any:
    """The module that config["name"] names, with its other settings.

    Args:
      only: the names that fit the problem; all when empty.
      log: receives the resolved settings under "model".
      given: fields that the problem decides (out, shape), not the user.

    Raises:
      SettingsError: no such model, a setting that does not fit, or one that the problem decides.
    """
    table = {k: v for k, v in TABLE.items() if not only or k in only}
    module, rest = settings.choose(table, config, "model")
    for key in given:
        if key in rest:
            raise settings.SettingsError(f"config.model.{key}: the data decides this; leave it out")
    resolved = settings.check(module, rest, "model.", given=given)
    if log is not None:
        log["model"] = {"name": config["name"], **{k: v for k, v in resolved.items() if k not in given}}
    return module(**{**resolved, **given})
