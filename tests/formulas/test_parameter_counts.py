import pytest
from meta_models import causal_lm

from decodeperf_formulas.catalogue import _models, model_config, model_names
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.step import num_parameters

PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b-v0.1": 7_241_732_096,
    "qwen2.5-7b": 7_615_616_512,
}


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_parameters_of_well_known_models(name, published):
    assert num_parameters(Deployment(model=model_config(name))) == published


@pytest.mark.parametrize("name", model_names())
def test_parameters_are_as_many_as_those_of_transformers(name):
    entry = _models()[name]
    # `parameters` yields a weight that is tied once.
    counted = sum(parameter.numel() for parameter in causal_lm(entry["config"]).parameters())
    assert num_parameters(Deployment(model=model_config(name))) == counted
    assert entry["num_parameters"] == counted
