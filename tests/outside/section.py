"""A part of every report: which pruner was best, in a sentence."""

from tokenprune.report.document import Heading, Paragraph
from tokenprune.report.sections import register_section


@register_section("winner")
def winner(section):
    best = max((row for row in section.done if row.label != "none"), key=lambda row: row.any.metrics["accuracy"])
    return [Heading("Winner"), Paragraph(f"Of all pruners {best.label} answers best.")]
