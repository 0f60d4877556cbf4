"""Forms: what is read, and what is none."""

from __future__ import annotations

import pytest

from controlplane.demo.provider.http import Request
from controlplane.demo.provider.multipart import File, read_form
from controlplane.demo.provider.problems import Problem

FORM = (
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
    b'--x\r\nContent-Disposition: form-data; name="a[]"\r\n\r\n1\r\n'
    b'--x\r\nContent-Disposition: form-data; name="a[]"\r\n\r\n2\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="f.wav"\r\nContent-Type: audio/wav\r\n\r\n\r\n--y\r\n\r\n'
    b"--x--\r\n"
)


def request(body: bytes, content_type: bytes = b"multipart/form-data; boundary=x") -> Request:
    """A request with a body of a type."""
    headers = {b"content-type": content_type}
    return Request(b"POST", b"/", b"", b"", body, keep_alive=True, chunks_allowed=True, headers=headers)


def test_fields_lists_and_files_are_read() -> None:
    """Fields are text, repeated ones are lists, and a file may contain anything but the boundary."""
    form = read_form(request(FORM))
    assert form.fields["model"] == "whisper-1"
    assert form.lists["a"] == ["1", "2"]
    assert File("f.wav", b"\r\n--y\r\n") == form.file("file")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (FORM, b"application/json"),
        (FORM, b"multipart/form-data"),
        (FORM[:-6], b"multipart/form-data; boundary=x"),
        (b"", b"multipart/form-data; boundary=x"),
        (b"--x\r\nno head\r\n--x--\r\n", b"multipart/form-data; boundary=x"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, content_type: bytes) -> None:
    """Another type, no boundary, a missing end and a part without a name are refused."""
    with pytest.raises(Problem) as caught:
        read_form(request(body, content_type))
    assert 400 == caught.value.status


def test_missing_file_is_named() -> None:
    """A form without the file that is needed says which."""
    with pytest.raises(Problem) as caught:
        read_form(request(FORM)).file("image")
    assert "image" == caught.value.param
