"""A step of a small GPT in our loop against the same network in PyTorch, written as nanoGPT is."""

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rivals
from benchmarks.loops import common, umbrella_loop

LENGTH, BATCH, WIDTH, LAYERS, HEADS = 128, 32, 128, 4, 4
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,;:!?'-\n&$3"


def gpt(stack: contextlib.ExitStack) -> dict[str, rivals.Segment | None]:
    """Four blocks of width 128 on 32 rows of 128 characters, Adam; the vocabulary of tiny shakespeare."""
    folder, rng = stack.enter_context(tempfile.TemporaryDirectory()), np.random.default_rng(0)
    path = Path(folder) / "noise.txt"
    path.write_text("".join(rng.choice(list(CHARACTERS), 500_000)))
    config = common(
        "noise",
        pipeline="language",
        data={"name": "noise", "path": str(path)},
        model={"name": "gpt", "width": WIDTH, "layers": LAYERS, "heads": HEADS},
        length=LENGTH,
        batch_size=BATCH,
        optimizer={"name": "adam", "learning_rate": 1e-3},
        log_every="100 steps",
        checkpoint_every="5000 steps",
        ema=0.0,
    )
    ours, session = umbrella_loop(config, stack)
    tokens = np.asarray(session.experiment.train_data.resident["tokens"])
    return {"umbrella": ours, "PyTorch": torch_gpt(tokens, int(tokens.max()) + 1)}


def torch_gpt(tokens: np.ndarray, words: int) -> rivals.Segment | None:
    """Plain PyTorch with its fused attention, on as many threads as there are cores; None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(os.cpu_count() or 1)
    rng = np.random.default_rng(0)
    net = _torch_gpt(torch, words)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    text = torch.from_numpy(tokens.astype(np.int64))
    reach = torch.arange(LENGTH + 1)

    def segment(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            start = torch.from_numpy(rng.integers(0, len(tokens) - LENGTH - 1, BATCH))
            cut = text[start[:, None] + reach]
            loss = torch.nn.functional.cross_entropy(net(cut[:, :-1]).flatten(0, 1), cut[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        loss.item()
        return (time.perf_counter() - began) / steps

    return segment


def _torch_gpt(torch: Any, words: int) -> Any:
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.mlp = nn.Sequential(
                nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH)
            )

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            q, k, v = (z.view(b, t, HEADS, -1).transpose(1, 2) for z in self.qkv(self.first(x)).split(WIDTH, 2))
            h = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(h.transpose(1, 2).reshape(b, t, WIDTH))
            return x + self.mlp(self.second(x))

    class GPT(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.positions = nn.Embedding(words, WIDTH), nn.Embedding(LENGTH, WIDTH)
            self.blocks, self.norm = nn.Sequential(*[Block() for _ in range(LAYERS)]), nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, words)
            self.head.weight = self.embedding.weight

        def forward(self, x: Any) -> Any:
            return self.head(self.norm(self.blocks(self.embedding(x) + self.positions.weight)))

    return GPT()
