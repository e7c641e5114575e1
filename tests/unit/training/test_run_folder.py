import multiprocessing
import os
import subprocess
import sys

import pytest

from hsokv_ray import env
from hsokv_ray.config import load_yaml
from hsokv_ray.errors import ConfigError, RunError
from hsokv_ray.training.config import RunConfig, TrainHMSTConfig
from hsokv_ray.training.run_folder import INCIDENTAL, RunFolder, defining, fingerprint


def config_of(**sections) -> TrainHMSTConfig:
    return TrainHMSTConfig.model_validate(sections)


def claim(folder: RunFolder, config: TrainHMSTConfig) -> None:
    with folder.claim(config):
        pass


def test_the_first_claim_writes_the_configuration_and_the_same_one_is_let_in_again(tmp_path):
    folder, config = RunFolder(tmp_path / "run"), config_of(optim={"learning_rate": 0.01}, run={"seed": 3})
    claim(folder, config)
    assert load_yaml(TrainHMSTConfig, folder.config) == config
    claim(folder, config)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"optim": {"learning_rate": 0.5}}, r"optim\.learning_rate: 0\.002 -> 0\.5"),
        ({"optim": {"max_steps": 9}}, r"optim\.max_steps: None -> 9"),
        ({"optim": {"use_8bit_optimizer": True}}, r"optim\.optimizer: 'adamw' -> 'adamw8bit'"),
        ({"model": {"size": "tiny"}}, r"model\.size: 'micro' -> 'tiny'"),
        ({"data": {"seq_len": 64}}, r"data\.seq_len: 512 -> 64"),
        ({"run": {"seed": 1}}, r"run\.seed: 0 -> 1"),
        ({"run": {"num_workers": 2}}, r"run\.num_workers: 8 -> 16"),
    ],
)
def test_a_configuration_with_another_loss_curve_is_refused_by_name(changed, named, tmp_path):
    folder = RunFolder(tmp_path)
    claim(folder, config_of())
    with pytest.raises(ConfigError, match=rf"{named}.*--name"):
        claim(folder, config_of(**changed))
    assert load_yaml(TrainHMSTConfig, folder.config) == config_of()


@pytest.mark.parametrize(
    "changed",
    [
        {
            "run": {
                "max_failures": 9,
                "log_every": 1,
                "eval_every": 7,
                "save_every": 5,
                "keep": 4,
                "cpus_per_worker": 0.5,
            }
        },
        {"run": {"num_workers": 2}, "optim": {"batch_size": 4}},
        {"run": {"num_workers": 4}, "optim": {"batch_size": 1, "gradient_accumulation_steps": 2}},
        {"run": {"parallel": "fsdp", "use_gpu": True, "gpu_ids": [0]}},
    ],
)
def test_a_configuration_with_the_same_loss_curve_is_let_in(changed, tmp_path):
    claim(RunFolder(tmp_path), config_of())
    claim(RunFolder(tmp_path), config_of(**changed))


def test_every_incidental_field_exists():
    values = TrainHMSTConfig().model_dump()
    assert [name for name in INCIDENTAL if name.split(".")[1] not in values[name.split(".")[0]]] == []


def test_the_fingerprint_is_equal_exactly_where_the_defining_values_are():
    base, same, other = (
        config_of(),
        config_of(run={"keep": 9, "num_workers": 2}, optim={"batch_size": 4}),
        config_of(run={"seed": 1}),
    )
    assert defining(base) == defining(same)
    assert fingerprint(base) == fingerprint(same)
    assert fingerprint(base) != fingerprint(other)


def test_a_second_driver_is_turned_away_and_told_who_holds_the_run(tmp_path):
    code = (
        "import sys\n"
        "from hsokv_ray.training.config import TrainHMSTConfig\n"
        "from hsokv_ray.training.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).claim(TrainHMSTConfig()):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"is being written by process {holder.pid} on "):
            claim(RunFolder(tmp_path), config_of())
        holder.kill()
    claim(RunFolder(tmp_path), config_of())


def _claim_without_rights(path: str, answer) -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        claim(RunFolder(path), config_of())
    except RunError as error:
        answer.put(str(error))


def test_a_folder_without_write_permission_ends_with_one_line(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=_claim_without_rights, args=(str(tmp_path / "closed" / "run"), answer))
    process.start()
    text = answer.get(timeout=60)
    process.join()
    assert "run cannot be written (Permission denied); give a folder you may write with --output-dir" in text


def test_the_folder_is_below_the_output_dir_or_the_environments(tmp_path, monkeypatch):
    monkeypatch.setenv(env.RUNS_DIR, str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    assert RunFolder.of(RunConfig(name="a")).path == tmp_path / "runs" / "a"
    assert RunFolder.of(RunConfig(name="a", output_dir="out")).path == tmp_path / "out" / "a"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc"])
def test_a_name_that_is_not_one_folder_is_refused(name):
    with pytest.raises(ConfigError, match="--name: got"):
        RunFolder.of(RunConfig(name=name))
