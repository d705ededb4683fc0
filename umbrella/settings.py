"""A factory's keyword-only parameters are the settings it takes; its positional ones are injected by name. Floor 0.

One place derives everything from the signature: which keys exist, their types and ranges, what is missing, what a typo
was probably meant to be, and the resolved values that a run writes to its config.json.
"""

import ast
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple, get_args, get_origin


class SettingsError(ValueError):
    """The user's input is wrong. The message is one line that says what, where and what to do; launch.py exits with
    2."""


class Range(NamedTuple):
    """A test on a value and the words for it, carried by `typing.Annotated`."""

    holds: Callable[[Any], bool]
    words: str


def _finite(v: Any) -> bool:
    return not isinstance(v, float) or math.isfinite(v)


Finite = Annotated[float, Range(_finite, "must be finite")]
Positive = Annotated[float, Range(lambda v: _finite(v) and v > 0, "must be > 0")]
NonNegative = Annotated[float, Range(lambda v: _finite(v) and v >= 0, "must be >= 0")]
Fraction = Annotated[float, Range(lambda v: 0 <= v < 1, "must be in [0, 1)")]
Count = Annotated[int, Range(lambda v: v >= 1, "must be >= 1")]
Natural = Annotated[int, Range(lambda v: v >= 0, "must be >= 0")]


def near(word: str, words: Iterable[str]) -> str:
    """The end of an error message: what was probably meant, or all there is to choose from.

    >>> near("lerning_rate", ["learning_rate", "momentum"])
    " (did you mean 'learning_rate'?)"
    >>> near("x", ["b", "a"])
    ' (one of: a, b)'
    """
    words = [str(w) for w in words]
    hit = difflib.get_close_matches(str(word), words, 1)
    return f" (did you mean {hit[0]!r}?)" if hit else f" (one of: {', '.join(sorted(words))})"


# ------------------------------------------------------------------------------------------------------------ durations
class Duration(NamedTuple):
    """How long, in the unit that a person chose; `steps` converts it once."""

    amount: float
    unit: str  # "steps" | "epochs" | "examples" | "%" | "never"

    def steps(self, *, batch_size: int, n_train: int, total: int | None = None) -> int:
        """Whole steps, at least 1; 0 for "never". `total` is the length of the run in steps, which "%" needs.

        Raises:
          SettingsError: a percentage without `total`, or more steps than a float can hold.
        """
        if self.unit == "never":
            return 0
        if self.unit == "%" and total is None:
            raise SettingsError(f"{self.amount:g}%: a percentage of what? Say steps, epochs or examples here")
        per_unit = {
            "steps": 1.0,
            "epochs": n_train / batch_size,
            "examples": 1 / batch_size,
            "%": (total or 0) / 100,
        }[self.unit]
        exact = self.amount * per_unit
        if not math.isfinite(exact):
            raise SettingsError(f"{self.amount:g} {self.unit} are more steps than can be counted")
        # Shares are rounded up, so that the last of four quarters is the end of the run and not the step before it.
        return max(1, (math.ceil if self.unit == "%" else round)(exact))


_UNITS = {"steps": "steps", "epochs": "epochs", "examples": "examples", "%": "%", "percent": "%"}


def duration(text: str) -> Duration:
    """Reads "20 epochs", "500 steps", "1e6 examples", "10%" or "never".

    >>> duration("2.5 epochs")
    Duration(amount=2.5, unit='epochs')
    >>> duration("1 epoch").steps(batch_size=100, n_train=1000)
    10

    Raises:
      SettingsError: anything else, zero or less.
    """
    hint = f"{text!r} is no duration: write '20 epochs', '500 steps', '1e6 examples', '10%' or 'never'"
    if not isinstance(text, str):
        raise SettingsError(hint)
    words = re.sub(r"(?<=[\d.])\s*(?=%|[a-z]{2})", " ", text).split()  # "2epochs" is fine; "1e6" stays whole
    if words == ["never"]:
        return Duration(0.0, "never")
    if len(words) != 2:
        raise SettingsError(hint)
    unit = _UNITS.get(words[1], _UNITS.get(words[1] + "s"))
    try:
        amount = float(words[0])
    except ValueError:
        raise SettingsError(hint) from None
    if unit is None:
        raise SettingsError(f"{text!r}: no unit {words[1]!r}{near(words[1], _UNITS)}")
    if not (math.isfinite(amount) and amount > 0):
        raise SettingsError(f"{text!r} must be more than zero")
    return Duration(amount, unit)


def _is_duration(v: str) -> bool:
    duration(v)
    return True


# `Length` is for how long to train, `Cadence` for how often to do something: only the second may be "never".
Length = Annotated[str, Range(lambda v: _is_duration(v) and v.strip() != "never", "cannot be 'never' here")]
Cadence = Annotated[str, Range(_is_duration, "is no duration")]


# ----------------------------------------------------------------------------------------------------- values and types
def fits(value: Any, hint: Any) -> Any:
    """The value in the type that `hint` asks for; an int where a float is wanted is widened, 1e2 is the int 100.

    Raises:
      TypeError: it does not fit. The message says what was given and what is wanted.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = fits(value, args[0])
        for bound in args[1:]:
            if isinstance(bound, Range) and not bound.holds(value):
                raise TypeError(f"{value!r} {bound.words}")
        return value
    if hint in (inspect.Parameter.empty, Any):
        return value
    if origin is typing.Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        raise TypeError(f"{value!r} is not one of the choices{near(str(value), [str(a) for a in args])}")
    if origin in (typing.Union, types.UnionType):
        return _first_fit(value, args)
    if origin is tuple or hint is tuple:
        return _fits_tuple(value, args)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return _fits_mapping(value, args)
    if hint is None or hint is types.NoneType:
        if value is None:
            return None
    elif hint is float and type(value) is int:
        return float(value)
    elif hint is int and type(value) is float and value.is_integer():
        return int(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint in (int, float) and isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} is {_kind(value)}, wanted {_words(hint)}")


def _first_fit(value: Any, hints: tuple) -> Any:
    told = []
    for h in hints:
        try:
            return fits(value, h)
        except TypeError as e:
            told.append((h, str(e)))
    # A bound that failed says more than a type that was never meant.
    bounds = [m for h, m in told if h is not types.NoneType and " wanted " not in m]
    raise TypeError(
        bounds[0] if bounds else f"{value!r} is {_kind(value)}, wanted {' or '.join(_words(h) for h in hints)}"
    )


def _fits_tuple(value: Any, args: tuple) -> tuple:
    if isinstance(value, str) and args == (str, Ellipsis):  # one word, or several with commas
        value = tuple(w.strip() for w in value.split(",") if w.strip())
    if not isinstance(value, tuple | list):
        raise TypeError(f"{value!r} is {_kind(value)}, wanted a tuple such as {_example(args)}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(fits(v, args[0]) for v in value)
    if args and len(args) != len(value):
        raise TypeError(f"{value!r} has {len(value)} entries, wanted {len(args)}")
    return tuple(fits(v, a) for v, a in zip(value, args, strict=True)) if args else tuple(value)


def _example(args: tuple) -> str:
    """A tuple of the kind that is wanted, as it is written in a config."""
    one = {"int": "8", "float": "0.5"}
    kinds = args[:1] if args[1:] == (Ellipsis,) else args
    if not any(_words(a) in one for a in kinds):
        return "('a', 'b')"
    return f"({', '.join(one.get(_words(a), repr('a')) for a in kinds)}{',' if len(kinds) == 1 else ''})"


def _fits_mapping(value: Any, args: tuple) -> dict:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is {_kind(value)}, wanted a dict")
    if not args:
        return dict(value)
    out = {}
    for k, v in value.items():
        try:
            out[fits(k, args[0])] = fits(v, args[1])
        except TypeError as e:
            raise TypeError(f"at {k!r}: {e}") from None
    return out


def _kind(value: Any) -> str:
    return {"NoneType": "None", "str": "text"}.get(type(value).__name__, type(value).__name__)


def _words(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return _words(get_args(hint)[0])
    return {"str": "text", "NoneType": "None"}.get(getattr(hint, "__name__", ""), getattr(hint, "__name__", str(hint)))


# --------------------------------------------------------------------------------------------------- calls by settings
def accepts(fn: Callable) -> dict[str, inspect.Parameter]:
    """The settings of a factory: its keyword-only parameters, or the fields of a Linen module or dataclass."""
    params = inspect.signature(fn).parameters
    if inspect.isclass(fn):
        return {
            k: p
            for k, p in params.items()
            if k not in ("parent", "name") and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
    return {k: p for k, p in params.items() if p.kind is p.KEYWORD_ONLY}


def injects(fn: Callable) -> tuple[str, ...]:
    """The positional parameters of a factory: what the pipeline provides by name."""
    if inspect.isclass(fn):
        return ()
    params = inspect.signature(fn).parameters
    return tuple(k for k, p in params.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY))


def check(fn: Callable, settings: Mapping[str, Any], at: str = "", *, given: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of `fn`, complete (defaults filled in), each of the right type and in its range.

    Args:
      settings: what the user wrote.
      at: the prefix for messages, "" or "adversarial.".
      given: keys that the caller supplies itself, so their absence is no error.

    Raises:
      SettingsError: an unknown key, a wrong type, a value out of range, a missing key.
    """
    params = accepts(fn)
    if not isinstance(settings, Mapping):
        raise SettingsError(f"config.{at.rstrip('.')}: {settings!r} is {_kind(settings)}, wanted a dict of settings")
    hints = typing.get_type_hints(fn, include_extras=True)
    out = {k: p.default for k, p in params.items() if p.default is not p.empty}
    for k, v in settings.items():
        if k not in params:
            raise SettingsError(f"config.{at}{k}: no such setting{near(str(k), params) if params else ''}")
        try:
            out[k] = fits(v, hints.get(k, inspect.Parameter.empty))
        except (TypeError, SettingsError) as e:
            raise SettingsError(f"config.{at}{k}: {e}") from None
    for k in params:
        if k not in out and k not in given:
            raise SettingsError(f"config.{at}{k}: missing; give it a value with --config.{at}{k}=...")
    return out


def call(
    fn: Callable,
    settings: Mapping[str, Any],
    at: str = "",
    context: Mapping[str, Any] | None = None,
    *,
    log: dict[str, Any] | None = None,
) -> Any:
    """`fn(*injected, **settings)` with every setting checked.

    Args:
      context: what the pipeline provides, by the names of `fn`'s positional parameters.
      log: receives the resolved settings under `at`, for config.json.
    """
    resolved = check(fn, settings, at)
    context = context or {}
    for name in injects(fn):
        if name not in context:
            raise SettingsError(f"config.{at.rstrip('.')}: needs {name!r}, which this pipeline does not provide")
    if log is not None:
        log[at.rstrip(".")] = resolved
    try:
        return fn(*[context[name] for name in injects(fn)], **resolved)
    except SettingsError:
        raise
    except ValueError as e:  # settings that fit one by one and not together
        raise SettingsError(f"config.{at.rstrip('.')}: {e}") from None


def choose(table: Mapping[str, Callable], settings: Mapping[str, Any], at: str) -> tuple[Callable, dict[str, Any]]:
    """Splits {"name": "mlp", "width": 8} into the factory that `name` names in `table` and the rest."""
    if not isinstance(settings, Mapping) or "name" not in settings:
        raise SettingsError(f"config.{at}.name: missing (one of: {', '.join(sorted(table))})")
    rest = dict(settings)
    name = rest.pop("name")
    if name not in table:
        raise SettingsError(f"config.{at}.name: no {at} {name!r}{near(str(name), table)}")
    return table[name], rest


# -------------------------------------------------------------------------------------------------------- command line
def parse(text: str, current: Any = None) -> Any:
    """The value that a person typed after `--config.key=`, guided by the value that stands there now.

    Text stays text where text stood; elsewhere it is read as a Python literal (never evaluated), and what is no literal
    is text. A single word where a tuple stood becomes a tuple of one.

    >>> parse("1e-3", 0.1), parse("20 epochs", "5 epochs"), parse("sam", ()), parse("('a', 'b')", ())
    (0.001, '20 epochs', ('sam',), ('a', 'b'))
    """
    if isinstance(current, str) and text != "None":
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text, text))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = text
    if isinstance(current, tuple | list) and isinstance(value, str):
        return tuple(w.strip() for w in value.split(",") if w.strip())
    return value


def override(config: dict[str, Any], path: str, text: str) -> None:
    """Sets `path` ("adversarial.eps") of a nested dict to what a person typed; makes the sections that are missing.

    A typo makes a key that the schema then refuses by name, so there is one place that knows what exists.

    Raises:
      SettingsError: the path goes through something that is no section, or is empty.
    """
    *sections, last = path.split(".")
    node = config
    for i, key in enumerate(sections):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise SettingsError(f"--config.{path}: config.{'.'.join(sections[: i + 1])} is {node!r}, not a section")
    if not all([*sections, last]):
        raise SettingsError(f"--config.{path}: a name is missing between the dots")
    if isinstance(node.get(last), dict):
        value = parse(text, node[last])
        if isinstance(value, dict):  # a whole section: --config.evals='{"test": ()}'
            node[last] = value
            return
        keys = ", ".join(sorted(node[last]))
        raise SettingsError(f"--config.{path}: that is a section; set one of its keys ({keys}), or give a dict")
    node[last] = parse(text, node.get(last))
