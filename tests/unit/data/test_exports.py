import subprocess
import sys

import hsokv_ray.data
from hsokv_ray.data import exports


def test_the_package_exports_what_its_init_names():
    assert sorted(hsokv_ray.data.__all__) == sorted(exports.__all__)
    for name in hsokv_ray.data.__all__:
        assert getattr(hsokv_ray.data, name) is getattr(exports, name)


def test_a_configuration_costs_no_heavy_import_and_the_rest_no_ray_or_torch():
    code = """
import sys, hsokv_ray.data.config
assert not {"numpy", "pyarrow", "tokenizers", "torch", "ray"} & set(sys.modules)
from hsokv_ray.data import BlockStream
assert not {"torch", "ray", "transformers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
