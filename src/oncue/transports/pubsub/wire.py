"""Google's own messages of the protocol, in their plain form, which costs a fraction of what its friendly wrappers do."""

from __future__ import annotations

from typing import Any

from google.pubsub_v1.types import pubsub as theirs


def _plain(name: str) -> Any:
    return getattr(theirs, name).pb()


AcknowledgeRequest = _plain("AcknowledgeRequest")
DeleteSubscriptionRequest = _plain("DeleteSubscriptionRequest")
DeleteTopicRequest = _plain("DeleteTopicRequest")
GetSubscriptionRequest = _plain("GetSubscriptionRequest")
ListSubscriptionsRequest = _plain("ListSubscriptionsRequest")
ListSubscriptionsResponse = _plain("ListSubscriptionsResponse")
ModifyAckDeadlineRequest = _plain("ModifyAckDeadlineRequest")
PublishRequest = _plain("PublishRequest")
PublishResponse = _plain("PublishResponse")
PubsubMessage = _plain("PubsubMessage")
PullRequest = _plain("PullRequest")
PullResponse = _plain("PullResponse")
Subscription = _plain("Subscription")
Topic = _plain("Topic")
GetTopicRequest = _plain("GetTopicRequest")
UpdateSubscriptionRequest = _plain("UpdateSubscriptionRequest")
