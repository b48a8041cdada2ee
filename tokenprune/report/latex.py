r"""A report as LaTeX: a document that compiles with pdflatex, whose tables (booktabs) can be copied into a paper."""

from __future__ import annotations

from collections.abc import Sequence

from tokenprune.report.document import Block, Code, Heading, Items, Paragraph, Picture, Table

HEAD = r"""\documentclass[10pt]{article}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage{float}
\sloppy
% A table that is wider than the line is made smaller; delete this and the two lines around a tabular to let it be.
\newsavebox{\tablebox}
\newcommand{\fitted}{\ifdim\wd\tablebox>\linewidth\resizebox{\linewidth}{!}{\usebox{\tablebox}}\else\usebox{\tablebox}\fi}
\begin{document}"""
LEVELS = {1: "section*", 2: "subsection*", 3: "subsubsection*"}
LONGEST = 40  # rows of a table, so that it fits on a page
KNOWN = {
    **{character: f"\\{character}" for character in "&%$#{}"},
    "_": r"\_\allowbreak{}",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\`{}",
    "-": "-{}",  # two of them would become a dash
    "±": r"$\pm$",
    "×": r"$\times$",
    "…": r"\dots{}",
    "–": "--",
}


def latex(blocks: Sequence[Block]) -> str:
    """A report as the text of a LaTeX file."""
    return "\n\n".join([HEAD, *map(_block, blocks), r"\end{document}"]) + "\n"


def escape(text: str) -> str:
    """Text that LaTeX shows as it is; what its font lacks is shown by its number."""
    return "".join(map(_character, " ".join(text.split())))


def _character(character: str) -> str:
    if character in KNOWN:
        return KNOWN[character]
    if " " <= character <= "~" or ("À" <= character <= "ÿ" and character not in "×÷"):
        return character
    return f"[U+{ord(character):04X}]"


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"\\{LEVELS[min(level, 3)]}{{{escape(text)}}}"
        case Paragraph(text):
            return escape(text)
        case Items(pairs):
            items = [f"\\item[{{{escape(term)}}}] {escape(meaning)}." for term, meaning in pairs]
            return "\n".join([r"\begin{description}", *items, r"\end{description}"])
        case Code(text):
            lines = [f"\\texttt{{{escape(line)}}}\\\\" for line in text.splitlines() if line.strip()]
            return "\n".join([r"\begin{flushleft}\footnotesize", *lines, r"\end{flushleft}"])
        case Picture(file, caption):
            picture = f"\\includegraphics[width=\\linewidth,height=0.85\\textheight,keepaspectratio]{{{file}}}"
            return "\n".join([r"\begin{figure}[H]\centering", picture, _caption(caption), r"\end{figure}"])
        case Table():
            parts = range(0, max(1, len(block.rows)), LONGEST)
            return "\n\n".join(_table(block, block.rows[at : at + LONGEST], at > 0) for at in parts)


def _caption(text: str) -> str:
    return f"\\caption{{{escape(text)}}}"


def _table(table: Table, rows: Sequence[Sequence[str]], goes_on: bool) -> str:
    columns = "l" * table.words + "r" * (len(table.header) - table.words)
    return "\n".join(
        [
            r"\begin{table}[H]\centering\small",
            _caption(table.caption + (" (continued)" if goes_on else "")),
            r"\begin{lrbox}{\tablebox}",
            f"\\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _line(table.header),
            r"\midrule",
            *map(_line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{lrbox}\fitted",
            r"\end{table}",
        ]
    )


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"
