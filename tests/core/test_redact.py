"""Secrets stay out of texts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.core.redact import is_secret_name, redact, redact_url, redact_urls


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        ("amqp://guest:hun@ter2@host", "amqp://guest:***@host"),
        ("amqp://guest:hun/ter2?@host/vhost", "amqp://guest:***@host/vhost"),
        ("nats://hunter2@host", "nats://***@host"),
        ("hunter1:hunter2@host:5672", "hunter1:***@host:5672"),
        ("redis:/:hunter2@host", "redis:***@host"),
        ("kafka://host?sasl_password=hunter2&acks=all", "kafka://host?sasl_password=***&acks=all"),
        ("sqs://eu-west-1?endpoint=http%3A%2F%2Fu%3Ahunter2%40h&x=1", "sqs://eu-west-1?endpoint=***&x=1"),
        ("sqlite:////home/me@work/jobs.db", "sqlite:////home/me@work/jobs.db"),
        ("sqlite:///jobs.db", "sqlite:///jobs.db"),
        ("memory:", "memory:"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert redact_url(url) == shown
    assert "hunter2" not in redact(f"cannot reach {url}: refused")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("AWS_SECRET_ACCESS_KEY=hun/ter2+= left", "AWS_SECRET_ACCESS_KEY=*** left"),
        ("{'password': 'hunter 2', \"user\": \"x\"}", "{'password': '***', \"user\": \"x\"}"),
        ("Authorization: Bearer hunter.2 left", "Authorization: *** left"),
        ("clientSecret = hunter2", "clientSecret = ***"),
        ("unexpected token: x in line 2", "unexpected token: x in line 2"),
        ("compass=north author=me", "compass=north author=me"),
        ("password: hunter2", "password: ***"),
        ('password="token=hunter2 hunter2" left', 'password="***" left'),
    ],
)
def test_the_values_of_secret_names_are_hidden_and_prose_is_not(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_source_lines_of_a_traceback_stay_readable_while_its_urls_are_redacted() -> None:
    text = "token = read_token()\nOSError: redis://u:hunter2@h is down"
    assert redact_urls(text) == "token = read_token()\nOSError: redis://u:***@h is down"


def test_names_of_secrets_are_told_from_other_names() -> None:
    assert all(map(is_secret_name, ("password", "API-Key", "x-amz-signature", "db.pass", "accessKeyId", "JWT")))
    assert not any(map(is_secret_name, ("key", "compass", "author", "prefix", "url", "tokens_left")))


_CREDENTIAL = st.text(st.characters(exclude_categories=("Z", "C")), min_size=4).filter(lambda text: text.strip("*"))


@given(user=st.text("abcXYZ019", max_size=5), password=_CREDENTIAL)
def test_no_password_survives_whatever_characters_it_has(user: str, password: str) -> None:
    shown = redact(f"before redis://{user}:{password}@host:6379/0 after")
    assert shown == f"before redis://{user}:***@host:6379/0 after"


@given(st.text() | st.text("a:/@?=&;#' \"tokenpswd*", max_size=40))
def test_redacting_again_changes_nothing_more(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


_SAFE = st.text("abcXYZ019._~-", min_size=6, max_size=20).map(lambda text: f"s3cr3t{text}")
_FORMS = [
    "redis://:{}@host:6379/0",
    "amqps://user:{}@host/vhost?heartbeat=5",
    "nats://{}@host:4222",
    "user:{}@host:5672",
    "error:amqp://user:{}@host",
    "kafka://host?sasl_password={}&acks=all",
    "sqs://eu-west-1?x=1&secret_access_key={}",
    "https://host/path?X-Amz-Signature={}",
    "https://host/path#access_token={}",
    "sqs://eu-west-1?endpoint=http%3A%2F%2Fu%3A{}%40h&x=1",
    "password={}",
    'password = "{}"',
    "'password': '{}'",
    '{{"db_password":"{}"}}',
    "--token={}",
    "1password={}",
    "cannot log in:password={}",
    "ONCUE_SECRET={};next=1",
    "Authorization: Bearer {}",
    "authorization: Basic {}",
    "export AWS_SECRET_ACCESS_KEY={}",
]


@pytest.mark.parametrize("form", _FORMS)
@given(secret=_SAFE)
def test_no_secret_survives_in_any_form_that_it_is_written_in(form: str, secret: str) -> None:
    for text in (form.format(secret), f"before {form.format(secret)} after", f"({form.format(secret)})"):
        assert "s3cr3t" not in redact(text), text
        assert redact(redact(text)) == redact(text)


@given(st.text() | st.text("a1:/@?=&;#' \"\\tokenpswd*\n.-", max_size=60))
def test_a_text_without_names_or_urls_of_secrets_is_redacted_without_error(text: str) -> None:
    assert isinstance(redact(text), str)
    assert redact_urls(redact_urls(text)) == redact_urls(text)
    if not any(sign in text for sign in "=:@"):
        assert redact(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a:",
        "ab:",
        "a=",
        "a=b",
        "://",
        "a@",
        "@:",
        "?a",
        "?a=",
        "'a\\",
        'a="',
        '="\\',
        "a=\"b='",
        "a ",
        "a= ",
        "a.-",
        "x:/",
    ],
)
def test_a_long_text_takes_a_time_in_proportion_to_its_length(piece: str) -> None:
    text = piece * (400_000 // len(piece))
    started = time.process_time()
    redact(text)
    redact(f"redis://h?{text}")
    assert time.process_time() - started < 5.0, "a text of this length takes hours where time grows with its square"
