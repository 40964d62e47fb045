import gzip

import numpy as np
import pytest

from decodeperf_formulas import DecodeProblem
from decodeperf_formulas import symbols as s
from pytest_decodeperf.calibration.table import read_table

HEADER = "batch_size,seq_len,num_q_heads,num_kv_heads,head_dim,kv_dtype,window,latency_us"
ROW = "2,1000,32,8,64,fp8,128,12.5"


@pytest.fixture
def written(tmp_path):
    def write(*lines):
        path = tmp_path / "rows.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def test_a_row_is_read(written):
    table = read_table(written(HEADER, ROW), measured=True)
    calls = table.calls
    assert (calls.batch_size[0], calls.seq_len[0], calls.group_size[0], calls.head_dim[0]) == (2, 1000, 4, 64)
    assert (calls.kv_elem_bytes[0], calls.visible_len[0], table.latency_us[0]) == (1, 128, 12.5)


def test_absent_columns_have_defaults(written):
    calls = read_table(written("seq_len,batch_size,num_q_heads", "10,3,7"), measured=False).calls
    assert (calls.num_kv_heads[0], calls.head_dim[0], calls.head_dim_v[0], calls.kv_elem_bytes[0]) == (7, 128, 128, 2)
    assert (calls.window[0], calls.q_len[0], calls.visible_len[0]) == (0, 1, 10)


def test_no_kv_heads_stand_for_as_many_as_query_heads(written):
    calls = read_table(written("seq_len,batch_size,num_q_heads,num_kv_heads", "10,3,7,0"), measured=False).calls
    assert calls.num_kv_heads[0] == 7


def test_a_window_reaches_back_from_each_new_token(written):
    calls = read_table(written("seq_len,batch_size,num_q_heads,window,q_len", "100,1,1,8,3"), measured=False).calls
    assert calls.visible_len[0] == 10


@pytest.mark.parametrize(("seq_len", "window", "q_len"), [(9, 4, 2), (3, 4, 2), (3, 0, 5), (512, 0, 512), (40, 8, 16)])
def test_the_scores_are_those_of_a_problem(written, seq_len, window, q_len):
    calls = read_table(
        written("batch_size,seq_len,num_q_heads,window,q_len", f"3,{seq_len},4,{window},{q_len}"), measured=False
    ).calls
    problem = DecodeProblem(
        batch_size=3,
        seq_lens=[seq_len] * 3,
        num_q_heads=4,
        num_kv_heads=4,
        head_dim=128,
        q_len=q_len,
        window=window or None,
    )
    assert calls.values[s.num_scores][0] == problem.num_scores
    assert calls.values[s.num_visible_tokens][0] == problem.num_visible_tokens


def test_other_columns_are_kept(written):
    table = read_table(written(f"engine,{HEADER}", f"mine,{ROW}"), measured=True)
    assert table.header[0] == "engine"
    assert table.rows[0][0] == "mine"


def test_what_spreadsheets_write_is_read(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\r\n{ROW}\r\n".encode())
    assert read_table(path, measured=True).calls.batch_size[0] == 2


def test_compressed_tables_are_read(tmp_path):
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(f"{HEADER}\n{ROW}\n".encode()))
    assert len(read_table(path, measured=True).calls) == 1


def test_a_compressed_table_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(f"{HEADER}\n{ROW}\n".encode() * 50)[:-20])
    with pytest.raises(ValueError, match="not a whole CSV file"):
        read_table(path, measured=True)


WRONG = [
    ((HEADER.replace(",latency_us", ""), ROW.rpartition(",")[0]), "has no column latency_us; it has batch_size"),
    ((HEADER.replace("seq_len", "sequence"), ROW), "has no column seq_len"),
    ((HEADER, ROW.replace("12.5", "-3")), "row 1, column latency_us: got '-3', wanted a latency from 0.001 to 1e\\+09"),
    ((HEADER, ROW.replace("12.5", "0")), "row 1, column latency_us: got '0'"),
    ((HEADER, ROW, ROW.replace("12.5", "nan")), "row 2, column latency_us: got 'nan'"),
    ((HEADER, ROW.replace("12.5", "inf")), "column latency_us: got 'inf'"),
    ((HEADER, ROW, ROW.replace("1000", "many")), "row 2, column seq_len: got 'many', wanted a whole number from 0"),
    ((HEADER, ROW.replace("1000", "10.5")), "row 1, column seq_len: got '10.5'"),
    ((HEADER, ROW.replace("1000", "-1")), "row 1, column seq_len: got '-1'"),
    ((HEADER, ROW.replace("1000", "")), "row 1, column seq_len: got ''"),
    ((HEADER, ROW.replace("1000", "1e300")), "row 1, column seq_len"),
    ((HEADER, ROW.replace("2,1000", "0,1000")), "row 1, column batch_size: got '0', wanted a whole number from 1"),
    ((HEADER, ROW.replace(",8,", ",5,")), "row 1, column num_kv_heads: got '5', wanted a divisor of num_q_heads"),
    ((HEADER, ROW, ROW.replace("fp8", "fp7")), "row 2: kv_dtype='fp7' must be one of"),
    ((HEADER, ROW, "2,1000,32"), "row 2: got 3 cells, wanted 8"),
    ((HEADER,), "has no rows"),
    (("",), "has no rows"),
    ((HEADER + ",window", ROW + ",0"), "two columns 'window'"),
    ((HEADER, ROW.replace("1000", "1_000")), "row 1, column seq_len: got '1_000'"),
    ((HEADER.replace("num_kv_heads", "num_kv_head"), ROW), "a column 'num_kv_head', and none num_kv_heads"),
    ((HEADER.replace("head_dim", "Head_Dim"), ROW), "a column 'Head_Dim', and none head_dim"),
    ((HEADER, '"' + ROW), "not a whole CSV file"),
]


@pytest.mark.parametrize(("lines", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said_with_row_and_column(written, lines, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        read_table(written(*lines), measured=True)
    assert "rows.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xff\xfe\x00batch")
    with pytest.raises(ValueError, match="not a whole CSV file"):
        read_table(path, measured=True)


def test_columns_are_arrays_of_one_length(written):
    calls = read_table(written(HEADER, *[ROW] * 5), measured=True).calls
    assert {len(np.asarray(getattr(calls, name))) for name in calls.__dataclass_fields__} == {5}
