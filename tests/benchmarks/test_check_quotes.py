"""Figures quoted from benchmarks/results/ are there: `benchmarks.check_quotes`."""

import json
import re
from importlib.util import find_spec

import pytest

from benchmarks.check_quotes import PAGES, ROOT, main, quotes, wrong

RESULTS = "benchmarks/results"


def faults(page, root):
    return [(quote.line, why) for quote in quotes(page, root) if (why := wrong(quote))]


@pytest.fixture
def says(tmp_path):
    """What is wrong with a page of this text, beside results of known content."""
    results = tmp_path / RESULTS
    results.mkdir(parents=True)
    rows = [
        {"name": "ours", "share": 0.4, "kl": 0.02835, "by seed": [0.8, 0.9, 1.0], "held": True},
        {
            "name": "tome(a=b)",
            "share": 0.4,
            "kl": 0.06496,
            "by seed": [0.5, None],
            "note": "12.5 %",
        },
    ]
    (results / "a.json").write_text(json.dumps({"gmacs": 0.001684, "rows": rows}))
    (results / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (results / "a.md").write_text("| ours | 0.44 (0.33 to 0.55) |\n| tome | 1.00 |\n")

    def check(text):
        page = tmp_path / "page.md"
        page.write_text(text)
        return faults(page, tmp_path)

    return check


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_all_that_is_quoted_is_there(page):
    assert faults(page, ROOT) == []


def test_the_pages_that_must_quote_do():
    titled = {page.name: sum(bool(q.title) for q in quotes(page)) for page in PAGES[1:]}
    assert titled["results.md"] > 40
    assert len({q.title for q in quotes(ROOT / "README.md") if q.title}) >= 3


def test_every_figure_of_the_first_screen_and_the_results_is_caught_when_altered():
    """By two in the last digit: the title lets no other value of the file stand in for it."""
    for name in ("README.md", "docs/results.md"):
        for quote in quotes(ROOT / name):
            if not quote.title or quote.files[0].suffix == ".md":
                continue
            for number, figure in enumerate(quote.figures):
                digits = len(figure.partition(".")[2])
                more = f"{float(figure.replace(',', '')) + 2 * 10.0**-digits:.{digits}f}"
                altered = [*quote.figures[:number], more, *quote.figures[number + 1 :]]
                assert wrong(quote._replace(figures=altered)), (name, quote, more)


@pytest.mark.parametrize(
    "text",
    [
        '[0.028](benchmarks/results/a.jsonl "[name=ours].kl")',
        '[0.0650][t]\n\n[t]: benchmarks/results/a.jsonl "[name=tome(a=b)][share=0.4].kl"',
        '[0.9 ± 0.1 of 3](benchmarks/results/a.json "rows[name=ours].by seed.mean/std/count")',
        '[2.8 %, 40](benchmarks/results/a.json "rows[name=ours].kl; rows[name=ours].share")',
        '[12.5 %](benchmarks/results/a.json "rows[name=tome(a=b)].note")',
        '[0.44 (0.33 to 0.55)](benchmarks/results/a.md "| ours |")',
        "1.684 MMACs, more in [the rows](benchmarks/results/a.json), 7 seeds, `9.99`",
        "As in `benchmarks/results/a.jsonl`:\n\n| x |\n|---|\n| 0.028, then 80.0 % |\n",
        "3.1415 is from nowhere\n\n| 2.71 |\n\n```\nbenchmarks/results/a.md 9.9\n```\n",
    ],
)
def test_what_is_there(says, text):
    assert says(text) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('\n[0.029](benchmarks/results/a.jsonl "[name=ours].kl")', "2: 0.029: a.jsonl .*0.02835"),
        ('[0.02836](benchmarks/results/a.jsonl "[name=ours].kl")', "has 0.02835"),
        ('[0.028, 0.4](benchmarks/results/a.jsonl "[name=ours].kl")', "has 0.02835"),
        ('[0.028](benchmarks/results/a.jsonl "[name=ours].kl/share")', "has 0.02835, 0.4"),
        ('[0.028](benchmarks/results/a.jsonl "[name=nobody].kl")', "has nothing"),
        ('[0.028](benchmarks/results/a.jsonl "[name=ours].loss")', "loss"),
        ('[0.028](benchmarks/results/a.json "gmacs.kl")', "gmacs.kl"),
        ('[0.44 (0.33 to 1.00)](benchmarks/results/a.md "| ours |")', "is not there"),
        ('[2.8](benchmarks/results/a.jsonl "[name=ours].kl")', "has 0.02835"),
        ('[0.028](benchmarks/results/b.jsonl "[name=ours].kl")', "b.jsonl .*No such file"),
        ("see `benchmarks/results/b.json`: 0.028", "b.json .*No such file"),
        ("[0.028][nowhere]", "nowhere.*No such file"),
        ("As in `benchmarks/results/a.jsonl`:\n\n| x |\n|---|\n| 0.031 |\n", "5: 0.031: a.jsonl"),
        (
            "| [a](benchmarks/results/a.md) | 0.44 |\n| [b](benchmarks/results/a.json) | 0.55 |",
            "2:",
        ),
    ],
)
def test_what_is_not_there_is_named(says, text, why):
    (line, said), *others = says(text)
    assert re.search(why, f"{line}: {said}") and not others


def test_the_command_lists_them_and_fails(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("# T\n\n1.5 as in `benchmarks/results/train.json`\n\n1.5 elsewhere\n")
    monkeypatch.setattr("sys.argv", ["check_quotes", str(page)])
    with pytest.raises(SystemExit, match="True"):
        main()
    assert re.fullmatch(r"\S*page.md:3: 1.5: train.json : is not there\n", capsys.readouterr().out)
    page.write_text("1.00 as in `benchmarks/results/train.json`\n")
    with pytest.raises(SystemExit, match="False"):
        main()
    assert capsys.readouterr().out == "1 quotes hold\n"


def test_commands_that_the_results_name_are_there():
    text = (ROOT / "docs/results.md").read_text()
    for room, module, others in re.findall(r"python -m (benchmarks[\w.]*)\.(\w+)([^|]*)\|", text):
        for name in (module, *re.findall(r"`\.([\w.]+)`", others)):
            assert find_spec(f"{room}.{name}"), (room, name)
