"""report, explain and import: what they say, and how they refuse."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import typer_runs

from pipelines.commands import report_command as commands
from pipelines.errors import UserError
from pipelines.results.explain import explain
from pipelines.results.imported_fronts import import_front, load_outside
from pipelines.search.state import SearchState
from pipelines.storage.search_files import Search


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("t001", "Trained to its end, after 3 epochs, 60 device-seconds; top-1 96.50 % on minival"),
        ("t001", "top-1 on minival, epoch by epoch: 90.0 95.0 96.5"),
        ("t003", "On the front, its knee."),
        ("t005", "Stopped early after 1 epoch, 20 device-seconds: 0.05 below the front"),
        # 70 % at 0.034 GMACs, where t001 has 96.5 % at 0.030.
        ("t005", "26.50 points of top-1 below the front at its own cost: t001 has 96.50 %"),
        ("t006", "2.00 points of top-1 below the front at its own cost: t003 has 92.00 %"),
        ("t007", "Failed after 0 epochs, 0 device-seconds: worker died."),
        ("t007", "Nothing measured yet."),
        ("dense-96", "width 96, dense base, 0.046 GMACs (100 % of dense)"),
    ],
)
def test_explanations(state: SearchState, model: str, expected: str) -> None:
    assert expected in explain(state, model)


def test_an_unknown_model_offers_near_ones(state: SearchState) -> None:
    with pytest.raises(UserError, match=r"search digits has no model t01: there is t001") as caught:
        explain(state, "t01")
    assert caught.value.exit_code == 2


def write_table(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    return path


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path, "s")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_an_imported_front_is_kept(search: Search, tmp_path: Path, suffix: str) -> None:
    rows = [
        {"label": "DeiT-Ti", "gmacs": 1.25, "top1": 73.9},
        {"label": "DeiT-S", "gmacs": 4.6, "top1": 81.2},
    ]
    import_front(search, write_table(tmp_path / f"paper{suffix}", rows), "the paper")
    (front,) = load_outside(search)
    assert front.name == "the paper"
    assert [(p.label, p.gmacs, round(p.top1, 4)) for p in front.points] == [
        ("DeiT-Ti", 1.25, 0.739),
        ("DeiT-S", 4.6, 0.812),
    ]
    import_front(search, write_table(tmp_path / f"paper{suffix}", rows[:1]), "the paper")
    assert len(load_outside(search)[0].points) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"gmacs": 1.0, "accuracy": 0.5}], "has no column top1: it has gmacs, accuracy"),
        ([{"gmacs": "cheap", "top1": 0.5}], "row 1: gmacs is 'cheap', no number"),
        ([{"gmacs": -1.0, "top1": 0.5}], "row 1: gmacs -1 with top1 0.5 is impossible"),
        ([{"gmacs": 1.0, "top1": 180.0}], "row 1: gmacs 1 with top1 180 is impossible"),
    ],
)
def test_bad_tables_are_one_line(
    search: Search, tmp_path: Path, rows: list[dict], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        import_front(search, write_table(tmp_path / "bad.csv", rows))
    assert message in str(caught.value)
    assert load_outside(search) == []


def test_a_file_that_is_no_table(search: Search, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        import_front(search, tmp_path / "missing.parquet")
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="is no Parquet, CSV or JSON-lines table"):
        import_front(search, tmp_path / "x.parquet")


@pytest.fixture
def run(storage: Path) -> Callable[..., str]:
    app = typer.Typer()
    for command in (commands.report, commands.explain):
        app.command()(command)
    app.command("import")(commands.import_results)
    return lambda *words: typer_runs.run(app, *words, "--storage", storage).output


def test_the_commands(run: Callable[..., str], storage: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "published.csv", [{"gmacs": 0.02, "top1": 0.91}])
    assert "published: 1 models" in run("import", "digits", str(table))
    assert "wrote" in run("report", "digits", "--out", str(tmp_path / "sub" / "page.html"))
    text = (tmp_path / "sub" / "page.html").read_text()
    assert '"name":"published"' in text
    run("report", "digits")
    assert (storage / "searches" / "digits" / "report.html").exists()
    assert "Stopped early" in run("explain", "digits", "t005")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write") as caught:
        run("report", "digits", "--out", str(tmp_path / "file" / "page.html"))
    assert caught.value.exit_code == 1
