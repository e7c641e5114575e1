import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.plan import resolve_plan
from hsokv_ray.data.preview import preview_lines


def _lines(**flags):
    return preview_lines(resolve_plan(DataConfig(**flags), seed=0))


def test_files_show_documents_column_and_what_was_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("id,review\n1,first   review\n2,\n3,third review\n")
    (tmp_path / "notes.docx").write_text("x")
    text = "\n".join(_lines(source=str(tmp_path)))
    assert "column     csv: review" in text
    assert "(14 characters): first review" in text
    assert "third review" in text
    assert f"skipped    1: {tmp_path}/notes.docx" in text
    assert "counted    empty documents 1" in text


def test_a_hugging_face_folder_shows_the_commit_or_digest_and_column(tmp_path):
    pq.write_table(pa.table({"content": ["hello there"], "n": [1]}), tmp_path / "train.parquet")
    text = "\n".join(_lines(source=f"hf://{tmp_path}"))
    assert "column     parquet: content" in text
    assert "revision   files-" in text
    assert "hello there" in text


def test_tar_shards_show_their_samples(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("sample.txt")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    assert any("x.tar#sample (5 characters): hello" in line for line in _lines(source=str(tmp_path / "x.tar")))


def test_the_embedded_corpus_is_shown_and_long_documents_are_cut():
    lines = _lines()
    assert lines[0] == "source     python://stdlib"
    assert any(line.startswith("document") and line.endswith(" ...") for line in lines)
    assert all(len(line) < 300 for line in lines)
