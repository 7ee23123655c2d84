"""The end of a round, as tests wait for it."""


def settled(engine, rounds, timeout):
    """Waits until more than `rounds` rounds have ended, and returns the report. One that comes too late for its step is tried again by itself: for that too."""
    while True:
        engine.wait_round(rounds, timeout)
        report = engine.last_report()
        if report.outcome != "too_late":
            return report
        rounds = report.round
