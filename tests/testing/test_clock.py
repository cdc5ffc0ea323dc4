"""Virtual time: instant where only timers are left, real where threads or sockets may come first, never a hang."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time

import pytest

from oncue.testing import VirtualTimeLoop, run_in_virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_year_of_sleep_takes_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(365 * 86400)
        return now()

    started = time.monotonic()
    assert run_in_virtual_time(main) == pytest.approx(365 * 86400)
    assert time.monotonic() - started < 5


def test_a_coroutine_can_be_given_instead_of_a_function() -> None:
    async def main(word: str) -> str:
        return word

    assert run_in_virtual_time(main("done")) == "done"


def test_sleepers_wake_in_the_order_of_their_times_each_run_alike() -> None:
    async def main() -> list[tuple[float, int]]:
        woken = []

        async def sleeper(number: int) -> None:
            await asyncio.sleep((number * 7) % 5 + 0.25)
            woken.append((now(), number))

        await asyncio.gather(*(sleeper(number) for number in range(20)))
        return woken

    first = run_in_virtual_time(main)
    assert [when for when, _ in first] == sorted(when for when, _ in first)
    assert first == run_in_virtual_time(main)


def test_a_timeout_fires_at_its_time_and_not_before() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.Event().wait()
        assert now() == 60
        async with asyncio.timeout(60):
            await asyncio.sleep(59.9)

    run_in_virtual_time(main)


def test_short_waits_late_in_time_come_to_an_end() -> None:
    async def main() -> None:
        await asyncio.sleep(3e9)
        for _ in range(10):
            await asyncio.sleep(1e-9)
        async with asyncio.timeout(1e-7):
            pass

    run_in_virtual_time(main)


def test_time_does_not_jump_ahead_of_work_in_a_thread() -> None:
    async def main() -> None:
        go = threading.Event()

        async def let_go() -> None:
            go.set()

        started = asyncio.create_task(let_go())
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(go.wait, 30)
        await started
        assert now() < 30

    run_in_virtual_time(main)


def test_after_work_in_a_thread_time_jumps_again() -> None:
    async def main() -> None:
        await asyncio.to_thread(int)
        await asyncio.sleep(86400)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        await asyncio.sleep(86400)

    started = time.monotonic()
    run_in_virtual_time(main)
    assert time.monotonic() - started < 30


def test_time_does_not_jump_ahead_of_a_watched_socket() -> None:
    async def main() -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            echo = threading.Thread(target=lambda: theirs.sendall(theirs.recv(5).upper()))
            echo.start()
            async with asyncio.timeout(30):
                await loop.sock_sendall(ours, b"hello")
                answer = await loop.sock_recv(ours, 5)
            echo.join()
            return answer

    assert run_in_virtual_time(main) == b"HELLO"


def test_a_thread_of_ones_own_can_still_wake_the_loop() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(answer.set_result, "here"))
        thread.start()
        try:
            return await answer
        finally:
            thread.join()

    assert run_in_virtual_time(main) == "here"


def test_a_deadlock_is_an_error_that_says_who_waits_where() -> None:
    async def forgotten_wait() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(forgotten_wait(), name="the consumer")

    with pytest.raises(RuntimeError, match=r"(?s)deadlock.*the consumer waits in .*test_clock\.py:\d+"):
        run_in_virtual_time(main)


def test_tasks_left_behind_are_cancelled_as_asyncio_run_does() -> None:
    seen = []

    async def stay() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> None:
        main.left = asyncio.create_task(stay())  # type: ignore[attr-defined]
        await asyncio.sleep(1)

    run_in_virtual_time(main)
    assert seen == ["cancelled"]


def test_an_error_of_the_program_is_raised_as_it_is() -> None:
    async def main() -> None:
        await asyncio.sleep(5)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run_in_virtual_time(main)


def test_a_loop_can_be_made_without_running_it() -> None:
    loop = VirtualTimeLoop()
    assert loop.time() == 0
    loop.close()


def test_the_clock_needs_no_pytest() -> None:
    code = "import sys, oncue.testing; oncue.testing.run_in_virtual_time; print('pytest' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == "False"
