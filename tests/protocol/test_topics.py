"""Topics: built and parsed by the same table, and nothing foreign gets in."""

import pytest

from protocol import topics
from protocol.errors import ConfigError
from protocol.topics import TABLE, Address, Topics
from protocol.transport import matches

DIGEST = "0123456789abcdef" * 4
LAB = Topics("lab")


def test_the_topics_are_those_of_the_documentation():
    assert [LAB.of(kind, "pi-1", DIGEST) for kind in TABLE] == [
        "sf/1/lab/dev/pi-1/state",
        "sf/1/lab/dev/pi-1/task",
        "sf/1/lab/dev/pi-1/update",
        "sf/1/lab/dev/pi-1/want",
        "sf/1/lab/dev/pi-1/fetch",
        f"sf/1/lab/dev/pi-1/blob/{DIGEST}",
        f"sf/1/lab/blob/{DIGEST}",
        f"sf/1/lab/dev/pi-1/repeat/{DIGEST}",
        "sf/1/lab/coord/state",
    ]


@pytest.mark.parametrize("kind", TABLE)
def test_parsing_returns_what_was_built(kind):
    levels = TABLE[kind].levels
    expected = Address(kind, "pi-1" if "{id}" in levels else None, DIGEST if "{digest}" in levels else None)
    assert LAB.parse(LAB.of(kind, "pi-1", DIGEST)) == expected


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "sf/1/lab",
        "sf/1/lab/",
        "sf/2/lab/coord/state",
        "sf/1/other/coord/state",
        "sf/1/lab/coord/state/",
        "sf/1/lab/coord",
        "sf/1/lab/dev/pi-1/unknown",
        "sf/1/lab/dev/+/state",
        "sf/1/lab/dev//state",
        "sf/1/lab/dev/pi-1\n/state",
        "sf/1/lab/dev/.hidden/state",
        f"sf/1/lab/dev/{'a' * 65}/state",
        "sf/1/lab/blob/#",
        f"sf/1/lab/blob/{DIGEST[:-1]}",
        f"sf/1/lab/blob/{DIGEST}\n",
        f"sf/1/lab/blob/{DIGEST.upper()}",
    ],
)
def test_a_foreign_topic_has_no_address(topic):
    assert LAB.parse(topic) is None


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a#", "-a", ".a", "a b", "a\n", "ä", "a" * 65, "a\0"])
def test_a_name_that_could_reach_other_topics_is_refused(name):
    with pytest.raises(ConfigError, match="fleet"):
        Topics(name)
    with pytest.raises(ConfigError, match="client id"):
        LAB.of(topics.STATE, name)


@pytest.mark.parametrize("digest", ["", "+", DIGEST[1:], DIGEST.upper(), DIGEST + "\n"])
def test_a_blob_topic_needs_a_digest(digest):
    with pytest.raises(ValueError, match="SHA-256"):
        LAB.of(topics.BLOB_DOWN, digest=digest)


def test_each_side_subscribes_to_what_the_other_sends_and_to_nothing_of_its_own():
    for kind, rule in TABLE.items():
        topic = LAB.of(kind, "pi-1", DIGEST)
        of_coordinator = any(matches(one, topic) for one in LAB.coordinator_filters())
        of_client = any(matches(one, topic) for one in (*LAB.client_filters("pi-1"), LAB.repeats("pi-1")))
        assert of_coordinator is (rule.sender == topics.CLIENT)
        # Chunks are subscribed to blob by blob: a slow link must not carry those of another cohort.
        assert of_client is (rule.sender == topics.COORDINATOR and kind != topics.BLOB_DOWN)


def test_a_client_does_not_subscribe_to_what_is_sent_to_another():
    filters = (*LAB.client_filters("pi-1"), LAB.repeats("pi-1"))
    for topic in (LAB.of(topics.TASK, "pi-2"), LAB.of(topics.REPEAT, "pi-2", DIGEST)):
        assert not any(matches(one, topic) for one in filters)


def test_only_state_is_retained():
    assert {kind for kind, rule in TABLE.items() if rule.retain} == {topics.STATE, topics.HELLO}
