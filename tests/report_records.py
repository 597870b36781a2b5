"""Synthetic records with images for tests of the report and the study: methods x styles x seeds x strengths, failures,
and names and prompts that try to break out of a page.
"""

import json
from unittest.mock import patch

import numpy as np
import pandas as pd
from PIL import Image

from bench.data import identity, schema
from bench.data.image_files import image_name, save_images, strength_folder
from bench.store.record import Record, Store

NASTY = "</script><script>window.hacked=1</script>"
PROMPTS = ["a \"quoted\" <b>cat</b> & 'dog'", NASTY, "a photo of a cup", "a photo of a tree", "a photo of a car",
           "a photo of a bird"]  # fmt: skip
METHODS = ("alpha", "beta", "gamma<i>")
STYLES = ("dots", "lines & co")
STRENGTHS = (1.0, 2.0, 3.0)
TRUTH = {"alpha": 1.0, "beta": 0.5, "gamma<i>": 0.0}  # quality; the image metric and the picture's brightness follow it


def dataset(name, folder, prompts, seeds):
    """A dataset of one pair that lies in a folder; nothing else is loaded for it."""
    pair = []
    for k, colour in enumerate(((200, 120, 40), (40, 60, 200))):
        path = folder / f"{'plain stylised'.split()[k]}.png"
        Image.new("RGB", (32, 32), colour).save(path)
        pair.append(str(path))
    return {**json.loads(json.dumps(schema.KEYS)), "name": name, "noun": "cup", "licence": "none", "source": "drawn",
            "prompts": list(prompts), "seeds": list(seeds), "pair": pair, "controls": []}  # fmt: skip


def config(method, spec, seed):
    requested = {
        "method": {"name": method, "version": 1, "strength": 2.0},
        "dataset": spec,
        "trainer": {},
        "sampler": {},
    }
    requested["backbone"] = {"name": "tiny", "resolution": 32}
    parts = {key: requested[key] for key in ("method", "backbone", "trainer", "sampler")}
    content = {"name": spec["name"], "content": identity.identity(spec)}
    return {**parts, "dataset": content, "seed": seed, "scored": [], "requested": requested}


def values(method, strength, shots, seed):
    """Per-image numbers: quality is the method's truth, falling away from strength 2; leak rises with the strength."""
    rng = np.random.default_rng([METHODS.index(method), int(strength * 10), seed])
    wobble = rng.normal(0, 0.05, (2, len(shots)))
    return TRUTH[method] - 0.2 * abs(strength - 2) + wobble[0], 0.1 * strength + 0.2 * TRUTH[method] + wobble[1]


def pictures(method, strength, shots, seed, side):
    """Images (N, 3, side, side): every one is different, the brighter the better its method."""
    rng = np.random.default_rng([METHODS.index(method), int(strength * 10), seed, 7])
    base = rng.integers(0, 60, (len(shots), 3, side, side))
    return (base + 60 + 130 * TRUTH[method]).astype(np.uint8)


def finished(store, name, method, spec, seed, strengths=STRENGTHS, side=32):
    """One finished cell."""
    shots = [(i, p, s) for i, p in enumerate(spec["prompts"]) for s in spec["seeds"]]
    folder, scores, lines = store.work(name), [], []
    for strength in strengths:
        images = pictures(method, strength, shots, seed, side)
        save_images(folder / "images" / strength_folder(strength), images, [image_name(i, s) for i, _, s in shots])
        quality, leak = values(method, strength, shots, seed)
        lines += [{"strength": strength, "prompt": p, "seed": s, "quality": q, "leak": k}
                  for (_, p, s), q, k in zip(shots, quality, leak, strict=True)]  # fmt: skip
        for metric, value, up in (("quality", quality.mean(), True), ("leak", leak.mean(), False)):
            scores.append({"strength": strength, "group": metric, "metric": metric, "value": float(value),
                           "higher_is_better": up, "network": "net", "fingerprint": {"n": len(shots)}})  # fmt: skip
    pd.DataFrame(lines).to_csv(folder / "per_image.csv", index=False)
    (folder / "log.csv").write_text("step,lr,losses\n" + "".join(f"{k},0.1,{1 / k:.4f}\n" for k in range(1, 101)))
    cost = {"train_s": 10.0 * (1 + METHODS.index(method)) + seed, "peak_gb": 1.5}
    provenance = {"commit": "abc123", "dirty": False, "started": "2026-01-01T10:00:00+00:00", "hostname": "here"}
    notes = [f"a note with {NASTY}"]
    store.publish(Record(name, "done", None, config(method, spec, seed), cost, provenance, scores, notes))


def unhappy(store, name, status, reason, spec, seed, log):
    folder = store.work(name)
    (folder / "error.txt").write_text(log)
    store.publish(Record(name, status, reason, config("beta", spec, seed), provenance={"commit": "abc123"}))


@patch("os.fsync", lambda handle: None)  # thousands of small files
def study_of(root, seeds=(0, 1), methods=METHODS, styles=STYLES, prompts=PROMPTS, image_seeds=(0, 1), **more):
    """Fill a folder with records; returns it."""
    store = Store(root)
    (root / "photos").mkdir(parents=True)
    for style in styles:
        spec = dataset(style, root / "photos", prompts, image_seeds)
        for method in methods:
            for seed in seeds:
                word = "".join(c for c in f"{method}-{style}" if c.isalnum() or c == "-")
                finished(store, f"{word}-s{seed}", method, spec, seed, **more)
    spec = dataset(styles[0], root / "photos", prompts, image_seeds)
    unhappy(store, "beta-failed", "failed", f"the loss was NaN {NASTY}", spec, 7, f"Traceback\nValueError: {NASTY}")
    unhappy(store, "beta-skipped", "skipped", "it needs pairs", spec, 8, "")
    return root
