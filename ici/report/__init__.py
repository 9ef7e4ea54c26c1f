"""Reports: tables and figures of an experiment."""
