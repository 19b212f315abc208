"""The section [plugins.webhook], where its names may lead, and what doctor says of them."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.plugins.webhook.receiver import SECRET, Receiver
from vellumd import sources
from vellumd.errors import ConfigError
from vellumd_webhook import wire
from vellumd_webhook.client import FailedError, open_client
from vellumd_webhook.plugin import TargetSettings, WebhookSettings, check_targets


def section(**keys: Any) -> WebhookSettings:
    """A valid section with one target; raises `ConfigError` for a wrong one."""
    target = {"url": "https://shop.example.org/hook", "secret": SECRET, **keys}
    targets = {"targets": {"shop": target}}
    return sources.validate_section(WebhookSettings, targets, "plugins.webhook")


def target(url: str, **keys: Any) -> TargetSettings:
    """One target."""
    return section(url=url, **keys).targets["shop"]


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://shop.example.org/hook", "shop.example.org", 443),
        ("HTTPS://Shop.Example.org:8443/a/b?c=d&e=%20", "shop.example.org", 8443),
        ("https://192.168.1.5?x", "192.168.1.5", 443),
        ("http://localhost:3000", "localhost", 3000),
        ("http://127.0.0.2:1880/hook", "127.0.0.2", 1880),
        ("http://[::1]:3000/", "::1", 3000),
        ("https://[2001:db8::1]/", "2001:db8::1", 443),
    ],
)
def test_urls_that_are_taken(url: str, host: str, port: int) -> None:
    """https anywhere, http on this machine."""
    found = target(url)
    assert (found.host, found.port, found.url) == (host, port, url)


@pytest.mark.parametrize(
    "url",
    [
        "http://shop.example.org/", "http://192.168.1.5/", "ftp://shop.example.org/",
        "https://me:secret@shop.example.org/", "https://shop.example.org@evil.example/",
        "https://shop.example.org\\@evil.example/", "https://shop.example.org/a b",
        "https://shop.example.org/#x", "https://shop.example.org:99999/", "https:///x", "https://",
        "shop.example.org", "https://shöp.example.org/", "https://shop.example.org/\n",
        "http://localhost.evil.example/", "http://127.0.0.1.evil.example/", "https://[::1",
        "https://shop.example.org:0/", "//shop.example.org/", "https:/shop.example.org/",
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    """At the start, by a text that does not repeat them: a URL may be a secret."""
    with pytest.raises(ConfigError) as caught:
        target(url)
    assert "must" in caught.value.message
    assert url == "https://" or url not in caught.value.message


def test_http_leaves_this_machine_only_if_it_is_allowed_to() -> None:
    """In a house without certificates."""
    assert target("http://192.168.1.5:8123/hook", allow_plaintext=True).port == 8123


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "not a secret", "whsec_" + base64.b64encode(b"short").decode(), SECRET[6:],
     "whsec_" + base64.b64encode(b"x" * 65).decode(), "whsec_!!!!"],
)  # fmt: skip
def test_bad_secrets_are_refused(secret: str) -> None:
    """Told how to make one, and never shown."""
    with pytest.raises(ConfigError) as caught:
        section(secret=secret)
    assert "openssl rand" in caught.value.message
    assert len(secret) < 7 or secret not in caught.value.message


def test_the_rest_of_the_section(tmp_path: Any) -> None:
    """Some target, no unknown key; the secret comes from its file and is not shown."""
    with pytest.raises(ConfigError, match=r"set targets\.NAME\.url"):
        sources.validate_section(WebhookSettings, {}, "plugins.webhook")
    with pytest.raises(ConfigError, match="secrets"):
        section(secrets=1)
    (tmp_path / "secret").write_text(f"{SECRET}\nnot this\n")
    keys = {"url": "https://a.example/token", "secret_file": str(tmp_path / "secret")}
    found = sources.validate_section(WebhookSettings, {"targets": {"a": keys}}, "plugins.webhook")
    assert found.targets["a"].secret.get_secret_value() == SECRET
    assert SECRET not in repr(found) and "token" not in repr(found)


def test_signatures_are_the_standards_own() -> None:
    """The example of the Standard Webhooks specification's libraries."""
    message = wire.Message("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}')
    made = wire.headers(message, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 1614265330)
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


Names = Callable[..., None]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A name server that gives these answers to `name.example`, the last one for ever."""
    real = socket.getaddrinfo

    def set_to(*answers: str) -> None:
        left = list(answers)

        def look_up(host: Any, port: Any, *args: Any, **options: Any) -> Any:
            if host != "name.example":
                return real(host, port, *args, **options)
            found = left.pop(0) if len(left) > 1 else left[0]
            return real(found, port, *args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    return set_to


MESSAGE = wire.Message("id", b"{}")


async def post(url: str, **keys: Any) -> None:
    """One post, within a second."""
    async with open_client(target(url, **keys), timeout_s=1) as client:
        await client.post(MESSAGE)


async def test_a_name_is_looked_up_once(names: Names, receiver: Receiver) -> None:
    """What was checked is what is connected to, though the next answer is another one."""
    names("127.0.0.1", "169.254.169.254")
    await post(f"http://name.example:{receiver.port}/x", allow_plaintext=True)
    (call,) = receiver.calls
    assert call.headers["host"] == f"name.example:{receiver.port}"
    with pytest.raises(FailedError, match="leads where no target may be"):
        await post(f"http://name.example:{receiver.port}/x", allow_plaintext=True)
    assert len(receiver.calls) == 1


async def test_http_to_this_machine_stays_on_it(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    """Even where somebody makes localhost another machine."""
    await post(f"http://localhost:{receiver.port}/x")
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, *a, **o: real("192.0.2.1", port, *a, **o)
    )
    with pytest.raises(FailedError, match="leads where no target may be"):
        await post(f"http://localhost:{receiver.port}/x")
    assert len(receiver.calls) == 1


async def test_a_proxy_of_the_environment_is_not_used(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    """It would look the name up itself."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    await post(receiver.url)
    assert len(receiver.calls) == 1


async def test_doctor_reaches_the_targets(receiver: Receiver) -> None:
    """It connects, and sends a signed ping only when that is asked for."""
    settings = section(url=receiver.url)
    (check,) = await check_targets(settings)
    assert check.ok and "takes connections at 127.0.0.1" in check.text and not receiver.calls
    (check,) = await check_targets(settings.model_copy(update={"ping": True}))
    assert check.ok and check.text.endswith("takes signed messages")
    assert receiver.calls[0].json["type"] == "ping" and receiver.calls[0].is_signed()
    receiver.answer = lambda call: (401, {}, b"")
    (check,) = await check_targets(settings.model_copy(update={"ping": True}))
    assert not check.ok and "answers 401; correct its url or secret" in check.text


async def test_doctor_says_what_cannot_be_reached(names: Names) -> None:
    """A closed port, and a name that leads where it must not."""
    closed = Receiver()
    closed.close()
    names("169.254.169.254")
    for url in (closed.url, "https://name.example/"):
        (check,) = await check_targets(section(url=url))
        assert not check.ok and "cannot be reached at" in check.text
    assert "its name leads where no target may be" in check.text
