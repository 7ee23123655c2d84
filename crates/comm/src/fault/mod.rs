//! Faults for tests: a seeded wrapper around any communicator, and faults planted on purpose.
