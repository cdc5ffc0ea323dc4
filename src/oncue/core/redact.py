"""Keeps secrets out of every text that people or logs see: URLs, `key=value` texts, error messages.

In doubt it hides too much: a text that is harder to read is the smaller harm.
"""

from __future__ import annotations

import re

HIDDEN = "***"

# Each pattern begins only where no earlier beginning is possible, so that the time is linear in the length of the text.
_URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]+://\S+|(?<![^\s@])[^\s:@]*:\S+@\S+", re.ASCII)
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//", re.ASCII)
_PARAMETER = re.compile(r"(?<=[?&;#])(?P<name>[^=&;#?]+)=(?P<value>[^&;#]*)")
_NAME = re.compile(r"(?<![A-Za-z0-9_.-])(?P<name>[A-Za-z0-9_.-]++)(?P<quote>[\"']?)\s*+(?P<sign>[=:])\s*+")
_VALUE = re.compile(r"\"(?:[^\"\\]|\\.)*+\"|'(?:[^'\\]|\\.)*+'|(?:(?:Bearer|Basic)\s+)?[^\s&;]+")

# Written without separators and compared with the end of a name: `AWS_SECRET_ACCESS_KEY` and `clientSecret` are both meant.
_SECRET_ENDINGS = (
    "password", "passwd", "passphrase", "pwd", "secret", "token", "credential", "credentials", "signature",
    "apikey", "accesskey", "accesskeyid", "secretkey", "privatekey", "accountkey", "authorization",
)  # fmt: skip
# Too short or too common to be looked for at the end of longer words.
_SECRET_WORDS = frozenset({"pass", "auth", "sig", "jwt", "sas"})
_PLAIN_WORDS = frozenset({"token", "signature", "pass", "auth", "sig"})


def redact(text: str) -> str:
    """`text` with `***` in place of the secrets in its URLs and of the values of secret names (`password=`, `"token": `).

    Pure; never raises; redacting twice changes nothing more.
    """
    text = redact_urls(text)
    parts: list[str] = []
    done = 0
    for name in _NAME.finditer(text):
        value = _VALUE.match(text, name.end()) if name.start() >= done and _asks_for_secrecy(name) else None
        if value is not None:
            quote = value[0][0] if value[0][0] in "\"'" and value[0][-1] == value[0][0] and len(value[0]) > 1 else ""
            parts += text[done : name.end()], quote, HIDDEN, quote
            done = value.end()
    return "".join(parts) + text[done:]


def redact_urls(text: str) -> str:
    """`text` with the secrets in its URLs hidden and all else as it was, for texts such as tracebacks. Pure."""
    return _URL.sub(lambda match: redact_url(match.group()), text)


def redact_url(url: str) -> str:
    """One URL with its password, a user part that may be a token, and secret parameters hidden. Pure; never raises.

    A user name is shown only when a password follows it. Everything up to the last `@` counts as user part, so that a
    password whose special characters were not escaped is hidden whole.
    """
    start = _SCHEME.match(url)
    at = start.end() if start else 0
    user, sign, rest = url[at:].rpartition("@")
    if sign and not user.startswith("/"):
        name, colon, _password = user.partition(":")
        url = f"{url[:at]}{name}:{HIDDEN}@{rest}" if colon else f"{url[:at]}{HIDDEN}@{rest}"
    return _PARAMETER.sub(_redact_parameter, url)


def is_secret_name(name: str) -> bool:
    """Whether a setting, header or parameter of this name holds a secret, as far as its name tells."""
    lowered = name.lower()
    words = re.split(r"[-_.\s]+", lowered)
    return "".join(words).endswith(_SECRET_ENDINGS) or words[-1] in _SECRET_WORDS


def _redact_parameter(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    nested = "%40" in value and "%3a" in value.lower()  # a whole URL with a user part, escaped
    hide = value and (nested or name.lower() == "key" or is_secret_name(name))
    return f"{name}={HIDDEN}" if hide else match[0]


def _asks_for_secrecy(match: re.Match[str]) -> bool:
    # In a sentence ("unexpected token: x") the plain words are no names.
    prose = match["sign"] == ":" and not match["quote"] and match["name"].lower() in _PLAIN_WORDS
    return not prose and is_secret_name(match["name"])
