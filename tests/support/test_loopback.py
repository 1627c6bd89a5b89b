"""A proxy in the environment of who runs the tests is not asked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"itself")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_proxy_of_the_environment_is_not_asked() -> None:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            code = f"from tests.support.loopback import urlopen; print(urlopen({url!r}, timeout=60).read())"
            proxies = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}  # the port of discard: nobody listens
            env = {**os.environ, **proxies, "no_proxy": "", "NO_PROXY": ""}
            done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
        finally:
            server.shutdown()
            serving.join()
    assert done.stdout.strip() == "b'itself'"
