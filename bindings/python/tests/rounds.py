"""The end of a round, as tests wait for it."""


def settled(engine, rounds, timeout):
    """Waits until more than `rounds` rounds have ended: its report, and how many have. One that comes too late for its step is tried again by itself."""
    while True:
        engine.wait_round(rounds, timeout)
        rounds += 1
        report = engine.last_report()
        if report.outcome != "too_late":
            return report, rounds
