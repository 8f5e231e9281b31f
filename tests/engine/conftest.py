"""The data of `small_runs`, and one thread: sums depend on their number."""

from __future__ import annotations

import pytest
import torch
from small_runs import compose

from bnexp.engine.build import DeviceData, load_host_data, to_device


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return to_device(load_host_data(compose().data, None), torch.device("cpu"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
