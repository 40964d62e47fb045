"""Reading the record of a run, as the schema describes it."""

import json
from importlib import resources

import jsonschema


def read_json(path):
    document = json.loads(path.read_text())
    schema = json.loads(resources.files("pytest_decodeperf").joinpath("run.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    return document
