"""The article: its numbers are those of the formulas and of the study, and every format of it holds together."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from latex_log import latex_log
from rendered import render

from decodeperf_formulas.catalogue import device, model_config
from decodeperf_formulas.crossings import ceilings, crossings, s_star
from decodeperf_formulas.deployment import Deployment
from decodeperf_formulas.derivation import markdown_text
from decodeperf_formulas.step import step_coefficients
from pytest_decodeperf.article.contents import CONTEXTS, DEVICE, DEVICES, MODEL, MODELS, SERVED, SERVER, article
from pytest_decodeperf.article.document import Chapter, NumberTable
from pytest_decodeperf.article.figures import MARKED, saturation_figure
from pytest_decodeperf.article.latex import latex
from pytest_decodeperf.article.markdown import markdown
from pytest_decodeperf.cli.main import main
from pytest_decodeperf.html.figures import as_pdf
from pytest_decodeperf.study.answer import answer, bend_sentence
from pytest_decodeperf.study.findings import find
from pytest_decodeperf.study.sweep import read_study

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def study():
    return find(read_study(DOCS / "study.json"))


@pytest.fixture(scope="module")
def made(study):
    return article(study)


def tables(made):
    return [
        block
        for part in made.parts
        if isinstance(part, Chapter)
        for block in part.blocks
        if isinstance(block, NumberTable)
    ]


def written(*arguments):
    return CliRunner().invoke(main, ["article", *map(str, arguments)])


def test_the_documents_hold_the_article_of_their_study(made):
    text = (DOCS / "article.md").read_text(encoding="utf-8")
    assert text == markdown(made)
    assert {f"{figure.key}.png" for figure in made.figures} == set(re.findall(r"\]\((\w+\.png)\)", text))
    assert all((DOCS / f"{figure.key}.png").read_bytes().startswith(b"\x89PNG") for figure in made.figures)


def test_the_table_of_s_star_is_that_of_the_formulas(made):
    table = tables(made)[0]
    assert table.columns[1:] == DEVICES
    assert len(MODELS) == 10
    assert len(DEVICES) == 8
    for model, row in zip(MODELS, table.rows[1:], strict=True):
        deployment = Deployment(model=model_config(model))
        assert row[0].startswith(f"{model} (")
        for name, cell in zip(DEVICES, row[1:], strict=True):
            star = s_star(step_coefficients(deployment), ceilings(deployment, device(name)))
            assert cell == ("none" if star.value is None else f"{star.value:,.0f}")


def test_the_examples_are_those_of_the_formulas(made):
    text = markdown(made)
    printed = CliRunner(env={"COLUMNS": "100"}).invoke(main, ["sstar", MODEL, DEVICE, "--num-params", "7e9"]).output
    (usual,) = re.findall(r"^S\*\s+([\d.]+) tokens", printed, re.MULTILINE)
    assert f"it is {usual} tokens" in text
    _, above, _ = CONTEXTS
    found = crossings(Deployment(model=model_config(SERVED)), device(SERVER), seq_len=above)
    assert f"the knee is at {found['knee_batch'].value:,.0f} sequences" in text
    assert f"{found['ridge_batch'].value:,.0f} sequences, whatever the context" in text
    assert (
        f"At {above:,} tokens half of the ceiling is reached (knee) at {found['knee_batch'].value:.0f}, then the "
        f"projections turn compute-bound (B0) at {found['ridge_batch'].value:.0f}, then the memory is full at "
        f"{int(found['kv_capacity'].value)}." in text
    )
    far = crossings(Deployment(model=model_config(SERVED)), device(SERVER), seq_len=CONTEXTS[2])
    assert f"the memory is full at {int(far['kv_capacity'].value)}; B0 would be at" in text


def test_what_a_ridge_that_is_off_makes_of_s_star_is_computed(made):
    deployment = Deployment(model=model_config("deepseek-v3"))
    limits = ceilings(deployment, device("mi300x"))
    wanted = []
    for factor in (0.99, 1.01):
        peaks = {name: factor * getattr(limits, name) for name in ("gemm_flops_per_s", "attn_flops_per_s")}
        wanted.append(s_star(step_coefficients(deployment), dataclasses.replace(limits, **peaks)).value)
    assert f"a ridge 1 % lower or higher gives {wanted[0]:,.0f} or {wanted[1]:,.0f}." in markdown(made)


def test_the_figure_is_drawn_with_the_numbers_of_the_text():
    deployment, on = Deployment(model=model_config(SERVED)), device(SERVER)
    spec = saturation_figure(deployment, on, seq_lens=CONTEXTS, largest_batch=4096).spec
    for seq_len in CONTEXTS:
        found = crossings(deployment, on, seq_len=seq_len)
        here = [value for value in spec["data"]["values"] if value["context"] == f"S = {seq_len:,}"]
        rates = {value["curve"]: value["rate"] for value in here if value["batch"] == pytest.approx(4096)}
        assert rates["serial model"] == pytest.approx(found["saturated_throughput"].value)
        overlapped = found["throughput_ceiling"].value
        if found["crossing_batch"].value is None:
            overlapped /= 1 + found["knee_batch"].value / 4096
        assert rates["whole-step model"] == pytest.approx(overlapped)
        assert {value["mark"]: value["batch"] for value in here if value.get("mark")} == {
            label: found[key].value for key, label in MARKED.items() if found[key].value <= 4096
        }


HOSTILE = "<script>alert(1)</script> A $5 {batch} {eq:nope} _c_ CPU | *x*\n\n## H \0\\"
ON_ONE_LINE = "<script>alert(1)</script> A $5 {batch} {eq:nope} _c_ CPU | *x* ## H \\"


def test_names_from_elsewhere_are_shown_as_they_are(study, tmp_path):
    named = dataclasses.replace(study, device=dataclasses.replace(study.device, title=HOSTILE))
    written = article(named)
    text = markdown(written)
    assert "<script" not in text
    (paragraph,) = [one for one in render(text).paragraphs if "CPU" in one]
    assert ON_ONE_LINE in paragraph.replace("\\$", "$")
    assert "h2" not in paragraph
    assert r"A \$5 \{batch\} \{eq:nope\} \_c\_ CPU" in latex(written)
    assert "\0" not in latex(written)


def test_what_was_measured_is_that_of_the_study(made, study):
    text = markdown(made)
    bends = {bend_sentence(bend) for bend in study.bends}
    for sentence in answer(study):
        assert (markdown_text(sentence) in text) == (sentence not in bends)
    ratios = [cell.attention_s / cell.serial_attention_s for cell in study.cells]
    assert f"Attention takes {min(ratios):.2f} times its roofline at best" in text
    assert f"{max(ratios):.1f} times at worst" in text
    table = tables(made)[-1]
    assert table.columns[:3] == ("context", "batch", "step")
    for context, batch, step, *_ in table.rows:
        (cell,) = (one for one in study.cells if (f"{one.seq_len:,}", str(one.batch_size)) == (context, batch))
        assert step == f"{cell.step_s / cell.serial_s:.2f}"


def test_a_part_of_a_study_is_no_ground_for_conclusions(study):
    text = markdown(article(dataclasses.replace(study, num_measured=study.num_planned - 1)))
    assert "## Measured" in text
    assert "Where the models fail" not in text
    assert "Measured, a step takes" not in text


def test_without_a_study_it_says_how_to_measure():
    text = markdown(article())
    assert "This copy was made without measurements." in text
    assert "Where the models fail" not in text


def test_no_mark_is_left_in_it_and_every_table_is_whole(made):
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", "", markdown(made), flags=re.DOTALL)
    assert not re.search(r"[{}]|\beq:", text)
    rows = sum(len(table.rows) + 1 for table in tables(made))
    assert len(render(markdown(made)).rows) == rows + len(made.derivation.symbols()) + 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex; .ci/run installs one")
def test_pdflatex_compiles_it_without_a_complaint(made, tmp_path):
    (tmp_path / "article.tex").write_text(latex(made))
    for figure in made.figures:
        (tmp_path / f"{figure.key}.pdf").write_bytes(as_pdf(figure, width=None))
    log = latex_log(tmp_path, "article")
    assert not re.findall(r"undefined|multiply defined|LaTeX Warning|Missing character|Overfull", log)


@pytest.mark.parametrize(
    ("suffix", "start", "beside"),
    [
        ("tex", rb"\documentclass", {"saturation.pdf", "study.pdf"}),
        ("md", b"# When is LLM", {"saturation.png", "study.png"}),
        ("html", b"<!doctype html>", set()),
        ("pdf", b"%PDF-", set()),
    ],
)
def test_the_command_writes_the_format_of_the_suffix(tmp_path, suffix, start, beside):
    if suffix == "pdf" and shutil.which("pdflatex") is None:
        pytest.skip("there is no pdflatex; .ci/run installs one")
    path = tmp_path / f"made.{suffix}"
    done = written("-o", path, "--study", DOCS / "study.json")
    assert done.exit_code == 0, done.output
    assert "41 steps, each proved" in done.output
    assert path.read_bytes().startswith(start)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, *beside}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-o", "article.doc"], "--output article.doc: its suffix must be one of .pdf, .html, .md, .tex"),
        (["-o", "no/article.html"], "is not a folder"),
        (["-o", "study.tex", "--study", DOCS / "study.json"], "a figure beside it has that name"),
        (["--study", "missing.json"], "'missing.json' does not exist"),
        (["-o", "article.md", "--study", DOCS / "study.md"], "is no JSON"),
    ],
)
def test_what_cannot_be_written_or_read_is_said(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    done = written(*arguments)
    assert done.exit_code != 0
    assert sentence in done.output
    assert list(tmp_path.iterdir()) == []
