"""Collects the packages that a CUDA machine with PyTorch but without a network lacks, as wheels in `.whl/`.

    python tests/perf/wheelhouse.py                    download for Linux x86_64, CPython 3.12 (needs a network)
    python3 tests/perf/wheelhouse.py --install DIR     unpack the wheels there, without a network
    PYTHONPATH=DIR python3 tests/perf/wheelhouse.py --check     name requirements that the installed versions miss

Versions are those of requirements.lock. What the stages of tests/perf/device.py need is followed through the metadata
of the installed packages (`make env`), down to what such a machine already has. `.whl/` is ignored by git.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / ".whl"
LIMIT_MB = 60
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
             "manylinux1_x86_64")  # fmt: skip
TARGET = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux", "os_name": "posix",
          "platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython",
          "platform_python_implementation": "CPython", "extra": ""}  # fmt: skip

# What an image for PyTorch brings, as far as this project asks for it.
PRESENT = frozenset(
    "accelerate certifi charset-normalizer click cloudpickle filelock fsspec hf-xet httpx huggingface-hub idna jinja2 "
    "markupsafe matplotlib networkx numpy packaging pandas peft pillow psutil pyarrow python-dateutil pyyaml regex "
    "requests rich safetensors scipy setuptools sympy tabulate timm tokenizers torch torchmetrics torchvision tqdm "
    "transformers triton typing-extensions urllib3 zipp".split()
)
DROPPED = {
    "wandb": "24 MB with what it needs; the stages run with tracker=none",
} | dict.fromkeys(("choix", "clean-fid", "krippendorff", "torch-fidelity"), "no stage uses it")
# Files that no stage imports, of a wheel that is mostly such files: other model families' pipelines.
UNUSED = {
    "diffusers": r"diffusers/(pipelines/(?!stable_diffusion/|stable_diffusion_xl/|deprecated/)\w+/|modular_pipelines/)"
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def direct() -> list[str]:
    """Dependencies of pyproject.toml that the stages need, without those that the machine has."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in wanted]
    return [name for name in names if name not in PRESENT and name not in DROPPED]


def needs(name: str) -> Iterator[str]:
    """What an installed package requires on the target machine."""
    from packaging.requirements import Requirement

    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(TARGET):
            yield normal(requirement.name)


def missing() -> list[str]:
    """All packages to bring, sorted by name."""
    found: set[str] = set()
    waiting = direct()
    while waiting:
        name = waiting.pop()
        if name not in found and name not in PRESENT and name not in DROPPED:
            found.add(name)
            waiting += needs(name)
    return sorted(found)


def locked() -> dict[str, str]:
    """Versions of requirements.lock for the target machine."""
    from packaging.requirements import Requirement

    lines = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if line.strip()]
    fitting = [line for line in lines if line.marker is None or line.marker.evaluate(TARGET)]
    return {normal(line.name): str(line.specifier).removeprefix("==") for line in fitting}


def collect(folder: Path) -> None:
    """Fill the folder with one wheel for each missing package, and with no other."""
    versions = locked()
    with tempfile.TemporaryDirectory() as made:
        for name in missing():
            fetch(f"{name}=={versions[name]}", made)
        for name, pattern in UNUSED.items():
            (wheel,) = Path(made).glob(f"{name}-*.whl")
            slim(wheel, pattern)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size / 1e6:6.2f} MB  {file.name}")
    print("\n".join(f"left out: {name}, {why}" for name, why in DROPPED.items()))
    print(f"{size:6.2f} MB in {folder.name}/, beside {tracked_mb():.2f} MB of files that git tracks")
    if size > LIMIT_MB:
        sys.exit(f"wheelhouse: {size:.0f} MB were collected, {LIMIT_MB} are allowed; add to DROPPED what is not used.")


def fetch(requirement: str, folder: str) -> None:
    """A wheel from the registry or, where there is only a source archive of pure Python, one built from it."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    target = ["--python-version", PYTHON, "--implementation", "cp", *platforms]
    if not pip("download", "--no-deps", "--only-binary=:all:", *target, "-d", folder, requirement):
        with tempfile.TemporaryDirectory() as built:
            if not pip("wheel", "--no-deps", "-w", built, requirement):
                sys.exit(f"wheelhouse: {requirement} was requested and pip can neither download nor build it.")
            (wheel,) = Path(built).iterdir()
            if not wheel.name.endswith("-none-any.whl"):
                sys.exit(f"wheelhouse: {wheel.name} was built for this machine alone; add {requirement} to DROPPED.")
            shutil.copy(wheel, folder)


def slim(wheel: Path, pattern: str) -> None:
    """Take the files that match out of a wheel and out of its own list of files."""
    packed = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as new:
        for entry in old.infolist():
            if not re.match(pattern, entry.filename):
                data = old.read(entry)
                if entry.filename.endswith(".dist-info/RECORD"):
                    data = b"".join(line for line in data.splitlines(True) if not re.match(pattern, line.decode()))
                new.writestr(entry.filename, data)
    packed.rename(wheel)


def tracked_mb() -> float:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in names.split("\0") if name]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def pip(*arguments: str) -> bool:
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", *arguments[1:]]
    return subprocess.run(command, capture_output=True).returncode == 0


def install(target: Path, folder: Path = WHEELS) -> None:
    """Unpack the wheels into a folder for PYTHONPATH. Needs pip and no network."""
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        sys.exit(f"wheelhouse: no wheels lie in {folder}; type make wheelhouse on a machine with a network.")
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(target), *wheels], check=True)


def unmet() -> list[str]:
    """Requirements of the project and of all it needs that the installed packages do not meet, a sentence each."""
    from packaging.requirements import Requirement

    found: list[str] = []
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = [("t2i-bench", line) for line in wanted if normal(Requirement(line).name) not in DROPPED]
    lines += [(name, line) for name in _brought() for line in metadata.requires(name) or []]
    for owner, line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version = _version(requirement.name)
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{owner} needs {requirement.name}{requirement.specifier}; found {version or 'none'}")
    return sorted(set(found))


def _brought(folder: Path = WHEELS) -> list[str]:
    return sorted(normal(file.name.split("-")[0]) for file in folder.glob("*.whl"))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", type=Path, metavar="DIR")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.install:
        install(options.install)
    elif options.check:
        print("\n".join(unmet()) or "all requirements are met")
    else:
        collect(WHEELS)


if __name__ == "__main__":
    main()
