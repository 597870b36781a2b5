"""The notebook and the page of the Python API, run as they stand (the page with a smaller cell)."""

import ast
import json

import pytest
from commands import ROOT, fenced

NOTEBOOK = json.loads((ROOT / "docs" / "first_steps.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SMALL = (
    '"tracker=none", "metrics=mini_truth", "sampler.steps=2", "method.recipe.steps=4", "method.content_steps=2", '
    '"dataset.prompts=[a photo of a red tree on a beach]"'
)


# Readers of the pages open images and leave it to Python to close them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory, a drawing backend without windows, and a viewer that shows nothing."""
    matplotlib = pytest.importorskip("matplotlib")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image.Image, "show", lambda image: None)
    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield tmp_path
    import matplotlib.pyplot as plt

    plt.close("all")
    matplotlib.use(before)


def test_the_notebook_was_run_without_an_error_and_is_small():
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds <= {"execute_result", "stream", "display_data"}
    assert all(cell["outputs"] for cell in code)
    assert (ROOT / "docs" / "first_steps.ipynb").stat().st_size < 400_000
    assert all(ast.parse(text) for text in CODE)


@pytest.mark.slow
def test_the_notebook_runs(elsewhere):
    space = {}
    for text in CODE:
        exec(compile(text, "first_steps.ipynb", "exec"), space)
    assert space["record"].status == "done"
    assert len(space["share"]) == 3 and space["share"].value.is_monotonic_increasing
    assert len(list((elsewhere / space["folder"]).glob("images/*/*.png"))) == 24


@pytest.mark.slow
def test_the_page_of_the_api_runs(elsewhere):
    space = {}
    for text in fenced((ROOT / "docs" / "api.md").read_text(), "python"):
        exec(compile(text.replace('"tracker=none"', SMALL), "api.md", "exec"), space)
    assert space["record"].status == "done" and len(space["records"]) == 3
    assert len(space["rows"]) == 9 and (elsewhere / "sweep.png").is_file()
    assert (space["pictures"] != space["untouched"][:]).any()
