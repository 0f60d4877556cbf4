"""Forms with files: read where they stand, written anew with another model, refused where two readers could differ."""

from __future__ import annotations

import email.parser
import email.policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.dialect import Malformed
from proxy.dialects.multipart import FIELD_BYTES_MAX, PARTS_MAX, boundary_of, check_boundary, read_form, rewritten_form

NAMES = st.sampled_from(["prompt", "language", "image[]", "n", "response_format"])
VALUES = st.binary(max_size=200)


def form(*parts: bytes, boundary: bytes = b"x", end: bytes = b"--\r\n") -> bytes:
    """A body of these parts."""
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + end


def field(name: str, value: bytes, more: bytes = b"") -> bytes:
    """One part."""
    return b'Content-Disposition: form-data; name="%b"%b\r\n\r\n%b' % (name.encode(), more, value)


MODEL = field("model", b"gpt")


@given(st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=6), st.integers(0, 6))
def test_everything_but_the_model_arrives_as_it_was(fields: list[tuple[str, bytes, bool]], at: int) -> None:
    """A reader that is not ours finds every field and file byte for byte, in order, and one model: the new one."""
    boundary = b"the-boundary-0123456789"
    parts = [field(name, value, b'; filename="a.bin"' if is_file else b"") for name, value, is_file in fields]
    parts.insert(min(at, len(parts)), MODEL)
    body = form(*parts, boundary=boundary)
    if boundary in b"".join(value for _, value, _ in fields):
        return
    sent = rewritten_form(body, read_form(body), model="other")
    head = b"Content-Type: multipart/form-data; boundary=" + boundary + b"\r\n\r\n"
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + sent)
    found = [
        (part.get_param("name", header="content-disposition"), part.get_payload(decode=True), part.get_filename())
        for part in message.iter_parts()
    ]
    assert [("model", b"other", None)] == [item for item in found if item[0] == "model"]
    again = read_form(sent)
    values = [(part.name.decode(), sent[part.start : part.end], part.filename) for part in again.parts]
    assert [(name, value, b"a.bin" if is_file else None) for name, value, is_file in fields] == values[1:]
    assert "other" == again.value(sent, b"model")


def test_files_are_counted_and_never_decoded() -> None:
    """Values are read where they stand; a file's bytes may be anything but the boundary."""
    body = form(MODEL, field("file", b"\xff\x00\r\n--y\r\n", b'; filename="\xc3\xa9.wav"\r\nContent-Type: audio/wav'))
    found = read_form(body)
    assert (9, "gpt", None) == (found.file_bytes, found.value(body, b"model"), found.value(body, b"stream"))
    assert b"audio/wav" == found.parts[1].kind


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "begin with its boundary"),
        (b"preamble\r\n" + form(MODEL), "begin with its boundary"),
        (form(MODEL, end=b""), "not followed by a line end"),
        (form(MODEL)[:-7], "not complete"),
        (form(MODEL, end=b"--\r\n") + form(MODEL), "goes on behind its end"),
        (form(MODEL).replace(b"\r\n", b"\n"), "begin with its boundary"),
        (form(field("file", b"a\n--x\r\n" + MODEL, b'; filename="f"')), "found within a field"),
        (form(b"Content-Type: audio/wav\r\n\r\nvalue"), "has no name"),
        (form(b'Content-Disposition: form-data; name="mo\\del"\r\n\r\nx'), "header that the proxy does not know"),
        (
            form(b'Content-Disposition: form-data; name="a"; name="model"\r\n\r\nx'),
            "header that the proxy does not know",
        ),
        (
            form(b'Content-Disposition: form-data; name="a";\r\n name="model"\r\n\r\nx'),
            "header that the proxy does not",
        ),
        (form(b"Content-Disposition: form-data; name*=utf-8''model\r\n\r\nx"), "header that the proxy does not know"),
        (form(b"Content-Transfer-Encoding: base64\r\n" + MODEL), "header that the proxy does not know"),
        (form(*[field("a", b"")] * (PARTS_MAX + 1)), f"more than {PARTS_MAX} fields"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(body: bytes, message: str) -> None:
    """Each trick by which another reader could see another model is named and refused."""
    with pytest.raises(Malformed, match=message):
        read_form(body)


@pytest.mark.parametrize(
    "body",
    [
        form(MODEL, MODEL),
        form(field("model", b"gpt", b'; filename="m"')),
        form(field("model", b"\xff")),
        form(field("model", b"x" * (FIELD_BYTES_MAX + 1))),
    ],
)
def test_a_model_is_there_once_and_is_text(body: bytes) -> None:
    """Twice, as a file, not UTF-8 or far too long: none of these is a model's name."""
    with pytest.raises(Malformed, match="model"):
        read_form(body).value(body, b"model")


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/form-data",
        b'multipart/form-data; boundary="a b"',
        b"multipart/form-data; boundary=",
    ],
)
def test_a_header_without_a_boundary_is_refused(content_type: bytes) -> None:
    """The upstream could not read such a form either."""
    with pytest.raises(Malformed):
        boundary_of(content_type)


def test_the_header_names_the_boundary_of_the_body() -> None:
    """Quoted or not, with a character set or without; another one is refused."""
    for header in (b"multipart/form-data; boundary=x", b'Multipart/Form-Data; charset=utf-8; BOUNDARY="x"'):
        check_boundary(header, form(MODEL))
    with pytest.raises(Malformed, match="does not begin"):
        check_boundary(b"multipart/form-data; boundary=y", form(MODEL))
