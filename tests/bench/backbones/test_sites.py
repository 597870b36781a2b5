"""Layers by the names of blocks and layers, on tiny networks, against lists written down by hand."""

import pytest
from random_pipelines import WIDTH, unet

from bench.backbones.sites import check_where, sites
from bench.contracts import BenchError

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def network():
    return unet(cross_attention_dim=WIDTH)


def attention_of(block):
    return {f"{block}.transformer_blocks.0.attn{n}.{name}" for n in (1, 2) for name in PROJECTIONS}


def test_a_block_is_all_its_linear_and_convolutional_layers(network):
    block = "up_blocks.0.attentions.1"
    outer = {f"{block}.proj_in", f"{block}.proj_out"}
    feed = {f"{block}.transformer_blocks.0.ff.net.{name}" for name in ("0.proj", "2")}
    assert set(sites(network, block)) == attention_of(block) | outer | feed


def test_a_selection_in_blocks(network):
    found = sites(network, "attention in up_blocks.0.attentions.1, mid_block")
    assert set(found) == attention_of("up_blocks.0.attentions.1") | attention_of("mid_block.attentions.0")


def test_a_star_stands_for_any_letters(network):
    blocks = (
        "down_blocks.1.attentions.0",
        "mid_block.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
    )
    expected = [f"{block}.transformer_blocks.0.attn2.to_{kind}" for block in blocks for kind in "kv"]
    assert sorted(sites(network, "*.attn2.to_k, *.attn2.to_v")) == sorted(expected)


def test_the_end_of_a_name_is_no_beginning_of_another(network):
    """`down_blocks.0.resnets.0.conv1` is that layer alone, and a block ends at a dot: `conv` is not `conv_in`."""
    assert set(sites(network, "down_blocks.0.resnets.0.conv1, *conv_out")) == {
        "down_blocks.0.resnets.0.conv1",
        "conv_out",
    }
    with pytest.raises(BenchError, match="agrees with 'conv_'"):
        sites(network, "conv_, mid_block.attentions.0")


def test_layers_keep_the_order_of_the_network(network):
    order = [name for name, _ in network.named_modules()]
    found = list(sites(network, "mid_block, down_blocks.1.attentions.0"))
    assert found == sorted(found, key=order.index) and found[0].startswith("down_blocks")


def test_a_pattern_of_no_layer_is_told_with_the_blocks_that_there_are(network):
    with pytest.raises(
        BenchError, match=r"no layer .* agrees with 'up_blocks.7'; its blocks .* up_blocks.0.attentions.0"
    ):
        sites(network, "attention in up_blocks.7")


@pytest.mark.parametrize("where", ["everywhere", "everywhere in mid_block.attentions.0", "attention in a.b,,c.d"])
def test_an_unknown_selection_is_told_before_a_network_is_there(where):
    with pytest.raises(BenchError, match="by trainer.where; known places are attention, "):
        check_where(where, "trainer.where")
