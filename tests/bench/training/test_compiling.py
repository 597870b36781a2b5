"""Compiled blocks and memory layout: chosen where they pay, the same weights, back to plain when the compiler fails."""

from dataclasses import replace

import pytest
import torch
from test_packs import a_cell, adapters, same_files
from test_trainer import TwoPhase, jobs_of
from tiny import TinyBackbone

from bench.adapters.bank import Bank
from bench.contracts import AdapterSpec, BenchError, FullSpec
from bench.run import run
from bench.seeding import generator
from bench.steps.work import loaded_backbone
from bench.sweeps.packs import run_pack
from bench.training.compiling import GUESSES, WINDOW, Backends, Timing, backends_of, offered, pays
from bench.training.trainer import Training

LOW_RANK = {"style": AdapterSpec(2)}


# --- when -------------------------------------------------------------------------------------------------------------


def test_a_change_pays_when_the_clock_is_earlier_at_the_end():
    """Against two clocks that run tick by tick; whole seconds, so that they are exact."""
    for now, then, cost, left in [(n, t, c, k) for n in (1, 3) for t in (0, 1, 2, 4) for c in (0, 7) for k in range(9)]:
        stays, changes = 0, cost
        for _ in range(left):
            stays, changes = stays + now, changes + then
        assert pays(now, then, cost, left) == (changes < stays)


def pace_of(backends, kind="one", offered=("compile",)):
    return Timing(backends, offered, backends.tried.setdefault(kind, {}))


def feed(timing, seconds, left):
    for value in seconds:
        timing.passed(value, left)


@pytest.mark.parametrize("left, tried", [(240, False), (241, True)])
def test_compiling_is_tried_when_the_rest_may_be_worth_its_cost(left, tried):
    """At a second a tick and a guess of 25 % saved for a minute: from the 241st tick on."""
    assert GUESSES["compile"] == (0.75, 60.0)
    timing = pace_of(Backends(torch.nn.Identity()))
    feed(timing, [5.0] + [1.0] * (WINDOW - 2), left)
    assert timing.on == []
    feed(timing, [1.0], left)
    assert timing.on == ["compile"] * tried and timing.trying == ("compile" if tried else None)


@pytest.mark.parametrize("then_s, kept", [(0.5, True), (0.98, False), (1.5, False)])
def test_a_trial_ends_in_the_quicker_way_and_is_not_made_twice(then_s, kept):
    backends = Backends(torch.nn.Identity())
    timing = pace_of(backends)
    feed(timing, [1.0] * WINDOW + [30.0] + [then_s] * (2 * WINDOW - 1), 10**4)
    assert timing.on == ["compile"] * kept == pace_of(backends).on
    assert backends.known["compile"] == (then_s, 30.0 - then_s)
    again = pace_of(backends)
    feed(again, [1.0] * 5 * WINDOW, 10**6)
    assert again.on == ["compile"] * kept and again.trying is None


@pytest.mark.parametrize("left, tried", [(59, False), (60, True)])
def test_what_was_measured_takes_the_place_of_the_guess(left, tried):
    """Half of each second saved for 29.5 seconds: from the 60th tick on."""
    backends = Backends(torch.nn.Identity())
    feed(pace_of(backends), [1.0] * WINDOW + [30.0] + [0.5] * (2 * WINDOW - 1), 10**4)
    other = pace_of(backends, "other")
    feed(other, [1.0] * WINDOW, left)
    assert other.on == ["compile"] * tried


def test_the_ways_are_tried_one_after_the_other():
    """The layout is kept; compiled it is slower."""
    backends = Backends(torch.nn.Identity())
    timing = pace_of(backends, offered=("channels_last", "compile"))
    feed(timing, [1.0] * WINDOW, 10**4)
    assert timing.on == ["channels_last"]
    feed(timing, [0.8] * 2 * WINDOW, 10**4)
    assert timing.on == ["channels_last", "compile"] and timing.best_s == 0.8
    feed(timing, [0.9] * 2 * WINDOW, 10**4)
    assert timing.on == ["channels_last"] and backends.tried["one"] == {"channels_last": True, "compile": False}


def test_auto_leaves_a_cpu_alone_and_full_weights_are_never_compiled(monkeypatch):
    cpu = TinyBackbone()
    assert offered("auto", cpu, LOW_RANK) == [] == offered(False, cpu, LOW_RANK)
    assert offered(True, cpu, LOW_RANK) == ["compile"] and offered(True, cpu, {"style": FullSpec()}) == []
    monkeypatch.setattr(cpu, "device", torch.device("cuda"))
    found = offered("auto", cpu, LOW_RANK)
    assert found[0] == "channels_last" and offered("auto", cpu, {"style": FullSpec()}) == []
    cpu.network.enable_gradient_checkpointing()
    assert offered("auto", cpu, LOW_RANK) == ["channels_last"]


@pytest.mark.parametrize("requested", ["often", "graphs"])
def test_a_setting_that_means_nothing_here_is_told(requested):
    with pytest.raises(
        BenchError, match=f"trainer.compile={requested} was requested on cpu; type trainer.compile=auto"
    ):
        offered(requested, TinyBackbone(), LOW_RANK)


# --- the same weights -------------------------------------------------------------------------------------------------


def ended(backbone, on, where="attention", turn=99, longer=0):
    """Two cells of 3 steps, the second `longer`, each tick in the backends `on`; one adapter learns up to `turn`."""
    jobs = list(jobs_of(backbone, 2, lambda recipe: TwoPhase(recipe, turn, where)))
    jobs = [replace(job, recipe=replace(job.recipe, steps=3 + longer * job.cell)) for job in jobs]
    bank = Bank(backbone, jobs[0].method.adapters(None), [generator("adapters", job.seed) for job in jobs])
    training = Training(bank)
    for job in jobs:
        training.add(job)
    while training.live:
        with backends_of(backbone).running(on):
            list(training.tick())
    bank.close()
    return {name: theta.clone() for name, theta in bank.theta.items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_sees_adapters_come_and_go(monkeypatch):
    """Traced and guarded as always, but its graphs are run as they are, so all numbers are the plain ones.

    A cell leaves, adapters move to other layers and, with others' weights, back again: then nothing is compiled anew.
    """
    compiled, graphs, sizes = torch.compile, [], []
    backend = lambda graph, inputs: graphs.append(graph) or graph.forward  # noqa: E731
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled(f, backend=backend))
    backbone = TinyBackbone(torch.float64)
    for where, longer in (("attention", 2), ("xattn", 0), ("attention", 2)):
        plain, made = (ended(backbone, on, where, longer=longer) for on in ((), ("compile",)))
        sizes.append(len(graphs))
        for name in plain:
            torch.testing.assert_close(made[name], plain[name], rtol=0, atol=1e-12)
    assert backends_of(backbone).failure is None
    assert 0 < sizes[0] < sizes[1] == sizes[2]
    assert not any("forward" in vars(module) or module._forward_hooks for module in backbone.network.modules())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_by_a_real_backend_two_cells_end_at_the_same_weights(monkeypatch, backend):
    """With its own backward pass, and with its own code; in the first block alone, for the compiler's time."""
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    compiled, backbone = torch.compile, TinyBackbone(torch.float64)
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled(f, backend=backend))
    plain, backends, before = ended(backbone, ()), backends_of(backbone), counters["stats"]["unique_graphs"]
    backends.blocks = backends.blocks[:1]
    made = ended(backbone, ("compile",))
    assert backends.failure is None and counters["stats"]["unique_graphs"] > before
    assert plain["content"].abs().max() > 0.003
    for name in plain:
        torch.testing.assert_close(made[name], plain[name], rtol=0, atol=1e-9)


def test_another_layout_gives_the_same_weights_and_leaves_no_trace():
    backbone = TinyBackbone(torch.float64)
    plain, kernel = ended(backbone, (), "all", turn=1), backbone.network.conv_in.weight
    strides = kernel.stride()
    with backends_of(backbone).running(["channels_last"]):
        assert kernel.is_contiguous(memory_format=torch.channels_last) and kernel.stride() != strides
    last = ended(backbone, ("channels_last",), "all", turn=1)
    for name in plain:
        torch.testing.assert_close(last[name], plain[name], rtol=0, atol=1e-9)
    backends_of(backbone).lay(channels_last=False)
    assert kernel.stride() == strides


# --- in the pipe ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def fresh():
    """What was found out about a backbone stays with it; no test leaves one behind."""
    loaded_backbone.cache_clear()
    yield
    loaded_backbone.cache_clear()


def asking(cell, compile):
    return replace(cell, trainer=cell.trainer | {"compile": compile})


def failing(function, **options):
    def raises(*args, **kwargs):
        raise RuntimeError("no compiler\nand a long trace")

    return raises


def test_a_failing_compiler_is_noted_and_nothing_else_is_different(tmp_path, monkeypatch):
    plain = a_cell(tmp_path / "plain")
    assert "compile" not in run(plain).cost
    monkeypatch.setattr(torch, "compile", failing)
    requested = asking(replace(plain, results=tmp_path / "requested"), True)
    (record,) = run_pack([requested], 1)
    sentence = "the blocks could not be compiled and ran as they are (RuntimeError: no compiler)"
    assert record.status == "done" and record.notes.count(sentence) == 1 and "compile" not in record.cost
    assert record.run_id == plain.run_id
    same_files(plain, requested)


def test_the_record_says_which_part_of_the_training_ran_compiled(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: lambda *a, **k: calls.append(1) or f(*a, **k))
    plain, made = a_cell(tmp_path / "plain"), asking(a_cell(tmp_path / "requested"), True)
    run(plain)
    assert not calls
    record = run(made)
    assert calls and record.cost["compile"] == 1.0 and record.notes == []
    same_files(plain, made)
    torch.testing.assert_close(adapters(plain), adapters(made), rtol=0, atol=0)
