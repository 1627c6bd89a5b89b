"""An authority for the relay in sixty lines: answers to whom a key belongs, who may do what, and where a repository is.

python3 example_authority.py DATA.json [PORT]      # the file is read again for every question:

{"token": "...", "keys": {"SHA256:...": "alice"}, "access": {"team/app": {"alice": "write"}},
 "refs": {"team/app": {"alice": [{"refs": ["refs/heads/main"], "write": false}]}},
 "refusals": {"team/app": "what its client reads who may not, instead of: not found"},
 "routes": {"team/app": {"upstream": "main", "path": "/srv/git/team/app.git"}}}
"""

import hmac
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

BODY_BYTES = 16 * 1024


class Authority(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # lets the relay keep its connections open
    disable_nagle_algorithm = True
    timeout = 120

    def do_GET(self) -> None:
        data, url = self.data(), urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if not self.trusted(data):
            self.answer(401)
        elif url.path == "/keys" and (identity := data["keys"].get(query.get("fingerprint"))):
            self.answer(200, {"identity": identity})
        elif url.path == "/routes" and (route := data["routes"].get(query.get("repository"))):
            self.answer(200, route)
        else:
            self.answer(404)

    def do_POST(self) -> None:
        data = self.data()
        asked = json.loads(self.rfile.read(min(int(self.headers["Content-Length"]), BODY_BYTES)))
        access = data["access"].get(asked["repository"], {}).get(asked["identity"])
        if not self.trusted(data):
            self.answer(401)
        elif self.path != "/access" or access is None or (asked["needs"] == "write" and access != "write"):
            text = data["refusals"].get(asked["repository"])
            self.answer(403, {"message": text} if text else None)
        else:  # with the route the relay need not ask for it
            refs = data["refs"].get(asked["repository"], {}).get(asked["identity"], [])
            self.answer(200, {"access": access, "route": data["routes"].get(asked["repository"]), "refs": refs})

    def data(self) -> dict[str, Any]:
        return {"keys": {}, "access": {}, "refusals": {}, "refs": {}, "routes": {}, **json.loads(Path(sys.argv[1]).read_text())}

    def trusted(self, data: dict[str, Any]) -> bool:
        wanted = f"Bearer {data['token']}" if "token" in data else ""
        return hmac.compare_digest(self.headers.get("Authorization", "").encode(), wanted.encode()) or not wanted

    def answer(self, status: int, body: object = None) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0), Authority) as server:
        sys.stdout.write(f"listening on 127.0.0.1:{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()
