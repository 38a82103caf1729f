"""A client of a Dask cluster, whose tasks run in this process."""

from functools import partial


class PretendedClient:
    """What ``evenslice._core.cluster`` needs of a client.

    Args:
        workers: their number.
        lazy: run a task when its result is asked for, not when it is sent.

    Attributes:
        sent: the first argument of each task.
    """

    cluster = None

    def __init__(self, workers=1, *, lazy=False):
        self.workers, self.lazy, self.sent = workers, lazy, []

    def nthreads(self):
        return dict.fromkeys(range(self.workers), 1)

    def replicate(self, _):
        pass

    def submit(self, function, *arguments, **_):
        self.sent.append(arguments[0])
        task = PretendedTask(partial(_call, function, arguments))
        if not self.lazy:
            task.result()
        return task


class PretendedTask:
    """A future: what it is made of runs once."""

    status = "finished"

    def __init__(self, run):
        self._run, self._results = run, []

    def result(self):
        if not self._results:
            self._results.append(self._run())
        return self._results[0]

    def done(self):
        return True

    def exception(self):
        return None


def _call(function, arguments):
    return function(*(item.result() if isinstance(item, PretendedTask) else item for item in arguments))
