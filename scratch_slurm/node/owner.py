"""Whose a file is: what root trusts is what nobody else can have written."""

import os


def others_may_write(status: os.stat_result, owner: int | None = None) -> bool:
    """Tell whether a file is another user's, or one that its group or everybody may write.

    Args:
        owner: whose it should be; None: this process's user.
    """
    expected = os.geteuid() if owner is None else owner
    return status.st_uid != expected or bool(status.st_mode & 0o022)
