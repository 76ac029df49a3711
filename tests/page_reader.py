"""A page as a tree, by the standard library's parser: what a browser would find, without one."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}


@dataclass
class Element:
    name: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    def __iter__(self):
        """This element and all below it, in the order of the page."""
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child

    def all(self, name: str, **attributes: str) -> list[Element]:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [one for one in self if one.name == name and all(one.attributes.get(k) == v for k, v in wanted.items())]

    def of_class(self, name: str) -> list[Element]:
        return [one for one in self if name in (one.attributes.get("class") or "").split()]

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Reader(HTMLParser):
    """Refuses what a browser would have to mend: elements that are not closed, or closed in another order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag, attrs):
        assert len({key for key, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, dict(attrs))
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):  # <rect …/>
        self._open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop().name == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self._open[-1].children.append(data)


def read_page(text: str) -> Element:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert len(reader._open) == 1, "an element is not closed"
    return reader.root


def table_of(page: Element, label: str) -> list[list[str]]:
    """Rows of the table with this label, the head first."""
    (table,) = page.all("table", aria_label=label)
    return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in table.all("tr")]
