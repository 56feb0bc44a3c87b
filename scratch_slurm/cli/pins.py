"""The commands' way to the ledger, which is root's."""

import os
import time
from typing import TYPE_CHECKING

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import LedgerError
from scratch_slurm.domain.model import Pin

if TYPE_CHECKING:
    from scratch_slurm.node.ledger.ledger import Event, Ledger


def open_ledger(config: Config) -> "Ledger":
    """Open the ledger, and make it if it is not there; to be closed.

    Raises: LedgerError: it cannot be opened.
    """
    from scratch_slurm.node.ledger.ledger import Ledger, read_boot_id

    return Ledger(config.ledger_path, boot_id=read_boot_id(), now=time.time)


def read_pins(config: Config) -> list[Pin]:
    """Read all pins; none when there is no ledger yet. Makes no ledger.

    Raises: LedgerError: it cannot be read, or this caller may not.
    """
    if not _has_ledger(config):
        return []
    with open_ledger(config) as ledger:
        return ledger.pins()


def read_events(config: Config, limit: int) -> list["Event"]:
    """Read the newest events, the newest first; none when there is no ledger yet. Makes no ledger.

    Raises: LedgerError: it cannot be read, or this caller may not.
    """
    if not _has_ledger(config):
        return []
    with open_ledger(config) as ledger:
        return ledger.events(limit)


def _has_ledger(config: Config) -> bool:
    if os.geteuid() != 0:
        raise LedgerError(f"{config.ledger_path}: only root may read it")
    return config.ledger_path.exists()
