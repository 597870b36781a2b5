"""The commands that a Markdown page shows, and how each is parsed without being run."""

import argparse
import re
import runpy
import shlex
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from bench import paths
from bench.command import SAME, VERBS
from bench.compose import cell, register_datasets
from bench.runs import register_launchers

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.S | re.M)
INLINE = re.compile(r"`((?:python -m |t2i-bench |make )[^`]+)`")
FLAGS = {"--help", "--version"}
OURS = ("bench", "metrics")


class Parsed(Exception):
    """The arguments of a command were parsed."""


def fenced(text, language):
    return [body for found, body in FENCE.findall(text) if found == language]


def shown(text):
    """Commands of a page, in fences without a language or inline, lines that end in a backslash joined."""
    lines = "\n".join(fenced(text, "")).replace("\\\n", " ").splitlines()
    inline = INLINE.findall(FENCE.sub("", text))
    candidates = [line.strip() for line in lines] + inline
    starts = ("python ", ".venv/bin/python ", "t2i-bench ", "make ")
    return list(
        dict.fromkeys(line for line in candidates if line.startswith(starts) and "<" not in line and "..." not in line)
    )


def parse(command):
    """Raise, or exit, when the command cannot be what a user types."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets, f"make has no target {words[1]}"
    elif words[0] == "t2i-bench":
        parse_bench(words[1:])
    elif words[1] != "-m":
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
    elif words[2] == "bench":
        parse_bench(words[3:])
    elif words[2] == "pytest":
        assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests/"))
    elif words[2].split(".")[0] not in OURS:
        assert find_spec(words[2]) is not None, f"there is no module {words[2]}"  # other programs are not ours to parse
    elif not words[3:]:
        assert find_spec(words[2]) is not None, f"there is no module {words[2]}"
    else:
        parse_arguments(words[2], words[3:])


def parse_bench(words):
    verb = SAME.get(words[0], words[0]) if words else ""
    if verb in VERBS:
        parse_arguments(f"bench.{verb}", words[1:])
    elif not FLAGS & set(words):
        compose_cells([word for word in words if word != "-m"], several="-m" in words)


def parse_arguments(module, words):
    """Start the module and stop it as soon as its parser has accepted the words."""
    accept, before = argparse.ArgumentParser.parse_args, sys.argv

    def stop(parser, args=None, namespace=None):
        accept(parser, args, namespace)
        raise Parsed

    argparse.ArgumentParser.parse_args, sys.argv = stop, [module, *words]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*found in sys.modules")  # another test imported it
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Parsed:
        return
    finally:
        argparse.ArgumentParser.parse_args, sys.argv = accept, before
    raise AssertionError(f"{module} parsed nothing")


def compose_cells(overrides, several):
    """Compose the first and the last cell that the overrides give."""
    register_datasets()
    register_launchers()
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
        assert several or not any(override.is_sweep_override() for override in parsed), "a sweep without -m"
        (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        for words in (batch[0], batch[-1])[: len(batch)]:
            cell(compose("config", list(words)))
