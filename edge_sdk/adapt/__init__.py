"""Online distillation: the student learns on the stream it watches, in a process beside it."""
