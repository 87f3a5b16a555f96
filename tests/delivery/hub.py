"""The few endpoints of the Hugging Face Hub that a push uses, over real HTTP on loopback."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_aVerySecretTokenOfTheTests"


class Hub(ThreadingHTTPServer):
    """Repositories in memory, and what was asked of them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        """Branch to path to content, of the one repository."""
        self.large: dict[str, bytes] = {}
        self.is_private: bool | None = None
        """None while there is no repository."""
        self.large_endings: tuple[str, ...] = ()
        self.commits: list[str] = []
        """Paths in the order in which they were committed."""
        self.answer: tuple[int, str] | None = None
        """A status and a message that every commit is answered with."""
        self.hold_after: int | None = None
        """After so many commits the next ones hang."""
        self.is_held = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, Hub)
        return self.server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route(b"")

    def do_POST(self) -> None:
        self._route(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_PUT = do_POST

    def _route(self, body: bytes) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        if path.startswith("/upload/"):
            hub.large[path.rpartition("/")[2]] = body
            return self._say(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            # a careless server that echoes what it was sent
            return self._say(401, {"error": f"Invalid credentials {self.headers.get('Authorization')}"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._say(200, {"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        parts = path.removeprefix("/api/datasets/").split("/")
        verb, branch = (parts[2], unquote(parts[3])) if len(parts) > 3 else ("", "main")
        if verb == "branch":
            hub.files.setdefault(branch, dict(hub.files["main"]))
            return self._say(200, {})
        if verb == "tree":
            return self._say(200, [self._describe(*each) for each in hub.files[branch].items()])
        if verb == "preupload":
            files = [{**file, "uploadMode": self._mode(file["path"])} for file in json.loads(body)["files"]]
            return self._say(200, {"files": [{"shouldIgnore": False, "oid": None, **file} for file in files]})
        if verb == "commit":
            return self._commit(branch, [json.loads(line) for line in body.splitlines()])
        if not verb and len(parts) == 2:
            return self._say(200, {"id": "/".join(parts), "private": hub.is_private, "tags": [], "siblings": []})
        return self._say(404, {"error": f"no such thing {path}"})

    def _create(self, asked: dict[str, object]) -> None:
        hub = self.hub
        is_new = hub.is_private is None
        url = f"{hub.address}/datasets/{asked['organization'] or 'someone'}/{asked['name']}"
        if is_new:
            hub.is_private, hub.files = asked.get("visibility") == "private", {"main": {".gitattributes": b"x"}}
        self._say(200 if is_new else 409, {"url": url, "error": "exists"})

    def _batch(self, asked: dict[str, list[dict[str, str]]]) -> None:
        hub, found = self.hub, []
        for each in asked["objects"]:
            upload = {"upload": {"href": f"{hub.address}/upload/{each['oid']}"}}
            found.append(each if each["oid"] in hub.large else {**each, "actions": upload})
        self._say(200, {"objects": found, "transfer": "basic"})

    def _commit(self, branch: str, lines: list[dict[str, dict[str, str]]]) -> None:
        hub = self.hub
        if hub.answer:
            return self._say(hub.answer[0], {"error": hub.answer[1]})
        if hub.hold_after is not None and len(hub.commits) >= hub.hold_after:
            hub.is_held.set()
            threading.Event().wait(60)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                hub.files[branch][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.files[branch][value["path"]] = hub.large[value["oid"]]
            else:
                continue
            hub.commits.append(value["path"])
        oid = hashlib.sha1(str(len(hub.commits)).encode()).hexdigest()
        return self._say(200, {"commitUrl": f"{hub.address}/datasets/a/b/commit/{oid}", "commitOid": oid})

    def _mode(self, path: str) -> str:
        return "lfs" if path.endswith(self.hub.large_endings or ("\0",)) else "regular"

    def _describe(self, path: str, content: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if self._mode(path) == "lfs":
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
        return entry

    def _say(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
