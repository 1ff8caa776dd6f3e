"""A Hugging Face Hub on this machine: public data sets, each with one commit."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_COMMIT = "0123456789" * 4


class Hub:
    """It answers on `address`, which is for HF_ENDPOINT, until the end of the block.

    Args:
        repositories: the files of each data set, bytes by name; None instead: connections about it are cut.

    Attributes:
        asked: the methods and paths of all requests.
    """

    def __init__(self, repositories):
        self.asked = asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path, _, _ = self.path.partition("?")
                asked.append(f"{self.command} {path}")
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if (answer := _answer(repositories, path)) is None:
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in (headers | {"Content-Length": len(body)}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def _answer(repositories, path):
    """The status, headers and body of an answer; None if the connection is cut."""
    for name, files in repositories.items():
        _, found, rest = path.partition(f"/datasets/{name}")
        if found:
            return None if files is None else _about(name, files, rest.strip("/").split("/", 2))
    return 404, {"X-Error-Code": "RepoNotFound"}, b""


def _about(name, files, question):
    hashes = {file: hashlib.sha1(content).hexdigest() for file, content in files.items()}
    match question:
        case ["resolve", _, file]:
            if file not in files:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _COMMIT}, b""
            return 200, {"X-Repo-Commit": _COMMIT, "ETag": f'"{hashes[file]}"'}, files[file]
        case ["tree" | "paths-info", *_]:
            found = [
                {"type": "file", "path": file, "size": len(content), "oid": hashes[file]}
                for file, content in files.items()
            ]
        case _:
            found = {"id": name, "sha": _COMMIT, "siblings": [{"rfilename": file} for file in files], "tags": []}
    return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
