"""What the results of a study say: tables and plots, from the file of results alone."""
