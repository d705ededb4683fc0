"""Words that choose, in calls from Python; those in a config are checked by `umbrella.settings`. Floor 0."""

from typing import Any, get_args

from umbrella.settings import near


def one_of(what: str, value: Any, hint: Any) -> Any:
    """The value, if it is one of those of a `Literal`: a typo must not choose another algorithm.

    >>> from typing import Literal
    >>> one_of("norm", "l2", Literal["linf", "l2"])
    'l2'

    Raises:
      ValueError: it is none of them. The message says what was probably meant.
    """
    if value not in get_args(hint):
        raise ValueError(f"{what}: {value!r} is not one of the choices{near(str(value), map(str, get_args(hint)))}")
    return value
