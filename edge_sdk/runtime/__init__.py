"""The device side: schedules, engines and the runner; numpy and a backend, nothing else."""
