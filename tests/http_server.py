"""A real HTTP server in a thread, whose answers a test decides."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from threading import Event, Lock, Thread

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers GET by `answers[path]` or else by `otherwise`; keeps the paths and ranges asked for."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answers: dict[str, Answer], otherwise: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.otherwise = answers, otherwise
        self.requests, self.ranges = list[str](), list[str | None]()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.ranges.append(self.headers["Range"])
        self.server.answers.get(self.path, self.server.otherwise)(self)

    def end_headers(self) -> None:
        self.send_header("Connection", "close")  # sets self.close_connection too
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Silent."""


def not_found(handler: BaseHTTPRequestHandler) -> None:
    """Answers 404."""
    handler.send_error(404)


@contextmanager
def serving(answers: dict[str, Answer], otherwise: Answer = not_found) -> Iterator[Server]:
    """Runs a server for the block."""
    with Server(answers, otherwise) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def content(data: bytes, announced: int | str | None = None, **headers: str) -> Answer:
    """Answers 200 with the data; `announced` lies about the length."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) if announced is None else announced))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def status(code: int, **headers: str) -> Answer:
    """Answers with a status, headers and no body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def in_turn(*answers: Answer) -> Answer:
    """Answers the first request with the first, and so on; the last one for ever."""
    sequence, lock = chain(answers, repeat(answers[-1])), Lock()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        with lock:
            chosen = next(sequence)
        chosen(handler)

    return answer


def resumable(data: bytes, cut: int | None = None, **validators: str) -> Answer:
    """Answers as a good server does: with the rest from where Range says, if If-Range is still right.

    Args:
        data: the file.
        cut: hang up after so many bytes of an answer.
        **validators: headers that tell this file from others; by default an ETag.
    """
    validators = validators or {"ETag": f'"{len(data)}-{hash(data)}"'}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
        if asked is None or handler.headers["If-Range"] not in validators.values():
            content(data[:cut], announced=len(data), **validators)(handler)
        elif int(asked[1]) >= len(data):
            status(416, Content_Range=f"bytes */{len(data)}")(handler)
        else:
            piece(data, int(asked[1]), cut=cut, **validators)(handler)

    return answer


def piece(
    data: bytes, start: int, total: int | None = None, cut: int | None = None, **headers: str
) -> Answer:
    """Answers 206 with the data from `start`, whatever was asked for."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        rest = data[start:]
        handler.send_response(206)
        handler.send_header("Content-Length", str(len(rest)))
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{total or len(data)}")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(rest[:cut])

    return answer


def then(answer: Answer, end: Answer) -> Answer:
    """Does something after an answer, on the same connection."""

    def both(handler: BaseHTTPRequestHandler) -> None:
        answer(handler)
        end(handler)

    return both


def stall(handler: BaseHTTPRequestHandler) -> None:
    """Sends nothing for longer than any test waits, and does not hang up."""
    Event().wait(20)


def drip(data: bytes) -> Answer:
    """Announces the data and sends a byte now and then, for longer than any test waits."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        content(b"", announced=len(data), ETag='"slow"')(handler)
        for byte in data[:400]:
            handler.wfile.write(bytes([byte]))
            Event().wait(0.05)

    return answer


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Breaks the connection off, so that the other end gets an error instead of an end."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
