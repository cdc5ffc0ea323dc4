"""What URLs mean, and what is refused in them."""

from __future__ import annotations

import pytest

from oncue.core.errors import InvalidValueError
from oncue.transports.sqs.address import Address, parse


def test_all_settings_are_read() -> None:
    found = parse(
        "sqs://key:se%2Fcret@eu-west-1?endpoint=http://localhost:9324/&token=t&account=123456789012&visibility=300&hold=600"
        "&wait=5&timeout=3&size=262144&redrive=0&depth=approximate&role=arn:aws:iam::123456789012:role/worker&external=xy"
    )
    assert found == Address(
        region="eu-west-1",
        endpoint="http://localhost:9324",
        key="key",
        secret="se/cret",
        token="t",
        account="123456789012",
        visibility=300,
        hold=600.0,
        wait=5,
        timeout=3.0,
        size=262144,
        redrive=0,
        depth="approximate",
        role="arn:aws:iam::123456789012:role/worker",
        external="xy",
    )


@pytest.mark.parametrize("url", ["sqs:", "sqs://", "sqs:///", "sqs://?wait=20"])
def test_everything_may_be_left_to_aws(url: str) -> None:
    assert parse(url) == Address()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqs://localhost:9324", "region"),
        ("sqs://eu-west-1/queue", "nothing between"),
        ("sqs://key@eu-west-1", "key and secret"),
        ("sqs://?wait=0", "from 1 to 20"),
        ("sqs://?wait=21", "from 1 to 20"),
        ("sqs://?visibility=43200", "from 1 to"),
        ("sqs://?size=1", "bytes"),
        ("sqs://?redrive=1001", "from 0 to 1000"),
        ("sqs://?depth=exact", "approximate"),
        ("sqs://?endpoint=localhost", "URL such as"),
        ("sqs://?account=1", "12 digits"),
        ("sqs://?role=worker", "ARN"),
        ("sqs://?external=xy", "needs role"),
        ("sqs://?role=arn:aws:iam::123456789012:role/worker&external=x", "from 2"),
        ("sqs://?token=x", "needs a key"),
        ("sqs://a:b@eu-west-1?profile=x", "two ways"),
        ("sqs://?unknown=1", "unknown parameter"),
        ("sqs://?timeout=0", "more than 0"),
    ],
)
def test_what_cannot_be_used_is_refused(url: str, words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        parse(url)


def test_no_secret_is_shown() -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse("sqs://AKIA:hunter2@eu-west-1?token=hunter2&wait=99")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(parse("sqs://AKIA:hunter2@eu-west-1?token=hunter2"))
