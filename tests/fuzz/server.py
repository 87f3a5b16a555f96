"""A server written byte by byte that answers each case by a script of its own, with most of what servers do wrong."""

import argparse
import asyncio
import gzip
import json
import random
import re
import socket
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, Self

MODEL = "fuzz"
MODELS = b'{"object": "list", "data": [{"id": "fuzz", "owned_by": "fuzz"}]}'
_CASE = re.compile(r"case-\d{5}")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class End(Enum):
    """How a connection ends."""

    CLOSE = "close"
    RESET = "reset"
    HANG = "hang"
    """Nothing more is said, and the connection stays open until the client goes."""


Move = bytes | float | End
"""Bytes to send, seconds to wait, or an end."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked."""

    case: str
    n: int = 1
    is_json: bool = False

    @property
    def text(self) -> str:
        """The right answer."""
        if self.is_json:
            return json.dumps({"answer": f"echo of {self.case}", "score": 3})
        return f"[[ ## answer ## ]]\necho of {self.case}\n\n[[ ## score ## ]]\n3\n\n[[ ## completed ## ]]"

    def choice(self, **changes: Any) -> dict[str, Any]:
        """Return a choice, with some of its keys changed."""
        message = {"role": "assistant", "content": self.text}
        return {"index": 0, "message": message, "finish_reason": "stop"} | changes

    def reply(self, **changes: Any) -> dict[str, Any]:
        """Return a whole chat completion, with some of its keys changed."""
        choices = [self.choice(index=number) for number in range(self.n)]
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        whole = {"id": "x", "object": "chat.completion", "created": 1, "model": MODEL, "choices": choices}
        return whole | {"usage": usage} | changes


Act = Callable[[Asked], Sequence[Move]]
Script = tuple[str, ...]
"""Names of acts, one for each request; the last is for all further ones."""


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """Return an answer with a `Content-Length`."""
    size = len(body) if length is None else length
    return head(f"Content-Length: {size}", *headers, status=status) + body


def head(*headers: str, status: str = "200 OK") -> bytes:
    """Return a status line and headers."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def chunked(body: bytes, size: int, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    """Return a body in chunks."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n" + trailer + b"\r\n"


def dump(value: Any) -> bytes:
    """Return JSON in ASCII, halves of surrogate pairs included."""
    return json.dumps(value).encode()


def page(value: Any, **options: Any) -> Act:
    """Make an act of one JSON body."""
    return lambda asked: [http(dump(value), **options)]


def raw(body: bytes, *headers: str, **options: Any) -> Act:
    """Make an act of one body as it stands."""
    return lambda asked: [http(body, *headers, **options)]


def said(**changes: Any) -> Act:
    """Make an act of a right answer with some keys changed."""
    return lambda asked: [http(dump(asked.reply(**changes)))]


def chosen(**changes: Any) -> Act:
    """Make an act of a right answer whose only choice has some keys changed."""
    return lambda asked: [http(dump(asked.reply(choices=[asked.choice(**changes)])))]


def content(value: Any) -> Act:
    """Make an act of an answer with this content."""
    return chosen(message={"role": "assistant", "content": value})


def sent(make: Callable[[bytes], Sequence[Move]]) -> Act:
    """Make an act that sends the bytes of a right answer in a way of its own."""
    return lambda asked: make(dump(asked.reply()))


def _pieces(body: bytes, n: int, pause: float) -> list[Move]:
    size = -(-len(body) // n)
    return [move for start in range(0, len(body), size) for move in (body[start : start + size], pause)]


def _deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=15)
    return packer.compress(body) + packer.flush()


LOGPROBS: dict[str, Any] = {
    "null": None,
    "empty": {},
    "content null": {"content": None},
    "content empty": {"content": []},
    "right": {
        "content": [
            {
                "token": "[[ ## answer ## ]]\necho of case-00000\n\n[[ ## score ## ]]\n",
                "logprob": 0.0,
                "top_logprobs": [],
            },
            {
                "token": "3",
                "logprob": -0.7,
                "top_logprobs": [{"token": "3", "logprob": -0.7}, {"token": "4", "logprob": -0.7}],
            },
        ]
    },
    "old form": {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}]},
    "content a text": {"content": "3"},
    "content a number": {"content": 3},
    "content a dict": {"content": {"token": "3"}},
    "texts": {"content": ["[[", "3"] * 60},
    "numbers": {"content": [1, 2] * 60},
    "nulls": {"content": [None] * 120},
    "no token": {"content": [{"logprob": -1.0}] * 120},
    "token null": {"content": [{"token": None, "logprob": -1.0}] * 120},
    "token a list": {"content": [{"token": [1], "logprob": -1.0}] * 120},
    "no logprob": {"content": [{"token": "3"}] * 200},
    "logprob null": {"content": [{"token": "3", "logprob": None}] * 200},
    "logprob a text": {"content": [{"token": "3", "logprob": "high"}] * 200},
    "logprob huge": {"content": [{"token": "3", "logprob": 1e308}] * 200},
    "top a text": {"content": [{"token": "3", "logprob": -1.0, "top_logprobs": "3"}] * 200},
    "top of texts": {"content": [{"token": "3", "logprob": -1.0, "top_logprobs": ["3", "4"]}] * 200},
    "top of nulls": {"content": [{"token": "3", "logprob": -1.0, "top_logprobs": [None]}] * 200},
    "top a dict": {"content": [{"token": "3", "logprob": -1.0, "top_logprobs": {"3": -1.0}}] * 200},
    "top without logprob": {"content": [{"token": "3", "logprob": -1.0, "top_logprobs": [{"token": "3"}]}] * 200},
}
"""Shapes of a choice's `logprobs`; the answer itself is right."""
for depth in (3, 240, 300, 900):
    nested: Any = -1.0
    for _ in range(depth):
        nested = [nested]
    LOGPROBS[f"{depth} levels"] = {"content": nested}

GOOD: dict[str, Act] = {
    "plain": said(),
    "chunked": sent(lambda b: [head("Transfer-Encoding: chunked") + chunked(b, 50)]),
    "chunked by the byte": sent(lambda b: [head("Transfer-Encoding: chunked") + chunked(b, 1)]),
    "chunked with extensions": sent(lambda b: [head("Transfer-Encoding: chunked") + chunked(b, 70, b";a=b")]),
    "chunked with a trailer": sent(
        lambda b: [head("Transfer-Encoding: chunked", "Trailer: X-A") + chunked(b, 90, trailer=b"X-A: b\r\n")]
    ),
    "chunked and slow": sent(lambda b: [head("Transfer-Encoding: chunked"), *_pieces(chunked(b, 40), 5, 0.02)]),
    "in 8 pieces": sent(lambda b: _pieces(http(b), 8, 0.01)),
    "in 40 pieces": sent(lambda b: _pieces(http(b), 40, 0.002)),
    "head, then body": sent(lambda b: [head(f"Content-Length: {len(b)}"), 0.05, b]),
    "late": sent(lambda b: [0.3, http(b)]),
    "until closed": sent(lambda b: [head("Connection: close") + b, End.CLOSE]),
    "then closed": sent(lambda b: [http(b, "Connection: keep-alive"), End.CLOSE]),
    "then closed a little later": sent(lambda b: [http(b, "Connection: keep-alive"), 0.01, End.CLOSE]),
    "then reset": sent(lambda b: [http(b), 0.01, End.RESET]),
    "said to be closed": sent(lambda b: [http(b, "Connection: close"), End.CLOSE]),
    "HTTP/1.0": sent(lambda b: [http(b).replace(b"HTTP/1.1", b"HTTP/1.0", 1), End.CLOSE]),
    "without reason phrase": sent(lambda b: [http(b, status="200")]),
    "with an odd reason phrase": sent(lambda b: [http(b, status="200 \xc4h: ok?!")]),
    "after 100": sent(lambda b: [b"HTTP/1.1 100 Continue\r\n\r\n" + http(b)]),
    "after 102": sent(lambda b: [b"HTTP/1.1 102 Processing\r\n\r\n", 0.01, http(b)]),
    "after 103": sent(lambda b: [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + http(b)]),
    "after several 1xx": sent(lambda b: [b"HTTP/1.1 100 Continue\r\n\r\n" * 5 + http(b)]),
    "gzip": sent(lambda b: [http(gzip.compress(b, mtime=0), "Content-Encoding: gzip")]),
    "gzip in chunks": sent(
        lambda b: [
            head("Content-Encoding: gzip", "Transfer-Encoding: chunked") + chunked(gzip.compress(b, mtime=0), 30)
        ]
    ),
    "deflate": sent(lambda b: [http(_deflate(b), "Content-Encoding: deflate")]),
    "identity": sent(lambda b: [http(b, "Content-Encoding: identity")]),
    "odd cookies": sent(lambda b: [http(b, "Set-Cookie: =;=;a", "Set-Cookie: \x01=\xff; Max-Age=x", "Set-Cookie:")]),
    "60 headers": sent(lambda b: [http(b, *[f"X-{n}: {n}" for n in range(60)])]),
    "a long header": sent(lambda b: [http(b, "X-A: " + "a" * 6000)]),
    "another content type": sent(lambda b: [http(b, "Content-Type: text/html; charset=ebcdic")]),
    "small letters": sent(lambda b: [http(b).replace(b"Content-Length", b"content-length")]),
    "blanks around": sent(lambda b: [http(b" \r\n\t" + b + b"\n\n")]),
    "blanks first, as while waiting": sent(lambda b: [head(f"Content-Length: {len(b) + 9}"), b"\n" * 9, 0.05, b]),
    "a second answer right behind": sent(lambda b: [http(b) + http(b"{}")]),
    "no finish reason": chosen(finish_reason=None),
    "finish reason of its own": chosen(finish_reason="eos_token"),
    "finish reason a number": chosen(finish_reason=1),
    "finish reason a list": chosen(finish_reason=["stop"]),
    "content_filter with a text": chosen(finish_reason="content_filter"),
    "another model": said(model="another/model"),
    "model null": said(model=None),
    "model a dict": said(model={"a": 1}),
    "a longer model name": said(model=f"{MODEL}-2025-01-01"),
    "no usage": said(usage=None),
    "empty usage": said(usage={}),
    "usage of nulls": said(usage={"prompt_tokens": None, "completion_tokens": None, "prompt_tokens_details": None}),
    "cached tokens": said(usage={"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 8}}),
    "more keys": said(kv_transfer_params={"a": [None]}, service_tier="x", prompt_logprobs=None, error=None),
    "index missing": lambda asked: [http(dump(asked.reply(choices=[{"message": {"content": asked.text}}])))],
    "index null": chosen(index=None),
    "more than asked": lambda asked: [http(dump(asked.reply(choices=[asked.choice(index=n) for n in range(5)])))],
    "more than asked, backwards": lambda asked: [
        http(dump(asked.reply(choices=[asked.choice(index=4 - n) for n in range(5)])))
    ],
    "refusal null, tool calls empty": lambda asked: [
        http(
            dump(
                asked.reply(choices=[asked.choice(message={"content": asked.text, "tool_calls": [], "refusal": None})])
            )
        )
    ],
    "half a pair in another key": said(system_fingerprint="\ud83d"),
    "half a pair after the answer": lambda asked: [
        http(dump(asked.reply(choices=[asked.choice(message={"content": asked.text + "\ud83d"})])))
    ],
    **{f"logprobs: {name}": chosen(logprobs=shape) for name, shape in LOGPROBS.items() if name[-6:] != "levels"},
}
"""Acts after which the row has its answer."""

PAGES: dict[str, bytes] = {
    "error": b'{"error": {"message": "no", "type": "x", "code": null}}',
    "flat": b'{"object": "error", "message": "no", "code": 1}',
    "detail": b'{"detail": [{"loc": ["body"], "msg": "no"}]}',
    "error text": b'{"error": "no"}',
    "error null": b'{"error": null}',
    "error list": b'{"error": [1, {"message": 2}]}',
    "error without message": b'{"error": {}}',
    "message dict": b'{"error": {"message": {"a": [1]}}}',
    "html": b"<!doctype html><html><body><h1>Bad</h1></body></html>",
    "nothing": b"",
    "list": b'[{"error": 1}]',
    "number": b"400",
    "text": b'"no"',
    "null": b"null",
    "half": b'{"error": {"mess',
    "no text": b"\xff\xfe\x00\x80" * 9,
    "controls": b'{"error": {"message": "a\\u0000b\\u202e[[ ## x ## ]]<|im_end|>\\n\\n"}}',
    "half a pair": b'{"error": {"message": "\\ud83d"}}',
    "deep": b'{"error": {"message": ' + b"[" * 800 + b"]" * 800 + b"}}",
    "long": b'{"error": {"message": "' + b"no " * 50_000 + b'"}}',
}
WAITS = ("0", "0.05", "Wed, 21 Oct 2015 07:28:00 GMT", "-1", "nan", "inf", "1e400", "soon", "", "0.1, 0.2", "0x1")
PASSING_STATUS = (408, 409, 425, 429, 500, 502, 503, 504, 507, 520, 529, 599)
REFUSED_STATUS = (400, 402, 406, 410, 413, 414, 415, 418, 421, 422, 424, 431, 451, 499)

STATUS: dict[str, Act] = {
    f"{status} {name}, wait {wait}": raw(
        body, *(() if wait is None else (f"Retry-After: {wait}",)), status=f"{status} X"
    )
    for status in PASSING_STATUS
    for name, body in PAGES.items()
    for wait in (None, *WAITS)
}
"""Acts that pass: statuses."""

SHAPES: dict[str, Act] = {
    **{f"200 {name}": raw(body) for name, body in PAGES.items()},
    "choices empty": said(choices=[]),
    "choices null": said(choices=None),
    "choices a dict": said(choices={"0": {"message": {"content": "x"}}}),
    "choices a text": said(choices="x"),
    "choices a number": said(choices=1),
    "choices of nulls": said(choices=[None]),
    "choices of lists": said(choices=[[]]),
    "choices of texts": said(choices=["x", "y"]),
    "no choices": page({"id": "x"}),
    "message null": chosen(message=None),
    "message a text": chosen(message="x"),
    "message a list": chosen(message=["x"]),
    "a delta for a message": lambda asked: [http(dump({"choices": [{"index": 0, "delta": {"content": "x"}}]}))],
    "text for a message": page({"choices": [{"index": 0, "text": "x"}]}),
    "content a list": content([{"type": "text", "text": "x"}]),
    "content a number": content(3),
    "content a dict": content({"text": "x"}),
    "content true": content(True),
    "second content a number": lambda asked: [
        http(dump(asked.reply(choices=[asked.choice(), asked.choice(index=1, message={"content": 1})])))
    ],
    "indices of two kinds": lambda asked: [
        http(dump(asked.reply(choices=[asked.choice(index="a"), asked.choice(index=1)])))
    ],
    "usage a text": said(usage="many"),
    "usage a list": said(usage=[1]),
    "usage of texts": said(usage={"prompt_tokens": "10"}),
    "usage negative": said(usage={"prompt_tokens": -1}),
    "usage huge": said(usage={"completion_tokens": 2**70}),
    "usage with a fraction": said(usage={"completion_tokens": 0.5}),
    "usage true": said(usage={"completion_tokens": True}),
    "details a list": said(usage={"prompt_tokens_details": [1]}),
    "logprobs a text": chosen(logprobs="x"),
    "logprobs a list": chosen(logprobs=[1]),
    "half an answer": sent(lambda b: [http(b[: len(b) // 2])]),
    "almost all of it": sent(lambda b: [http(b[:-1])]),
    "twice in one body": sent(lambda b: [http(b + b)]),
    "a byte order mark": sent(lambda b: [http(b"\xef\xbb\xbf" + b)]),
    "utf-16": sent(lambda b: [http(b.decode().encode("utf-16"))]),
    "a stream of events": sent(
        lambda b: [http(b"data: " + b + b"\n\ndata: [DONE]\n\n", "Content-Type: text/event-stream")]
    ),
    "NaN": raw(b'{"choices": NaN}'),
    "half a pair and too deep": raw(b'{"a": "\\ud83d", "b": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "half a pair and no choices": raw(b'{"a": "\\udc00"}'),
    "half a pair and no JSON": raw(b'{"a": "\\ud83d"'),
    "a number of 5,000 digits": raw(b'{"choices": ' + b"9" * 5000 + b', "a": "\\ud83d"}'),
    "100,000 levels": raw(b"[" * 100_000),
    "a megabyte of blanks": raw(b" " * 10**6),
    "a megabyte of zeros": raw(b"\x00" * 10**6),
}
"""Acts that pass: 200 with what is no chat completion."""

SECOND: Act = lambda asked: [http(dump(asked.reply())), 0.005, http(dump(Asked("case-99999").reply()))]  # noqa: E731
"""A right answer and, a little later, one that nobody asked for."""

WIRE: dict[str, Act] = {
    "closed at once": lambda asked: [End.CLOSE],
    "reset at once": lambda asked: [End.RESET],
    "closed after a while": lambda asked: [0.1, End.CLOSE],
    "closed in the status line": lambda asked: [b"HTTP/1.1 2", End.CLOSE],
    "closed after the status line": lambda asked: [b"HTTP/1.1 200 OK\r\n", End.CLOSE],
    "closed in the headers": lambda asked: [b"HTTP/1.1 200 OK\r\nContent-Le", End.CLOSE],
    "closed after the headers": lambda asked: [head("Content-Length: 100"), 0.01, End.CLOSE],
    "reset after the headers": lambda asked: [head("Content-Length: 100"), 0.01, End.RESET],
    "closed in mid body": sent(lambda b: [http(b)[:-9], 0.01, End.CLOSE]),
    "reset in mid body": sent(lambda b: [http(b)[:-9], 0.01, End.RESET]),
    "closed in a chunk": sent(lambda b: [head("Transfer-Encoding: chunked") + chunked(b, 50)[:-60], End.CLOSE]),
    "closed before the last chunk": sent(
        lambda b: [head("Transfer-Encoding: chunked") + chunked(b, 50)[:-5], End.CLOSE]
    ),
    "no length and cut": sent(lambda b: [head("Connection: close") + b[:-9], End.CLOSE]),
    "length too short": sent(lambda b: [http(b, length=len(b) - 5)]),
    "length too long": sent(lambda b: [http(b, length=len(b) + 50), End.CLOSE]),
    "length no number": sent(lambda b: [head("Content-Length: many") + b]),
    "length negative": sent(lambda b: [head("Content-Length: -5") + b]),
    "length with a plus": sent(lambda b: [head(f"Content-Length: +{len(b)}") + b, End.CLOSE]),
    "two lengths": sent(lambda b: [head("Content-Length: 5", f"Content-Length: {len(b)}") + b, End.CLOSE]),
    "chunk size no number": sent(lambda b: [head("Transfer-Encoding: chunked") + b"zz\r\n" + b + b"\r\n0\r\n\r\n"]),
    "chunk size negative": sent(lambda b: [head("Transfer-Encoding: chunked") + b"-1\r\n" + b + b"\r\n0\r\n\r\n"]),
    "chunk size huge": sent(lambda b: [head("Transfer-Encoding: chunked") + b"f" * 40 + b"\r\n" + b, End.CLOSE]),
    "chunked in name only": sent(lambda b: [head("Transfer-Encoding: chunked") + b, End.CLOSE]),
    "gzip in name only": sent(lambda b: [http(b, "Content-Encoding: gzip")]),
    "deflate in name only": sent(lambda b: [http(b, "Content-Encoding: deflate")]),
    "gzip cut off": sent(lambda b: [http(gzip.compress(b, mtime=0)[:-12], "Content-Encoding: gzip")]),
    "gzip spoilt": sent(lambda b: [http(gzip.compress(b, mtime=0)[:20] + b"\x00" * 40, "Content-Encoding: gzip")]),
    "gzip not said": sent(lambda b: [http(gzip.compress(b, mtime=0))]),
    "bytes right behind the answer": sent(lambda b: [http(b) + b"\x00garbage"]),
    "zeros": lambda asked: [b"\x00" * 500, End.CLOSE],
    "noise": lambda asked: [random.Random(asked.case).randbytes(300), End.CLOSE],
    "an SSH banner": lambda asked: [b"SSH-2.0-OpenSSH_9.6\r\n", End.CLOSE],
    "a TLS alert": lambda asked: [b"\x15\x03\x03\x00\x02\x02\x28", End.CLOSE],
    "HTTP/9.9": sent(lambda b: [http(b).replace(b"HTTP/1.1", b"HTTP/9.9", 1), End.CLOSE]),
    "HTTP/2 frames": lambda asked: [b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00" * 18, End.CLOSE],
    "status no number": sent(lambda b: [http(b, status="abc OK")]),
    "status of one digit": sent(lambda b: [http(b, status="2 OK"), End.CLOSE]),
    "status of four digits": sent(lambda b: [http(b, status="2000 OK"), End.CLOSE]),
    "only JSON": sent(lambda b: [b, End.CLOSE]),
    "a header without colon": sent(lambda b: [http(b, "nonsense"), End.CLOSE]),
    "a header with a zero byte": sent(lambda b: [http(b, "X-A: a\x00b"), End.CLOSE]),
    "a header of 100,000 letters": sent(lambda b: [http(b, "X-A: " + "a" * 100_000), End.CLOSE]),
    "a reason of 100,000 letters": sent(lambda b: [http(b, status="200 " + "a" * 100_000), End.CLOSE]),
    "redirected in a circle": raw(b"", "Location: /loop", status="302 Found"),
    "redirected to a page": raw(b"", "Location: /v1/models", status="303 See Other"),
    "redirected to no web address": raw(b"", "Location: ftp://127.0.0.1/", status="307 X"),
    "redirected to no address": raw(b"", "Location: http://[", status="307 X"),
    "redirected to no port": raw(b"", "Location: http://127.0.0.1:99999/", status="308 X"),
    "redirected to a closed port": raw(b"", "Location: http://127.0.0.1:1/", status="307 X"),
    "a 500 and an answer behind": sent(lambda b: [http(b"", status="500 X") + http(b)]),
}
"""Acts that pass: faults of the connection."""

HANGING: dict[str, Act] = {
    "silent": lambda asked: [End.HANG],
    "silent after the headers": lambda asked: [head("Content-Length: 100"), End.HANG],
    "silent in mid body": sent(lambda b: [http(b)[:-9], End.HANG]),
    "silent after 100": lambda asked: [b"HTTP/1.1 100 Continue\r\n\r\n", End.HANG],
    "a byte now and then": sent(lambda b: [move for byte in http(b) for move in (bytes([byte]), 0.1)]),
}
"""Acts that pass once the client has waited long enough."""

TOO_LONG: dict[str, Act] = {
    "400 limit": raw(b'{"error": {"message": "max_tokens is too large: 1024"}}', status="400 X"),
    "400 limit by another name": raw(b'{"message": "max_completion_tokens too big"}', status="400 X"),
}
"""Acts upon which the same is asked without a limit at once."""

EMPTY: dict[str, Act] = {
    "content null": content(None),
    "content empty": content(""),
    "content blank": content(" \n\t "),
    "content missing": chosen(message={"role": "assistant"}),
    "content false": content(False),
    "only reasoning": chosen(message={"role": "assistant", "content": None, "reasoning_content": "hm"}),
    "only a tool call": chosen(
        message={"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    ),
    "filtered away": chosen(message={"content": ""}, finish_reason="content_filter"),
    "cut off": chosen(finish_reason="length"),
    "without a field": content("[[ ## answer ## ]]\nx"),
    "of no form": content("I am sorry, but I cannot."),
    "half a pair alone": content("\ud83d"),
}
"""Acts that answer with what is no good; the row asks once more, saying so."""

REFUSED: dict[str, Act] = {
    f"{status} {name}": raw(body, status=f"{status} X") for status in REFUSED_STATUS for name, body in PAGES.items()
}
"""Acts that refuse the row for good."""

STOPPING: dict[str, Act] = {
    "401": raw(PAGES["error"], status="401 X"),
    "403": raw(PAGES["html"], status="403 X"),
    "404": raw(PAGES["detail"], status="404 X"),
    "405": raw(b"", status="405 X"),
    "204": lambda asked: [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "304": lambda asked: [b"HTTP/1.1 304 Not Modified\r\n\r\n"],
    "101": lambda asked: [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"],
    "redirected nowhere": raw(b"", status="302 Found"),
}
"""Acts that stop a run: no other row would fare better."""

ACTS: dict[str, Act] = {
    "second": SECOND,
    **(GOOD | STATUS | SHAPES | WIRE | HANGING),
    **{f"empty: {name}": act for name, act in EMPTY.items()},
    **TOO_LONG,
    **{f"refused: {name}": act for name, act in REFUSED.items()},
    **{f"stop: {name}": act for name, act in STOPPING.items()},
    **{f"logprobs: {name}": chosen(logprobs=shape) for name, shape in LOGPROBS.items()},
}


@dataclass
class HostileServer:
    """Serves on loopback in a thread of its own while its block lasts; a case without a script is answered plainly."""

    scripts: Mapping[str, Script] = field(default_factory=dict)
    port: int = 0
    models: Act | None = None
    """What is said of the models, if anything odd."""
    delay_s: float = 0.0
    """Time that every request takes."""
    stop: str = ""
    """The act for all requests after the first `stop_after`."""
    stop_after: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    """Requests for a completion by case."""
    faults: list[BaseException] = field(default_factory=list)
    """What went wrong in the server itself."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def url(self) -> str:
        """The address of an engine."""
        return f"http://127.0.0.1:{self.port}/v1#{MODEL}"

    def __enter__(self) -> Self:
        is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(is_up)), daemon=True)
        self._thread.start()
        assert is_up.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join(10)

    async def _run(self, is_up: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_over = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**24)
        self.port = server.sockets[0].getsockname()[1]
        is_up.set()
        await self._is_over.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception as error:
            self.faults.append(error)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False when the connection is over."""
        asked = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(asked)
        body = await reader.readexactly(int(length[1])) if length else b""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        for move in self._choose(asked.split(b" ", 2)[1].decode(), body):
            if isinstance(move, bytes):
                writer.write(move)
                await writer.drain()
            elif isinstance(move, End):
                await _end(move, reader, writer)
                return False
            else:
                await asyncio.sleep(move)
        return True

    def _choose(self, path: str, body: bytes) -> Iterable[Move]:
        if path == "/v1/models":
            return [http(MODELS)] if self.models is None else self.models(Asked(""))
        if path == "/loop":
            return ACTS["redirected in a circle"](Asked(""))
        wanted = json.loads(body)
        found = _CASE.search(json.dumps(wanted["messages"]))
        case = found[0] if found else ""
        number = self.asked[case]
        self.asked[case] += 1
        asked = Asked(case, wanted.get("n", 1), "response_format" in wanted)
        if self.stop and self.asked.total() > self.stop_after:
            return ACTS[self.stop](asked)
        script = self.scripts.get(case, ("plain",))
        return ACTS[script[min(number, len(script) - 1)]](asked)


async def _end(end: End, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if end is End.HANG:
        await reader.read()
    elif end is End.RESET:
        plug = writer.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


def main() -> None:
    """Serve plain answers until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    with HostileServer(port=options.port, delay_s=options.delay) as server:
        print(server.port, flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
