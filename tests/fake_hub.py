"""A hub with one set of one parquet file, as the library `datasets` asks for it."""

import contextlib
import http.server
import json
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def hub(name: str, split: str, rows: list, cache, gated: bool = False):
    """Serves the set, or its terms; yields the environment in which `datasets` finds it."""
    import pyarrow
    import pyarrow.parquet as parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    served = {
        "content": sink.getvalue().to_pybytes(),
        "name": name,
        "file": f"data/{split}-00000-of-00001.parquet",
        "gated": gated,
    }
    handler = type("OneSet", (_Hub,), served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        yield {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
        server.shutdown()


class _Hub(http.server.BaseHTTPRequestHandler):
    content, name, file, gated = b"", "", "", False

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.gated:
            self.answer(b"Access to this dataset is restricted", 403)
            return
        listing = {"type": "directory", "path": "data", "oid": COMMIT, "size": 0}
        if self.path.split("?")[0].endswith("/data"):
            listing |= {"type": "file", "path": self.file, "size": len(self.content)}
        if self.path.startswith(f"/api/datasets/{self.name}/tree/"):
            self.answer(json.dumps([listing]).encode())
        elif self.path.startswith(f"/api/datasets/{self.name}"):
            about = {"id": self.name, "sha": COMMIT, "siblings": [{"rfilename": self.file}]}
            self.answer(json.dumps(about).encode())
        elif self.path.endswith(f"/resolve/{COMMIT}/{self.file}"):
            span = self.headers.get("Range", "bytes=0-").split("=")[1]
            first, last = (int(x) if x else len(self.content) - 1 for x in span.split("-"))
            self.answer(self.content[first : last + 1], 206 if "Range" in self.headers else 200)
        else:
            self.answer(b"", 404)

    do_HEAD = do_GET

    def answer(self, body, code=200):
        self.send_response(code)
        if code in (403, 404):
            self.send_header("X-Error-Code", {403: "GatedRepo", 404: "EntryNotFound"}[code])
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
