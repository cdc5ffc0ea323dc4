"""The promises by number: what each is about, and where those are proved that no suite inside one process can test."""

from __future__ import annotations

from collections.abc import Mapping

PROMISES: Mapping[str, str] = {
    "T1": "what is sent comes back byte for byte",
    "T2": "what is too large is refused before anything is stored",
    "T3": "waiting for a message costs nothing and ends when one is there",
    "T4": "queues do not leak into each other",
    "T5": "consumers of one queue share its messages",
    "T6": "messages wait for their first consumer",
    "T7": "a batch is stored whole, or the error says what is not",
    "T8": "every allowed name is a queue of its own",
    "T9": "a message that nobody settles comes again when its lease ends",
    "T10": "a lease is settled once, and a late settle changes nothing",
    "T11": "a refused message comes again at once, or when asked",
    "T12": "a rejected message is set aside with its reason",
    "T13": "acknowledgements out of order leave exactly the others",
    "T14": "messages of one key stay in order",
    "T15": "a lease that is extended in time stays held",
    "T16": "a consumer that was frozen is refused when it goes on",
    "T17": "an extension that fails costs nothing",
    "T18": "the longest time that a message can be held is known beforehand",
    "T19": "delayed messages outlive connections and restarts",
    "T20": "messages come as they are due, and delayed ones hold up no others",
    "T21": "delays of any allowed length are kept",
    "T22": "what was scheduled can be called off",
    "T23": "delayed messages are counted apart",
    "T24": "an attempt counts when it failed, and not when it was given back",
    "T25": "a message that ends its consumers takes no others along",
    "T26": "dead letters can be looked at, put back and discarded",
    "T27": "depth is exact at every moment",
    "T28": "no message is lost when the store restarts",
    "T29": "a send that was cut off is not said to have worked",
    "T30": "a consumer whose queue goes away is told",
    "T31": "a message comes after a long silence",
    "T32": "close finishes or reports what was asked before",
    "T33": "closing many times, and using what is closed, is harmless",
    "T34": "closing releases what is held",
    "T35": "no more than prefetch are held, and it goes on when there is room",
    "T36": "consumers that fail and come and go lose and repeat nothing",
    "T37": "wrong credentials give a clear error without a secret in it",
    "T38": "memory does not grow with time",
    "T39": "leases hold when the clock is set",
    "T40": "a queue with other settings is reported and left alone",
    "T41": "everything may be cancelled at any moment",
    "T42": "what is sent with an acknowledgement arrives, and in one step where that is claimed",
    "T43": "messages that were kept too long are dropped, where that is asked for",
    "T44": "what cannot be done is refused with one of our errors",
    "T45": "what a transport says of itself is true",
}
"""Number to promise."""

ELSEWHERE: Mapping[str, str] = {
    "T37": "needs a store with credentials: a test of the transport's own, for each way to be refused",
    "T38": "needs hours: a soak of the transport's own, which watches the memory of a process that sends and receives",
    "T39": "needs a clock that can be set, or a transport whose clock can be replaced: a test of the transport's own",
}
"""Promises that no case tests, and where they are proved instead.

Of those that have cases, some have a half that only real processes can show, and belong into the transport's own tests too:
T16 with a consumer stopped by SIGSTOP, T24 and T25 with consumers ended by SIGKILL, T29 with a connection cut in the middle of
a send, and T18 and T21 with limits of the broker that are shortened for the test.
"""
