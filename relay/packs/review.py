"""What `relay check` says about [packs]: warnings, as a relay whose folder cannot be used serves without it."""

from __future__ import annotations

import os
from pathlib import Path

from relay.config import PacksSettings
from relay.packs.folder import Folder, FolderFault, as_owner, folder_fault
from relay.text import size


def review_packs(settings: PacksSettings | None, base: Path) -> list[tuple[str, str]]:
    """Settings with what is wrong. Nothing is made but the table of fetches that were seen, in a folder that is there."""
    if settings is None:
        return []
    with as_owner(base / settings.folder):  # root does not know as which user the relay runs
        return _review(settings, base / settings.folder)


def _review(settings: PacksSettings, folder: Path) -> list[tuple[str, str]]:
    if (fault := folder_fault(folder) or _use_fault(folder)) is not None:
        return [("folder", f"{fault}; until then nothing is kept")]
    try:
        space = os.statvfs(folder if folder.exists() else folder.parent)
    except OSError as error:
        return [("folder", f"{folder} cannot be used: {error.strerror}; until then nothing is kept")]
    found = []
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    if free < settings.free_bytes:
        found.append(("free_bytes", f"is {size(settings.free_bytes)}, and {folder} has {size(free)} free: nothing is kept"))
    if settings.max_bytes + settings.free_bytes > total:
        room = max(0, total - settings.free_bytes)
        found.append(("max_bytes", f"is {size(settings.max_bytes)}, and the file system of {folder} holds {size(room)} beside free_bytes"))
    return found


def _use_fault(folder: Path) -> str | None:
    """Why a folder that is there cannot be used all the same: it is read-only, or its file system has no locks."""
    if not folder.exists():
        return None
    try:
        Folder(folder, make=False).drop()
    except FolderFault as error:
        return str(error)
    return None
