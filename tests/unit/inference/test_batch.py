"""A file of prompts becomes a file of results, in order."""

import io
import json
from pathlib import Path

import pytest

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.batch import check_prompts, generate_batch
from hsokv_ray.inference.config import SamplingConfig
from hsokv_ray.inference.generation import Generator
from hsokv_ray.inference.prompts import read_prompts

SAMPLING = SamplingConfig(seed=4, max_length=6)


def test_each_line_gives_what_the_prompt_alone_gives(generator: Generator) -> None:
    prompts = ["The quick", "Pack my box", "naïve 文"]
    out = io.StringIO()
    done = generate_batch(generator, prompts, SAMPLING, out=out)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    for row, completion, prompt in zip(rows, done, prompts, strict=True):
        alone = generator.generate(prompt, SAMPLING)
        assert (row["completion"], row["tokens"], row["seed"]) == (alone.text, 6, 4) == (completion.text, 6, 4)
        assert row["seconds"] == pytest.approx(completion.seconds, abs=1e-4)


def test_empty_lines_are_skipped_counted_and_keep_the_numbers_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  \ntwo\n", encoding="utf-8")
    prompts = read_prompts(path)
    assert prompts.lines == ((1, "one"), (4, "two"))
    assert prompts.num_skipped == 2


def test_a_prompt_that_does_not_fit_is_named_by_its_line_before_anything_is_generated(
    generator: Generator, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("fine\n\n" + "x" * 99, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 3: the prompt has 99 tokens"):
        check_prompts(generator, read_prompts(path))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00", None])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="one prompt per line"):
        read_prompts(path)
