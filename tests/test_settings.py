"""What a user may write in a config, and what is said when it is wrong."""

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from umbrella import settings
from umbrella.models import MLP
from umbrella.settings import (
    Cadence,
    Count,
    Duration,
    Finite,
    Fraction,
    Length,
    Natural,
    NonNegative,
    Positive,
    SettingsError,
    duration,
    fits,
    override,
    parse,
)

NAN, INF = math.nan, math.inf


# ---------------------------------------------------------------------------------------------------------- fits
@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (object, Any, object),
        ([1], inspect.Parameter.empty, [1]),
        ("a", str, "a"),
        (True, bool, True),
        (3, int, 3),
        (1e2, int, 100),
        (2.5, float, 2.5),
        (3, float, 3.0),
        (-3, Finite, -3.0),
        (None, None, None),
        (None, type(None), None),
        (None, Positive | None, None),
        (2, Positive | None, 2.0),
        ("a", int | str, "a"),
        (7, int | str, 7),
        ("relu", Literal["relu", "tanh"], "relu"),
        (2, Literal[1, 2], 2),
        (("a", 1), tuple, ("a", 1)),
        ([64, 32.0], tuple[Count, ...], (64, 32)),
        ((), tuple[Count, ...], ()),
        ([0, 1], tuple[float, float], (0.0, 1.0)),
        ((0, 1), tuple[float, float] | None, (0.0, 1.0)),
        ({"a": 1}, dict, {"a": 1}),
        ({"test": [], "robust": ["pgd"]}, dict[str, tuple[str, ...]], {"test": (), "robust": ("pgd",)}),
        ({"lr": 1}, Mapping[str, float], {"lr": 1.0}),
        ("10%", Length, "10%"),
        ("never", Cadence, "never"),
        (None, Cadence | None, None),
    ],
)
def test_fits(value: Any, hint: Any, wanted: Any) -> None:
    got = fits(value, hint)
    assert got == wanted
    assert type(got) is type(wanted)


def test_fits_widens_inside_containers() -> None:
    got = fits({"a": [1, 2]}, dict[str, tuple[float, ...]])
    assert [type(v) for v in got["a"]] == [float, float]
    assert [type(v) for v in fits((8.0,), tuple[Count, ...])] == [int]


@pytest.mark.parametrize(
    ("value", "hint", "says"),
    [
        ("a", int, "'a' is text, wanted int"),
        (True, int, "True is bool, wanted int"),
        (False, float, "False is bool, wanted float"),
        (True, Count, "True is bool, wanted int"),
        (1, bool, "1 is int, wanted bool"),
        (2.5, int, "2.5 is float, wanted int"),
        (INF, int, "inf is float, wanted int"),
        (NAN, int, "nan is float, wanted int"),
        (None, float, "None is None, wanted float"),
        (3, str, "3 is int, wanted text"),
        (1, None, "1 is int, wanted None"),
        ("a", Positive | None, "'a' is text, wanted float or None"),
        (-1, Positive | None, "-1.0 must be > 0"),
        ("rleu", Literal["relu", "tanh"], "did you mean 'relu'?"),
        ("zzz", Literal["relu", "tanh"], "one of: relu, tanh"),
        (True, Literal[1, 2], "True is not one of the choices"),
        (8, tuple[Count, ...], "8 is int, wanted a tuple such as (8,)"),
        (0.5, tuple[Positive, ...], "0.5 is float, wanted a tuple such as (0.5,)"),
        (1.0, tuple[float, float], "1.0 is float, wanted a tuple such as (0.5, 0.5)"),
        (8, tuple[str, ...], "8 is int, wanted a tuple such as ('a', 'b')"),
        (8, tuple, "8 is int, wanted a tuple such as ('a', 'b')"),
        ("ab", tuple[int, ...], "'ab' is text, wanted a tuple"),
        ((8, 0), tuple[Count, ...], "0 must be >= 1"),
        ((0.0, 1.0, 2.0), tuple[float, float], "has 3 entries, wanted 2"),
        ((1,), dict, "wanted a dict"),
        ({"robust": 3}, dict[str, tuple[str, ...]], "at 'robust': 3 is int, wanted a tuple"),
        ({1: ()}, dict[str, tuple[str, ...]], "at 1: 1 is int, wanted text"),
    ],
)
def test_does_not_fit(value: Any, hint: Any, says: str) -> None:
    with pytest.raises(TypeError) as error:
        fits(value, hint)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("hint", "inside", "outside"),
    [
        (Finite, (-1e9, 0.0), (NAN, INF, -INF)),
        (Positive, (1e-30, 5.0), (0.0, -0.0, -1.0, NAN, INF)),
        (NonNegative, (0.0, 1e30), (-1e-30, NAN, INF, -INF)),
        (Fraction, (0.0, 0.999), (1.0, -0.1, NAN, INF)),
        (Count, (1, 10**9), (0, -1)),
        (Natural, (0, 1), (-1,)),
    ],
)
def test_ranges(hint: Any, inside: tuple, outside: tuple) -> None:
    for value in inside:
        assert fits(value, hint) == value
    for value in outside:
        with pytest.raises(TypeError, match="must be"):
            fits(value, hint)


# ------------------------------------------------------------------------------------------------ check and call
def factory(
    base: str, bounds: int, *, eps: NonNegative, steps: Count = 7, norm: Literal["linf", "l2"] = "linf"
) -> tuple:
    return base, bounds, eps, steps, norm


def test_check_completes_the_settings() -> None:
    assert settings.check(factory, {"eps": 1}) == {"eps": 1.0, "steps": 7, "norm": "linf"}
    assert settings.accepts(factory).keys() == {"eps", "steps", "norm"}
    assert settings.injects(factory) == ("base", "bounds")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"eps": 0.1, "step": 3}, "config.adversarial.step: no such setting (did you mean 'steps'?)"),
        ({"eps": 0.1, "zzz": 3}, "config.adversarial.zzz: no such setting (one of: eps, norm, steps)"),
        ({"eps": 0.1, "base": 3}, "config.adversarial.base: no such setting"),  # injected, so no setting
        ({"steps": 3}, "config.adversarial.eps: missing; give it a value with --config.adversarial.eps=..."),
        ({"eps": -0.1}, "config.adversarial.eps: -0.1 must be >= 0"),
        ({"eps": "big"}, "config.adversarial.eps: 'big' is text, wanted float"),
        (7, "config.adversarial: 7 is int, wanted a dict of settings"),
    ],
)
def test_check_refuses_in_one_line(given: Any, says: str) -> None:
    with pytest.raises(SettingsError) as error:
        settings.check(factory, given, "adversarial.")
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_a_factory_without_settings_offers_none() -> None:
    with pytest.raises(SettingsError, match=r"^config.x.a: no such setting$"):
        settings.check(lambda: None, {"a": 1}, "x.")


def test_check_of_a_key_that_the_caller_gives() -> None:
    assert settings.check(factory, {}, given=("eps",)) == {"steps": 7, "norm": "linf"}


def test_check_reports_a_bad_duration_where_it_stands() -> None:
    def fn(*, warmup: Cadence = "never", train_for: Length = "1 epoch") -> None: ...

    with pytest.raises(SettingsError, match=r"^config.o.warmup: '3 parsecs': no unit 'parsecs'"):
        settings.check(fn, {"warmup": "3 parsecs"}, "o.")
    with pytest.raises(SettingsError, match=r"^config.o.train_for: 'never' cannot be 'never' here"):
        settings.check(fn, {"train_for": "never"}, "o.")
    with pytest.raises(SettingsError, match=r"^config.o.train_for: 3 is int, wanted text"):
        settings.check(fn, {"train_for": 3}, "o.")


def test_call_injects_by_name_and_logs_what_it_resolved() -> None:
    log: dict[str, Any] = {}
    got = settings.call(factory, {"eps": 2}, "adversarial.", {"bounds": 5, "base": "b", "unused": 0}, log=log)
    assert got == ("b", 5, 2.0, 7, "linf")
    assert log == {"adversarial": {"eps": 2.0, "steps": 7, "norm": "linf"}}


def test_call_says_what_the_pipeline_lacks() -> None:
    with pytest.raises(SettingsError, match="config.adversarial: needs 'bounds', which this pipeline does not provide"):
        settings.call(factory, {"eps": 2}, "adversarial.", {"base": "b"})


def test_call_tells_of_settings_that_do_not_fit_together() -> None:
    def fn(*, samples: Count, chunk: Count) -> int:
        if samples % chunk:
            raise ValueError(f"chunk={chunk} does not divide samples={samples}")
        return samples // chunk

    assert settings.call(fn, {"samples": 6, "chunk": 3}, "bound.") == 2
    with pytest.raises(SettingsError, match=r"^config.bound: chunk=4 does not divide samples=6$"):
        settings.call(fn, {"samples": 6, "chunk": 4}, "bound.")


def test_choose() -> None:
    table: dict[str, Callable] = {"mlp": dict, "vae": list}
    given = {"name": "mlp", "width": 8}
    assert settings.choose(table, given, "model") == (dict, {"width": 8})
    assert given == {"name": "mlp", "width": 8}
    with pytest.raises(SettingsError, match=r"config.model.name: missing \(one of: mlp, vae\)"):
        settings.choose(table, {"width": 8}, "model")
    with pytest.raises(SettingsError, match=r"config.model.name: no model 'mpl' \(did you mean 'mlp'\?\)"):
        settings.choose(table, {"name": "mpl"}, "model")


def test_the_fields_of_a_linen_module_are_its_settings() -> None:
    assert settings.accepts(MLP).keys() == {
        "out",
        "hidden",
        "activation",
        "dropout",
        "input_dropout",
        "norm",
        "kernel_init",
    }
    assert settings.injects(MLP) == ()
    got = settings.check(MLP, {"hidden": [8.0, 4]}, "model.", given=("out",))
    assert got == {
        "hidden": (8, 4),
        "activation": "relu",
        "dropout": 0.0,
        "input_dropout": 0.0,
        "norm": "none",
        "kernel_init": "lecun_normal",
    }
    for wrong, says in [
        ({"out": 2, "dropout": 1.0}, "config.model.dropout: 1.0 must be in"),
        ({"out": 2, "norm": "bacth"}, "config.model.norm: 'bacth' is not one of the choices (did you mean 'batch'?)"),
        ({"out": 2, "parent": None}, "config.model.parent: no such setting"),
        ({"hidden": (8,)}, "config.model.out: missing"),
    ]:
        with pytest.raises(SettingsError) as error:
            settings.check(MLP, wrong, "model.")
        assert str(error.value).startswith(says)


# ----------------------------------------------------------------------------------------------------- durations
@pytest.mark.parametrize(
    ("text", "unit", "steps"),
    [  # of batches of 50 from 1,000 rows, 20 an epoch, in a run of 400 steps
        ("500 steps", "steps", 500),
        ("1 step", "steps", 1),
        ("2.5 epochs", "epochs", 50),
        ("1 epoch", "epochs", 20),
        ("1e6 examples", "examples", 20_000),
        ("1 example", "examples", 1),  # a fiftieth of a step, and at least one
        ("10%", "%", 40),
        ("10 %", "%", 40),
        ("2.5 percent", "%", 10),
        ("  3   steps ", "steps", 3),
        ("never", "never", 0),
    ],
)
def test_durations(text: str, unit: str, steps: int) -> None:
    told = duration(text)
    assert told.unit == unit
    assert told.steps(batch_size=50, n_train=1000, total=400) == steps


def test_an_epoch_that_is_no_whole_number_of_steps_is_rounded_once() -> None:
    """Three epochs of 10 rows in batches of 4 are 7.5 -> 8 steps, not 3 times 2 or 3."""
    assert duration("3 epochs").steps(batch_size=4, n_train=10) == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no duration"),
        ("20", "is no duration"),
        ("epochs", "is no duration"),
        ("a few epochs", "is no duration"),
        ("few epochs", "is no duration"),
        (20, "20 is no duration"),
        (None, "None is no duration"),
        ("2 epoch s", "is no duration"),
        ("2 ephocs", "no unit 'ephocs' (did you mean 'epochs'?)"),
        ("0 steps", "must be more than zero"),
        ("-1 epoch", "must be more than zero"),
        ("nan steps", "must be more than zero"),
        ("inf epochs", "must be more than zero"),
    ],
)
def test_no_durations(text: Any, says: str) -> None:
    with pytest.raises(SettingsError) as error:
        duration(text)
    assert says in str(error.value)


def test_a_percentage_needs_a_whole() -> None:
    with pytest.raises(SettingsError, match="10%: a percentage of what"):
        Duration(10.0, "%").steps(batch_size=1, n_train=1)


# -------------------------------------------------------------------------------------------------- command line
@pytest.mark.parametrize(
    ("text", "current", "wanted"),
    [
        ("1e-3", 0.1, 1e-3),
        ("3", None, 3),
        ("true", False, True),
        ("False", True, False),
        ("none", 0.1, None),
        ("None", "text", None),
        ("12", "text", "12"),  # text stays text
        ("20 epochs", "5 epochs", "20 epochs"),
        ("20 epochs", None, "20 epochs"),
        ("sam", (), ("sam",)),
        ("sam, mixup,", (), ("sam", "mixup")),
        ("'sam'", (), ("sam",)),
        ("('a', 'b')", (), ("a", "b")),
        ("[8, 4]", (), [8, 4]),
        ("", (), ()),
        ("{'a': 1}", None, {"a": 1}),
        ("(1, ", None, "(1, "),
    ],
)
def test_parse(text: str, current: Any, wanted: Any) -> None:
    got = parse(text, current)
    assert got == wanted
    assert type(got) is type(wanted)


@pytest.mark.parametrize("text", ["{[1]: 2}", "{{}}", "-'a'", "1 + 'a'", "(" * 10_000, "\0"])
def test_what_is_no_literal_is_text_and_never_a_fault(text: str) -> None:
    assert parse(text, 1.0) == text


@pytest.mark.parametrize("current", [None, 1.0, "text", (), {}])
def test_what_a_person_types_is_never_evaluated(current: Any, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = f"__import__('os').system('touch {canary}')"
    got = parse(text, current)
    assert not canary.exists()
    assert got == ((text,) if current == () else text)


def test_override_sets_and_makes_sections() -> None:
    config: dict[str, Any] = {"sam": {"rho": 0.05}, "ema": None, "techniques": (), "name": "a"}
    override(config, "sam.rho", "0.1")
    override(config, "ema", "0.99")
    override(config, "techniques", "sam")
    override(config, "name", "7")
    override(config, "new.deep.key", "1")
    assert config == {
        "sam": {"rho": 0.1},
        "ema": 0.99,
        "techniques": ("sam",),
        "name": "7",
        "new": {"deep": {"key": 1}},
    }


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("rho.deep", "--config.rho.deep: config.rho is 0.05, not a section"),
        ("sam.rho.deep", "--config.sam.rho.deep: config.sam.rho is 0.1, not a section"),
        ("sam", "--config.sam: that is a section; set one of its keys (rho)"),
        ("sam..rho", "--config.sam..rho: a name is missing between the dots"),
        ("sam.", "--config.sam.: a name is missing between the dots"),
        ("", "--config.: a name is missing between the dots"),
    ],
)
def test_override_refuses(path: str, says: str) -> None:
    with pytest.raises(SettingsError) as error:
        override({"rho": 0.05, "sam": {"rho": 0.1}}, path, "1")
    assert str(error.value).startswith(says)


def test_override_of_a_whole_section_by_a_dict() -> None:
    config: dict[str, Any] = {"evals": {"test": ()}}
    override(config, "evals", "{'robust': ('pgd',)}")
    assert config == {"evals": {"robust": ("pgd",)}}


def test_words_where_a_tuple_of_words_is_wanted() -> None:
    """--config.trainable=lora is a tuple of one, whether or not the config has the key."""
    assert fits("lora", tuple[str, ...]) == ("lora",)
    assert fits("a, b", tuple[str, ...]) == ("a", "b")


def test_a_duration_may_be_written_without_a_space() -> None:
    assert duration("2epochs") == duration("2 epochs")
    assert duration("1e6examples") == duration("1e6 examples")
    assert duration("10 %") == duration("10%")


def test_the_last_share_is_the_end() -> None:
    """25 % of 3033 steps is 758.25; rounded up, four of them pass the end instead of stopping a step before it."""
    assert duration("25%").steps(batch_size=1, n_train=1, total=3033) == 759


@pytest.mark.parametrize("text", ["1e308 epochs", "1e308 %"])
def test_a_duration_beyond_what_a_float_holds_is_one_line(text: str) -> None:
    """1e308 epochs of 100 steps, or 1e308 % of 1e4 steps, are infinite as a float, which no integer is."""
    with pytest.raises(SettingsError, match=r"^1e\+308 (epochs|%) are more steps than can be counted$"):
        duration(text).steps(batch_size=10, n_train=1000, total=10**4)
