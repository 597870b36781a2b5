"""Ways in which a file can be damaged, each drawn from a seeded generator."""

import json
import os
import random

WRONG = [None, True, 7, -1.5, "x", "", [], [1], {}, {"a": 1}, 1e308, 10**30, "\ud800", "\0"]


def cut(data, rng):
    return data[: rng.randrange(max(1, len(data)))]


def flipped(data, rng):
    """One to eight bits turned over."""
    made = bytearray(data or b"\0")
    for _ in range(rng.randint(1, 8)):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def noise(data, rng):
    return rng.randbytes(rng.choice([1, 7, 64, 1000]))


def inserted(data, rng):
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice([b"\0", b"\xff\xfe", b"{", b"[" * 5000, b",", b'"', b"\n", b"NaN"]) + data[at:]


def emptied(data, rng):
    return rng.choice([b"", b"\n", b"null", b"[]", b"{}", b"0", b"[" * 100_000, b"\xef\xbb\xbf" + data])


def doubled(data, rng):
    return data + data


def retyped(data, rng):
    """One value of a JSON file is of another type, or gone."""
    try:
        found = json.loads(data)
    except ValueError:
        return flipped(data, rng)
    places = list(_places(found))
    if not places:
        return b"7"
    holder, key = rng.choice(places)
    if rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = rng.choice(WRONG)
    return json.dumps(found).encode()


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


BYTES = [cut, flipped, noise, inserted, emptied, doubled, retyped]


def damage(path, rng: random.Random):
    """Damage one file in one way; returns the name of the way."""
    kind = rng.choice([*BYTES, *BYTES, "folder", "pipe", "loop"])
    if kind in BYTES:
        path.write_bytes(kind(path.read_bytes(), rng))
        return kind.__name__
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name)
    return kind
