"""What a run ran on: versions, device, revision, memory, compilations, and the cache of compiled programs. Floor 4."""

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scikit-learn",
    "grain",
    "tensorflow-datasets",
)


def versions() -> dict[str, str]:
    """Of Python, of Umbrella and of the packages that a result depends on; without importing them."""
    found = {"python": platform.python_version()}
    for name in ("umbrella-jax", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device() -> dict[str, Any]:
    """{"platform", "kind", "count", "processes"}; for a CPU the kind is the processor's name."""
    first = jax.devices()[0]
    kind = _processor() if first.platform == "cpu" else first.device_kind
    return {
        "platform": first.platform,
        "kind": kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def _processor() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {cores} cores"


def git_revision() -> str | None:
    """The commit of the code that runs, with "+changes" when the tree differs from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        told = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed instead of handing it back to the system; whether it could. For a process of ours.

    XLA's CPU backend allocates the room of a step anew at every call. By default glibc maps such blocks and unmaps
    them, so that the system has to clear every page again, a fault each: a fifth of the processor time of a step of a
    small GPT. Call it before there are threads: one arena for all of them, since those of threads are too small.

    What the process needed most, while it read data say, stays with it until it ends. UMBRELLA_KEEP_MEMORY=0 leaves
    glibc as it is.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get("UMBRELLA_KEEP_MEMORY") == "0":
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) for option, value in ((mmap_max, 0), (trim_threshold, -1), (arena_max, 1)))


def prepare() -> None:
    """What launch.py does to its process before it computes anything."""
    keep_freed_memory()
    use_compilation_cache()


def peak_rss_mb() -> float:
    """The largest resident set of this process so far, in MB (10^6 bytes)."""
    try:
        import resource
    except ImportError:  # not a Unix
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def cache_dir() -> Path:
    """$XDG_CACHE_HOME/umbrella, or ~/.cache/umbrella: mode 0700, made when missing."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "umbrella"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def use_compilation_cache() -> None:
    """Lets JAX keep compiled programs between runs, in a folder of this user alone. JAX_COMPILATION_CACHE_DIR overrides
    the place; a folder that cannot be written is done without."""
    if jax.config.values.get("jax_compilation_cache_dir") is not None:
        return
    try:
        folder = cache_dir() / "xla"
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


class CompileMeter:
    """Counts the programs that XLA compiles (or loads from the cache) in this process, and the seconds that takes.

    jit's own cache size counts signatures, not compilations; JAX's monitoring events count what happened. Tracing one
    program can mean tracing another inside it, so the seconds are those of the union of all the spans.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._spans: list[tuple[float, float]] = []  # disjoint, in order
        jax.monitoring.register_event_time_span_listener(self._hear)

    def _hear(self, event: str, start_time: float, end_time: float, **_: Any) -> None:
        if not event.startswith("/jax/core/compile/"):
            return
        self.count += event.endswith("backend_compile_duration")
        while self._spans and self._spans[-1][1] > start_time:  # an outer span ends after the ones inside it
            began, ended = self._spans.pop()
            self.seconds -= ended - began
            start_time, end_time = min(start_time, began), max(end_time, ended)
        self._spans.append((start_time, end_time))
        self.seconds += end_time - start_time

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_time_span_listener(self._hear)
