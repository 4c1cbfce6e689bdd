"""The command line: from KEY=VALUE to a run, a report, a check. No other package uses Hydra."""
