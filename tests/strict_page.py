"""A strict check of HTML pages that must need nothing but themselves."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

from tokenprune.report.page import STYLE

EMPTY = {"meta", "img"}


class Strict(HTMLParser):
    """Every tag is closed in its turn; collects attributes."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.attributes, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in EMPTY
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text):
    """Strictly well-formed, and without a reference to anything outside; returns the tags."""
    assert text.startswith("<!DOCTYPE html>\n")
    ET.fromstring(text.removeprefix("<!DOCTYPE html>"))
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    ids = [value for name, value in parser.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in parser.attributes:
        assert name != "href" or value.removeprefix("#") in ids
        assert name != "src" or value.startswith("data:image/png;base64,")
        assert name in {
            "lang",
            "charset",
            "name",
            "content",
            "class",
            "id",
            "href",
            "src",
            "alt",
            "scope",
            "aria-label",
        }
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(parser.tags)
    assert not re.search(r"url\(|@import|https?:", STYLE)
    return parser.tags
