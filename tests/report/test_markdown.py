"""Markdown that shows what was meant."""

from tokenprune.report.document import Code, Heading, Items, Paragraph, Picture, Table
from tokenprune.report.markdown import markdown


def test_markdown():
    blocks = [
        Heading("A title", 1),
        Paragraph("text with a * and a_b"),
        Items([("term", "meaning")]),
        Code("a | b"),
        Table("caption", ["pruner", "B", "n"], [["x|y [z]", "b", "1"]], words=2),
        Picture("a.png", "what"),
    ]
    assert markdown(blocks) == (
        "# A title\n\ntext with a \\* and a_b\n\n- **term**: meaning.\n\n```\na | b\n```\n\n"
        "| pruner | B | n |\n| --- | --- | ---: |\n| x\\|y \\[z\\] | b | 1 |\n\n![what](a.png)\n"
    )
