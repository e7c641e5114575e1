"""The one way configuration comes in: YAML first, flags last, unknown keys answered with a suggestion."""

import subprocess
import sys
from pathlib import Path

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.config import Config, differences, dump_yaml, flags, load_yaml, parse, sections
from hsokv_ray.errors import ConfigError
from hsokv_ray.training.config import TrainHMSTConfig

ROOT = Path(__file__).parents[2]


def all_fields(cls: type[Config]) -> list[str]:
    return [name for section in sections(cls).values() for name in section.model_fields]


def test_flags_win_over_yaml_and_yaml_wins_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("optim:\n  learning_rate: 1e-3\n  batch_size: 4\n")
    config = parse(TrainHMSTConfig, ["--config", str(path), "--batch-size", "2"])
    assert config.optim.learning_rate == 1e-3
    assert config.optim.batch_size == 2
    assert config.optim.weight_decay == TrainHMSTConfig().optim.weight_decay


def test_a_printed_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    argv = ["--gpu-ids", "0", "2", "--use-gpu", "--no-hf-streaming", "--val-split", "0.2", "--size", "tiny"]
    config = parse(TrainHMSTConfig, argv)
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_yaml(config))
    assert load_yaml(TrainHMSTConfig, path) == config
    assert config.run.gpu_ids == (0, 2)
    assert not config.data.hf_streaming


@given(st.data())
def test_a_mistyped_yaml_key_is_answered_with_the_right_one(data: st.DataObject) -> None:
    section = data.draw(st.sampled_from(sorted(sections(TrainHMSTConfig))))
    names = [name for name in sections(TrainHMSTConfig)[section].model_fields if len(name) > 5]
    name = data.draw(st.sampled_from(names))
    at = data.draw(st.integers(1, len(name) - 2))
    typo = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
    if typo in all_fields(TrainHMSTConfig):
        return
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(f"{section}:\n  {typo}: 1\n")
        file.flush()
        with pytest.raises(ConfigError, match=f"unknown key '{typo}'.*'{name}'"):
            load_yaml(TrainHMSTConfig, file.name)


def test_a_key_in_the_wrong_section_is_told_its_section(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 1e-3\n")
    with pytest.raises(ConfigError, match="belongs under 'optim'"):
        load_yaml(TrainHMSTConfig, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1\n", "mapping of sections"), ("a: [\n", "not valid YAML"), ("optim:\n  batch_size: x\n", "got 'x'")],
)
def test_a_broken_yaml_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_yaml(TrainHMSTConfig, path)
    assert "\n" not in str(error.value)


def test_a_missing_yaml_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        parse(TrainHMSTConfig, ["--config", str(tmp_path / "nowhere.yaml")])


def test_a_mistyped_flag_is_answered_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(TrainHMSTConfig, ["--learing-rate", "1e-3"])
    assert stop.value.code == 2
    assert "--learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--val-split", "0.1", "--val-file", "v.txt"], "exclude each other"),
        (["--wds-resampled"], "--wds-epoch-documents"),
        (["--stride", "600"], "at most --seq-len 512"),
        (["--gpu-ids", "0"], "needs --use-gpu"),
        (["--parallel", "ep", "--num-workers", "4", "--expert-parallel-size", "3"], "does not divide"),
        (["--batch-size", "0"], "got 0"),
        (["--use-8bit-optimizer", "--parallel", "fsdp"], "use --parallel ddp"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(TrainHMSTConfig, argv)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_configuration_cannot_be_changed_after_it_is_made() -> None:
    with pytest.raises(pydantic.ValidationError):
        TrainHMSTConfig().run.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_every_field_has_a_help_text_and_no_two_flags_are_the_same() -> None:
    for section in sections(TrainHMSTConfig).values():
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no docstring"
    names = flags(TrainHMSTConfig)
    assert len(names) == len(set(names))


def test_differences_name_each_leaf() -> None:
    old = TrainHMSTConfig().model_dump()
    new = parse(TrainHMSTConfig, ["--seed", "3"]).model_dump()
    assert differences(old, new) == ["run.seed: 0 -> 3"]


def test_help_answers_without_torch_and_ray() -> None:
    code = (
        "import sys; sys.argv = ['train_hmst.py', '--help']\n"
        "import runpy\n"
        "try: runpy.run_path('jobs/train_hmst.py', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print('LOADED', [m for m in ('torch', 'ray', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--learning-rate" in done.stdout
    assert done.stdout.strip().endswith("LOADED []"), done.stdout[-300:]
