"""Amounts as people read them: sizes in powers of 1000, times in their two greatest units."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes: 340 B, 12.3 MB, never longer than 8 characters up to a petabyte."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95 or (unit == "B" and count < 1000):
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(seconds: float) -> str:
    """7.3s, 2m05s, 1h07m, 3d04h."""
    if seconds < 60:
        return f"{min(seconds, 59.9):.1f}s"
    if seconds < 3600:
        return f"{int(seconds // 60)}m{int(seconds % 60):02}s"
    if seconds < 4 * 86_400:
        return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60):02}m"
    return f"{int(seconds // 86_400)}d{int(seconds % 86_400 // 3600):02}h"


def counted(count: int, noun: str) -> str:
    """1 problem, 2 problems."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
