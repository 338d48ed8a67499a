"""What kind of source a name or path is, and the source itself."""

from __future__ import annotations

from pathlib import Path

from pipelines.data.names import printable
from pipelines.data.options import PrepareOptions
from pipelines.data.sources.digits import digits_source
from pipelines.data.sources.folder import folder_source
from pipelines.data.sources.folder_tree import Tree, scan
from pipelines.data.sources.glyphs import glyph_source
from pipelines.data.sources.imagenet import is_ilsvrc_tar
from pipelines.data.sources.labelled import labelled_source
from pipelines.data.sources.parquet import list_parquet, parquet_source
from pipelines.data.sources.source import LeftOut, Source
from pipelines.data.sources.tar import refuse_compressed, tar_source
from pipelines.data.sources.tar_members import COMPRESSED_ENDINGS
from pipelines.errors import UserError

_ARCHIVES = (".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")


def canonical(source: str) -> str:
    """A source's name as the manifest has it: made-up ones by name, paths in full."""
    if source in ("digits", "glyphs") or "://" in source:
        return source
    return str(Path(source).resolve())


def open_source(source: str, options: PrepareOptions) -> Source:
    """List a source.

    Raises:
        UserError: there is no such source, or it holds no images.
    """
    local = "://" not in source and source not in ("digits", "glyphs")
    if options.labels is not None and not (local and Path(source).is_dir()):
        raise UserError("--labels is for a local folder of images: leave it out, or give one")
    if source in ("digits", "glyphs"):
        _refuse_layout_options(source, options)
    if source == "digits":
        return digits_source()
    if source == "glyphs":
        return glyph_source(options)
    if "://" in source:
        return _parquet(source, options)
    if not Path(source).exists():
        raise UserError(
            f"no source {printable(source)}: give digits, glyphs, a folder of class folders, tars, "
            "or Parquet"
        )
    path = Path(canonical(source))
    if path.is_file() and path.name.lower().endswith((".tar", *COMPRESSED_ENDINGS)):
        return tar_source(path, None, options)
    if path.is_dir():
        return _directory(path, options)
    if path.suffix.lower() != ".parquet":
        archive = path.name.lower().endswith(_ARCHIVES)
        raise UserError(
            f"{printable(path)} is no Parquet file, tar or folder: "
            + ("unpack it and give the folder" if archive else "give the folder of the images")
        )
    return _parquet(str(path), options)


def _refuse_layout_options(source: str, options: PrepareOptions) -> None:
    """What says how to read somebody's files would be passed over in silence."""
    given = {
        "--train": options.train_from,
        "--val DIR": options.val_from,
        "--source": options.source,
        "--classes": options.classes,
    }
    if named := [option for option, value in given.items() if value is not None]:
        raise UserError(f"{source} is made here and takes no {named[0]}: leave it out")


def _directory(root: Path, options: PrepareOptions) -> Source:
    """A local directory: what kind it is of is told by what lies in it, not by its name."""
    tree = scan(root)
    if options.labels is not None:
        return labelled_source(root, options, tree)
    kind = options.source or _kind(tree, root, options)
    if kind == "parquet":
        return _parquet(str(root), options, tree)
    if kind == "tar":
        return tar_source(root, tree, options)
    if not tree.root.num_images and options.train_from is None:
        refuse_compressed(root)
        _refuse_empty(root, tree)
    source = folder_source(root, options, tree)
    for shards in tree.shards.values():
        if shards:
            source.left_out.append(LeftOut("no images (shards)", len(shards), shards[0]))
    return source


def _refuse_empty(root: Path, tree: Tree) -> None:
    """Raises UserError that says what else is there."""
    found = [f"{name}: {why}" for name, why in tree.problems[:3]]
    found += [f"{entry.count} {entry.reason}, as {entry.first}" for entry in tree.left_out[:3]]
    archives = any(entry.first.lower().endswith(_ARCHIVES) for entry in tree.left_out)
    raise UserError(
        f"{printable(root)} has no images, Parquet files or tars"
        + printable(f" ({'; '.join(found)})" if found else "")
        + (": unpack the archives first" if archives else "")
    )


def _kind(tree: Tree, root: Path, options: PrepareOptions) -> str:
    """Raises UserError where images in class folders, Parquet files and tars lie together."""
    named = (options.train_from or "", options.val_from or "")
    if any(name.lower().endswith(".tar") for name in named):
        return "tar"
    found = {kind: shards[0] for kind, shards in tree.shards.items() if shards}
    classes = [folder for folder in tree.root.walk() if folder.images and folder is not tree.root]
    if len(classes) > 1:
        if all(is_ilsvrc_tar(tar) for tar in tree.shards["tar"]):
            found.pop("tar", None)  # they stay beside what was unpacked from them
        found["folder"] = f"{classes[0].path}/"
    if len(found) > 1:
        raise UserError(
            f"{printable(root)} holds both {printable(' and '.join(found.values()))}: say which by "
            + " or ".join(f"--source {kind}" for kind in found)
        )
    return next(iter(found), "folder")


def _parquet(address: str, options: PrepareOptions, tree: Tree | None = None) -> Source:
    listing = list_parquet(address, tree)
    if not listing.files:
        where = (
            ": folders of images and tars must lie on a disk or mount" if "://" in address else ""
        )
        raise UserError(f"{printable(address)} holds no Parquet files{where}")
    return parquet_source(address, options, listing)
