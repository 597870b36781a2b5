"""Rare tokens: words of few letters that a backbone's own tokenizer keeps in one piece and that mean nothing.

DreamBooth (Ruiz et al. 2023, arXiv 2208.12242, section 3.2) looks for words of at most three letters that are rare in
the vocabulary: real words bring their meaning along, and random strings fall apart into pieces that bring theirs.
Here a word means nothing when it is none of `WORDS` and begins no longer word of the vocabulary ("hou" begins "house").
By that rule, on CLIP's tokenizer sks is one piece and means nothing, sbu is one piece but begins another word, and zwx
is two pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.contracts import BenchError

NAMED = ("sks", "sbu", "zwx")  # the community's, Pair Customization's, StyleForge's
LONGEST = 3  # letters
END = "</w>"  # of a whole word in a CLIP vocabulary
WORDS = frozenset(
    "a an act add ago aid aim air all am and ant any ape apt are arm art as ash ask at ate away axe bad bag ban bar "
    "bat be bed bee beg bet bid big bin bit bow box boy bud bug bun bus but buy by can cap car cat cop cow cry cub "
    "cup cut dad day den did die dig dim dip do dog dot dry due dug dye ear eat egg ego end era eve eye fan far fat "
    "fax fed fee few fig fin fit fix flu fly fog for fox fun fur gap gas gel get gig go god got gum gun gut guy gym "
    "had ham has hat he hen her hid him hip his hit hop hot how hub hug hut ice if in ink inn is it its jam jar jaw "
    "jet job jog joy key kid kit lab lap law lay led leg let lid lie lip lit log lot low mad man map mat may me men "
    "met mid mix mom mop mud mug my net new nil no nod nor not now nut oak odd of off oil ok old on one or our out "
    "owe owl own pad pan paw pay pea pen pet pie pig pin pit pop pot pub put rag ran rat raw ray red rib rid rig "
    "rip rob rod row rub rug run sad say sea see set sew she shy sin sip sir sit six ski sky so son sow soy spa spy "
    "sub sum sun tab tag tan tap tax tea ten the tie tin tip to toe ton too top toy try tub two up us use van vet "
    "via war was wax way we web wet who why wig win wit won wow yes yet you zip zoo".split()
)


def pieces(tokenizer: Any, word: str) -> list[str]:
    """What the tokenizer makes of a word, without its begin and end tokens."""
    return list(tokenizer.tokenize(word))


def split_notes(words: Sequence[str], tokenizers: Sequence[Any]) -> list[str]:
    """A sentence for each word that some tokenizer takes apart."""
    parts = {word: max((pieces(tokenizer, word) for tokenizer in tokenizers), key=len, default=[]) for word in words}
    return [
        f"the rare token {word!r} is {len(found)} pieces on this backbone ({' '.join(found)}); "
        "python -m bench.tokens lists words of one piece"
        for word, found in parts.items()
        if len(found) > 1
    ]


def rare(tokenizer: Any, longest: int = LONGEST) -> list[str]:
    """Meaningless words of 2 to `longest` letters, each one piece, the rarest (last merged) first."""
    vocabulary = tokenizer.get_vocab()
    whole = sorted(token.removesuffix(END) for token in vocabulary if token.endswith(END))
    short = [word for word in whole if 2 <= len(word) <= longest and word.isascii() and word.isalpha()]
    begins = _beginnings(whole, longest)
    chosen = [word for word in short if word not in WORDS and word not in begins]
    alone = [word for word in chosen if pieces(tokenizer, word) == [word + END]]
    return sorted(alone, key=lambda word: -vocabulary[word + END])


def _beginnings(words: Sequence[str], longest: int) -> set[str]:
    """Everything of at most `longest` letters with which a longer word begins."""
    return {word[:n] for word in words for n in range(1, min(longest, len(word) - 1) + 1)}


def tokenizer_of(backbone: str) -> Any:
    """The first tokenizer of a backbone of conf/backbone, or of a folder or hub name. Raises BenchError."""
    import yaml
    from transformers import CLIPTokenizer

    from bench.backbones import resolve
    from bench.backbones.load import reading
    from bench.paths import ROOT

    known = ROOT / "conf" / "backbone" / f"{Path(backbone).name}.yaml"
    spec: dict[str, Any] = yaml.safe_load(known.read_text()) if known.is_file() else {"path": backbone}
    folder = resolve(spec["path"], spec.get("variant"), spec.get("download_gb")) / "tokenizer"
    if not folder.is_dir():
        raise BenchError(f"{backbone} was opened for its tokenizer; {folder} is no folder; name a backbone in full.")
    with reading(folder):
        return CLIPTokenizer.from_pretrained(folder)
