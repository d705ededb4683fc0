"""Numbers in words. Floor 4."""

_ENGLISH = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_ENGLISH_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_FRENCH = [
    "zéro",
    "un",
    "deux",
    "trois",
    "quatre",
    "cinq",
    "six",
    "sept",
    "huit",
    "neuf",
    "dix",
    "onze",
    "douze",
    "treize",
    "quatorze",
    "quinze",
    "seize",
]
_FRENCH_TENS = {2: "vingt", 3: "trente", 4: "quarante", 5: "cinquante", 6: "soixante"}


def english(n: int) -> str:
    """The British words of 0 <= n < 1,000,000, with "and" before what is below a hundred.

    >>> english(1021), english(715)
    ('one thousand and twenty-one', 'seven hundred and fifteen')
    """
    _check(n)
    if n < 20:
        return _ENGLISH[n]
    if n < 100:
        tens, ones = divmod(n, 10)
        return _ENGLISH_TENS[tens - 2] + (f"-{_ENGLISH[ones]}" if ones else "")
    size, word = (1000, "thousand") if n >= 1000 else (100, "hundred")
    head, rest = divmod(n, size)
    joint = "" if not rest else " and " if rest < 100 else " "
    return f"{english(head)} {word}{joint}{english(rest) if rest else ''}"


def french(n: int) -> str:
    """The words of 0 <= n < 1,000,000 as in France, in the spelling before 1990: hyphens below a hundred alone, "et"
    before un and onze but not after quatre-vingt, and an s of vingt and cent that are multiplied and last, but not
    before mille.

    >>> french(80), french(271), french(80_200)
    ('quatre-vingts', 'deux cent soixante et onze', 'quatre-vingt mille deux cents')
    """
    _check(n)
    return _french(n, last=True)


def _french(n: int, last: bool) -> str:
    """last: nothing follows, so that vingt and cent may have their s."""
    if n < 17:
        return _FRENCH[n]
    if n < 20:
        return f"dix-{_FRENCH[n - 10]}"
    if n < 100:
        return _french_tens(n, last)
    if n < 1000:
        head, rest = divmod(n, 100)
        times = "" if head == 1 else f"{_FRENCH[head]} "
        if not rest:
            return f"{times}cent" + ("s" if last and head > 1 else "")
        return f"{times}cent {_french(rest, last)}"
    head, rest = divmod(n, 1000)
    times = "" if head == 1 else f"{_french(head, last=False)} "
    return f"{times}mille" + (f" {_french(rest, last)}" if rest else "")


def _french_tens(n: int, last: bool) -> str:
    if n >= 80:
        rest = n - 80
        return f"quatre-vingt-{_french(rest, last)}" if rest else "quatre-vingt" + ("s" if last else "")
    tens = min(n // 10, 6)  # sixty goes on to seventy-nine
    rest = n - 10 * tens
    if not rest:
        return _FRENCH_TENS[tens]
    return (
        f"{_FRENCH_TENS[tens]} et {_FRENCH[rest]}" if rest in (1, 11) else f"{_FRENCH_TENS[tens]}-{_french(rest, last)}"
    )


def _check(n: int) -> None:
    if not 0 <= n < 1_000_000:
        raise ValueError(f"{n}: there are words for 0 to 999,999")
