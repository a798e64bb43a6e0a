"""Turns: one thread at a time, in the order in which they came, and the holder again."""

import threading
import time

from perfusion.runtime.turn import Turn


def test_no_two_threads_have_a_turn_at_once():
    turn, inside, worst = Turn(), 0, 0

    def work():
        nonlocal inside, worst
        for _ in range(200):
            with turn, turn:
                inside += 1
                worst = max(worst, inside)
                time.sleep(0)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == 1
    with turn:
        pass


def test_waiters_come_in_their_order():
    turn, order = Turn(), []

    def work(name):
        with turn:
            order.append(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    with turn:
        for thread in threads:
            thread.start()
            time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_thread_that_takes_turn_after_turn_lets_another_in():
    turn, stop, turns = Turn(), threading.Event(), list[None]()

    def work():
        while not stop.is_set():
            with turn:
                turns.append(None)
                time.sleep(0.001)

    busy = threading.Thread(target=work)
    busy.start()
    while not turns:
        time.sleep(0.001)
    before = len(turns)
    with turn:
        waited = len(turns) - before
    stop.set()
    busy.join()
    assert waited <= 2
