import gzip
import re

from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.plan import resolve_plan
from hsokv_ray.data.reading import ReadCounts, read_in_order
from hsokv_ray.data.sources.text_files import cut_point


def _texts(source, **flags):
    plan = resolve_plan(DataConfig(source=str(source), **flags), seed=0)
    counts = ReadCounts()
    return [d.text for part in plan.parts for d in read_in_order(plan, part, split="all", counts=counts)]


def _book(num_paragraphs):
    return "\n\n".join(f"Paragraph {i}. " + "Words and élan. " * (i % 30) for i in range(num_paragraphs))


def test_a_text_or_markdown_file_is_one_document(tmp_path):
    for i in range(15):
        (tmp_path / f"{i:02}.{'md' if i % 2 else 'txt'}").write_text(_book(i + 1))
    assert _texts(tmp_path) == [_book(i + 1) for i in range(15)]


def test_folders_recurse_in_order_and_hidden_files_are_passed_over(tmp_path):
    for name in ("b/z.txt", "a/y.txt", "a/.hidden.txt", ".git/x.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert _texts(tmp_path, logical_ranks=1) == ["c.txt", "a/y.txt", "b/z.txt"]


def test_globs_and_braces_choose_files(tmp_path):
    for name in ("a1.txt", "a2.txt", "b1.txt"):
        (tmp_path / name).write_text(name)
    assert _texts(tmp_path / "a*.txt") == ["a1.txt", "a2.txt"]
    assert _texts(tmp_path / "{a,b}1.txt") == ["a1.txt", "b1.txt"]


def test_a_file_larger_than_a_stream_s_share_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    text = _book(900)
    (tmp_path / "book.txt").write_text(text)
    texts = _texts(tmp_path / "book.txt")
    assert len(texts) > 12
    assert "".join(texts) == text
    assert all(t.endswith("\n\n") for t in texts[:-1])


def test_a_compressed_text_gives_the_same_bytes(tmp_path):
    text = _book(300)
    with gzip.open(tmp_path / "book.txt.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    assert "".join(_texts(tmp_path / "book.txt.gz", logical_ranks=1)) == text


def test_documents_of_a_large_file_hold_at_most_a_megabyte_and_lose_nothing(tmp_path):
    text = ("é" * 40_000 + "\n") * 60 + "no line end for long " * 70_000
    (tmp_path / "big.txt").write_text(text)
    texts = _texts(tmp_path / "big.txt", logical_ranks=2)
    assert "".join(texts) == text
    assert all(len(t.encode()) <= 1_000_000 for t in texts)


@given(st.text("ab é\n\r\U0001f600", min_size=1).map(str.encode))
def test_a_cut_is_a_character_boundary_after_the_last_blank_line_or_line(data):
    cut = cut_point(data)
    assert 0 < cut <= len(data)
    data[:cut].decode()
    data[cut:].decode()
    blank = [m.end() for m in re.finditer(rb"(?<=\n)[ \t\r]*\n", data)]
    if blank:
        assert cut == blank[-1]
    elif b"\n" in data:
        assert cut == data.rindex(b"\n") + 1


@given(st.text("é\U0001f600a", min_size=3), st.integers(0, 3))
def test_a_cut_in_the_middle_of_a_character_moves_before_it(text, missing):
    data = ("a" + text).encode()
    torn = data[: len(data) - missing]
    torn[: cut_point(torn)].decode()


def test_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert _texts(tmp_path / "a.txt") == ["hello"]
