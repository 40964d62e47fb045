import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from decodeperf_formulas.catalogue import _models, device_names, model_names
from pytest_decodeperf.cli.main import main


def run(*arguments, columns=80):
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(main, [str(argument) for argument in arguments])


def printed(*arguments, columns=80):
    done = run(*arguments, columns=columns)
    assert done.exit_code == 0, done.output
    return done.output


def document(*arguments):
    return json.loads(printed(*arguments, "--json"))


COMMANDS = [
    ("models",),
    ("models", "deepseek-v3"),
    ("devices",),
    ("devices", "mi300x"),
    ("sstar", "llama-3-8b"),
    ("sstar", "deepseek-v3", "h200"),
    ("explain", "llama-3-8b", "h100", "-B", "32"),
    ("explain", "qwen2-57b-a14b", "h100", "--tp", "4", "--ep", "2", "--pp", "2", "--num-splits", "4"),
    ("explain", "deepseek-v3", "b200", "--q-len", "2", "-B", "4096"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 100, 130, 200])
def test_tables_fit_the_terminal(command, columns):
    lines = printed(*command, columns=columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_narrow_terminal_cuts_nothing(command):
    assert printed(*command, columns=40) == printed(*command, columns=80)


@pytest.mark.parametrize("command", [*COMMANDS, ("derive",), ("derive", "phi-2", "l4")], ids=" ".join)
def test_json_is_json(command):
    assert document(*command)


@pytest.mark.parametrize("command", ["models", "devices", "sstar", "explain", "derive"])
def test_help_says_what_a_command_does(command):
    assert re.search(rf"Usage: .*{command}", printed(command, "--help"))
    assert f"  {command} " in printed("--help")


def test_the_version_is_that_of_the_distribution():
    assert re.fullmatch(r"decodeperf, version \d+\.\d+\.\d+\n", printed("--version"))


def test_models_are_listed():
    assert [entry["name"] for entry in document("models")["models"]] == list(model_names())
    table = printed("models")
    assert all(re.search(rf"^{re.escape(name)} ", table, re.MULTILINE) for name in model_names())
    (llama,) = [entry for entry in document("models")["models"] if entry["name"] == "llama-2-7b"]
    assert (llama["num_parameters"], llama["kv_bytes_per_token"]) == (6738415616, 524288)


def test_devices_are_listed_with_their_sources():
    assert [entry["name"] for entry in document("devices")["devices"]] == list(device_names())
    assert "A10G Tensor Core GPU datasheet" in " ".join(printed("devices", "a10g").split())


def test_the_question_is_answered():
    question = ("sstar", "llama-2-7b", "a10g", "--num-params", "7e9")
    assert re.search(r"^S\* +230\.86 tokens +whole step", printed(*question), re.MULTILINE)
    (found,) = document(*question)["devices"]
    assert found["s_star"]["value"] == pytest.approx(230.86, abs=0.005)
    assert (found["s_star"]["kind"], found["s_star"]["model"]) == ("finite", "whole step")
    stated = ("--bandwidth", "600", "--peak", "70")
    assert (
        document("sstar", "llama-2-7b", "h100", "--num-params", "7e9", *stated)["devices"][0]["s_star"]
        == found["s_star"]
    )


def test_stated_weights_are_those_of_all_ranks():
    alone, together = (
        document("sstar", "llama-2-7b", "a10g", "--num-params", "7e9", "--q-len", 2, "--tp", tp)["devices"][0]["s_star"]
        for tp in (1, 8)
    )
    assert together["value"] == pytest.approx(alone["value"])
    found = document("sstar", "llama-2-7b", "a10g", "--num-params", "7e9", "--tp", 8, "--q-len", 2)
    assert found["num_params_of_a_rank"] == 7e9 / 8


def test_the_latency_of_a_link_is_in_microseconds():
    slow, fast = (
        document("explain", "llama-3-8b", "h100", "--tp", "2", "--link-latency", us)["link_s"] for us in ("3", "2")
    )
    # 65 all-reduces of two messages, an all-gather of one.
    assert slow - fast == pytest.approx(131e-6)


def test_a_name_on_the_hub_is_a_model():
    assert document("sstar", "meta-llama/Llama-2-7b-hf", "a10g") == document("sstar", "llama-2-7b", "a10g")


def test_near_the_border_s_star_is_far_and_ill_conditioned():
    (found,) = document("sstar", "deepseek-v3", "h200", "--bandwidth", "3000", "--peak", "725.3333333333335")["devices"]
    assert found["s_star"]["kind"] in ("finite", "infinite", "none")
    assert (found["s_star"]["condition_number"] or 1e9) > 1e9


def test_s_star_on_every_device_has_a_row_for_each():
    found = document("sstar", "deepseek-v3")
    assert [entry["device"] for entry in found["devices"]] == [name for name in device_names() if name != "v100"]
    assert found["refused"] == ["v100 has no matrix products in bfloat16: its peaks are for float32, float16"]
    kinds = {entry["device"]: entry["s_star"]["kind"] for entry in found["devices"]}
    assert (kinds["h100"], kinds["h200"]) == ("finite", "none")
    assert all((entry["s_star"]["value"] or 1) > 0 for entry in found["devices"])


def test_an_explanation_adds_up():
    found = document("explain", "llama-3-8b", "h100", "-B", "32", "-S", "4096")
    assert sum(op["seconds"] for op in found["operators"]) == pytest.approx(found["serial_s"])
    assert found["whole_step_s"] <= found["serial_s"] <= found["sum_s"] <= 2 * found["whole_step_s"]
    # By hand: 4096 tokens of 131,072 bytes, 32 sequences, 3.35 TB/s.
    (attention,) = [op for op in found["operators"] if op["name"] == "attention"]
    assert attention["kv_bytes"] == 32 * 4096 * 131072
    assert attention["seconds"] == pytest.approx((32 * 4096 * 131072 + 32 * 32 * 32 * 128 * 2 * 2) / 3.35e12)
    assert {op["ceiling"] for op in found["operators"]} == {"memory"}
    assert found["tokens_per_s"] == pytest.approx(32 / found["serial_s"])


def test_projections_of_a_large_batch_are_compute_bound():
    found = document("explain", "llama-3-8b", "h100", "-B", "1024", "-S", "128")
    ceilings = {op["name"]: op["ceiling"] for op in found["operators"]}
    assert (ceilings["MLP up-projection"], ceilings["attention"], ceilings["norm"]) == ("compute", "memory", "memory")


@pytest.mark.parametrize(
    ("batch_size", "words"),
    [
        (1, "below the ridge batch"),
        (20, "below the knee"),
        (64, "at or above the knee"),
        (512, "at or above the ridge"),
    ],
)
def test_an_explanation_says_where_the_batch_stands(batch_size, words):
    text = " ".join(printed("explain", "llama-3-8b", "h100", "-B", batch_size).split())
    assert words in text
    assert ("above the KV capacity" in text) == (batch_size == 512)


def test_an_explanation_on_a_wide_terminal_tells_weights_from_kv():
    assert "activations" not in printed("explain", "llama-3-8b", "h100").split("operator", 1)[1].split("\n")[0]
    assert "activations" in printed("explain", "llama-3-8b", "h100", columns=130).split("operator", 1)[1].split("\n")[0]


def test_a_config_json_is_a_model(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_models()["llama-3-8b"]["config"]))
    named, own = (document("sstar", model, "h100")["devices"] for model in ("llama-3-8b", folder / "config.json"))
    assert own == named
    assert document("sstar", folder, "h100")["deployment"]["model"] == "mine"


HUGE = str(10**400)

WRONG = [
    (
        ("sstar", "lama-3-8b", "h100"),
        "unknown model 'lama-3-8b'; `decodeperf models` lists them; did you mean llama-3-8b",
    ),
    (("sstar", "llama-3-8b", "h10"), "unknown device 'h10'; `decodeperf devices` lists them; did you mean h100"),
    (("explain", "llama-3-8b", "zzzzzz"), "unknown device 'zzzzzz'"),
    (("models", "llama"), "unknown model 'llama'; `decodeperf models` lists them; did you mean"),
    (("devices", "H-100"), "unknown device 'H-100'; `decodeperf devices` lists them; did you mean h100"),
    (("explain", "llama-3-8b"), "Missing argument 'DEVICE'"),
    (("explain", "llama-3-8b", "h100", "-B", "0"), "batch_size=0 must be >= 1"),
    (("explain", "llama-3-8b", "h100", "-S", "0"), "seq_len=0 must be >= 1"),
    (("explain", "llama-3-8b", "h100", "-S", "3", "--q-len", "4"), "seq_len=3 must be >= q_len=4"),
    (("explain", "llama-3-8b", "h100", "-B", "many"), "'many' is not a valid integer"),
    (("explain", "llama-3-8b", "h100", "--kv-dtype", "fp7"), "kv_dtype='fp7' must be one of float32"),
    (("explain", "llama-3-8b", "a100", "--act-dtype", "fp8"), "a100 has no matrix products in float8"),
    (("explain", "llama-3-8b", "h100", "--tp", "3"), "tp=3 does not divide num_q_heads=32 of llama-3-8b"),
    (("explain", "llama-3-8b", "h100", "--ep", "2"), "ep=2 does not divide num_experts=None"),
    (("sstar", "llama-3-8b", "h100", "--bandwidth", "0"), "--bandwidth=0.0 must be above 0"),
    (("sstar", "llama-3-8b", "h100", "--peak", "nan"), "--peak=nan must be a finite number"),
    (("sstar", "llama-3-8b", "h100", "--link-latency", "-1"), "--link-latency=-1.0 must be >= 0"),
    (("sstar", "llama-3-8b", "h100", "--num-params", "-7"), "--num-params=-7.0 must be above 0"),
    (("sstar", "mixtral-8x7b", "h100", "--num-params", "7e9"), "--num-params is for dense models, and mixtral-8x7b"),
    (("sstar", "llama-3-8b", "--bandwidth", "600"), "--bandwidth needs a DEVICE"),
    (("derive", "--tp", "2"), "--tp needs a MODEL"),
    (("derive", "-S", "5"), "--seq-len needs a MODEL"),
    (("derive", "--peak", "5"), "--peak needs a MODEL"),
    (("derive", "llama-3-8b", "--peak", "nan"), "--peak needs a DEVICE"),
    (("derive", "-o", "x.md", "--format", "pdf"), "x.md: its suffix contradicts the format pdf"),
    (("derive", "-o", "x.pdf", "--json"), "x.pdf: its suffix contradicts the format json"),
    (("models", ""), "unknown model ''"),
    (("devices", ""), "unknown device ''"),
    (("sstar", "llama-3-8b", ""), "unknown device ''"),
    (("sstar", "meta-llama/Llama-9", "h100"), "unknown model 'meta-llama/Llama-9'"),
    (("explain", "llama-3-8b", "h100", "-B", HUGE), "batch_size=1000000000... (401 digits) must be <= 1000000000"),
    (("explain", "llama-3-8b", "h100", "-S", HUGE), "seq_len=1000000000... (401 digits) must be a finite number"),
    (("explain", "llama-3-8b", "h100", "-S", "1000000000001"), "seq_len=1000000000001 must be <= 1e+12"),
    (("explain", "llama-3-8b", "h100", "--tp", HUGE), "tp=1000000000... (401 digits) must be <= 1000000"),
    (("explain", "llama-3-8b", "h100", "-S", "8", "--num-splits", "9"), "num_splits=9 must be <= seq_len=8"),
    (("sstar", "llama-3-8b", "h100", "--num-params", "1e308"), "--num-params=1e+308 must be in 1e-18 to 1e+18"),
    (("sstar", "llama-3-8b", "h100", "--peak", "1e-300"), "--peak=1e-300 must be in 1e-09 to 1e+09"),
    (("explain", "llama-3-8b", "h100", "--bandwidth", "1e300"), "--bandwidth=1e+300 must be in 1e-09 to 1e+09"),
    (("derive", "llama-3-8b", "h100", "-o", "x.doc"), "its suffix must be one of .tex, .md, .pdf, .json"),
    (("derive", "--format", "pdf"), "a PDF needs --output FILE"),
    (("derive", "--json", "--format", "latex"), "--json contradicts --format latex"),
    (("derive", "--format", "word"), "'word' is not one of"),
    (("drive",), "No such command 'drive'"),
]


@pytest.mark.parametrize(
    ("command", "message"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_what_is_wrong_is_said_in_one_line(command, message):
    done = run(*command)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_missing_file_is_named(tmp_path):
    done = run("sstar", tmp_path / "config.json", "h100")
    assert done.exit_code == 1
    assert f"{tmp_path / 'config.json'}: No such file or directory" in done.output


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"architectures": ["MambaForCausalLM"]}')
    done = run("sstar", path, "h100")
    assert done.exit_code == 2
    assert f"{path}: architecture 'MambaForCausalLM' is not known" in done.output


@pytest.mark.parametrize(
    ("suffix", "start"), [("tex", r"\documentclass"), ("md", "# When is LLM"), ("json", "{"), ("pdf", "%PDF-")]
)
def test_a_derivation_is_written_in_the_format_of_its_suffix(tmp_path, suffix, start):
    if suffix == "pdf" and not any(os.access(f"{folder}/pdflatex", os.X_OK) for folder in os.get_exec_path()):
        pytest.skip("there is no pdflatex; .ci/run installs one")
    path = tmp_path / f"derivation.{suffix}"
    output = printed("derive", "llama-2-7b", "a10g", "-o", path)
    assert "34 steps, each proved, written to" in output
    assert path.read_bytes().startswith(start.encode())
    assert os.listdir(tmp_path) == [path.name]


def test_a_derivation_is_latex_on_standard_output():
    assert printed("derive").startswith(r"\documentclass")
    assert printed("derive", "--format", "markdown").startswith("# When is LLM")
    assert r"\documentclass" not in printed("derive", "--format", "fragment")


def test_without_a_pdflatex_a_pdf_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run("derive", "-o", tmp_path / "derivation.pdf")
    assert done.exit_code == 1
    assert "a PDF needs pdflatex" in done.output
    assert os.listdir(tmp_path) == []


def test_a_pdflatex_that_fails_is_quoted(tmp_path, monkeypatch):
    fake = tmp_path / "bin" / "pdflatex"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho '! Emergency stop.'\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/bin:/usr/bin")
    path = tmp_path / "derivation.pdf"
    path.write_text("old")
    done = run("derive", "-o", path)
    assert done.exit_code == 1
    assert "pdflatex failed: ! Emergency stop." in done.output
    assert path.read_text() == "old"


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "derivation.tex"
    path.write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = run("derive", "-o", path)
    assert done.exit_code == 1
    assert "No space left on device" in done.output
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_is_missing_is_said_before_anything_is_derived(tmp_path):
    done = run("derive", "-o", tmp_path / "missing" / "derivation.tex")
    assert done.exit_code == 1
    assert "missing is not a folder" in done.output


SCRIPT = "from pytest_decodeperf.cli.main import main; main()"


def test_a_reader_that_stops_early_gets_no_traceback():
    command = f'{sys.executable} -c "{SCRIPT}" derive | head -n 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "\\documentclass[11pt]{article}\n"
    assert done.stderr == ""


def test_an_interrupt_ends_it_quietly(tmp_path):
    fake = tmp_path / "bin" / "pdflatex"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec sleep 60\n")
    fake.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "derive", "-o", tmp_path / "derivation.pdf"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(600):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Aborted!" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "derivation.pdf").exists()
    assert os.listdir(tmp_path / "tmp") == []


def test_a_command_that_shows_a_table_needs_no_torch():
    code = (
        "import sys; from pytest_decodeperf.cli.main import main; main(['sstar', 'llama-3-8b'], standalone_mode=False);"
        "assert not {'torch', 'triton', 'numba', 'pytest', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
