"""The LaTeX is strict: everything escaped, tables whole, and it compiles where there is a pdflatex."""

import re
import shutil
import string
import subprocess

import pytest

from tokenprune.report.document import Code, Heading, Items, Paragraph, Table
from tokenprune.report.latex import LONGEST, escape, latex

NASTY = "50% of $x_1 & #2 {a} ~b^c \\d <e> |f| \"g\" `h` 'i' 1±2 a--b 3×4 5… é ß 漢 \x1b[0m\nend"
BLOCKS = [
    Heading(NASTY, 1),
    Heading("A section"),
    Paragraph(NASTY),
    Items([(f"[{NASTY}]", NASTY)]),
    Code(f"Traceback\n  {NASTY}\n\nValueError: {{}}"),
    Table(NASTY, ["pruner", NASTY], [[f"row {n} {NASTY}", "1±2"] for n in range(2 * LONGEST + 1)]),
    Table("empty", ["a", "b"], []),
]


def test_what_is_special_is_escaped():
    assert escape("50% & $x_1 #2 {a}") == r"50\% \& \$x\_\allowbreak{}1 \#2 \{a\}"
    assert escape("\\ ~ ^") == r"\textbackslash{} \textasciitilde{} \textasciicircum{}"
    assert escape("1 ± 2") == r"1 $\pm$ 2"
    assert escape("漢\x1b") == "[U+6F22][U+001B]"
    plain = string.ascii_letters + string.digits + " .,:;()=+/!?*@[]"
    assert escape(f"x{plain}x") == f"x{plain}x"


def test_nothing_special_is_left():
    """Outside of the commands that escaping itself makes there is no active character."""
    left = re.sub(r"\\(text[a-z]+|allowbreak|dots)\{\}|\\[&%$#{}_]|\\`\{\}|\$\\(pm|times)\$|-\{\}", "", escape(NASTY))
    assert not set(left) & set('&%$#{}_~^\\<>|"`-')


def test_tables_are_whole():
    text = latex(BLOCKS)
    for name in ("document", "table", "tabular", "lrbox", "description", "flushleft"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") > 0
    tables = re.findall(r"\\begin\{tabular\}\{(l+)(r*)\}\n\\toprule\n(.*?)\\bottomrule", text, re.DOTALL)
    assert len(tables) == 4  # the long one is three
    for words, numbers, body in tables:
        for line in body.replace("\\midrule\n", "").splitlines():
            assert len(re.findall(r"(?<!\\)&", line)) == len(words + numbers) - 1
            assert line.endswith(r" \\")
    assert sum(body.count("row ") for *_, body in tables) == 2 * LONGEST + 1
    assert text.count("(continued)") == 2


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex")
def test_it_compiles(tmp_path):
    (tmp_path / "report.tex").write_text(latex(BLOCKS), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 10_000


def test_a_dash_is_a_dash():
    assert escape("5 – 6-7") == "5 -- 6-{}7"
