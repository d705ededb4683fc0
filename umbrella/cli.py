"""The command line: flags -> config -> `umbrella.runs`. Floor 6 in all but place: only launch.py imports it.

Exit status: 0 finished; 2 the user's input is wrong, one line on standard error says what and what to do; 3 nothing
verified to restore, or a checkpoint could not be written; 4 diverged; 5 another process of the run was lost; 130, 143
interrupted after saving; 1 a fault of ours, with a traceback, or a resume that --verify_resume found not to be exact.
"""

import contextlib
import importlib.util
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from umbrella import settings
from umbrella.settings import SettingsError

MODES = ("train", "evaluate", "sample", "predict", "clean", "compare", "diagnose", "table")
USAGE = """usage: python launch.py --config=FILE[:VARIANT] [--config.KEY=VALUE ...] [--workdir=DIR] [--mode=MODE]
[--init_from=RUN] [--input=FILE] [--verify_resume] [--preflight] [--profile=A:B]
[--coordinator=HOST:PORT --processes=N --process=I]
       python launch.py --mode=compare RUN_A RUN_B

  --config=configs/vae.py:mnist     the config, and which of its variants
  --config.seed=3                   sets a key; sections by dots: --config.optimizer.learning_rate=1e-3
  --config.train_for="2 epochs"     durations: '20 epochs', '500 steps', '1e6 examples', '10%'; cadences also 'never'
  --workdir=runs/try                where the run lives; a run of the same config that is there is resumed
                                    (train_for and the cadences may change, so a run can be extended)
  --mode=train                      train | evaluate | sample | predict; the last three need the workdir of a run
  --input=new.txt                   with --mode=predict: labels the lines of this file instead of the test rows, and
                                    says why
  --mode=clean                      scores every row of the set by how strange the model finds it, and writes which rows
                                    to keep and which are flagged; needs the workdir of a run
  --mode=diagnose                   trains on growing shares of the training rows, with several seeds, and says what
                                    would help: more data, a larger model, an ensemble; test is not looked at
  --mode=table                      trains the config and what config.compared changes in it, on every fold of
                                    config.data.folds, and writes one table of them and the classical rivals
  --mode=compare                    says of two finished runs whether one is better than the other; needs no config
  --init_from=runs/other            start from the parameters of another run
  --verify_resume                   trains a little, kills itself with kill -9, resumes, and says whether the result is
                                    equal to the bit to that of a run that was never stopped
  --preflight                       says before anything is trained how arrays are cut over the devices, what memory,
                                    FLOPs and disk a run needs, and whether the checkpoints in the workdir fit; refuses
                                    what cannot fit
  --profile=10:20                   traces these steps, counted from where training begins, into WORKDIR/profile, and
                                    says which ten operations took longest
  --coordinator=HOST:PORT           one of several processes that train as one, on the devices of all; the first of them
                                    is on HOST. --processes=N: so many, --process=I: this is I, from 0. The workdir must
                                    be a folder that all of them see
  --coordinator=auto                the same under SLURM, Open MPI, Kubernetes and on Cloud TPUs, which say the rest
  --help                            this text; with --config, the keys of that config, too

Every config has the keys: seed, seeds, batch_size, train_for, log_every, eval_every, checkpoint_every, pipeline, model,
optimizer, techniques, ema, evals, data.name, data.path.
"""


class Given(NamedTuple):
    """What the command line gives beside overrides; `runs` are the words that are no flags."""

    runs: list[str]
    config: str
    workdir: str
    mode: str
    init_from: str
    input: str
    verify_resume: bool
    preflight: bool
    profile: str
    coordinator: str
    processes: int | None
    process: int | None
    help: bool


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit status."""
    try:
        status = _main(argv)
        sys.stdout.flush()
    except SettingsError as error:
        status = _fail(str(error), 2)
    except BrokenPipeError as error:
        status = 128 + signal.SIGPIPE if _unread() else _alone(error)
    except KeyboardInterrupt:
        status = _fail("interrupted at once; what was saved before stands", 130)
    except SystemExit as error:  # by a signal outside of the loop
        if not _joined():
            raise
        status = int(error.code or 0)
    except Exception as error:
        status = _alone(error)
    return _left(status)


def _unread() -> bool:
    """Whether standard output is a pipe whose reader has gone, as of `| head`; then what is to come is dropped."""
    poll = select.poll()
    poll.register(1, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


def _tell(line: str) -> None:
    """Progress, which ends no training where nobody reads it any more."""
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)


def _joined() -> bool:
    """Whether this is one of several processes; asks no module that was not needed so far."""
    told = sys.modules.get("umbrella.distributed")
    return told is not None and told.joined()


def _stopping() -> bool:
    told = sys.modules.get("umbrella.distributed")
    return told is not None and told.is_stopping()


def _left(status: int) -> int:
    if _joined():
        from umbrella import distributed

        return distributed.leave(status)
    return status


def _alone(error: Exception) -> int:
    """What is said, and the exit status, where one of several processes fails: mostly since another one is gone.

    Raises:
      Exception: the error, where there is but one process.
    """
    if not _joined():
        raise error
    from umbrella import distributed

    if distributed.is_loss(error):
        return _fail(distributed.lost(" ".join(str(error).split())[:300]), 5)
    traceback.print_exception(error)
    return 1


def _main(argv: Sequence[str]) -> int:
    given, overrides = split(argv)
    if given.help:
        print(USAGE)
        if given.config:
            print(_show(load_config(given.config, overrides)))
        return 0
    if given.mode == "compare":
        return _compare(given)
    if given.runs:
        raise SettingsError(f"{given.runs[0]!r} is no flag; write --config={given.runs[0]} or --config.KEY=VALUE")
    if not given.config:
        raise SettingsError("--config: missing; try python launch.py --config=configs/vae.py, or --help")
    config = load_config(given.config, overrides)
    if given.mode not in MODES:
        raise SettingsError(f"--mode: no mode {given.mode!r}{settings.near(given.mode, MODES)}")
    if given.input and given.mode != "predict":
        raise SettingsError(f"--input={given.input}: is what --mode=predict labels; the mode is {given.mode!r}")
    if given.profile and (given.mode != "train" or given.verify_resume or given.preflight):
        raise SettingsError(f"--profile={given.profile}: is about a training; leave the other modes out")
    if given.coordinator:
        _join(given)
    elif given.processes is not None or given.process is not None:
        raise SettingsError("--processes, --process: where is the first of them? Give --coordinator=HOST:PORT, too")
    if given.preflight:
        return _preflight(given, config)
    if given.mode == "diagnose":
        return _diagnose(given, config)
    if given.mode == "table":
        return _all_in_one(given, config, "python " + " ".join(_quoted(a) for a in argv))
    if given.mode != "train" and not given.workdir:
        raise SettingsError(f"--mode={given.mode} needs --workdir, the folder of a run that was trained")
    if given.mode != "train" and not (Path(given.workdir) / "checkpoints").is_dir():
        raise SettingsError(f"--workdir={given.workdir}: no run there to {given.mode}; train one first")
    if given.input and not Path(given.input).is_file():
        raise SettingsError(f"--input={given.input}: no such file")
    if given.verify_resume:
        return _verify(given, config)
    return _run(given, config, "python " + " ".join(_quoted(a) for a in argv))


def _join(given: Given) -> None:
    alone = given.verify_resume or given.preflight or given.mode not in ("train", "evaluate", "sample")
    if alone:
        what = "--verify_resume" if given.verify_resume else "--preflight" if given.preflight else given.mode
        raise SettingsError(f"--coordinator={given.coordinator}: {what} is for one process; leave it out")
    from umbrella import distributed, environment

    environment.prepare()  # while there is but one thread
    distributed.start(given.coordinator, given.processes, given.process)
    same = [given.mode, given.workdir, given.init_from, given.profile]
    distributed.check_same("one of --mode, --workdir, --init_from and --profile", " ".join(same))


def _run(given: Given, config: dict[str, Any], command: str) -> int:
    # Imported late: --help and a typo in a flag must not wait for JAX.
    from umbrella import distributed, environment
    from umbrella.checkpoint import CheckpointError
    from umbrella.loop import Diverged
    from umbrella.profiling import Span
    from umbrella.runs import Session

    environment.prepare()
    name = _name(given.config)
    if given.process is not None and given.processes:
        command += f"   # and the same with every other --process, 0 to {given.processes - 1}"
    try:
        how: dict[str, Any] = {"init_from": given.init_from or None, "name": name, "command": command}
        how |= {"profile": Span.parse(given.profile) if given.profile else None, "trains": given.mode == "train"}
        with _termination(), _quiet(), Session(config, given.workdir or None, **how) as session:
            if given.mode != "train":
                return _later(given, session)
            result = session.train()
    except CheckpointError as error:
        return _fail(str(error), 3)
    except Diverged as error:
        return _fail(f"diverged: {error}. The last good state is kept; try a lower learning rate or clip", 4)
    interrupted = result.summary["status"] == "interrupted"
    if distributed.is_first():
        if interrupted:
            step, total = result.summary["step"], result.experiment.durations.total
            print(f"Interrupted and saved at step {step:,} of {total:,}: the same command with this workdir goes on.")
        else:
            print(_table(result.summary))
        print(f"report: {result.workdir / 'report.html'}")
    return 128 + result.summary["signal"] if interrupted else 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A save that fails leaves futures of Orbax's without their event loop: a page of tracebacks that say nothing."""
    before = sys.unraisablehook

    def hook(told: Any) -> None:
        if str(told.exc_value) != "Event loop is closed":
            before(told)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _verify(given: Given, config: dict[str, Any]) -> int:
    from umbrella import verify

    if given.workdir or given.mode != "train":
        raise SettingsError("--verify_resume: trains in folders of its own; leave --workdir and --mode out")
    print("Three processes train a little; the second is killed.", flush=True)
    verdict = verify.resume(config, init_from=given.init_from or None, say=_tell)
    print(verify.told(verdict))
    return 0 if verdict.exact else 1


@contextlib.contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM before and after the loop, which has its own way: lets a save that is under way become a checkpoint.

    Of several processes that have agreed to stop, since one of them got a signal, the others get theirs now.
    """

    def stop(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        if not _stopping():
            sys.exit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _compare(given: Given) -> int:
    from umbrella import compare

    if len(given.runs) != 2 or given.config or given.workdir:
        raise SettingsError("--mode=compare: takes the workdirs of two runs: --mode=compare runs/a runs/b")
    print(compare.told(compare.compare(*given.runs), *given.runs))
    return 0


def _preflight(given: Given, config: dict[str, Any]) -> int:
    from umbrella import environment, preflight

    if given.mode != "train" or given.init_from or given.verify_resume:
        raise SettingsError("--preflight: is about a training from here on; leave other modes and --init_from out")
    environment.prepare()
    print(preflight.preflight(config, given.workdir or None, name=_name(given.config)))
    return 0


def _diagnose(given: Given, config: dict[str, Any]) -> int:
    from umbrella import diagnose, environment

    environment.prepare()
    name = _name(given.config)
    work = given.workdir or f"runs/{name}-diagnosis"
    made = diagnose.diagnose(config, work, name=name, say=_tell)
    print("\n".join(made.words))
    print(f"report: {made.workdir / 'report.html'}")
    return 0


def _all_in_one(given: Given, config: dict[str, Any], command: str) -> int:
    from umbrella import environment, table
    from umbrella.checkpoint import CheckpointError
    from umbrella.loop import Diverged

    if given.init_from or given.verify_resume:
        raise SettingsError("--mode=table: trains every model from scratch; leave --init_from and --verify_resume out")
    environment.prepare()
    name = _name(given.config)
    work = given.workdir or f"runs/{name}-table"
    try:
        with _termination(), _quiet():
            made = table.table(config, work, name=name, command=command, say=_tell)
    except CheckpointError as error:
        return _fail(str(error), 3)
    except Diverged as error:
        return _fail(f"diverged: {error}. What was trained before it is kept; try a lower learning rate or clip", 4)
    except table.Interrupted as error:
        return 128 + error.signum
    print(made.words)
    print(f"report: {made.workdir / 'report.html'}")
    return 0


def _name(spec: str) -> str:
    """ "configs/vae.py:mnist" -> "vae-mnist"."""
    return Path(spec.split(":")[0]).stem + (f"-{v}" if (v := spec.partition(":")[2]) else "")


def _later(given: Given, session: Any) -> int:
    """The modes that need a trained run."""
    from umbrella import distributed

    mode = given.mode
    ts, step = session.start(session.place.replicated(session.experiment.train_data.resident))
    if not step:
        raise SettingsError(f"--workdir={session.workdir}: no checkpoint there yet; train first")
    if mode == "evaluate":
        session.evaluate_all(ts)
        session.review(ts)
        summary = session.amend()
        if distributed.is_first():
            print(_table(summary))
            print(f"report: {session.workdir / 'report.html'}")
    elif mode == "sample":
        for path in session.review(ts):
            print(path)
    elif mode == "clean":
        made = session.clean(ts)
        session.amend()
        print("\n".join((*map(str, made.files), made.words)))
    elif given.input:
        print(session.read(ts, Path(given.input)))
    else:
        print(session.predict(ts))
    return 0


# ---------------------------------------------------------------------------------------------------------------- flags
def split(argv: Sequence[str]) -> tuple[Given, list[tuple[str, str]]]:
    """(flags, [(path, text)]): `--config.a.b=text` and `--config.a.b text` are overrides, in their order.

    Raises:
      SettingsError: an unknown flag.
    """
    rest, overrides, words = [argv[0]], [], iter(argv[1:])
    for word in words:
        if word.startswith(("--config.", "-config.")):
            path, eq, text = word.lstrip("-")[len("config.") :].partition("=")
            if not eq:
                text = next(words, "")
                if not text:
                    raise SettingsError(f"{word}: a value is missing; write {word}=VALUE")
            overrides.append((path, text))
        else:
            rest.append(word)
    values = flags.FlagValues()
    flags.DEFINE_string("config", "", "the config file, and after a colon which of its variants", flag_values=values)
    flags.DEFINE_string("workdir", "", "where the run lives", flag_values=values)
    flags.DEFINE_string("mode", "train", " | ".join(MODES), flag_values=values)
    flags.DEFINE_string("init_from", "", "the workdir of a run whose parameters to start from", flag_values=values)
    flags.DEFINE_string("input", "", "with --mode=predict: a file of texts, one a line", flag_values=values)
    flags.DEFINE_boolean("verify_resume", False, "checks that a resume is exact", flag_values=values)
    flags.DEFINE_boolean("preflight", False, "says what a run will need, and trains nothing", flag_values=values)
    flags.DEFINE_string("profile", "", "FIRST:STOP, the steps to trace", flag_values=values)
    flags.DEFINE_string("coordinator", "", "HOST:PORT of the first process, or auto", flag_values=values)
    flags.DEFINE_integer("processes", None, "how many processes there are", flag_values=values)
    flags.DEFINE_integer("process", None, "which of them this one is, from 0", flag_values=values)
    flags.DEFINE_boolean("help", False, "this text", short_name="h", flag_values=values)
    try:
        left = values(rest)[1:]
    except flags.Error as error:
        known = [f for f in values if len(f) > 1]
        name = getattr(error, "flagname", "")
        hint = settings.near(name, known) if name else ""
        raise SettingsError(f"{str(error).splitlines()[0].split(' Did you mean')[0]}{hint}") from None
    told: dict[str, Any] = {f: values[f].value for f in Given._fields[1:]}
    return Given(left, **told), overrides


def load_config(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """ "configs/vae.py:mnist" and overrides -> a nested dict.

    Raises:
      SettingsError: no such file, one that does not run, one that has no get_config or not this variant.
    """
    from umbrella.workdir import plain

    path_text, colon, variant = spec.partition(":")
    path = Path(path_text)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent if path.parent.is_dir() else Path("configs")
        there = [str(p) for p in folder.glob("*.py")] if folder.is_dir() else []
        raise SettingsError(f"--config={path_text}: no such file{settings.near(path_text, there) if there else ''}")
    name = f"config_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise SettingsError(f"--config={path_text}: is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise SettingsError(f"--config={path_text}: has no function get_config")
        made = module.get_config(variant) if colon else module.get_config()
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"--config={spec}: {_where(error, path).removeprefix(f'{spec}: ')}") from None
    finally:
        sys.dont_write_bytecode = writes
    config = plain(made)
    for key, text in overrides:
        settings.override(config, key, text)
    return config


def _where(error: Exception, path: Path) -> str:
    """One line: what went wrong in a config file, and on which of its lines."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [
        f.lineno
        for f in traceback.extract_tb(error.__traceback__)
        if Path(f.filename) == path.absolute() or Path(f.filename) == path
    ]
    if isinstance(error, ValueError) and str(error):
        return str(error).splitlines()[0].removeprefix(f"{path}: ")
    at = f"line {lines[-1]}: " if lines else ""
    return f"{at}{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


# --------------------------------------------------------------------------------------------------------------- output
def _table(summary: dict[str, Any]) -> str:
    """The final metrics, a line each, baselines beside."""
    from umbrella._report.tables import took

    lines: list[str] = []
    shown = {name: metrics for name, metrics in summary["metrics"].items() if name != "train_eval"}
    wide = max([16, *(len(metric) for metrics in shown.values() for metric in metrics)])
    for name, metrics in shown.items():
        for metric, value in metrics.items():
            rivals = [f"{b} {v[metric]:.4g}" for b, v in summary["baselines"].items() if name == "test" and metric in v]
            beside = f"   ({'; '.join(rivals)})" if rivals else ""
            lines.append(f"  {name:<12} {metric:<{wide}} {_value(value)}{beside}")
    own, seconds = took(summary)
    if lines and seconds:
        beside = "; ".join(f"{b} {v:.2g}" for b, v in seconds.items())
        lines.append(f"  {'':<12} {'seconds':<{wide}} {own:.2f}   ({beside})")
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        lo, hi = value["ci95"]
        return f"{value['mean']:.4f}  [{lo:.4f}, {hi:.4f}] over {value['n']} seeds"
    return f"{value:.4f}"


def _show(config: dict[str, Any]) -> str:
    from umbrella.workdir import flatten

    return "\n".join(f"  --config.{k}={_quoted(str(v))}" for k, v in sorted(flatten(config).items()))


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


def _fail(message: str, status: int) -> int:
    who = "launch.py"
    if _joined():
        from umbrella import distributed

        who += f" ({distributed.which()})"
    with contextlib.suppress(BrokenPipeError):
        print(f"{who}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status
