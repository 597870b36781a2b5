"""Claims about the synthetic records of tests/report_records.py, whose truth is known."""

from types import SimpleNamespace

from bench.analysis import claim_answers
from bench.analysis.claims import Claim


def claim(name="x", a="alpha", b=None, **more):
    made = {"metric": "quality", "datasets": ("dots",), **more}
    return Claim(name, "A is better.", "arXiv 0000.00000", "paper", a=a, b=b, **made)


def side(method, seeds=(0, 1, 2), datasets=("dots",)):
    cells = [
        SimpleNamespace(run_id=f"{method}-{name}-s{seed}", strengths=(2.0,), dataset={"name": name}, seed=seed,
                        method={"name": method, "strength": 2.0})
        for name in datasets for seed in seeds
    ]  # fmt: skip
    return claim_answers.Wanted([f"method={method}"], cells)


def answers(root, *claims, seeds=(0, 1, 2), strengths=(2.0,)):
    wanted = {}
    for one in claims:
        wanted[one.id] = {letter: side(getattr(one, letter), seeds, one.datasets) for letter in one.sides}
        for part in wanted[one.id].values():
            for cell in part.cells:
                cell.strengths = strengths
    return claim_answers.of_claims(claims, claim_answers.Records(root, claims), wanted)
