import json

import pytest
import torch

from pipelines.bench.device import bench_device


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, where its compiler is imported
def test_one_report_describes_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "disable", True)  # compiling takes longer than all the rest here
    report = bench_device("cpu", {"tiny": ((16, 16, 16, 16), 4)}, steps=(1, 2), batch_size=2, prompts=2, size=32)
    tiny, peak = report["tiny"], report["matrix-product TFLOP/s"] * 1e3
    for name, passes in (("training", 3), ("sampling", 20)):
        rate = next(value for key, value in tiny.items() if key.startswith(f"{name} pictures/s"))
        done = rate * passes * tiny["GFLOP a picture, forward"]
        assert tiny[f"{name}, share of peak"] == pytest.approx(done / peak)
    assert [training["steps"] for training in report["trainings"]] == [1, 2]  # neither obeys
    assert "minutes to 95 %" not in report
    assert json.loads(json.dumps(report)) == report | {"tiny": tiny | {"channels": [16] * 4}}
