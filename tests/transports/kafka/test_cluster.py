"""Three servers that are one: any of them may be lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from brokers.kafka_server import KafkaCluster, KafkaServer
from transports.flow import flow
from transports.kafka.support import opened
from transports.words import receive, sends


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    found = KafkaCluster(tmp_path_factory.mktemp("cluster"))
    try:
        found.start()
        yield found
    finally:
        found.close()


@pytest.mark.timeout(180)
async def test_messages_outlive_each_server_of_three_while_they_flow(cluster: KafkaCluster) -> None:
    url = f"{cluster.url}&session=4"

    def lose(server: KafkaServer, back: KafkaServer | None = None) -> None:
        if back is not None:
            back.start()
        server.kill()

    one, two, three = cluster.servers
    troubles = {500: lambda: lose(one), 1500: lambda: lose(two, one), 2500: lambda: lose(three, two), 3500: three.start}
    async with (
        opened(url, lease=10.0) as sender,
        opened(url, "other", lease=10.0) as transport,
        transport.subscribe("work", prefetch=50) as subscription,
    ):
        (topic,) = await transport.desk.cluster._admin.describe_topics(["work"])
        assert {len(partition["replicas"]) for partition in topic["partitions"]} == {3}
        seen = await flow(sender, subscription, 4500, troubles, within=90.0)
    assert len(seen) == 4500


@pytest.mark.timeout(120)
async def test_any_server_of_the_address_will_do_to_begin_with(cluster: KafkaCluster) -> None:
    cluster.servers[0].kill()
    try:
        async with opened(cluster.url) as transport:
            await transport.send(*sends(8))
            async with transport.subscribe("work", prefetch=8) as subscription:
                for _ in range(8):
                    await (await receive(subscription, within=40)).ack()
    finally:
        cluster.servers[0].start()
