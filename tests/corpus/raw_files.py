"""Made-up texts like those of the web, good and bad, and files of every format that hold them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path


def _listed(words: str) -> list[str]:
    return words.split()


NOUNS = _listed("""river bridge magpie village teacher garden engine winter letter market harbour window story doctor forest
music journey kitchen mountain newspaper painter island farmer clock library bread storm captain museum child
festival lantern valley bicycle ticket orchard stone neighbour candle sailor factory summer school""")
VERBS = _listed("""crosses follows repairs remembers carries describes watches forgets paints visits explains answers
discovers protects collects returns measures invites builds opens""")
ADJECTIVES = _listed("""old quiet bright narrow famous careful distant golden wooden gentle crowded modern hidden northern
patient curious heavy small""")
TAILS = (
    "before the {a} {n} of that {m}",
    "with a {a} {n} and one {m}",
    "because people {n} have {a} {m}",
    "as some {a} {m} of the {n} will show",
    "while others have to {n} for {a} {m}",
    "though it was {a} to be a {n} with {m}",
)


def sentence(draw: random.Random) -> str:
    """Words that nobody wrote, but hardly two alike: repeats are what the filters look for."""
    a, b = draw.choice(ADJECTIVES), draw.choice(ADJECTIVES)
    n, m = draw.choice(NOUNS), draw.choice(NOUNS)
    tail = draw.choice(TAILS).format(a=draw.choice(ADJECTIVES), n=draw.choice(NOUNS), m=draw.choice(NOUNS))
    return f"{draw.choice(['The', 'That', 'This', 'One'])} {a} {n} {draw.choice(VERBS)} the {b} {m} {tail}."


def article(draw: random.Random, paragraphs: int = 5) -> str:
    """A page that every rule lets through, for nearly every seed."""
    return "\n".join(" ".join(sentence(draw) for _ in range(draw.randint(3, 6))) for _ in range(paragraphs))


def _menu(draw: random.Random) -> str:
    return "\n".join(f"{draw.choice(NOUNS)} {draw.choice(NOUNS)}" for _ in range(60))


def _loop(draw: random.Random) -> str:
    return "\n".join([sentence(draw)] * draw.randint(3, 9) + [sentence(draw) for _ in range(4)])


def _paragraph_twice(draw: random.Random) -> str:
    parts = [article(draw, 1) for _ in range(3)]
    return "\n\n".join([*parts, parts[0], parts[1]])


def _phrase(draw: random.Random) -> str:
    return " ".join(f"{sentence(draw)} Click here to read more about it now." for _ in range(8))


def _bullets(draw: random.Random) -> str:
    return "\n".join(f"- {sentence(draw)}" for _ in range(12))


def _unfinished(draw: random.Random) -> str:
    return "\n".join(sentence(draw).rstrip(".") + draw.choice(["...", "", "…"]) for _ in range(12))


def _numbers(draw: random.Random) -> str:
    return (
        article(draw, 1) + "\n" + " ".join(str(draw.randint(0, 99999)) for _ in range(draw.randint(20, 200)))
    )


def _hashes(draw: random.Random) -> str:
    return article(draw, 1) + " " + " ".join(f"# {draw.choice(NOUNS)}" for _ in range(draw.randint(5, 60)))


def _with(extra: Callable[[random.Random], str]) -> Callable[[random.Random], str]:
    return lambda draw: f"{article(draw, 3)}\n{extra(draw)}\n{article(draw, 2)}"


def _long_words(draw: random.Random) -> str:
    return " ".join(
        "".join(draw.choices(NOUNS, k=4)) + " the and of" * (draw.random() < 0.2) for _ in range(80)
    )


KINDS: tuple[Callable[[random.Random], str], ...] = (
    article,
    lambda draw: article(draw, 1),
    sentence,
    _menu, _loop, _paragraph_twice, _phrase, _bullets, _unfinished, _numbers, _hashes, _long_words,
    _with(lambda draw: "function f() { return 1 }  // every visitor has to see this line of it"),
    _with(lambda draw: "Please enable JavaScript to see this page as it was meant to be seen."),
    _with(lambda draw: "This site uses cookies. By going on you accept our privacy policy and the terms of use."),
    _with(lambda draw: "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod."),
    _with(lambda draw: "He was right.[1] So was she [edit], as they said [citation needed]  .  "),
    _with(lambda draw: "x" * 1200 + " is one of the words of this line"),
    _with(lambda draw: "Dr. Smith said: \"No!\" -- why? :-) (see p. 7)  It's 3.5 e.g. U.S.A. ... ok"),
    _with(lambda draw: "\n".join(draw.choice(["Home", "About us", "•", "Read more »", "2 comments"]) for _ in range(30))),
    lambda draw: article(draw, 4).replace(". ", ".\n"),
    lambda draw: article(draw, 2) + "\n\n\n" + "\n".join(draw.choices(NOUNS, k=draw.randint(3, 40))),
)  # fmt: skip


def web_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of all kinds, in turn."""
    draw = random.Random(seed)
    return [KINDS[i % len(KINDS)](draw) for i in range(count)]


def pdf(text: str, title: str = "") -> bytes:
    """A PDF of one page, by hand: no library of the project writes any."""
    lines = "".join(f"({line.translate({40: 92, 41: 92, 92: 92})}) Tj T*\n" for line in text.split("\n"))
    content = f"BT /F1 12 Tf 14 TL 40 800 Td\n{lines}ET".encode("latin-1", "replace")
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 840] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Title (%s) >>" % title.encode("latin-1"),
    ]
    out = io.BytesIO()
    out.write(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(bodies, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    table = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(
        b"trailer\n<< /Size %d /Root 1 0 R /Info 6 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(bodies) + 1, table)
    )
    return out.getvalue()


def docx(text: str, title: str = "") -> bytes:
    import docx as library

    document = library.Document()
    document.core_properties.title = title
    for line in text.split("\n"):
        document.add_paragraph(line)
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "left cell", "right cell"
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def html(text: str, title: str = "") -> bytes:
    body = "".join(f"<p>{line}</p>" for line in text.split("\n"))
    return f"<html><head><title>{title}</title></head><body><article>{body}</article></body></html>".encode()


def warc(path: Path, pages: list[bytes]) -> None:
    """A WARC file, packed as crawls are: a note, then a request and a response for each page; one picture."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        writer.write_record(writer.create_warcinfo_record("made.warc", {"software": "a test"}))
        for number, (kind, page) in enumerate(
            [*(("text/html", page) for page in pages), ("image/png", b"\x89PNG")]
        ):
            url = f"http://example.org/{number}"
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.0")
            request = StatusAndHeaders("GET / HTTP/1.0", [("Host", "example.org")])
            writer.write_record(writer.create_warc_record(url, "request", http_headers=request))
            writer.write_record(
                writer.create_warc_record(url, "response", payload=io.BytesIO(page), http_headers=headers)
            )
