"""A sidecar's settings under Asya's names: every one of them, what is composed of them, and what is refused."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from oncue.core.asya import load_sidecar_settings
from oncue.core.errors import SettingsError
from oncue.core.schema import known_variables
from oncue.core.settings import SidecarSettings, describe, load_settings
from oncue.core.times import go_duration

RUNTIME = Path(__file__).parents[2] / "src/oncue/runtime.py"


def load(**environ: str) -> SidecarSettings:
    return load_sidecar_settings(environ={"ASYA_ACTOR_NAME": "a"} | environ, folder="/nonexistent")[0]


def faults(**environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(**environ)
    return list(caught.value.faults)


def test_every_setting_of_asyas_sidecar_is_taken() -> None:
    found = load(
        ASYA_ACTOR_HAPPY_END="good",
        ASYA_ACTOR_ERROR_END="bad",
        ASYA_IS_END_ACTOR="YES",
        ASYA_RUNTIME_TIMEOUT="1m30s",
        ASYA_RUNTIME_READY_TIMEOUT="1h",
        ASYA_SOCKET_DIR="/run/x",
        ASYA_SOCKET_NAME="y.sock",
        ASYA_GATEWAY_URL="http://gateway:8080/",
        ASYA_QUEUE_RETRY_MAX_ATTEMPTS="3",
        ASYA_QUEUE_RETRY_BACKOFF="1s",
        ASYA_METRICS_ENABLED="off",
        ASYA_METRICS_ADDR=":9000",
        ASYA_METRICS_NAMESPACE="team",
        ASYA_CUSTOM_METRICS='[{"name": "a-b", "type": "Histogram", "help": "h", "labels": ["x"], "buckets": [1, 2]}]',
        ASYA_LOG_LEVEL="WARN",
    )
    assert (found.actor_name, found.happy_end, found.error_end, found.end_actor) == ("a", "good", "bad", True)
    assert (found.runtime_timeout, found.runtime_ready_timeout) == (90.0, 3600.0)
    assert (found.socket_dir, found.socket_name) == ("/run/x", "y.sock")
    assert (found.gateway_url, found.log_level) == ("http://gateway:8080", "warning")
    assert (found.metrics_enabled, found.metrics, found.metrics_namespace) == (False, ":9000", "team")
    (metric,) = found.custom_metrics
    assert (metric.name, metric.type, metric.labels, metric.buckets) == ("a_b", "histogram", ("x",), (1.0, 2.0))


def test_the_defaults_are_asyas_and_what_is_empty_is_not_given() -> None:
    found = load(ASYA_METRICS_ADDR="", ASYA_GATEWAY_URL="", ASYA_RUNTIME_TIMEOUT="", ASYA_TRANSPORT="")
    assert (found.happy_end, found.error_end, found.end_actor) == ("happy-end", "error-end", False)
    assert (found.runtime_timeout, found.runtime_ready_timeout) == (300.0, 300.0)
    assert (found.socket_dir, found.socket_name) == ("/var/run/asya", "asya-runtime.sock")
    assert (found.metrics_enabled, found.metrics, found.metrics_namespace) == (True, ":8080", "asya_actor")
    assert (found.attempts, found.gateway_url, found.url) == (1, "", "sqlite:///.oncue/oncue.db")
    assert load(ONCUE_METRICS="").metrics == "", "nowhere"


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"ASYA_TRANSPORT": "rabbitmq"}, "amqp://guest:guest@localhost:5672/"),
        (
            {"ASYA_RABBITMQ_HOST": "mq", "ASYA_RABBITMQ_PORT": "1", "ASYA_RABBITMQ_PASSWORD": "p@s/s:?"},
            "amqp://guest:p%40s%2Fs%3A%3F@mq:1/",
        ),
        ({"ASYA_RABBITMQ_EXCHANGE": "other"}, "amqp://guest:guest@localhost:5672/?exchange=other"),
        ({"ASYA_RABBITMQ_URL": "amqps://a:b@c/v", "ASYA_RABBITMQ_HOST": "mq"}, "amqps://a:b@c/v"),
        ({"ASYA_TRANSPORT": "sqs"}, "sqs://us-east-1"),
        (
            {
                "ASYA_TRANSPORT": "sqs",
                "ASYA_AWS_REGION": "eu-central-1",
                "ASYA_SQS_ENDPOINT": "http://local:9324",
                "ASYA_SQS_VISIBILITY_TIMEOUT": "600",
                "ASYA_SQS_WAIT_TIME_SECONDS": "5",
            },
            "sqs://eu-central-1?endpoint=http://local:9324&visibility=600&wait=5",
        ),
        ({"ASYA_TRANSPORT": "rabbitmq", "ONCUE_URL": "memory:"}, "memory:"),
    ],
)
def test_where_no_url_is_given_asyas_parts_make_one(environ: dict[str, str], url: str) -> None:
    assert load(**environ).url == url


def test_asyas_bucket_is_where_results_are_kept() -> None:
    found = load(ASYA_S3_BUCKET="b", ASYA_S3_ENDPOINT="http://minio:9000", ASYA_S3_RESULTS_PREFIX="ok/", AWS_REGION="r")
    assert found.results == "s3://b?endpoint=http://minio:9000&region=r&succeeded=ok/"
    assert load(ASYA_S3_BUCKET="b", ONCUE_RESULTS="sqlite:///r.db").results == "sqlite:///r.db"


def test_all_that_is_wrong_is_told_at_once_with_what_was_expected_and_no_secret() -> None:
    found = faults(
        ASYA_ACTOR_NAME="a b",
        ASYA_TRANSPORT="kafka",
        ASYA_RUNTIME_TIMEOUT="-5s",
        ASYA_RABBITMQ_PORT="x",
        ASYA_RABBITMQ_URL="not a url with password=hush",
        ASYA_IS_END_ACTOR="perhaps",
        ASYA_CUSTOM_METRICS='[{"name": "x", "type": "summary"}]',
        ASYA_QUEUE_RETRY_MAX_ATTEMPTS="0",
        ASYA_GATEWAY_URL="gateway:80",
        ONCUE_RUNTIM_TIMEOUT="3",
    )
    for name in ("ACTOR_NAME", "TRANSPORT", "RUNTIME_TIMEOUT", "RABBITMQ_PORT", "RABBITMQ_URL", "IS_END_ACTOR"):
        assert any(fault.startswith(f"environment: ASYA_{name} is ") and "expected" in fault for fault in found), name
    for name in ("CUSTOM_METRICS", "QUEUE_RETRY_MAX_ATTEMPTS", "GATEWAY_URL"):
        assert any(fault.startswith(f"environment: ASYA_{name} is ") for fault in found), name
    assert "environment: unknown setting ONCUE_RUNTIM_TIMEOUT, did you mean 'ONCUE_RUNTIME_TIMEOUT'?" in found
    assert len(found) == 10
    assert not any("hush" in fault for fault in found)


def test_two_names_of_one_setting_must_agree() -> None:
    assert load(ONCUE_ACTOR_NAME="a").actor_name == "a"
    (fault,) = faults(ONCUE_ACTOR_NAME="b")
    assert "two names of one setting and differ" in fault
    (fault,) = faults(ASYA_RABBITMQ_URL="amqp://u:hush@c/", ONCUE_URL="memory:")
    assert "ONCUE_URL=memory: and ASYA_RABBITMQ_URL=amqp://u:***@c/ are two names of one setting" in fault


def test_the_actor_has_to_be_named() -> None:
    (fault,) = faults(ASYA_ACTOR_NAME="")
    assert "ASYA_ACTOR_NAME is required" in fault


def test_a_file_may_hold_the_settings_of_several_commands(tmp_path: Path) -> None:
    (tmp_path / "oncue.yaml").write_text("actor_name: a\nprocesses: 2\nurl: 'memory:'\nactr_name: b\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={}, folder=tmp_path)
    assert [fault.rpartition("oncue.yaml:")[2] for fault in caught.value.faults] == [
        "4: unknown setting 'actr_name', did you mean 'actor_name'?"
    ]


def test_the_settings_of_the_runtime_are_no_strangers_to_any_command() -> None:
    tree = ast.parse(RUNTIME.read_text(encoding="utf-8"))
    tables = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") in {"_SHARED", "_OWN"}
    ]
    names = {f"ONCUE_{key.value}" for table in tables for key in table.keys}
    assert len(names) > 10
    assert names <= known_variables()
    shared = {name for setting in describe() for name in setting.variables}
    load_settings(environ=dict.fromkeys(names - shared, "1"), folder="/nonexistent")


def test_no_name_stands_for_two_settings() -> None:
    names = [name for setting in describe(SidecarSettings) for name in setting.variables]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.25, "250ms"), (2, "2s"), (1.5, "1.5s"), (90, "1m30s"), (300, "5m0s"), (3600, "1h0m0s")],
)
def test_durations_are_written_as_programs_in_go_do(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text
