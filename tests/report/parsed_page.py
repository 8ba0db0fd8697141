"""A page as a strict parser sees it, and text that tries to become markup."""

import json
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;</pre></style>"


class Page(HTMLParser):
    """The elements, ids, links and text of a page; fails on tags that do not nest."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"
        self.text = "".join(self.words)
        self.sections = [value for tag, key, value in self.attributes if (tag, key) == ("section", "id")]

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data):
        self.words.append(data)

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


def data_of(html: str, key: str):
    """The JSON that a page holds for its script."""
    begin = f'<script type="application/json" id="{key}">'
    return json.loads(html.partition(begin)[2].partition("</script>")[0])
