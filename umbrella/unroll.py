"""When to unroll a loop inside a compiled program. Floor 0."""

import jax


def unroll(n: int, *, most: int = 16) -> int:
    """The `unroll=` of a scan or fori_loop of n turns: n on CPU when n is small, else 1.

    XLA's CPU backend runs what is inside a while loop without intra-op parallelism: seven attack steps on a small CNN
    take 2.9 times as long rolled as unrolled. On an accelerator the loop costs nothing and unrolling costs compile
    time.
    """
    return n if jax.default_backend() == "cpu" and n <= most else 1
