"""`scratch-slurm build`: a directory becomes an image in the source."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from scratch_slurm import __version__
from scratch_slurm.build import tree
from scratch_slurm.build.directory import Directory, open_directory
from scratch_slurm.build.formats import DEFAULT_FORMAT, FORMATS, Packer, choose_compression, find_packer
from scratch_slurm.build.packing import Wanted
from scratch_slurm.build.publish import Publication, find_about, find_format, find_replaced, find_taken
from scratch_slurm.build.rights import OWN, Rights, find_group, nobodys_rights, parse_user, rights_of
from scratch_slurm.cli.app import App, json_option, make_console, note, pass_app, print_json
from scratch_slurm.domain.about import NOTHING_SAID, About, check_about
from scratch_slurm.domain.errors import DeniedError, ImageError, UsageError
from scratch_slurm.domain.limits import choose_resources
from scratch_slurm.domain.manifest import Manifest
from scratch_slurm.domain.names import parse_dataset_name
from scratch_slurm.domain.sizes import format_bytes, format_duration
from scratch_slurm.domain.words import clean, plural
from scratch_slurm.node.kernel.cgroups import read_limits, read_total_bytes

if TYPE_CHECKING:
    from scratch_slurm.cli.progress import StepBar

_OPEN = 0o644
_MODE = re.compile(r"0?[46][04][04]", re.ASCII)


class BuildAnswer(msgspec.Struct, frozen=True):
    """What `build --json` prints."""

    image: str
    manifest_path: str
    took_s: float
    read_as: str
    """With whose rights the directory was read: `you`, or a user's name."""
    warnings: tuple[str, ...]
    manifest: Manifest


@click.command("build")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("name", metavar="NAME")
@click.option("--to", "target", metavar="DIR", type=click.Path(path_type=Path), help="Publish here, not in source_dir.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(list(FORMATS)),
    help=f"Of the image.  [default: {DEFAULT_FORMAT}; with --replace the one that is there]",
)
@click.option(
    "--compression",
    type=click.Choice(["none", "gzip", "lz4", "lz4hc", "xz", "zstd"]),
    help="How to pack; none for data that is compressed already.  [default: squashfs: zstd, erofs: lz4hc]",
)
@click.option("--group", metavar="GROUP", help="The group of the image, by name or number.")
@click.option("--mode", metavar="MODE", help="Who may read it: 0640 is its group.  [default: 0644]")
@click.option("--replace", is_flag=True, help="Publish a new version of NAME; its readers stay the same.")
@click.option("--as", "user", metavar="USER", help="Read DIR with this user's rights, not its owner's (root).")
@click.option("--description", metavar="TEXT", help="What is in it, for people, as all texts below.")
@click.option("--licence", metavar="TEXT", help="What may be done with it.")
@click.option("--owner", metavar="TEXT", help="Whose it is.")
@click.option("--contact", metavar="TEXT", help="Whom to ask.")
@click.option("--source-url", metavar="URL", help="Where the data came from.")
@json_option
@pass_app
def command(
    app: App,
    directory: Path,
    name: str,
    target: Path | None,
    format_name: str | None,
    compression: str | None,
    group: str | None,
    mode: str | None,
    replace: bool,
    user: str | None,
    description: str | None,
    licence: str | None,
    owner: str | None,
    contact: str | None,
    source_url: str | None,
) -> None:
    """Pack DIR's contents into the image NAME.squashfs or NAME.erofs, and publish it with a manifest in the source.

    The readers of the image's file, by its owner, --group and --mode, are the readers of the dataset, and no others. A
    NAME that is taken is refused unless --replace says that this is its new version: jobs that have the old one keep
    it, and the texts of the version before stay unless they are given anew. With --to no configuration is needed.

    Root reads DIR with the rights of its owner, so that nothing is packed which the owner could not have packed.
    """
    dataset = parse_dataset_name(name)
    bits = parse_mode(mode) if mode is not None else None
    gid = find_group(group) if group is not None else None
    if user is not None and os.geteuid() != 0:
        raise DeniedError("build: --as: only root may read with the rights of others")
    rights = parse_user(user) if user is not None else None
    with (
        open_directory(directory) as source,
        open_directory(target if target is not None else app.config().source_dir) as where,
    ):
        if where.path.is_relative_to(source.path):
            raise UsageError(f"directory {str(source.path)!r} holds the directory of images {str(where.path)!r}")
        if format_name is None:
            format_name = (find_format(where, dataset, FORMATS) if replace else None) or DEFAULT_FORMAT
        packer = find_packer(format_name)
        compression = choose_compression(packer, compression)
        texts = {
            "description": description,
            "licence": licence,
            "owner": owner,
            "contact": contact,
            "source_url": source_url,
        }
        about = check_about(texts, find_about(where, dataset) if replace else NOTHING_SAID)
        publication = _choose_publication(where, dataset, packer.suffix, bits, gid, replaces=replace)
        from scratch_slurm.cli.progress import StepBar

        with StepBar(make_console(stderr=True)) as bar:
            answer = _Build(bar, source, publication, packer, compression, rights, about).run()
    for warning in answer.warnings:
        note(f"scratch-slurm: warning: {warning}")
    if app.json:
        print_json(answer)
        return
    manifest = answer.manifest
    click.echo(
        f"built {dataset}: {format_bytes(manifest.size_bytes)} for {format_bytes(manifest.content_bytes)}"
        f" in {plural(manifest.files, 'file')}, {format_name} {compression}, {format_duration(answer.took_s)}\n"
        f"  {clean(answer.image)}\n  blake3 {manifest.blake3}"
    )


def _choose_publication(
    where: Directory, dataset: str, suffix: str, bits: int | None, gid: int | None, *, replaces: bool
) -> Publication:
    """Choose who may read the image: as the options say, then as the image that it replaces, then everybody."""
    former = None
    if replaces:
        former = find_replaced(where, dataset, suffix)
    else:
        find_taken(where, dataset)
    if former is None:
        mode = _OPEN if bits is None else bits
        return Publication(where, dataset, suffix=suffix, mode=mode, gid=gid, replaces=replaces)
    return Publication(
        where,
        dataset,
        suffix=suffix,
        mode=former.mode & _OPEN | 0o400 if bits is None else bits,
        gid=former.gid if gid is None else gid,
        uid=former.uid if os.geteuid() == 0 else None,
        replaces=True,
    )


class _Build:
    def __init__(
        self,
        bar: "StepBar",
        source: Directory,
        publication: Publication,
        packer: Packer,
        compression: str,
        rights: Rights | None,
        about: About,
    ) -> None:
        self.bar = bar
        self.source = source
        self.publication = publication
        self.dataset = publication.dataset
        self.packer = packer
        self.compression = compression
        self.asked = rights
        self.about = about
        self.started = time.monotonic()

    def run(self) -> BuildAnswer:
        found, rights, warnings = self._look()
        with self.publication as publication:
            wanted = Wanted(
                self.compression,
                found,
                publication.permissions(),
                choose_resources(read_limits(), entries=found.entries, total_bytes=read_total_bytes()),
                rights,
                os.environ.get("SOURCE_DATE_EPOCH"),
            )
            self.packer.check(self.source, wanted)
            if rights is not OWN:
                publication.lend()
            try:
                watch = self.packing(publication) if self.bar.moves else None
                self.packer.pack(self.source, publication.fd, wanted, watch)
            except ImageError:
                publication.check_room()
                raise
            seal = publication.seal(lambda done, total: self.show("checksum", done, total, format_bytes(done)))
            manifest = Manifest(
                dataset=self.dataset,
                size_bytes=seal.size_bytes,
                blake3=seal.blake3,
                ends_blake2b=seal.ends_blake2b,
                chunks=seal.chunk_list(self.dataset),
                about=self.about,
                files=found.files,
                content_bytes=found.content_bytes,
                compression=self.compression,
                built_at=int(time.time()),
                built_by=f"scratch-slurm {__version__}",
            )
            image, manifest_path = publication.publish(manifest, seal)
        if times := self.packer.tell_times(wanted):
            warnings.append(times)
        took_s = round(time.monotonic() - self.started, 3)
        return BuildAnswer(str(image), str(manifest_path), took_s, rights.name, tuple(warnings), manifest)

    def _look(self) -> tuple[tree.Tree, Rights, list[str]]:
        """Look through the directory, with the rights that it is to be packed with."""
        if self.asked is not None or os.geteuid() != 0:
            rights = self.asked or OWN
            return self._read(rights), rights, []
        if self.source.uid != 0:
            rights = rights_of(self.source.uid)
            return (
                self._read(rights),
                rights,
                [f"{self.source.path}: is read with the rights of {rights.name}, its owner"],
            )
        found = self._read(OWN)
        if not found.loose.count:
            return found, OWN, []
        rights = nobodys_rights()
        why = f"others than root may change what is in {found.loose}"
        return self._read(rights), rights, [f"{self.source.path}: is read with the rights of nobody: {why}"]

    def _read(self, rights: Rights) -> tree.Tree:
        return tree.read_tree(
            self.source,
            lambda files: self.show("looking", 0, None, plural(files, "file")),
            rights,
            self.packer.unfit,
        )

    def packing(self, publication: Publication) -> Callable[[int, int | None], None]:
        return lambda done, total: self.show(
            "packing", done, total, f"{format_bytes(publication.size_bytes())} written"
        )

    def show(self, step: str, done: int, total: int | None, words: str) -> None:
        elapsed = format_duration(time.monotonic() - self.started)
        self.bar.show(f"{self.dataset}: {step}", done, total, f"{words}, {elapsed}")


def parse_mode(text: str) -> int:
    """Parse the mode of an image: its owner may read it, nobody may execute it, and only its owner may write in it.

    Raises: UsageError: it is not such a mode.
    """
    if not _MODE.fullmatch(text):
        raise UsageError(f"--mode {text[:40]!r}: is not one of 0644, 0640, 0600, 0444 and their like, in octal digits")
    return int(text, 8)
