"""Numbers formatted as by Grafana, for the units that the dashboards use."""

from __future__ import annotations

import math

_RATES = {"reqps": "req/s", "cps": "c/s"}
_THOUSANDS = ("", "k", "M", "G", "T")
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """`decimals` as in the panel; by default three significant digits."""
    if math.isnan(value):
        return "–"
    if unit == "percentunit":
        return f"{_digits(value * 100, decimals)}%"
    if unit == "s":
        size, name = next(((size, name) for size, name in _SECONDS if abs(value) >= size), _SECONDS[-1] if value else _SECONDS[0])
        if abs(value) >= 60:
            size, name = 60.0, "min"
        return f"{_digits(value / size, decimals)} {name}"
    if unit == "decbytes":
        return written(value, "Bps").removesuffix("/s")
    if unit in ("Bps", "short", *_RATES):
        power = min(int(math.log10(abs(value)) / 3), len(_THOUSANDS) - 1) if abs(value) >= 1000 else 0
        figure, prefix = _digits(value / 1000**power, decimals), _THOUSANDS[power]
        if unit == "short":
            return f"{figure}{' ' + prefix.upper() if prefix else ''}"
        return f"{figure} {prefix}B/s" if unit == "Bps" else f"{figure}{prefix} {_RATES[unit]}"
    return _digits(value, decimals)


def _digits(value: float, decimals: int | None) -> str:
    if decimals is None:
        decimals = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{min(decimals, 4)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.{decimals}f}"
