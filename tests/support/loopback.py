"""HTTP to servers of the tests, which are on loopback: never through a proxy that the environment names."""

from __future__ import annotations

import urllib.request


def opener(*handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)


_opener = opener()
urlopen = _opener.open  # raises as urllib.request.urlopen does
