"""fss-svf reproduce: all the trainings and evaluations of a table, from one command."""
