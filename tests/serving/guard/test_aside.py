import threading

from moh_deploy.serving.guard.same_answers import BackgroundJobs


def test_jobs_are_done_in_their_order():
    aside, done = BackgroundJobs("test", 10), []
    for number in range(5):
        assert aside.submit(lambda number=number: done.append(number))
    aside.wait()
    assert done == [0, 1, 2, 3, 4]
    aside.close()


def test_a_full_queue_drops_and_counts():
    aside, go, done = BackgroundJobs("test", 2), threading.Event(), []
    begun = threading.Event()
    aside.submit(lambda: (begun.set(), go.wait(10)))
    begun.wait(10)
    taken = [aside.submit(lambda: done.append(1)) for _ in range(5)]
    assert taken == [True, True, False, False, False]
    assert aside.dropped == 3
    go.set()
    aside.wait()
    assert done == [1, 1]
    aside.close()


def test_a_job_that_raises_is_counted_and_the_next_goes_on():
    aside, done = BackgroundJobs("test"), []
    aside.submit(lambda: 1 / 0)
    aside.submit(lambda: done.append(1))
    aside.wait()
    assert (done, aside.failed) == ([1], 1)
    aside.close()


def test_close_ends_the_thread_and_takes_no_more():
    aside, done = BackgroundJobs("test"), []
    aside.close()
    assert not aside.submit(lambda: done.append(1))
    assert not [one for one in threading.enumerate() if one.name == "test"]
