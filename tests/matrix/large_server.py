#!/usr/bin/env python3
"""An S3 of a few operations that holds objects of many gigabytes in little memory: of each only the pages that are not
zero. It checks no signature. The first answer about an object that goes past its byte CUT ends there, too early.

    large_server.py CUT    prints its endpoint, serves until its standard input ends, and says then how many it cut
"""

import hashlib
import re
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = 1 << 16
ZEROS = bytes(PAGE)
CHUNK = bytes(1 << 20)


class Sparse:
    def __init__(self):
        self.size = 0
        self.pages = {}  # offset: bytes that are not all zero
        self.md5 = hashlib.md5()

    def append(self, data):
        self.md5.update(data)
        if data.count(0) != len(data):
            for start in range(0, len(data), PAGE):
                page = data[start : start + PAGE]
                if page != ZEROS[: len(page)]:
                    self.pages[self.size + start] = page
        self.size += len(data)

    def read(self, begin, end):
        while begin < end:
            piece = bytearray(CHUNK[: min(len(CHUNK), end - begin)])
            for offset, page in self.pages.items():
                first, last = max(offset, begin), min(offset + len(page), begin + len(piece))
                if first < last:
                    piece[first - begin : last - begin] = page[first - offset : last - offset]
            yield piece
            begin += len(piece)


objects, uploads, cut_once, lock = {}, {}, set(), threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def log_message(self, *arguments):
        pass

    def answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def parse(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        return urllib.parse.unquote(url.path), query

    def body(self):
        taken = Sparse()
        left = int(self.headers.get("Content-Length", 0))
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.handle_expect_100()
        while left:
            data = self.rfile.read(min(left, len(CHUNK)))
            if not data:
                raise ConnectionError("cut short")
            taken.append(data)
            left -= len(data)
        return taken

    def metadata(self):
        wanted = ("content-type",)
        return [(n, v) for n, v in self.headers.items() if n.lower().startswith("x-amz-meta-") or n.lower() in wanted]

    def do_PUT(self):
        path, query = self.parse()
        taken = self.body()
        etag = '"%s"' % taken.md5.hexdigest()
        with lock:
            if "partNumber" in query:
                uploads[query["uploadId"]][1][int(query["partNumber"])] = taken
            else:
                objects[path] = (taken, self.metadata(), etag)
        self.answer(200, b"", [("ETag", etag)])

    def do_POST(self):
        path, query = self.parse()
        self.body()
        if "uploads" in query:
            with lock:
                name = "upload-%d" % (len(uploads) + 1)
                uploads[name] = (self.metadata(), {})
            tag = "InitiateMultipartUploadResult"
            return self.answer(200, f"<{tag}><UploadId>{name}</UploadId></{tag}>".encode())
        whole, sums = Sparse(), hashlib.md5()
        with lock:
            metadata, parts = uploads.pop(query["uploadId"])
            for number in sorted(parts):
                for offset, page in parts[number].pages.items():
                    whole.pages[whole.size + offset] = page
                whole.size += parts[number].size
                sums.update(parts[number].md5.digest())
            etag = '"%s-%d"' % (sums.hexdigest(), len(parts))
            objects[path] = (whole, metadata, etag)
        tag = "CompleteMultipartUploadResult"
        return self.answer(200, f"<{tag}><ETag>{etag}</ETag></{tag}>".encode())

    def do_DELETE(self):
        path, _ = self.parse()
        with lock:
            objects.pop(path, None)
        self.answer(204)

    def do_GET(self):
        path, _ = self.parse()
        with lock:
            found = objects.get(path)
        if not found:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        whole, metadata, etag = found
        begin, end, status = 0, whole.size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            begin, status = int(asked[1]), 206
            end = min(whole.size, int(asked[2]) + 1) if asked[2] else whole.size
            if begin >= whole.size:
                return self.answer(416, b"<Error><Code>InvalidRange</Code></Error>")
        self.send_response(status)
        for name, value in metadata:
            self.send_header(name, value)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(end - begin))
        if asked:
            self.send_header("Content-Range", "bytes %d-%d/%d" % (begin, end - 1, whole.size))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if begin < cut < end and path not in cut_once:
            cut_once.add(path)
            end = cut
            self.close_connection = True
        try:
            for piece in whole.read(begin, end):
                self.wfile.write(piece)
        except ConnectionError:
            self.close_connection = True
        return None

    do_HEAD = do_GET


cut = int(sys.argv[1])
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
print("http://127.0.0.1:%d" % server.server_address[1], flush=True)
sys.stdin.read()
print("cut %d answers" % len(cut_once), flush=True)
