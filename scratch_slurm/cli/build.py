"""`scratch-slurm build`: a directory becomes an image in the source."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from scratch_slurm import __version__
from scratch_slurm.cli import mksquashfs, tree
from scratch_slurm.cli.app import App, json_option, make_console, pass_app, print_json
from scratch_slurm.cli.publish import Manifest, Publication, find_taken
from scratch_slurm.cli.words import clean, plural
from scratch_slurm.domain.errors import ImageError, UsageError
from scratch_slurm.domain.names import parse_dataset_name
from scratch_slurm.domain.sizes import format_bytes, format_duration

if TYPE_CHECKING:
    from scratch_slurm.cli.progress import StepBar


class BuildAnswer(msgspec.Struct, frozen=True):
    """What `build --json` prints."""

    image: str
    manifest_path: str
    took_s: float
    manifest: Manifest


@click.command("build")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("name", metavar="NAME")
@click.option("--to", "target", metavar="DIR", type=click.Path(path_type=Path), help="Publish here, not in source_dir.")
@click.option(
    "--compression",
    type=click.Choice(list(mksquashfs.COMPRESSIONS)),
    default="zstd",
    show_default=True,
    help="How to pack; none for data that is compressed already.",
)
@json_option
@pass_app
def command(app: App, directory: Path, name: str, target: Path | None, compression: str) -> None:
    """Pack DIR's contents into the image NAME.squashfs, with a manifest, and publish both in the source.

    In the image all files belong to root, and everybody may read them: whoever may read the image. A NAME that is
    taken is refused; nothing is ever overwritten. With --to no configuration is needed.
    """
    dataset = parse_dataset_name(name)
    source = tree.resolve_directory(directory)
    where = tree.resolve_directory(target if target is not None else app.config().source_dir)
    if where.is_relative_to(source):
        raise UsageError(f"directory {str(source)!r} holds the directory of images {str(where)!r}")
    program, version = mksquashfs.find_program()
    find_taken(where, dataset)
    from scratch_slurm.cli.progress import StepBar

    with StepBar(make_console(stderr=True)) as bar:
        answer = _Build(bar, source, where, dataset, compression).run(program, version)
    if app.json:
        print_json(answer)
        return
    manifest = answer.manifest
    click.echo(
        f"built {dataset}: {format_bytes(manifest.size_bytes)} for {format_bytes(manifest.content_bytes)}"
        f" in {plural(manifest.files, 'file')}, {compression}, {format_duration(answer.took_s)}\n"
        f"  {clean(answer.image)}\n  blake3 {manifest.blake3}"
    )


class _Build:
    def __init__(self, bar: "StepBar", source: Path, where: Path, dataset: str, compression: str) -> None:
        self.bar = bar
        self.source = source
        self.where = where
        self.dataset = dataset
        self.compression = compression
        self.started = time.monotonic()

    def run(self, program: str, version: tuple[int, int]) -> BuildAnswer:
        found = tree.read_tree(self.source, lambda files: self.show("looking", 0, None, plural(files, "file")))
        if found.closed and version < mksquashfs.MODES_VERSION:
            raise ImageError(
                f"{self.source}: not everybody may read {tree.some(found.closed)}",
                hint=f"chmod -R a+rX it; or use mksquashfs 4.5, which does so in the image (found {_dotted(version)})",
            )
        options = mksquashfs.choose_options(
            version, self.compression, newest_at=found.newest_at, fixed_times="SOURCE_DATE_EPOCH" in os.environ
        )
        with Publication(self.where, self.dataset) as publication:
            watch = self.packing(publication) if self.bar.moves else None
            mksquashfs.run_mksquashfs(program, self.source, publication.path, options, watch)
            size_bytes, digest = publication.seal(
                lambda done, total: self.show("checksum", done, total, format_bytes(done))
            )
            manifest = Manifest(
                dataset=self.dataset,
                size_bytes=size_bytes,
                blake3=digest,
                files=found.files,
                content_bytes=found.content_bytes,
                compression=self.compression,
                built_at=int(time.time()),
                built_by=f"scratch-slurm {__version__}",
            )
            image, manifest_path = publication.publish(manifest)
        return BuildAnswer(str(image), str(manifest_path), round(time.monotonic() - self.started, 3), manifest)

    def packing(self, publication: Publication) -> Callable[[int, int | None], None]:
        return lambda done, total: self.show(
            "packing", done, total, f"{format_bytes(publication.size_bytes())} written"
        )

    def show(self, step: str, done: int, total: int | None, words: str) -> None:
        elapsed = format_duration(time.monotonic() - self.started)
        self.bar.show(f"{self.dataset}: {step}", done, total, f"{words}, {elapsed}")


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
