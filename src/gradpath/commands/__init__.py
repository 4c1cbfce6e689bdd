"""The command line: from KEY=VALUE to a run, a report, a check. Hydra is known here alone."""
