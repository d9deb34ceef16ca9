"""Times of a device, and the time that is left."""

import statistics
import sys
import time


class Clock:
    """Times of a device: events on a GPU, the host's clock on a CPU."""

    def __init__(self, torch, device, runs):
        self.torch, self.cuda, self.runs = torch, device == "cuda", runs

    def sync(self):
        if self.cuda:
            self.torch.cuda.synchronize()

    def measure(self, work, runs=None, warm_s=0.02):
        """Median, 10th and 90th percentile of the seconds that `work(number)` takes."""
        runs, number = runs or self.runs, 0
        for _ in range(2):
            work(number)
            number += 1
        self.sync()
        start = time.perf_counter()
        while self.cuda and time.perf_counter() - start < warm_s:
            work(number)
            number += 1
            self.sync()
        if self.cuda:
            events = [self.torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
            work(number)  # not waited for: the host gets a lead
            events[0].record()
            for event in events[1:]:
                number += 1
                work(number)
                event.record()
            self.sync()
            times = [a.elapsed_time(b) * 1e-3 for a, b in zip(events, events[1:])]
        else:
            times = []
            for _ in range(runs):
                start = time.perf_counter()
                work(number)
                number += 1
                times.append(time.perf_counter() - start)
        times.sort()
        pick = lambda share: times[min(int(len(times) * share), len(times) - 1)]
        return dict(
            median_s=statistics.median(times), p10_s=pick(0.1), p90_s=pick(0.9), samples=runs
        )


class Budget:
    """Seconds that are left for what is not yet begun."""

    def __init__(self, seconds):
        self.end = time.perf_counter() + seconds

    def allows(self, seconds):
        return time.perf_counter() + seconds <= self.end


def say(text):
    print(text, file=sys.stderr, flush=True)


def guarded(results, what, work):
    """Runs a part; what goes wrong is a result, too, and does not stop the parts behind it."""
    start = time.perf_counter()
    try:
        found = work()
        found = found if isinstance(found, list) else [found]
    except Exception as error:  # out of memory, a kernel that does not compile, ...
        found = [
            dict(
                what=what,
                error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[
                    :300
                ],
            )
        ]
    results.extend(found)
    say(
        f"{what}  {time.perf_counter() - start:.1f} s"
        + (f"  {found[0]['error']}" if "error" in found[0] else "")
    )
