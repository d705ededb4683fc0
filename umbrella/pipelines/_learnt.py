"""What another run has learnt to cut text into. Floor 5."""

import pathlib

from umbrella import checkpoint
from umbrella.data import tokenizers
from umbrella.data.tokenizers import Tokenizer
from umbrella.settings import SettingsError


def learnt(workdir: str) -> Tokenizer:
    """The tokenizer that the checkpoints of a language model keep.

    Raises:
      SettingsError: no checkpoint there, or one of something else.
    """
    meta = checkpoint.read_meta(pathlib.Path(workdir).expanduser() / "checkpoints")
    if meta is None or "tokenizer" not in meta.get("kept", {}):
        what = "no checkpoint there" if meta is None else "what was trained there has no tokenizer"
        raise SettingsError(f"config.tokenizer: {workdir}: {what}; name the workdir of a run of a language model")
    return tokenizers.from_json(meta["kept"]["tokenizer"])
