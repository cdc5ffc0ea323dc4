"""Settings: where they come from, what wins, and what is said about the faults."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.core.errors import InvalidValueError, SettingsError
from oncue.core.settings import Loaded, Settings, describe, load_settings
from oncue.core.times import format_duration, parse_duration, parse_timestamp, timestamp


def load(folder: Path, yaml: str | None = None, options: dict[str, object] | None = None, **environ: str) -> Loaded:
    if yaml is not None:
        (folder / "oncue.yaml").write_text(yaml)
    return load_settings(environ=environ, options=options, folder=folder)


def faults(
    folder: Path, yaml: str | None = None, options: dict[str, object] | None = None, **environ: str
) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(folder, yaml, options, **environ)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return [fault.replace(f"{folder}/", "") for fault in caught.value.faults]


def test_without_any_source_every_setting_has_its_default(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.settings == Settings()
    assert loaded.settings.url == "sqlite:///.oncue/oncue.db"
    assert {row.source for row in loaded.in_force()} == {"default"}


def test_the_command_line_wins_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    yaml = "url: 'memory:'\nprefix: a-\ngrace: 1s\n"
    loaded = load(tmp_path, yaml, {"grace": "3s", "url": None}, ONCUE_PREFIX="b-", ONCUE_GRACE="2s")
    assert (loaded.settings.url, loaded.settings.prefix, loaded.settings.grace) == ("memory:", "b-", 3.0)
    assert loaded.sources == {
        "url": f"{tmp_path}/oncue.yaml:1 url",
        "prefix": "environment ONCUE_PREFIX",
        "grace": "command line --grace",
    }


def test_every_fault_of_every_source_is_reported_at_once_with_its_place(tmp_path: Path) -> None:
    yaml = "grcae: 5s\nprocesses: 0\n\nlog_payloads: maybe\nmetrics: 9090\nprocesses: 2\n"
    found = faults(tmp_path, yaml, {"grace": "soon"}, ONCUE_LOG_FROMAT="json", ONCUE_LOG_LEVEL="loud")
    assert found == [
        "oncue.yaml:6: 'processes' is there twice, first at oncue.yaml:2",
        "oncue.yaml:1: unknown setting 'grcae', did you mean 'grace'?",
        "oncue.yaml:4: log_payloads is 'maybe', expected true or false",
        "oncue.yaml:5: metrics is 9090, expected HOST:PORT or :PORT with a port up to 65535, or nothing",
        "environment: ONCUE_LOG_LEVEL is 'loud', expected one of debug, info, warning, error",
        "environment: unknown setting ONCUE_LOG_FROMAT, did you mean 'ONCUE_LOG_FORMAT'?",
        "command line: --grace is 'soon', expected seconds, or a text like 250ms, 90s, 5m, 1h30m or 7d",
    ]


@pytest.mark.parametrize(
    ("yaml", "fault"),
    [
        ("- a\n", "oncue.yaml:1: expected settings as `name: value` lines"),
        ("grace: 1\n  url: [\n", "oncue.yaml:2: not YAML: mapping values are not allowed here (a value that holds"),
        ("url: !!python/name:os.system\n", "oncue.yaml:1: url: could not determine a constructor"),
        ("url: \0", "oncue.yaml: not YAML: it holds control characters"),
        ("? [a]\n: b\n", "oncue.yaml:1: expected a name, found a sequence"),
        ("url:\n", "oncue.yaml:1: url is empty, expected a URL"),
        ("grace: {a: 1}\n", "oncue.yaml:1: grace is a dict, expected seconds"),
    ],
)
def test_a_file_that_holds_no_settings_gets_one_line_with_its_place(tmp_path: Path, yaml: str, fault: str) -> None:
    found = faults(tmp_path, yaml)
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_a_file_that_is_named_must_be_there_and_one_that_is_not_named_need_not(tmp_path: Path) -> None:
    missing = tmp_path / "other.yaml"
    for source in ({"config": missing}, {"environ": {"ONCUE_CONFIG": str(missing)}}):
        with pytest.raises(SettingsError, match="other.yaml: cannot be read: No such file or directory"):
            load_settings(**{"environ": {}, "folder": tmp_path, **source})
    assert load(tmp_path).config is None


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing yet\n").settings == Settings()


def test_a_file_that_is_not_text_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "oncue.yaml").write_bytes(b"url: \xff\n")
    assert faults(tmp_path) == ["oncue.yaml: not UTF-8 text (byte 5)"]


def test_an_alias_is_as_good_as_the_main_name_but_the_two_must_not_differ(tmp_path: Path) -> None:
    assert load(tmp_path, ASYA_LOG_LEVEL="DEBUG").settings.log_level == "debug"
    assert load(tmp_path, ASYA_LOG_LEVEL="WARN", ONCUE_LOG_LEVEL="warning").settings.log_level == "warning"
    assert faults(tmp_path, ASYA_LOG_LEVEL="INFO", ONCUE_LOG_LEVEL="debug") == [
        "environment: ONCUE_LOG_LEVEL='debug' and ASYA_LOG_LEVEL='INFO' are two names of one setting and differ: "
        "keep one of them"
    ]


def test_an_empty_variable_counts_as_unset_except_where_empty_is_a_value(tmp_path: Path) -> None:
    settings = load(tmp_path, ONCUE_URL="", ONCUE_PREFIX="", ONCUE_GRACE="").settings
    assert (settings.url, settings.prefix, settings.grace) == (Settings().url, "", 30.0)


def test_the_variables_that_kubernetes_makes_for_services_are_not_settings(tmp_path: Path) -> None:
    links = {
        "ONCUE_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "ONCUE_GATEWAY_SERVICE_PORT_HTTP": "80",
        "ONCUE_GATEWAY_PORT": "tcp://10.0.0.1:80",
        "ONCUE_GATEWAY_PORT_80_TCP_ADDR": "10.0.0.1",
        "ONCUE_PORT": "tcp://10.0.0.1:80",
        "ONCUE_SERVICE_HOST": "10.0.0.1",
    }
    assert load(tmp_path, **links).settings == Settings()
    assert faults(tmp_path, ONCUE_PORT="80") == ["environment: unknown setting ONCUE_PORT"]


def test_the_password_of_a_url_is_in_no_value_shown_and_in_no_fault(tmp_path: Path) -> None:
    loaded = load(tmp_path, ONCUE_URL="redis://u:hunter2@h", ONCUE_RESULTS="sqlite:///r.db?token=hunter2")
    shown = {row.name: row.value for row in loaded.in_force()}
    assert shown["url"] == "redis://u:***@h"
    assert shown["results"] == "sqlite:///r.db?token=***"
    found = faults(tmp_path, "grace: redis://u:hunter2@h\nurl: //u:hunter2@h\n", ONCUE_URL="u hunter2@h")
    assert len(found) == 3
    assert "hunter2" not in "".join(found)


def test_every_setting_is_documented_has_one_variable_and_a_default_that_reads_back(tmp_path: Path) -> None:
    rows = describe()
    assert [row.name for row in rows] == list(Settings.__struct_fields__)
    assert len({name for row in rows for name in row.variables}) == sum(len(row.variables) for row in rows)
    for row in rows:
        assert row.description.endswith("."), row.name
        assert row.kind.read(row.kind.show(row.default)) == row.default, row.name


_VALUES = {
    "url": st.sampled_from(["memory:", "sqlite:///a b.db", "redis://:pw@h/0"]),
    "prefix": st.from_regex(r"\A(?:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?\Z"),
    "log_level": st.sampled_from(["debug", "info", "warning", "error"]),
    "log_format": st.sampled_from(["auto", "text", "json"]),
    "log_payloads": st.booleans(),
    "metrics": st.sampled_from(["", ":0", "127.0.0.1:9090", "[::1]:65535"]),
    "grace": st.integers(0, 10**9).map(lambda millis: millis / 1000),
    "results": st.sampled_from(["", "sqlite:///r.db"]),
    "result_retention": st.integers(1000, 10**9).map(lambda millis: millis / 1000),
    "processes": st.integers(1, 1024),
}


@given(values=st.fixed_dictionaries({}, optional=_VALUES), folder=st.just(Path("/nonexistent")))
def test_what_is_written_into_the_environment_is_what_is_read(values: dict[str, object], folder: Path) -> None:
    rows = {row.name: row for row in describe()}
    environ = {rows[name].variable: rows[name].kind.show(value) for name, value in values.items()}
    loaded = load_settings(environ=environ, folder=folder)
    wanted = Settings(**values)  # type: ignore[arg-type]
    for name in values:
        have, want = getattr(loaded.settings, name), getattr(wanted, name)
        assert have == pytest.approx(want) if isinstance(want, float) else have == want


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(options=st.dictionaries(st.sampled_from([row.name for row in describe()]) | st.text(), _ANYTHING, max_size=4))
def test_any_value_is_read_or_reported_and_nothing_else_happens(options: dict[str, object]) -> None:
    try:
        loaded = load_settings(environ={}, options=options, folder="/nonexistent")
    except SettingsError as error:
        assert error.faults
        assert all("expected" in fault or "unknown" in fault for fault in error.faults)
    else:
        assert msgspec.json.decode(msgspec.json.encode(loaded.settings), type=Settings) == loaded.settings


@given(content=st.text("abc:- \n\t[]{}#&*!|>'\"%@`0\u0000\u2028é"))
def test_any_text_in_the_file_is_read_or_reported(content: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    (folder / "oncue.yaml").write_text(content, encoding="utf-8")
    try:
        load_settings(environ={}, folder=folder)
    except SettingsError as error:
        assert all(fault.startswith(f"{folder}/oncue.yaml") for fault in error.faults)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (5, 5.0),
        (0.25, 0.25),
        ("5", 5.0),
        ("250ms", 0.25),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        ("7d", 604800.0),
        ("0", 0.0),
    ],
)
def test_durations_are_numbers_of_seconds_or_texts_with_units(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5 m", "m", "-5s", "5x", "1m30", "s5", -1, float("nan"), float("inf"), True, None, []]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(InvalidValueError, match="is not a duration: expected seconds"):
        parse_duration(text)


@given(st.integers(0, 10**12))
def test_a_duration_reads_back_as_it_was_written(millis: int) -> None:
    assert round(parse_duration(format_duration(millis / 1000)) * 1000) == millis


def test_a_moment_reads_back_as_it_was_written_and_needs_a_zone() -> None:
    moment = parse_timestamp("2026-11-24T10:14:54.120+01:00")
    assert timestamp(moment) == "2026-11-24T09:14:54.120Z"
    assert [parse_timestamp(text) for text in ("2026-11-24T10:14:54", "soon", "", None)] == [None] * 4
