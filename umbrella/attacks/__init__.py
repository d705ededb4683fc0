"""Searches for inputs that fool a classifier: pure functions of logits, in the balls of l-infinity, l2 and l1. Floor 2.

`f` is any pure function x f32[B, ...] -> logits f32[B, C] whose rows do not look at one another; pixels are those that
the user has, in `bounds`, and whatever a model makes of them first is inside of f.

    worse = found(apgd(norm="l2"), f, x, y, 0.5, key)
    print(worse.fooled.mean())
"""

from umbrella.attacks.balls import Ball, Norm, ball
from umbrella.attacks.boundary import fab
from umbrella.attacks.climbs import climb, margin
from umbrella.attacks.gradient import apgd, fgsm, noise, pgd
from umbrella.attacks.search import Driven, Found, Search, expected, found, restarted, told, transferred, worst
from umbrella.attacks.squares import square

__all__ = [
    "Ball",
    "Driven",
    "Found",
    "Norm",
    "Search",
    "apgd",
    "ball",
    "climb",
    "expected",
    "fab",
    "fgsm",
    "found",
    "margin",
    "noise",
    "pgd",
    "restarted",
    "square",
    "told",
    "transferred",
    "worst",
]
