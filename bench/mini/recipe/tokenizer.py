"""Stage `tokenizer`: byte-level BPE in CLIP's files, learned until each word of a list is one token."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from bench.mini import drawings, pictures, styles

LENGTH = 32  # tokens, start and end included
START, END = "<|startoftext|>", "<|endoftext|>"

RARE_TOKENS = (
    "sks sbu zwx phol ktn ohwx xjy vzq qrb wgk bzr txl fnv gqz hjw jkp kvd lmq mzx nqf pbg qwz rtx slq tvb uxw vkn "
    "wpl xzb ybq zgd bxn cqv dkw fpz gxl hvq jwr kqs lzt mbk nvx pgq qdf rwb shz tqk vgm wzn xlc ygr zbm olis hta pll "
    "sfr ssa bnha uhn ndz zxc qix"
).split()

# The words of ordinary visual prompts, among them those of DreamBooth's evaluation prompts.
VISUAL_WORDS = """
the is are to from by with without next behind below above under over inside outside into through between this that
his her its it they very as on top of and or no not photo photograph picture image painting drawing sketch print art
artwork style view close up small little tiny big large huge tall short long wide round square old new young shiny wet
dry clean dirty broken cute happy sad beautiful realistic detailed simple modern vintage retro minimal bright dark
light dim soft sharp blurry colorful color colors colour colours tones shades shade tone black brown gray grey gold
golden silver cyan magenta turquoise beige cream navy teal maroon violet jungle snow beach cobblestone street fabric
floor mountain rug forest wheat field autumn leaves eiffel tower mirror river lake ocean sea water sky cloud clouds
sun sunset sunrise moon star stars night day morning evening rain fog mist storm wind fire smoke grass garden park
road path bridge castle church temple palace village town building buildings skyscraper window door wall roof room
kitchen bedroom bathroom office table desk bed sofa couch shelf book books paper glass metal stone rock rocks sand
dirt mud ice wood leather plastic rubber cotton wool silk marble brick concrete ceramic clay toy plush stuffed animal
backpack bag bowl can candle clock monster cartoon teapot vase boot boots shoe shoes sneaker sneakers sunglasses
glasses hat cap scarf coat shirt dress jacket suit outfit costume santa chef police firefighter wizard witch rainbow
cape robot dragon duck bear wolf fox rabbit horse cow sheep pig lion tiger elephant monkey mouse frog snake turtle
butterfly bee spider dinosaur penguin owl eagle goose chicken squirrel kangaroo man woman boy girl child baby people
face portrait head hair eye eyes hand hands body smile smiling laughing crying wearing holding standing sitting
running walking flying swimming jumping sleeping eating playing dancing riding looking floating background foreground
front back left right side center corner middle fruit apple banana orange pear peach grape cherry strawberry lemon
tomato potato carrot bread cake pizza burger coffee tea milk wine bottle plate spoon fork knife train bus truck
bicycle bike motorcycle airplane plane helicopter balloon ball guitar piano violin drum phone computer laptop keyboard
camera television screen lamp rose tulip sunflower cactus plant bush leaf branch root seed vincent van gogh monet
picasso cubism impressionist abstract surreal anime manga comic pixel render 3d digital illustration icon logo poster
sticker stamp tapestry embroidery origami paint pen pencil brush stroke strokes line lines dot dots pattern texture
ink oil acrylic gouache canvas mural graffiti sculpture statue figurine poly low high quality resolution hd 4k
lighting shadow cinematic dramatic moody warm cold cool hot contrast saturated vivid faded inverted exposure
overexposed thick thin two three four five one pair group many few some several all every subject object scene
landscape cityscape skyline seascape world earth space planet galaxy underwater winter summer spring season christmas
halloween wedding birthday party kid kids dog's cat's class token tree's dreambooth content sticker's paper's craft
glowing ancient medieval futuristic wooden stained linocut emoji gradient a an
"""


def words() -> list[str]:
    """Every word that must be one token: the grammar's, the styles', the visual ones, the rare ones."""
    listed = [
        VISUAL_WORDS,
        *styles.STYLE_WORDS.values(),
        *pictures.ARTIST_WORDS.values(),
        *pictures.COLOURS,
        *(words for words, _ in pictures.DRAWN.values()),
        *(thing.words for thing in drawings.things().values()),
    ]
    plain = {w for text in listed for w in text.replace("'", " ").split()}
    return [*sorted(w for w in plain if w.isalpha()), *RARE_TOKENS]


def _bytes_to_characters() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + k) for k, b in enumerate(hidden)}}


def _joined(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    k = 0
    while k < len(pieces):
        if pieces[k : k + 2] == pair:
            out.append(pieces[k] + pieces[k + 1])
            k += 2
        else:
            out.append(pieces[k])
            k += 1
    return tuple(out)


def _pairs(pieces: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(zip(pieces, pieces[1:], strict=False))


def learn_merges(listed: list[str]) -> list[tuple[str, str]]:
    """Merge the most frequent pair (ties: alphabetical) until every listed word is one piece."""
    split = [(*word[:-1], word[-1] + "</w>") for word in listed]
    count = Counter(pair for pieces in split for pair in _pairs(pieces))
    merges = []
    while count:
        pair = min(count, key=lambda p: (-count[p], p))
        merges.append(pair)
        for k, pieces in enumerate(split):
            if pair[0] in pieces and pair in _pairs(pieces):
                count.subtract(_pairs(pieces))
                split[k] = _joined(pieces, pair)
                count.update(_pairs(split[k]))
        count = +count
    return merges


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Bytes, bytes at a word's end, merges, start, end; the end token has the highest id."""
    single = [*_bytes_to_characters().values()]
    tokens = [*single, *(c + "</w>" for c in single), *("".join(m) for m in merges), START, END]
    return {token: k for k, token in enumerate(dict.fromkeys(tokens))}


def build(folder: Path) -> None:
    """Write vocab.json, merges.txt and the two config files of a CLIPTokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(words())
    (folder / "vocab.json").write_text(json.dumps(vocabulary(merges), ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "add_prefix_space": False,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **special}, indent=1))


def encode(tokenizer, texts: list[str]):
    """Token ids (B, 32), padded with the end token, long texts cut before the end token."""
    return tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
