"""What each prompt adds to a number of a whole set of images: the cluster jackknife (Efron & Tibshirani 1993, ch. 11).

Images of one prompt are dependent, so whole prompts are left out, with all their evaluation seeds. With t the number of
all images, t_i the number without prompt i and n prompts, prompt i gets the value

    v_i = t + (n - 1) (mean_j t_j - t_i).

The v_i have the mean t, and the standard error of their mean is that of the jackknife. So a difference of two rows,
made prompt by prompt, has the error of the paired jackknife: the same prompt leaves both sets. The reference set
stays: it is the same for all rows. Shapes: N images, n prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

FEWEST = 2  # prompts
MOST = 5e7  # of prompts x images x images of the other set: about 15 seconds per number on two cores


def codes(prompts: Sequence[str]) -> np.ndarray:
    """The prompts as numbers 0, 1, ... in the order of their first images, (N,)."""
    known = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    return np.array([known[prompt] for prompt in prompts])


def spread_out(value: float, without: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """v of each image's prompt (N,), from the number and the numbers without each prompt (n,).

    Where prompts have unlike numbers of images, v is moved so that its mean over images is the number.
    """
    n = len(without)
    each = ((n - 1) * (without.mean() - without))[groups]
    return value + each - each.mean()


def standard_error(without: np.ndarray) -> float:
    """The jackknife's, from the numbers without each unit (n,)."""
    n = len(without)
    return float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


def per_prompt(
    values: Mapping[str, float],
    prompts: Sequence[str],
    number: Callable[[np.ndarray], Mapping[str, float]],
    others: int = 0,
) -> dict[str, np.ndarray]:
    """id -> v (N,) of each value; `number` gives them for some of the images, chosen by (N,) of bool.

    `others` is the size of the other set. Empty for one prompt, and where it would take long: that is no error.
    """
    groups = codes(prompts)
    n = int(groups.max()) + 1
    if n < FEWEST or n * len(groups) * max(others, len(groups)) > MOST:
        return {}
    found = [number(groups != i) for i in range(n)]
    without = {name: np.array([one[name] for one in found]) for name in values}
    return {
        name: spread_out(values[name], left, groups)
        for name, left in without.items()
        if np.isfinite(left).all() and np.isfinite(values[name])
    }
