"""The lab: data, tasks, training, reports and the command line around the library."""
