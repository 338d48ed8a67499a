"""Whether the figures that README.md and docs/ quote from benchmarks/results/ are there.

A figure is quoted by a link to its file, and the link's title says where in the file it stands:
[0.85 ± 0.01](benchmarks/results/a.json "rows[name=ours].top1.mean/std"), or [0.85 ± 0.01][a].
A title is a path of keys; JSON lines are a list, [key=value] its rows that have it, a/b takes both,
mean, std and count are a list's; semicolons divide paths. The link's figures are these values, in
order. In Markdown one line holds title and figures. Links without a title, and other decimals of a
paragraph, list or row of a table that names a results file (else of the paragraph before), stand
somewhere in there. Values are rounded, also in per cent or MMACs where these are spoken of.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FIGURE = re.compile(r"(?<![\w.,/])\d+(?:,\d{3})*(?:\.\d+)?(?![\w/])")
_NAMED = re.compile(r"benchmarks/results/[\w.-]+\.(?:jsonl?|md)\b")
_LINK = re.compile(r'(?<!!)\[([^\[\]]+)\](?:\(([^()\s]+)(?:\s+"([^"]*)")?\)|\[([^\[\]]+)\])')
_DEFINED = re.compile(r'^\[([^\]]+)\]:\s+(\S+)(?:\s+"([^"]*)")?[ \t]*$', re.MULTILINE)
_FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^ *\|[^\n]*\n?|(?:^(?! *\|)[^\n]*\S[^\n]*\n?)+", re.MULTILINE)
_CODE = re.compile(r"`[^`]*`")
_STEP = re.compile(r"\[([^\]=]*)=([^\]]*)\]|([^.\[\]]+)")


class Quote(NamedTuple):
    """Figures of one place of a page, and where they are said to be from."""

    line: int
    figures: list[str]
    files: list[Path]
    title: str | None
    scales: tuple[int, ...]


def quotes(page: Path, root: Path = ROOT) -> Iterator[Quote]:
    """All quotes of a page."""
    text = _FENCED.sub(_blank, page.read_text(encoding="utf-8"))
    defined = {name: where for name, *where in _DEFINED.findall(text)}
    text = _DEFINED.sub(_blank, text)
    spoken, before = "", list[Path]()
    for block in _BLOCK.finditer(text):
        row = block[0].lstrip().startswith("|")
        spoken = spoken * row + block[0]
        scales = (1, *[100] * ("%" in spoken), *[1000] * ("MMAC" in spoken))
        files = [root / name for name in _NAMED.findall(block[0])]
        rest = _CODE.sub(_blank, block[0])
        for link in _LINK.finditer(rest):
            target, title = defined.get(link[4], (link[0], "")) if link[4] else link.group(2, 3)
            file = (page.parent / target).resolve()
            if _NAMED.search(file.as_posix()):
                files.append(file)
            elif target != link[0]:  # a label that is not defined is a file that is not there
                continue
            rest = rest[: link.start()] + _blank(link) + rest[link.end() :]
            line = 1 + text.count("\n", 0, block.start() + link.start())
            yield Quote(line, _FIGURE.findall(link[1]), [file], title, scales)
        before = before if row else files
        for figure in _FIGURE.finditer(rest):
            if "." in figure[0] and (files or before):
                line = 1 + text.count("\n", 0, block.start() + figure.start())
                yield Quote(line, [figure[0]], files or before, None, scales)


def wrong(quote: Quote) -> str | None:
    """What is wrong with a quote, in one line."""
    _, figures, files, title, scales = quote

    def rounds(figure: str, value: float) -> bool:
        number, half = float(figure.replace(",", "")), 0.5 * 10.0 ** -len(figure.partition(".")[2])
        return any(abs(abs(value) * scale - number) <= half + 1e-9 for scale in scales)

    try:
        contents = [_load(file) for file in files]
        if title and not isinstance(contents[0], str):
            found = _numbers([_select(contents[0], path.strip()) for path in title.split(";")])
            right = len(found) == len(figures) and all(map(rounds, figures, found))
            why = f"has {', '.join(f'{value:.6g}' for value in found) or 'nothing'}"
        else:
            parts = [x for x in contents[0].splitlines() if title in x] if title else [contents]
            right = any(all(any(rounds(f, v) for v in _numbers(p)) for f in figures) for p in parts)
            why = "is not there"
    except (OSError, AttributeError, LookupError, TypeError, ValueError) as error:
        right, why = False, getattr(error, "strerror", None) or repr(error)
    names = " or ".join(sorted({file.name for file in files}))
    return None if right else f"{', '.join(figures)}: {names} {title or ''}: {why}"


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


@lru_cache
def _load(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    text = f"[{','.join(text.splitlines())}]" if file.suffix == ".jsonl" else text
    return text if file.suffix == ".md" else json.loads(text)


def _select(value: Any, path: str) -> Any:
    for field, wanted, keys in _STEP.findall(path):
        if field:
            value = [row for row in value if str(row.get(field)) == wanted]
        else:
            value = [_key(value, k) for k in keys.split("/")] if "/" in keys else _key(value, keys)
    return value


def _key(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return value[key]
    of_all: Any = {"mean": statistics.fmean, "std": statistics.stdev, "count": len}.get(key)
    if of_all:
        return of_all(_numbers(value))
    found = [_key(row, key) for row in value]
    return [x for part in found for x in (part if isinstance(part, list) else [part])]


def _numbers(value: Any) -> list[float]:
    if isinstance(value, str):
        return [float(figure.replace(",", "")) for figure in _FIGURE.findall(value)]
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [number for part in parts for number in _numbers(part)]
    return [] if value is None or isinstance(value, bool) else [float(value)]


def main() -> None:
    """Lists the quotes that do not hold, and exits with 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="default README.md and docs/*.md")
    checked = [(page, q) for page in parser.parse_args().pages or PAGES for q in quotes(page)]
    faults = [f"{os.path.relpath(p)}:{q.line}: {why}" for p, q in checked if (why := wrong(q))]
    print("\n".join(faults) or f"{len(checked)} quotes hold")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
