"""Texts in a config that name modules: which of them a cut changes, found by matching; each is renumbered, or refused.

Quantisation sections say in texts which modules they mean: names, ends of names, globs, regular expressions with groups and
classes, with or without a mark before them (``re:``, ``+:``, ``-:``). Nothing is guessed from how such a text looks. It is
matched against every name of the source and of the student, in all the ways its readers match it; where it means the same
modules before and after, renumbered, it stays. Else its numbers are rewritten and matched again; what still differs is refused.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from shoal.engine.families import find_layers
from shoal.engine.shards import Shard
from shoal.words.reading import shortened

Matches = Callable[[str], bool]
MARKS = ("re:", "+:", "-:")
LITERAL = re.compile(r"[\w.\-/]*")
BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"  # The rule is that of transformers.quantizers.quantizers_utils.should_convert_module.
# What can stand for a layer number in a pattern: digits, a class or a group of such, one after the other.
NUMBER = re.compile(
    r"(?:(?:\((?:\?:)?(?:[\d|\[\]\-^]|\\d)*\d(?:[\d|\[\]\-^]|\\d)*\)|\[[\d\-^]+\]|\\d|\d)(?:[?+*]|\{\d+(?:,\d*)?\})?)+"
)
NUMBERED_LAYERS = re.compile(r"(?:layers?|blocks?|(?:^|\.)h)\\?[./\[(]+(?:\?:)?\d", re.IGNORECASE)
GLOB = re.compile(r"[\w.\-/*?]*(?<![.\])])\*[\w.\-/*?]*")  # No regular expression would have a star there.
PER_LAYER = re.compile(r"layers?(?:_|$)|_idxs?$|indices")
# A layer by its number, in a text that is no name of a module here: layer_7, blk.7, language_model.layers.7.mlp.
LAYER_WORD = re.compile(
    r"(?:^|[^A-Za-z])(?:layers?[._\-/ ]?[\[{(]?|(?:blocks?|blk|h)(?:[./][\[{(]?|[\[{]))(?P<number>\d+)(?![A-Za-z\d])",
    re.IGNORECASE,
)
BEHIND = re.compile(r"\]?(?:[._/ ](?!\.)|$)")  # What may stand behind a number that is one layer's; 7-9 and 7,8 are several.
TOWER = re.compile(r"visi|visual|audio|image|speech|encoder|tower", re.IGNORECASE)
PLAIN = re.compile(r"[\w./\-\[\]{}(),: ]*")  # Such a text is no regular expression with more than one meaning.
MOST_GROUPS = 4  # A list of settings that is no longer than this may be one of groups, such as of inputs and weights.
NEVER = "(?!)"  # This regular expression matches nowhere.


class Names:
    """Names of a source, in memory and on disk, and what each is called in the student.

    Args:
        names: of modules, parameters and stored tensors; the modules above a tensor are added.
        prefixes: what stands before a layer number in them.
        order: source layer of each layer of the student; a layer may stand in several places.

    ``after`` has a source's names with those of the student, none where it is gone; ``students`` are all of these.
    """

    def __init__(self, names: Iterable[str], prefixes: Sequence[str], order: Sequence[int]) -> None:
        self.prefixes = tuple(prefixes)
        self.places: dict[int, tuple[int, ...]] = {}
        for new, old in enumerate(order):
            self.places[old] = (*self.places.get(old, ()), new)
        known: set[str] = set()
        for name in names:
            parts = name.split(".")
            known.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
        self.n_before = 1 + max((found[1] for name in known if (found := self._split(name)) is not None), default=-1)
        self.after = {name: self.renamed(name) for name in sorted(known)}
        self.students = frozenset(new for news in self.after.values() for new in news)

    def _split(self, name: str) -> tuple[str, int, str] | None:
        """Prefix, layer number and the rest, of a name inside a layer."""
        for prefix in self.prefixes:
            number, dot, rest = name.removeprefix(prefix).partition(".") if name.startswith(prefix) else ("", "", "")
            if number.isascii() and number.isdigit():
                return prefix, int(number), dot + rest
        return None

    def renamed(self, name: str) -> tuple[str, ...]:
        """What a name of the source is in the student, in every place where its layer stands."""
        found = self._split(name)
        if found is None:
            return (name,)
        prefix, old, rest = found
        return tuple(f"{prefix}{new}{rest}" for new in self.places.get(old, ()))

    def meant(self, matches: Matches) -> frozenset[str]:
        """Names in the student of what is matched in the source."""
        return frozenset(new for name, news in self.after.items() if news and matches(name) for new in news)

    def found(self, matches: Matches) -> frozenset[str]:
        """Names of the student that are matched."""
        return frozenset(name for name in self.students if matches(name))


def names_of(model: nn.Module, shards: Sequence[Shard], prefix: str, order: Sequence[int]) -> Names:
    """The names of a source: modules and parameters of its empty model, and tensors on disk.

    Args:
        prefix: of the layers on disk.
        order: source layer of each layer of the student.
    """
    stored = [name for shard in shards for name in shard.slots]
    in_memory = [name for name, _ in model.named_modules() if name] + [name for name, _ in model.named_parameters()]
    return Names([*in_memory, *stored], (f"{find_layers(model)[0]}.", prefix), order)


def renumbered(value: Any, names: Names, *, where: str, is_about_modules: bool = True) -> Any:
    """A section of a config in the student's layer numbers.

    Args:
        is_about_modules: every text of it may name modules, as in a quantisation section; else only those that name a numbered
            layer in so many words.
    Returns: a copy; names of removed modules are dropped from lists and keys.
    Raises:
        ValueError: a text that cannot be renumbered, or numbers that look like those of layers.
    """
    if isinstance(value, str):
        news = _text(value, names, where, is_about_modules)
        if len(news) != 1:
            raise ValueError(f"{where} names {shortened(value)!r}, which has {len(news)} places after the cut; take it out")
        return news[0]
    if isinstance(value, list):
        if is_about_modules:
            _refuse_numbers(value, where)
            _refuse_settings(value, names, where)
        items: list[Any] = []
        for one in value:
            if isinstance(one, str):
                items += _text(one, names, where, is_about_modules)
            else:
                items.append(renumbered(one, names, where=where, is_about_modules=is_about_modules))
        return items
    if isinstance(value, Mapping):
        if is_about_modules and any(str(key).isdigit() for key in value):
            raise ValueError(f"{where} is keyed by number, which may be that of a layer; it is not known how to cut it")
        return dict(_fields(value, names, where, is_about_modules))
    return value


def _fields(value: Mapping[Any, Any], names: Names, where: str, is_about_modules: bool) -> Iterator[tuple[Any, Any]]:
    for key, below in value.items():
        news: Sequence[Any] = _text(key, names, where, is_about_modules) if isinstance(key, str) else (key,)
        for new in news:
            yield new, renumbered(below, names, where=f"{where}.{key}", is_about_modules=is_about_modules)


def _refuse_numbers(value: list[Any], where: str) -> None:
    """Raises ValueError for a list of numbers in a field whose name speaks of layers."""
    field = where.rsplit(".", 1)[-1]
    if value and all(type(one) is int for one in value) and PER_LAYER.search(field):
        raise ValueError(f"{where} is a list of numbers that look like those of layers; it is not known how to cut it")


def _refuse_settings(value: list[Any], names: Names, where: str) -> None:
    """Raises ValueError for as many texts as there are layers that all are settings, and no names of modules."""
    is_per_layer = len(value) == names.n_before > MOST_GROUPS and all(isinstance(one, str) for one in value)
    if is_per_layer and not any(names.meant(matches) for one in set(value) for matches in _matches(one)):
        raise ValueError(f"{where} has one setting for each of the {names.n_before} layers; it is not known how to cut it")


def _text(text: str, names: Names, where: str, is_about_modules: bool) -> tuple[str, ...]:
    """A text in the student's numbers; none where all that it names is gone."""
    if text.isdigit() or not (is_about_modules or NUMBERED_LAYERS.search(text) or LAYER_WORD.search(text)):
        return (text,)
    if text in names.after:  # The text is a name as it stands.
        return names.after[text]
    if LITERAL.fullmatch(text) and not re.search(r"\d", text):
        return (text,)  # Without a number or a wildcard the text means the same modules in any numbering.
    readings = [(make, found) for make in readings_of(text) if (found := make(text)) is not None]
    meant = [names.meant(matches) for _, matches in readings]
    if all(names.found(matches) == wanted for (_, matches), wanted in zip(readings, meant, strict=True)):
        return (text,) if any(meant) or not PLAIN.fullmatch(text) else _unmatched(text, names, where)
    if not any(meant):
        return ()
    for candidate in _candidates(text, names):
        again = [make(candidate) for make, _ in readings]
        if all(one is not None and names.found(one) == wanted for one, wanted in zip(again, meant, strict=True)):
            return (candidate,)
    raise ValueError(
        f"{where} has {shortened(text)!r}, which names other modules after the cut and cannot be renumbered; name the modules "
        "one by one in config.json, or remove other layers"
    )


def _unmatched(text: str, names: Names, where: str) -> tuple[str, ...]:
    """A plain text that names no module of this model: where it speaks of one layer by number, in the student's numbers."""
    found = LAYER_WORD.search(text)
    old = int(found["number"]) if found else -1
    if found is None or old >= names.n_before or TOWER.search(text[: found.start("number")]):
        return (text,)
    start, stop = found.span("number")
    if not BEHIND.match(text, stop) or LAYER_WORD.search(text, stop):
        raise ValueError(
            f"{where} has {shortened(text)!r}, which speaks of layers and names no module of this model; name its modules "
            "one by one, or take it out of config.json"
        )
    return tuple(f"{text[:start]}{new}{text[stop:]}" for new in names.places.get(old, ()))


NameReading = Callable[[str], Matches | None]


def readings_of(text: str) -> list[NameReading]:
    """The ways in which a text is matched by those who read it: transformers, compressed-tensors, GPTQModel, vLLM."""
    if text.startswith(MARKS):
        return [_marked]
    if LITERAL.fullmatch(text):
        return [_as_transformers, _between_dots]
    if GLOB.fullmatch(text):
        return [_glob]
    return [_as_transformers, _searched, *([_glob] if re.search(r"[*?\[]", text) else [])]


def _matches(text: str) -> Iterator[Matches]:
    """What a text matches, in each way that can read it."""
    for make in readings_of(text):
        if (found := make(text)) is not None:
            yield found


def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return None


def _marked(text: str) -> Matches | None:
    """``re:``, ``+:``, ``-:`` and a regular expression from the start of the name (compressed-tensors, GPTQModel)."""
    found = _compiled(text.split(":", 1)[1])
    return None if found is None else lambda name: found.match(name) is not None


def _as_transformers(text: str) -> Matches | None:
    found = _compiled(rf"(?:{text}){BOUNDARY}")
    return lambda name: name.endswith(text) or (found is not None and found.match(name) is not None)


def _searched(text: str) -> Matches | None:
    found = _compiled(text)
    return None if found is None else lambda name: found.search(name) is not None


def _between_dots(text: str) -> Matches | None:
    inner = f".{text.strip('.')}."
    return lambda name: inner in f".{name}."


def _glob(text: str) -> Matches | None:
    return lambda name: fnmatch.fnmatchcase(name, text)


def _candidates(text: str, names: Names) -> Iterator[str]:
    """The text with one of its numbers, or of what stands for numbers, in those of the student; then with all of them."""
    numbers = (re.compile(r"\d+") if GLOB.fullmatch(text) else NUMBER).finditer(text)
    places = [(place, number) for place in numbers if (number := _student_numbers(place[0], names)) is not None]
    for place, number in places:
        if number:
            yield text[: place.start()] + number + text[place.end() :]
            # The layers of a tower keep their numbers.
            yield f"{text[: place.start()]}(?:{number}|{place[0]}){text[place.end() :]}"
    if len(places) > 1:
        whole = text
        for place, number in reversed(places):  # The last place goes first, so that those before it stay where they are.
            whole = whole[: place.start()] + (number or NEVER) + whole[place.end() :]
        yield whole


def _student_numbers(pattern: str, names: Names) -> str | None:
    """What stands for layer numbers of the source, for those of the student; empty where all are gone; None: no number fits."""
    inside = _compiled(pattern)
    if inside is None:
        return None
    olds = [old for old in range(names.n_before) if inside.fullmatch(str(old))]
    news = [str(new) for old in olds for new in names.places.get(old, ())]
    if not olds:
        return None
    return "" if not news else news[0] if len(news) == 1 else f"(?:{'|'.join(news)})"
