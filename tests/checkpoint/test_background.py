"""Jobs beside the steps: one at a time, nothing is lost, faults are told."""

import threading

import pytest

from mindspore_impl.checkpoint import Background


def fail(text):
    raise ValueError(text)


def test_a_job_goes_on_beside_and_the_next_one_waits():
    begun, go, order = threading.Event(), threading.Event(), []

    def first():
        begun.set()
        assert go.wait(60)
        order.append("first")

    with Background() as background:
        background.submit(first)
        assert begun.wait(60) and order == []
        background.check()  # under way: returns at once
        threading.Timer(0.1, go.set).start()
        background.submit(lambda: order.append("second"))  # at most one at a time
        assert order[0] == "first"
        assert background.wait() >= 0 and order == ["first", "second"]
        again = threading.Event()
        background.submit(lambda: again.wait(60))
        threading.Timer(0.1, again.set).start()
        assert background.wait() >= 0.05 > background.wait()  # nothing is under way any more
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")], "it has ended"


@pytest.mark.parametrize("moment", ["check", "wait", "submit", "end"])
def test_an_error_is_raised_once_at_the_next_moment(moment):
    ended = threading.Event()
    with pytest.raises(ValueError, match="^disk$"), Background() as background:
        background.submit(lambda: fail("disk"))
        if moment == "check":
            background._job.add_done_callback(lambda _: ended.set())
            assert ended.wait(60)
            with pytest.raises(ValueError, match="disk"):
                background.check()
            background.check()
            background.submit(lambda: fail("disk"))
        if moment == "wait":
            background.wait()
        if moment == "submit":
            background.submit(lambda: None)


def test_another_error_comes_first_and_the_last_job_is_still_awaited(capsys):
    done = []
    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.submit(lambda: done.append(1))
        raise KeyboardInterrupt
    assert done == [1]
    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.submit(lambda: fail("the disk is full"))
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "warning: the disk is full\n"


def test_without_a_thread_a_job_is_done_at_once():
    done = []
    with Background(active=False) as background:
        background.submit(lambda: done.append(threading.current_thread()))
        assert done == [threading.current_thread()]
        with pytest.raises(ValueError, match="disk"):
            background.submit(lambda: fail("disk"))
        background.check()
        assert background.wait() < 60
