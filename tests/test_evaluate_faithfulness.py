import json

import pytest
import torch

from pipelines import TextToImagePipeline
from pipelines.evaluation.faithfulness import CUTS, evaluate_faithfulness, faithfulness_table, judge_change
from pipelines.evaluation.maps import METHODS


def test_a_map_of_the_change_is_best_and_its_complement_worst() -> None:
    change = torch.zeros(16, 16)
    change[2:6, 3:9] = 1
    right, dense, _ = judge_change(change, change)
    wrong, thin, _ = judge_change(1 - change, change)
    assert right > 0.9 and wrong < 0.1 and dense > 100 and thin < 0.01
    chance, even, _ = judge_change(torch.rand(16, 16), torch.ones(16, 16))
    assert chance == pytest.approx(0.5, abs=0.01) and even == pytest.approx(1)


def test_no_method_exceeds_the_change_itself(tiny_pipe: TextToImagePipeline) -> None:
    report = json.loads(json.dumps(evaluate_faithfulness(tiny_pipe, 2)))
    assert report["settings"]["scenes"] == 6
    assert set(report["cuts"]) == {f"noise {cut}" for cut in CUTS}
    for methods in report["cuts"].values():
        possible = {name for name, method in METHODS.items() if method.needs != "calibration"}
        assert set(methods) == possible | {"another word", "change itself"}
        for figures in methods.values():
            assert figures["n"] == report["settings"]["words"] > 20
            mean, low, high = figures["auc"]
            assert low <= mean <= high <= methods["change itself"]["auc"][2]
            assert figures["curve"][0] == 0 and figures["curve"][-1] == pytest.approx(1)
    assert all(len(line) <= 120 for line in faithfulness_table(report).splitlines())
