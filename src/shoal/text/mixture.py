"""Weighted mixtures of sources, and how their documents are interleaved.

Written as ``0.7*a.txt+0.3*b.jsonl`` (weights are shares of the characters; they need not sum to 1), or by the name of a
preset: ``mix:slimpajama``, ``mix:slimpajama=PATH`` for a local copy.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shoal.text.formats import DOCUMENT_CHARACTERS
from shoal.text.sources import Document
from shoal.words.entries import Entries

WEIGHTED = re.compile(r"\s*(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)\s*\*\s*(\S.*?)\s*")


@dataclass(frozen=True)
class Share:
    """One ingredient: sources that are read one after the other, or the documents of one domain in them."""

    name: str
    weight: float
    sources: tuple[str, ...]
    domain: str | None = None


@dataclass(frozen=True)
class Mixture:
    """What to read and in which proportions.

    Attributes:
        name: for people.
        parts: at least one, with positive weights.
        unit: what the weights are shares of.
        domain_key: dotted name of the field that holds a row's domain; None where no part asks for one.
    """

    name: str
    parts: tuple[Share, ...]
    unit: Literal["characters", "documents"] = "characters"
    domain_key: str | None = None


@dataclass(frozen=True)
class MixturePreset:
    """A mixture by domain of one public dataset. Weights are shares of the *documents*."""

    source: str
    domain_key: str
    weights: Mapping[str, float]


PRESETS: Entries[MixturePreset] = Entries(
    "mixture",
    {
        # LLM-Streamline (arXiv 2403.19135), official code: Sheared-LLaMA's shares, divided where documents are longer.
        "slimpajama": MixturePreset(
            source="hub:DKYoon/SlimPajama-6B",
            domain_key="meta.redpajama_set_name",
            weights={
                "RedPajamaC4": 0.492,
                "RedPajamaStackExchange": 0.01,
                "RedPajamaCommonCrawl": 0.361 / 3,
                "RedPajamaGithub": 0.008,
                "RedPajamaWikipedia": 0.031,
                "RedPajamaArXiv": 0.007 / 20,
                "RedPajamaBook": 0.091 / 200,
            },
        ),
    },
)


def parse_mixture(spec: str | Path | Sequence[str | Path]) -> Mixture:
    """A spec as a mixture: one source, several sources read as one text, a weighted sum, or a preset.

    Raises:
        ValueError: an empty spec, a malformed weight, a source named twice, an unknown preset, a mixture inside a list.
    """
    specs = (str(spec),) if isinstance(spec, (str, Path)) else tuple(str(one) for one in spec)
    if not specs or not all(one.strip() for one in specs):
        raise ValueError("the text is empty; give a path, hub:NAME, mix:NAME or 0.7*A+0.3*B")
    if len(specs) == 1 and specs[0].startswith("mix:"):
        return preset_mixture(specs[0])
    if len(specs) == 1 and WEIGHTED.fullmatch(specs[0]):
        return weighted_mixture(specs[0])
    for one in specs:
        if one.startswith("mix:") or WEIGHTED.fullmatch(one):
            raise ValueError(f"{one} is a mixture among {len(specs)} texts; write one weighted sum: 0.7*A+0.3*B")
    refuse_twice(specs)
    name = " and ".join(specs)
    return Mixture(name, (Share(name, 1.0, specs),))


def preset_mixture(spec: str) -> Mixture:
    """``mix:NAME`` from the hub, ``mix:NAME=PATH`` from a local copy with the same rows."""
    name, _, local = spec.removeprefix("mix:").partition("=")
    preset = PRESETS.named(name)
    sources = (local or preset.source,)
    parts = tuple(Share(domain, weight, sources, domain) for domain, weight in preset.weights.items())
    return Mixture(spec, parts, "documents", preset.domain_key)


def weighted_mixture(spec: str) -> Mixture:
    """``W*SOURCE+W*SOURCE``; a ``+`` that no weight follows belongs to the name before it."""
    parts = []
    for term in re.split(r"\+(?=\s*[\d.eE+-]+\s*\*)", spec):
        match = WEIGHTED.fullmatch(term)
        if match is None or float(match[1]) <= 0:
            raise ValueError(f"{term.strip()!r} in the mixture {spec!r} needs a positive weight: 0.7*A+0.3*B")
        if match[2].startswith("mix:"):
            raise ValueError(f"{match[2]} is a mixture inside the mixture {spec!r}; name its sources instead")
        parts.append(Share(match[2], float(match[1]), (match[2],)))
    refuse_twice([part.name for part in parts])
    return Mixture(spec, tuple(parts))


def refuse_twice(names: Sequence[str]) -> None:
    """Raises ValueError when a name is there twice."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is named twice; name each text once")


class Interleave(Iterator[Document]):
    """Documents of several streams, so that every prefix has the wanted proportions as nearly as whole documents allow.

    The next document comes from the part with the least ``(used + half a unit) / weight``, ties to the first: the
    Sainte-Laguë rule, under which a rare part is neither served first nor starved. Used counts documents or characters;
    a unit is one document, or the ~2000 characters of one.

    Ends when the part whose turn it is has nothing left, because going on would change the proportions; ``ended`` is then
    its name. A document that came before is skipped and counted in ``n_repeated``.
    """

    def __init__(self, mixture: Mixture, streams: Sequence[Iterator[Document]]) -> None:
        self.mixture = mixture
        self.streams = streams
        self.used = [0] * len(streams)
        self.n_repeated = 0
        self.ended: str | None = None
        self._seen: set[bytes] = set()

    def __next__(self) -> Document:
        if self.ended is not None:
            raise StopIteration
        parts, count = self.mixture.parts, self.mixture.unit == "documents"
        half = 0.5 if count else DOCUMENT_CHARACTERS / 2
        turn = min(range(len(parts)), key=lambda i: (self.used[i] + half) / parts[i].weight)
        for document in self.streams[turn]:
            if document.digest in self._seen:
                self.n_repeated += 1
                continue
            self._seen.add(document.digest)
            self.used[turn] += 1 if count else len(document.text)
            return document
        self.ended = parts[turn].name
        raise StopIteration


def by_domain(documents: Iterator[Document], domains: Sequence[str]) -> dict[str, Iterator[Document]]:
    """One stream per domain out of one reading. Documents met while looking for another domain wait in memory."""
    waiting: dict[str, deque[Document]] = {domain: deque() for domain in domains}

    def stream(domain: str) -> Iterator[Document]:
        while True:
            if waiting[domain]:
                yield waiting[domain].popleft()
                continue
            document = next(documents, None)
            if document is None:
                return
            if document.domain in waiting:
                waiting[document.domain].append(document)

    return {domain: stream(domain) for domain in domains}
