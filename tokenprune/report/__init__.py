"""From the records of a run or sweep to tables, pictures and a page; nothing is computed again."""

from tokenprune.report.files import ordered_records, write
from tokenprune.report.numbers import engineering
from tokenprune.report.results import console_table

__all__ = ["console_table", "engineering", "ordered_records", "write"]
