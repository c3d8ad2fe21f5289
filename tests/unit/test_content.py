"""The text of a message on its way out, read from its file as it is, or with another header."""

import os
import tempfile
from collections.abc import Iterator

import pytest

from pysendmail.deliver.content import PIECE, Content
from pysendmail.deliver.parcel import Unreadable


@pytest.fixture
def fd() -> Iterator[int]:
    with tempfile.TemporaryFile(buffering=0) as file:
        yield file.fileno()


def write(fd: int, data: bytes) -> int:
    os.write(fd, data)
    return len(data)


@pytest.mark.parametrize("size", [5, 3 * PIECE])
def test_a_head_goes_before_a_header_that_is_rewritten(fd: int, size: int) -> None:
    length = write(fd, b"From: a\n\n" + b"x" * size)
    content = Content(fd, 0, length, lambda head: head.replace(b"a\n", b"b\n", 1), b"Delivered-To: a\n")
    assert b"".join(content.pieces()) == b"Delivered-To: a\nFrom: b\n\n" + b"x" * size


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 17])
@pytest.mark.parametrize("offset", [0, 7])
def test_all_of_the_text_and_nothing_else(fd: int, size: int, offset: int) -> None:
    text = (b"0123456\n" * (size // 8 + 1))[:size]
    length = write(fd, b"x" * offset + text)
    os.write(fd, b"behind it")
    content = Content(fd, offset, length)
    for _ in range(2):
        pieces = list(content.pieces())
        assert b"".join(pieces) == text
        assert all(0 < len(piece) <= PIECE for piece in pieces)
    assert content.is_small is (size <= PIECE)


@pytest.mark.parametrize("size", [0, 10, 500_000])
def test_the_header_is_rewritten_and_the_rest_follows(fd: int, size: int) -> None:
    length = write(fd, b"From: a\n\n" + b"b" * size)
    content = Content(fd, 0, length, lambda head: head.replace(b"From: a\n", b"From: somebody else\n"))
    assert b"".join(content.pieces()) == b"From: somebody else\n\n" + b"b" * size


def test_a_file_shorter_than_it_should_be_is_no_message(fd: int) -> None:
    length = write(fd, b"x" * (PIECE + 5))
    with pytest.raises(Unreadable):
        Content(fd, 0, 100 + length, lambda head: head)
    content = Content(fd, 0, length + 1)
    with pytest.raises(Unreadable):
        list(content.pieces())


def test_a_file_that_cannot_be_read_is_no_message(fd: int) -> None:
    closed = os.dup(fd)
    os.close(closed)
    with pytest.raises(Unreadable):
        Content(closed, 0, 5)
